"""Carries what handlers have emitted for other services from a queue's outbox to their queues, in order, once each.

The destination keeps the last sequence it took of each source and skips what is not above it, so a relay may be
repeated at any later time, by any runtime; only then is the outbox cleared. A destination that cannot take, such as at
maxmemory, holds its outbox back, which is said. Carries the emits of I5.

A job may be emitted by name for a task that nobody serves, by a slip or before its service is there: it is kept, and
that is said once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection

from aioflow.engine.keys import Queue
from aioflow.engine.records import MOST_BYTES, Emitted
from aioflow.engine.store import Store
from aioflow.errors import ProtocolError, StoreUnavailable

log = logging.getLogger(__name__)

MOST_ROUNDS = 20
"""Of the last emptying: others may fill the outbox meanwhile."""
BATCH = 50
"""Most jobs that are read from the outbox at a time; fewer where they are large."""
MOST_NAMES = 1000
"""Tasks of others that are looked at."""
LONGEST_PAUSE = 2.0
"""Seconds between two tries while a destination refuses."""


class Relay:
    """Empties the outbox of one queue. `served` are the tasks that this runtime serves."""

    def __init__(self, queue: Queue, store: Store, served: Collection[str] = ()) -> None:
        self._queue = queue
        self._store = store
        self.wanted = asyncio.Event()
        """Set by whoever knows that something lies in the outbox."""
        self._refusals = 0  # one after another
        self._count = 1
        self._known = set(served)
        self._unknown: set[str] = set()

    def __repr__(self) -> str:
        return f"<Relay {self._queue.name} refusals={self._refusals}>"

    def emitted(self, tasks: set[str]) -> None:
        """Jobs of these tasks have been emitted; those of other services lie in the outbox."""
        if len(self._known) < MOST_NAMES:
            self._unknown |= tasks - self._known
            self._known |= tasks
        if self._unknown or any(not task.startswith(f"{self._queue.service}.") for task in tasks):
            self.wanted.set()

    async def run(self) -> None:
        """Relay until cancelled."""
        while True:
            await self.wanted.wait()
            self.wanted.clear()
            try:
                while await self._some():
                    pass
                while self._unknown:
                    await self._look_at(next(iter(self._unknown)))
            except (StoreUnavailable, ProtocolError) as error:
                if not self._refusals:
                    log.warning("%s: its outbox is held back: %s", self._queue.name, error)
                self._refusals += 1
                self.wanted.set()
                await self._store.line.setback(error, f"relay of {self._queue.name}")
                if self._store.line.lost_at is None:
                    # Redis is there and only refuses this, so the line's own waits stay short.
                    longest = min(LONGEST_PAUSE, 0.05 * 2 ** min(self._refusals, 6))
                    await asyncio.sleep(random.uniform(longest / 2, longest))  # noqa: S311 - jitter
            else:
                if self._refusals:
                    log.info("%s: its outbox goes on", self._queue.name)
                self._refusals = 0

    async def empty(self) -> None:
        """Relay what is there at the stop. Raises StoreUnavailable; whoever looks after the queue next goes on then."""
        for _ in range(MOST_ROUNDS):
            if not await self._some():
                return

    async def _look_at(self, task: str) -> None:
        try:
            queue = Queue(self._queue.namespace, *task.split("."))
            overview = await self._store.part(queue).overview(queue)
        except ProtocolError:
            self._unknown.discard(task)  # another look would find the same
            raise
        self._unknown.discard(task)
        if not overview.runtimes:
            log.warning("%s: it emits jobs of %s, which no live runtime serves; they wait", self._queue.name, task)

    async def _some(self) -> bool:
        """Relay the first of the outbox; whether there may be more."""
        try:
            found = await self._store.outbox(self._queue, self._count)
        except StoreUnavailable:
            self._count = max(1, self._count // 2)  # so many may be more than an answer brings in time
            raise
        emitted = bounded(found)
        # Or the rest of an outbox of large jobs would be read again with every call.
        self._count = len(emitted) if len(emitted) < len(found) else min(BATCH, 2 * self._count)
        by_queue: dict[str, list[Emitted]] = {}
        for job in emitted:
            by_queue.setdefault(job.to, []).append(job)
        for name, jobs in by_queue.items():
            service, _, task = name.partition(".")
            queue = Queue(self._queue.namespace, service, task)
            await self._store.part(queue).relay(queue, self._queue.name, jobs)
        if emitted:
            await self._store.forget(self._queue, [job.sequence for job in emitted])
        return bool(emitted)


def bounded(emitted: list[Emitted]) -> list[Emitted]:
    """As many of the first as make up a call's bytes, one at least."""
    size = 0
    for count, job in enumerate(emitted):
        size += len(job.envelope)
        if size > MOST_BYTES and count:
            return emitted[:count]
    return emitted
