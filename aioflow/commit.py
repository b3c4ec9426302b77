"""The buffer of effects: writes to the service's own data that land together with the acknowledgement, or not at all.

An effect names a key below the service's own prefix; nothing that is put into a name can reach another key. What
type a key has is fixed by the first effect on it; an effect that does not fit makes its job dead with a message that
names the effect, and none of the job's effects lands. Carries I5.
"""

from __future__ import annotations

from dataclasses import dataclass

from aioflow.errors import ConfigError
from aioflow.timeline import Timeline, TimelineKey

MOST_EFFECTS = 1000


@dataclass(frozen=True, slots=True)
class Effect:
    """One write: an operation of lua/include/effects.lua, a key name and its arguments."""

    op: str
    name: str
    words: tuple[str | bytes, ...]


class Commit:
    """What a handler wants written when its attempt ends.

    Effects land, in order, when the handler chooses the outcome: it returns, raises RetryLater or raises Discard.
    An exception, a timeout or a stop drops them. Those marked `on_failure=True` are the reverse: they land only when
    the attempt ends by an exception or a timeout. At most 1,000 effects a job.
    """

    __slots__ = ("effects", "failure_effects")

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.failure_effects: list[Effect] = []

    def record(
        self,
        timeline: Timeline | TimelineKey,
        member: str,
        *,
        at_ms: int | None = None,
        on_failure: bool = False,
    ) -> None:
        """Put `member` on a timeline at the server's time of the commit, or at `at_ms` (UTC ms)."""
        at = "" if at_ms is None else str(at_ms)
        self._add("record", timeline.name, at, member, str(timeline.keep_ms), on_failure=on_failure)

    def remove(self, timeline: Timeline | TimelineKey, member: str, *, on_failure: bool = False) -> None:
        """Take `member` off a timeline; nothing happens where it is not on it."""
        self._add("zrem", timeline.name, member, on_failure=on_failure)

    def hset(self, name: str, field: str, value: str | bytes, *, on_failure: bool = False) -> None:
        """Set a field of the hash `name`."""
        self._add("hset", name, field, value, on_failure=on_failure)

    def hdel(self, name: str, field: str, *, on_failure: bool = False) -> None:
        """Delete a field of the hash `name`."""
        self._add("hdel", name, field, on_failure=on_failure)

    def hincrby(self, name: str, field: str, amount: int, *, on_failure: bool = False) -> None:
        """Add a whole number to a field of the hash `name`; the sum must stay within 2**53."""
        self._add("hincrby", name, field, str(int(amount)), on_failure=on_failure)

    def sadd(self, name: str, member: str | bytes, *, on_failure: bool = False) -> None:
        """Add a member to the set `name`."""
        self._add("sadd", name, member, on_failure=on_failure)

    def srem(self, name: str, member: str | bytes, *, on_failure: bool = False) -> None:
        """Remove a member from the set `name`."""
        self._add("srem", name, member, on_failure=on_failure)

    def set(self, name: str, value: str | bytes, *, on_failure: bool = False) -> None:
        """Set the string `name`."""
        self._add("set", name, value, on_failure=on_failure)

    def delete(self, name: str, *, on_failure: bool = False) -> None:
        """Delete the key `name`, whatever its type."""
        self._add("delete", name, on_failure=on_failure)

    def _add(self, op: str, name: str, *words: str | bytes, on_failure: bool) -> None:
        if not name:
            raise ConfigError(f"effect {op}: name the key")
        for word in words:
            if not isinstance(word, (str, bytes)):
                raise ConfigError(f"effect {op} on {name}: {word!r} is a {type(word).__name__}, not str or bytes")
        effects = self.failure_effects if on_failure else self.effects
        if len(effects) >= MOST_EFFECTS:
            raise ConfigError(f"effect {op} on {name}: a job may have at most {MOST_EFFECTS} effects")
        effects.append(Effect(op, name, words))
