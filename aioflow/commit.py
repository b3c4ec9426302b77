"""The buffer of effects: writes to the service's own data that land together with the acknowledgement, or not at all.

An effect names a key below the service's own prefix; nothing that is put into a name can reach another key. What
type a key has is fixed by the first effect on it; an effect that does not fit makes its job dead with a message that
names the effect, and none of the job's effects lands. Carries I5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aioflow.errors import CodecError, ConfigError
from aioflow.timeline import Timeline, TimelineKey

MOST_EFFECTS = 1000
MOST_BYTES = 32 << 20
"""Of the effects of one job, which land by one call; what cannot be sent in time would be tried for ever."""
LONGEST_DELAY = 366 * 86_400.0
Encode = Callable[[Any, Any], tuple[str, str, bytes]]


def check_priority(what: str, priority: int) -> int:
    """The priority as a plain number. Raises ConfigError."""
    if not isinstance(priority, int) or not 0 <= priority <= 9:
        raise ConfigError(f"{what}: priority={priority!r} is a whole number, 0 to 9")
    return int(priority)  # also of a bool or of an enum's member, which print as something else


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
    the attempt ends by an exception, a timeout or a cancel. At most 1,000 effects a job, and 32 MiB.

    `service` is the name of the job's own service, `encode` makes (id, full name, envelope) of a task and a payload.
    """

    __slots__ = ("_bytes", "_encode", "_service", "effects", "failure_effects")

    def __init__(self, service: str = "", encode: Encode | None = None) -> None:
        self.effects: list[Effect] = []
        self.failure_effects: list[Effect] = []
        self._service = service
        self._encode = encode
        self._bytes = 0

    def submit(
        self, task: Any, payload: Any = None, *, delay: float = 0.0, priority: int = 4, on_failure: bool = False
    ) -> None:
        """Submit a job to a task, or by name, such as "ledger.book": exactly one job where the outcome lands.

        A job of the same service is in its queue at once; one of another service travels by the outbox, in order.
        `delay` is in seconds, from the commit. Raises CodecError where the payload does not fit the task's type.
        """
        if self._encode is None:
            raise ConfigError("job.commit.submit: this commit belongs to no running job")
        priority = check_priority("job.commit.submit", priority)
        if not 0 <= delay <= LONGEST_DELAY:
            raise ConfigError(f"job.commit.submit: delay={delay!r} is 0 seconds to 366 days")
        child_id, full_name, envelope = self._encode(task, payload)
        service, _, name = full_name.partition(".")
        rest = (envelope, str(priority), str(int(delay * 1000)))
        if service == self._service:
            self._add("submit", name, child_id, *rest, on_failure=on_failure)
        else:
            self._add("emit", full_name, *rest, on_failure=on_failure)

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
        for word in (name, *words):
            if not isinstance(word, (str, bytes)):
                raise ConfigError(f"effect {op} on {name}: {word!r} is a {type(word).__name__}, not str or bytes")
            if isinstance(word, str) and not word.isascii():
                try:
                    word.encode()
                except UnicodeEncodeError as error:
                    raise CodecError(f"effect {op} on {name!a}: {word!a} cannot be written as UTF-8") from error
        effects = self.failure_effects if on_failure else self.effects
        if len(effects) >= MOST_EFFECTS:
            raise ConfigError(f"effect {op} on {name}: a job may have at most {MOST_EFFECTS} effects")
        size = len(name) + sum(map(len, words))
        if self._bytes + size > MOST_BYTES:
            raise ConfigError(f"effect {op} on {name}: the effects of a job may have at most {MOST_BYTES} bytes")
        self._bytes += size
        effects.append(Effect(op, name, words))
