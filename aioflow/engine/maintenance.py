"""Once a second, for each queue: put due jobs in line, ring over a silent one, reap, and now and then trim.

Reaping waits for one renewal interval after every (re)connection and after every disagreement about the server's
time, so that holders who are alive can renew before their leases are judged.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time

from aioflow.engine.keys import Queue
from aioflow.engine.records import MOST_JOBS
from aioflow.engine.store import Store
from aioflow.errors import ProtocolError, StoreUnavailable
from aioflow.service import TaskOptions

PERIOD = 0.9
TRIM_PERIOD = 10.0

log = logging.getLogger(__name__)


class Maintenance:
    """Looks after one queue."""

    def __init__(self, queue: Queue, options: TaskOptions, store: Store) -> None:
        self._queue = queue
        self._options = options
        self._store = store
        self._reap_from = 0.0
        self._trim_at = 0.0

    async def run(self) -> None:
        """Maintain until cancelled."""
        while True:
            try:
                pause = await self._once()
            except (StoreUnavailable, ProtocolError) as error:
                await self._store.line.setback(error, f"maintenance of {self._queue.name}")
            else:
                await asyncio.sleep(pause)

    async def _once(self) -> float:
        """One round; how long to sleep until the next."""
        promoted = await self._store.promote(self._queue)
        now = time.monotonic()
        if now >= self._trim_at:
            keep_done_ms, keep_dead_ms = (
                int(self._options.keep_done * 1000),
                int(self._options.keep_dead * 1000),
            )
            trimmed = await self._store.trim(self._queue, keep_done_ms=keep_done_ms, keep_dead_ms=keep_dead_ms)
            self._trim_at = now + (0 if trimmed >= MOST_JOBS else TRIM_PERIOD)
        # Jittered, or the runtimes of a fleet that started together would all come in the same instant.
        pause = 0.0 if promoted == MOST_JOBS else PERIOD * random.uniform(0.8, 1.0)  # noqa: S311
        interval = self._options.lease / 3
        # Every call hears the clock, also the promotion above: that it agrees now does not say that it did all along.
        unsure_at = max(self._store.line.connected_at, self._store.clock.stepped_at)
        reap_from = max(self._reap_from, unsure_at + interval)
        if now < reap_from:
            return min(pause, reap_from - now)
        reaped = await self._store.reap(
            self._queue, most_crashes=self._options.most_crashes, longest_ms=int(self._options.lease * 1000)
        )
        if not reaped.clock_agrees:
            self._reap_from = now + interval
        elif reaped.jobs or reaped.dead:
            log.warning(
                "%s: %d expired leases went back in line, %d jobs are dead of them",
                self._queue.name,
                reaped.jobs,
                reaped.dead,
            )
        # An expired lease goes back when it expires, not up to a second later.
        return pause if reaped.next_ms is None else min(pause, reaped.next_ms / 1000 + 0.002)
