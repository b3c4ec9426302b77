"""Writes what running handlers say of their progress: of each job the last, one call in flight.

It holds one note a running job, so its size is bounded by the pool's. A note that comes too late for its lease is
dropped by the fence.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from aioflow.commit import Effect
from aioflow.engine.keys import Queue
from aioflow.engine.records import MOST_JOBS, Leased
from aioflow.engine.store import Store
from aioflow.errors import ProtocolError, StoreUnavailable


class Notes:
    """The notes of one pool."""

    def __init__(self, queue: Queue, store: Store) -> None:
        self._queue = queue
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.latest: dict[tuple[str, str], bytes] = {}
        self._wanted = asyncio.Event()

    def put(self, job: Leased, told: bytes) -> None:
        """Take a note, in whatever thread; one that outlives its runtime has nobody to tell."""
        if threading.get_ident() == self._thread:
            self._put(job, told)
            return
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._put, job, told)

    def last(self, job: Leased) -> list[Effect]:
        """What a job has noted and is not written yet, as an effect that its settle takes along."""
        told = self.latest.pop((job.id, job.token), None)
        return [] if told is None else [Effect("note", "progress", (job.id, told))]

    def _put(self, job: Leased, told: bytes) -> None:
        self.latest[job.id, job.token] = told
        self._wanted.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            batch = dict(list(self.latest.items())[:MOST_JOBS])
            for key in batch:
                del self.latest[key]
            if not batch:
                continue  # the settles of their jobs have taken them along
            try:
                await self._store.progress(
                    self._queue, [(job_id, token, told) for (job_id, token), told in batch.items()]
                )
            except (StoreUnavailable, ProtocolError) as error:
                self.latest = batch | self.latest  # what has come meanwhile is newer
                await self._store.line.setback(error, f"progress of {self._queue.name}")
            if self.latest:
                self._wanted.set()
