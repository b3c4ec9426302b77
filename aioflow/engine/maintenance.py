"""Maintenance of one queue, twice a second over the whole fleet: due jobs, expired leases, a silent bell, old records.

The runtimes that look after a queue take turns: each is noted in the queue, learns its rank among them by every call,
and comes in the turn of its rank on the server's clock. One that has died leaves its turns empty until it is forgotten;
so that this delays nobody's recovery, each comes once in the time of a lease at least, unless they are very many.

Judging leases waits for one renewal interval after every (re)connection and after every disagreement about the
server's time, so that holders who are alive can renew before their leases are judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from aioflow.engine.keys import Queue
from aioflow.engine.records import MOST_JOBS, Reaped
from aioflow.engine.relay import Relay
from aioflow.engine.store import Store
from aioflow.errors import ProtocolError, StoreUnavailable
from aioflow.policy import TaskOptions

TURN_MS = 500
"""From one runtime's turn to the next one's."""
FEW = 40
"""Runtimes; of more, each comes once in as many leases as they are times as many."""
TRIM_PERIOD = 10.0

log = logging.getLogger(__name__)


class Maintenance:
    """Looks after one queue for one runtime."""

    def __init__(self, queue: Queue, options: TaskOptions, store: Store, relay: Relay, runner: str) -> None:
        self._queue = queue
        self._options = options
        self._store = store
        self._relay = relay
        self._runner = runner
        self._reap_from = 0.0
        self._trim_at = 0.0
        self._wake = asyncio.Event()
        self.turns = (1, 0)
        """(runtimes that look after the queue, rank of this one among them), as last heard."""

    async def run(self) -> None:
        """Maintain until cancelled."""
        while True:
            try:
                pause = await self._once()
            except (StoreUnavailable, ProtocolError) as error:
                await self._store.line.setback(error, f"maintenance of {self._queue.name}")
            else:
                await self._rest(pause)

    def runners(self) -> int:
        """How many runtimes look after the queue, as last heard."""
        return self.turns[0]

    def look(self) -> None:
        """Begin a round now, which also rings for what is due and trims: a test has moved its clock."""
        self._trim_at = 0.0
        self._wake.set()

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    async def leave(self) -> None:
        """Leave the turns to the others."""
        await self._store.leave(self._queue, self._runner)

    async def _once(self) -> float:
        """One round; how long to sleep until the next."""
        now = time.monotonic()
        interval = self._options.lease / 3
        # Every call hears the clock: that it agrees now does not say that it did all along. The call that finds the
        # server back judges nothing either; its holders must reach it first.
        unsure_at = max(self._store.line.connected_at, self._store.clock.stepped_at)
        reap_from = max(self._reap_from, unsure_at + interval)
        judge = self._store.line.holds and now >= reap_from
        reaped = await self._store.reap(
            self._queue,
            most_crashes=self._options.most_crashes,
            longest_ms=int(self._options.lease * 1000),
            judge=judge,
            runner=self._runner,
        )
        if judge and not reaped.judged:
            self._reap_from = now + interval
        if reaped.jobs or reaped.dead:
            log.warning(
                "%s: %d expired leases went back in line, %d jobs are dead of them",
                self._queue.name,
                reaped.jobs,
                reaped.dead,
            )
        if reaped.outbox:
            self._relay.wanted.set()
        pause = self._pause(reaped)
        return 0.0 if reaped.rank == 0 and await self._trim(now) else pause

    def _pause(self, reaped: Reaped) -> float:
        if reaped.promoted == MOST_JOBS:
            return 0.0
        self.turns = runners, rank = reaped.runners or 1, reaped.rank or 0
        pause = until_turn(rank, runners, self._store.clock.expected_ms())
        # Whoever comes once in a lease hears of each deadline before it passes, however many turns are left empty.
        pause = min(pause, self._options.lease * max(1.0, runners / FEW))
        # An expired lease goes back when it expires, not up to a turn later.
        return pause if reaped.next_ms is None else min(pause, reaped.next_ms / 1000 + 0.002)

    async def _trim(self, now: float) -> bool:
        """Whether there is more to forget; jobs end faster than a turn's worth can be forgotten."""
        if now < self._trim_at:
            return False
        self._trim_at = now + TRIM_PERIOD  # at first, since a look that comes meanwhile wants another
        trimmed = await self._store.trim(
            self._queue,
            keep_done_ms=int(self._options.keep_done * 1000),
            keep_dead_ms=int(self._options.keep_dead * 1000),
        )
        if trimmed < MOST_JOBS:
            return False
        self._trim_at = now
        return True


def until_turn(rank: int, runners: int, now_ms: int) -> float:
    """Seconds until the next turn of a rank among so many, half a turn off at least."""
    cycle_ms = runners * TURN_MS
    wait_ms = (rank * TURN_MS - now_ms) % cycle_ms
    return (wait_ms if wait_ms >= TURN_MS // 2 else wait_ms + cycle_ms) / 1000
