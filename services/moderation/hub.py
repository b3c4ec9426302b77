"""The desks that this process serves, and what it does for all of them: beats, ticks, and telling who waits.

Redis is the authority. A message on this process' channel only says that a desk has changed; a message that is lost is
made up for by the next beat, which answers each desk's version. Beats and ticks are sent by every living process, so
one that is killed leaves nothing undone: its desks beat no more, and some tick finds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

from aioflow import ProtocolError, Runtime, Service, StoreUnavailable
from services.moderation.board import MOST_BEATS, Board, Tick
from services.moderation.models import Moderator

log = logging.getLogger(__name__)

BEAT_SECONDS = 0.5
BEAT_MARGIN_MS = 1000
"""A desk whose process is killed is left so much after the grace period: its last beat may be an interval old."""
TICK_SECONDS = (0.4, 0.9)
"""From one tick to the next, drawn at random, so that a fleet does not tick as one."""
TICK_LIMIT = 20
UNSURE_SECONDS = 3 * BEAT_SECONDS + BEAT_MARGIN_MS / 1000
"""After the start and after an outage nobody judges desks for so long: those who keep them must reach Redis first."""
MOST_WATCHES = 10_000
"""WebSockets and waiting requests of one process; more are refused."""


class Watch:
    """Somebody in this process who waits for news of a desk: a WebSocket (with its moderator) or a request."""

    def __init__(self, name: str, by: str, moderator: Moderator | None = None) -> None:
        self.name = name
        self.by = by
        self.moderator = moderator
        self.changed = asyncio.Event()
        self.replaced = False
        """Whether the desk was taken over; set by the beat."""
        self.version = 0
        """As the last beat heard it."""

    def __repr__(self) -> str:
        return f"<Watch {self.name} by={self.by} version={self.version}>"


class Hub:
    """Serves the desks of one process; `tell` hands on the tokens of results that are to be told."""

    def __init__(
        self, runtime: Runtime, service: Service, board: Board, tell: Callable[[list[str]], Coroutine[Any, Any, None]]
    ) -> None:
        self.board = board
        self._runtime = runtime
        self._service = service
        self._tell = tell
        self._watches: dict[str, set[Watch]] = {}
        self._wake = asyncio.Event()
        self._unsure_at = time.monotonic()
        self._complaint = ""

    def __repr__(self) -> str:
        return f"<Hub {self.board.nonce} watches={self.count}>"

    @property
    def count(self) -> int:
        """How many WebSockets and requests wait here."""
        return sum(len(watches) for watches in self._watches.values())

    @property
    def keep_ms(self) -> int:
        """How long a desk is kept after its last beat."""
        return self.board.settings.grace_ms + BEAT_MARGIN_MS

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the loops; one that fails ends the runtime."""
        async with asyncio.TaskGroup() as loops:
            listening = self._runtime.listen(
                self._service, self.board.channel, {b"desk": self._heard}, self._look_at_all
            )
            tasks = [
                loops.create_task(loop, name=f"moderation {name}")
                for name, loop in {
                    "channel": listening,
                    "beats": self._repeat(self._beat, (BEAT_SECONDS, BEAT_SECONDS), asyncio.Event()),
                    "ticks": self._repeat(self._tick, TICK_SECONDS, self._wake),
                    "closing": self._at_closing(),
                }.items()
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    @contextlib.contextmanager
    def watching(self, watch: Watch) -> Iterator[None]:
        """Hear of a desk's changes meanwhile."""
        self._watches.setdefault(watch.name, set()).add(watch)
        try:
            yield
        finally:
            self._watches[watch.name].discard(watch)
            if not self._watches[watch.name]:
                del self._watches[watch.name]

    def wake(self) -> None:
        """Tick now: a result is to be told."""
        self._wake.set()

    def _heard(self, moderator: bytes) -> None:
        for watch in self._watches.get(moderator.decode(), ()):
            watch.changed.set()

    async def _look_at_all(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.changed.set()

    async def _at_closing(self) -> None:
        """Those who keep a request waiting answer it before the stop."""
        await self._runtime.closing.wait()
        await self._look_at_all()

    async def _repeat(
        self, once: Callable[[], Coroutine[Any, Any, bool]], pause: tuple[float, float], wake: asyncio.Event
    ) -> None:
        """Do it again and again, at once where it says that there is more; an outage is waited out."""
        while True:
            more = False
            try:
                more = await once()
            except (StoreUnavailable, ProtocolError) as error:
                self._unsure_at = time.monotonic()
                self._complain(f"moderation: {error}; trying again")
            if not more:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(random.uniform(*pause)):  # noqa: S311 - jitter
                        await wake.wait()
                wake.clear()

    async def _beat(self) -> bool:
        sockets = [watch for watches in self._watches.values() for watch in watches if watch.moderator is not None]
        for first in range(0, len(sockets), MOST_BEATS):
            some = sockets[first : first + MOST_BEATS]
            answers = await self.board.beat([(watch.name, watch.by) for watch in some], self.keep_ms)
            for watch, answer in zip(some, answers, strict=True):
                await self._beaten(watch, answer)
        return False

    async def _beaten(self, watch: Watch, answer: int) -> None:
        if answer == -1 and watch.moderator is not None and watch in self._watches.get(watch.name, ()):
            # This process was away for too long, and the desk was closed: the moderator is still there.
            await self.board.join(watch.moderator, watch.by, self.keep_ms)
            watch.changed.set()
        elif answer == -2:
            watch.replaced = True
            watch.changed.set()
        elif answer != watch.version:
            watch.version = answer
            watch.changed.set()

    async def _tick(self) -> bool:
        judges = time.monotonic() - self._unsure_at > UNSURE_SECONDS
        ticked: Tick = await self.board.tick(TICK_LIMIT, judges=judges)
        if ticked.failure:
            self._complain(f"moderation: what was due is put off for a minute: {ticked.failure}")
        if ticked.tell:
            await self._tell(ticked.tell)
        return ticked.more

    def _complain(self, complaint: str) -> None:
        """Say it once, not with every tick."""
        if complaint != self._complaint:
            log.warning("%s", complaint)
        self._complaint = complaint
