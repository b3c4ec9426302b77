"""The one class that runs moderation's scripts: a typed method per script, named like it.

It decides nothing: what may be given to whom, and what a decision does, stands in lua/moderation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError, ResponseError

from aioflow import AioflowError, ProtocolError, Runtime, StoreUnavailable
from aioflow.service import ServiceScript
from services.moderation.models import Choice, Decision, Item, Moderator
from services.moderation.settings import ModerationSettings

SCRIPTS = ("submit", "join", "ask", "rest", "drop", "leave", "beat", "look", "extend", "decide", "tick")
MOST_BEATS = 1000
RETELL_MS = 30_000
"""A result that is still to be told after so long is handed on again; the job's id is the same."""


class Refused(Exception):
    """A script refused a call and changed nothing; `code` is what it answered."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Lock:
    """An item that a moderator holds under a token, until its deadline. Times are UTC ms."""

    item: str
    token: str
    since_ms: int
    deadline_ms: int
    votes: int
    level: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Desk:
    """What a desk holds now. The version grows with every change; `by` names what it waits with."""

    version: int
    by: str
    now_ms: int
    locks: list[Lock]


@dataclass(frozen=True, slots=True)
class Tick:
    """What a tick has done; `more`: another one has something to do at once."""

    more: bool
    expired: int
    left: int
    failure: str
    tell: list[str]


class Board:
    """Runs the scripts. Every method raises StoreUnavailable.

    `nonce` begins the tokens that this process gives, and names its channel; `clock` replaces the server's time, in UTC
    ms, and is for tests.
    """

    def __init__(
        self,
        runtime: Runtime,
        scripts: Mapping[str, ServiceScript],
        settings: ModerationSettings,
        nonce: str,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.settings = settings
        self.nonce = nonce
        self._runtime = runtime
        self._scripts = scripts
        self._clock = clock

    @property
    def channel(self) -> str:
        """Where this process hears of its desks, as a name below the service's own keys."""
        return f"to:{self.nonce}"

    async def submit(self, item: Item, body: bytes) -> int:
        """Take an item; 1 new, 0 known. Raises Refused: -1 known with another body, -2 too many are open."""
        settings = self.settings
        words = (self.nonce, settings.lock_ms, settings.bound, item.id, body, item.author, item.skill)
        return taken(await self._run("submit", *words, item.level, item.priority, item.submitted_ms), 0)

    async def join(self, moderator: Moderator, by: str = "", keep_ms: int | None = None) -> None:
        """Open a desk or take it over; `by` names its WebSocket."""
        settings = self.settings
        await self._run(
            "join",
            *(self.nonce, settings.lock_ms, moderator.name, by, "socket" if by else "http", self.nonce),
            *(" ".join(moderator.skills), moderator.level, moderator.holds or settings.holds),
            settings.idle_ms if keep_ms is None else keep_ms,
        )

    async def ask(self, moderator: str, by: str, wait_ms: int) -> int:
        """Let a desk wait with a request. Raises Refused: 0 no such desk, -1 it has a WebSocket."""
        settings = self.settings
        words = (self.nonce, settings.lock_ms, moderator, by, self.nonce, wait_ms, settings.idle_ms)
        return taken(await self._run("ask", *words), 1)

    async def rest(self, moderator: str, by: str, keep_ms: int) -> bool:
        """End the wait; False where it is another that waits."""
        return bool(await self._run("rest", moderator, by, keep_ms))

    async def drop(self, moderator: str, by: str) -> int:
        """End a request whose client has gone; how many items went back that it had got."""
        count: int = await self._run("drop", self.nonce, self.settings.lock_ms, moderator, by)
        return count

    async def leave(self, moderator: str, by: str = "") -> bool:
        """Close a desk; False where there is none, or where another waits than `by`, if that is given."""
        return bool(await self._run("leave", self.nonce, self.settings.lock_ms, moderator, by))

    async def beat(self, desks: Sequence[tuple[str, str]], keep_ms: int) -> list[int]:
        """Keep up to 1,000 desks (moderator, by); per desk its version, -1 gone, -2 taken over."""
        words = [word for desk in desks for word in desk]
        answer: list[int] = await self._run("beat", keep_ms, len(desks), *words)
        return answer

    async def look(self, moderator: str) -> Desk | None:
        """What a desk holds, longest held first; None where there is no such desk."""
        answer = await self._runtime.run_script(*self._named("look"), None, [moderator])
        if answer is None:
            return None
        version, by, now_ms, *rest = answer
        locks = [
            Lock(item.decode(), token.decode(), int(since), int(deadline), lines(votes), int(level), body)
            for item, token, since, deadline, votes, level, body in zip(*[iter(rest)] * 7, strict=True)
        ]
        return Desk(version, by.decode(), now_ms, locks)

    async def extend(self, item: str, token: str) -> int:
        """The new deadline in UTC ms. Raises Refused: 0 no such item, -1 it is not locked under this token."""
        return taken(await self._run("extend", self.settings.lock_ms, item, token), 1)

    async def decide(self, item: str, decision: Decision) -> dict[str, str]:
        """Decide; the record. Raises Refused, with what the script's header says."""
        settings = self.settings
        reason = decision.reason if decision.reason is not None and decision.decision is not Choice.SKIP else ""
        answer = await self._run(
            "decide",
            *(self.nonce, settings.lock_ms, settings.keep_ms, item, decision.token, decision.decision.value, reason),
            "" if decision.level is None else str(decision.level),
            " ".join(sorted(settings.two_person)),
            str(int(settings.tells)),
        )
        if isinstance(answer, int):
            raise Refused(answer)
        return pairs(answer)

    async def tick(self, limit: int, *, judges: bool) -> Tick:
        """What time brings, at most `limit` of each."""
        words = (self.nonce, self.settings.lock_ms, limit, int(judges), RETELL_MS)
        more, expired, left, failure, *tokens = await self._run("tick", *words)
        return Tick(bool(more), expired, left, failure.decode(), [token.decode(errors="replace") for token in tokens])

    async def untold(self, token: str) -> dict[str, str] | None:
        """The record of a decision whose result is still to be told, empty where it is kept no longer; else None."""
        runtime, service = self._runtime, self._scripts["decide"].service
        try:
            pipeline = runtime.redis.pipeline(transaction=True)
            pipeline.zscore(runtime.key(service, "untold"), token)
            pipeline.hgetall(runtime.key(service, f"decision:{token}"))
            noted, record = await pipeline.execute()
        except (RedisError, OSError) as error:
            raise unread(error) from error
        return None if noted is None else {name.decode(): value.decode() for name, value in record.items()}

    async def _run(self, name: str, *words: str | bytes | int) -> Any:
        clock_ms = 0 if self._clock is None else self._clock()
        return await self._runtime.run_script(*self._named(name), None, [clock_ms, *words])

    def _named(self, name: str) -> tuple[Any, Any]:
        script = self._scripts[name]
        return script.service, script.path


def unread(error: RedisError | OSError) -> AioflowError:
    """What to raise where Redis does not answer a query; the driver's words name a key that holds another type."""
    if isinstance(error, ResponseError) and "WRONGTYPE" in str(error):
        return ProtocolError(f"a query met what is not moderation's: {error}")
    return StoreUnavailable(f"redis is away: {error}")


def taken(answer: int, least: int) -> int:
    """A script's answer, which is no refusal from `least` on."""
    if answer < least:
        raise Refused(answer)
    return answer


def lines(votes: bytes) -> int:
    """How many votes there are."""
    return len(votes.splitlines())


def pairs(flat: Sequence[bytes]) -> dict[str, str]:
    """A hash as Redis lists it."""
    texts = [word.decode() if isinstance(word, bytes) else str(word) for word in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))
