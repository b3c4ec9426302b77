"""Keeps the leases of all running jobs of a runtime alive, and ends those that could not be kept.

On the holder's monotonic clock a lease begins when its claim or renewal was sent. It is renewed after a third of its
time; where that fails until the end, the handler is cancelled, since the job may be another's by then. Carries I2.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence

from aioflow.engine.executor import Attempt, Stop
from aioflow.engine.pool import Pool
from aioflow.engine.records import MOST_JOBS
from aioflow.engine.store import Store
from aioflow.errors import ProtocolError, StoreUnavailable

log = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews and ends leases."""

    def __init__(self, pools: Sequence[Pool], store: Store) -> None:
        self._pools = pools
        self._store = store
        # A lease that begins during a sleep is not due for renewal before a third of its time.
        self._longest_sleep = min((pool.task.options.lease for pool in pools), default=15.0) / 6
        self._renewing: set[Pool] = set()
        """Whose renewals are under way; a server that is slow to answer must not hide that leases end meanwhile."""

    async def run(self) -> None:
        """Renew until cancelled."""
        async with asyncio.TaskGroup() as renewals:
            while True:
                await asyncio.sleep(self._until_next())
                now = time.monotonic()
                for pool in self._pools:
                    self._end_expired(pool, now)
                    due = [
                        attempt
                        for attempt in pool.held
                        if attempt.renew_at <= now and attempt.stop is not Stop.LEASE_LOST
                    ]
                    if due and pool not in self._renewing:
                        self._renewing.add(pool)
                        renewals.create_task(self._renew(pool, due), name=f"aioflow renewal {pool.queue.name}")

    def _until_next(self) -> float:
        now = time.monotonic()
        ends = (attempt.renew_at if attempt.renew_at > now else attempt.lease_until for attempt in self._live())
        return max(0.01, min(self._longest_sleep, min(ends, default=now + self._longest_sleep) - now))

    def _live(self) -> Iterator[Attempt]:
        # A handler in a thread outlives its lease; it is nobody's business any more.
        for pool in self._pools:
            yield from (attempt for attempt in pool.held if attempt.stop is not Stop.LEASE_LOST)

    def _end_expired(self, pool: Pool, now: float) -> None:
        for attempt in [attempt for attempt in pool.held if attempt.lease_until <= now]:
            if attempt.stop is not Stop.LEASE_LOST:
                log.warning("%s %s: its lease could not be renewed; cancelled", pool.queue.name, attempt.job.id)
            attempt.cancel(Stop.LEASE_LOST)

    async def _renew(self, pool: Pool, due: list[Attempt]) -> None:
        try:
            for first in range(0, len(due), MOST_JOBS):
                await self._renew_batch(pool, due[first : first + MOST_JOBS])
        finally:
            self._renewing.discard(pool)

    async def _renew_batch(self, pool: Pool, due: list[Attempt]) -> None:
        sent = time.monotonic()
        lease = pool.task.options.lease
        try:
            async with asyncio.timeout(lease / 3):  # while there is time for another try
                answers = await self._store.renew(
                    pool.queue, pool.lease_ms, [(attempt.job.id, attempt.job.token) for attempt in due]
                )
        except (StoreUnavailable, ProtocolError, TimeoutError):
            for attempt in due:
                attempt.renew_at = sent + lease / 12
            return
        for attempt, renewed in zip(due, answers, strict=True):
            if renewed:
                attempt.lease_until, attempt.renew_at = sent + lease, sent + lease / 3
            elif attempt in pool.held and attempt.task is not None and not attempt.task.done():
                log.warning("%s %s: its lease was taken away; cancelled", pool.queue.name, attempt.job.id)
                attempt.lease_until = sent
                attempt.cancel(Stop.LEASE_LOST)
