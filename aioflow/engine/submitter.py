"""Group commit of submits: a line per durability (in a cluster also per slot), and the claims that ride along."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, NamedTuple

from aioflow.engine.claimer import Claimer
from aioflow.engine.coalescer import Coalescer
from aioflow.engine.keys import Queue
from aioflow.engine.receipts import FSYNC_NEEDS, replicas_of
from aioflow.engine.records import Durability, NewJob
from aioflow.engine.store import Store
from aioflow.errors import ConfigError

IN_FLIGHT = 100
"""Per flush, of two: 75,000 submits/s of 200 submitters, against 38,000 by one flush of them all (2 cores)."""


class OfParts:
    """A line for each part of the store in a cluster, so that a node which is away holds up no job of another's.

    `open` begins one.
    """

    def __init__(self, name: str, store: Store, open: Callable[[Store], Coalescer[NewJob, int]]) -> None:
        self.name = name
        self._store = store
        self._open = open
        self._lines: dict[Store, Coalescer[NewJob, int]] = {}

    def __repr__(self) -> str:
        return f"<OfParts {self.name} {list(self._lines.values())}>"

    def put(self, job: NewJob, size: int) -> asyncio.Future[int]:
        """As Coalescer's."""
        part = self._store.part(job.queue)
        line = self._lines.get(part)
        if line is None:
            line = self._lines[part] = self._open(part)
        return line.put(job, size)

    async def drain(self) -> None:
        """As Coalescer's."""
        for line in list(self._lines.values()):
            await line.drain()


Line = Coalescer[NewJob, int] | OfParts


class Lines(NamedTuple):
    """The lines of one durability: of jobs that come one by one, and of those that come together."""

    single: Line
    many: Line


class Submitter:
    """Sends jobs. `spawn` runs a loop for as long as the runtime lives."""

    def __init__(
        self,
        store: Store,
        claimers: Mapping[Queue, Claimer],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self._store = store
        self._claimers = claimers
        self._spawn = spawn
        self.lines: dict[Durability, Lines] = {}
        """Those that are open: a job is put into a line of its durability."""

    def __repr__(self) -> str:
        return f"<Submitter {list(self.lines.values())}>"

    async def choose(self, asked: Durability | None) -> Durability:
        """What a runtime's receipts mean: what is asked, if the server gives it, else the best it does."""
        if asked is None:
            asked = "fsync" if await self._store.lacks_fsync() is None else "memory"
        else:
            await self._check(asked)
        self._open(asked)
        return asked

    async def open(self, durability: Durability) -> Lines:
        """The lines of a durability. Raises ConfigError for one that is not to be had."""
        if durability not in self.lines:
            await self._check(durability)
        return self._open(durability)

    async def drain(self) -> None:
        """Wait until everything has been sent and answered."""
        for lines in list(self.lines.values()):
            for line in lines:
                await line.drain()

    def _open(self, durability: Durability) -> Lines:
        lines = self.lines.get(durability)
        if lines is None:
            lines = self.lines[durability] = Lines(
                self._line(f"submit {durability}", durability, flights=2, most_items=IN_FLIGHT),
                self._line(f"submit_many {durability}", durability),
            )
        return lines

    def _line(self, name: str, durability: Durability, **options: int) -> Line:
        def open_line(store: Store) -> Coalescer[NewJob, int]:
            line = Coalescer(name, partial(self._flush, store=store, durability=durability), **options)
            # A job is put in before the first step of its task, which a stop may cancel before that.
            self._spawn(line.run(), name).add_done_callback(line.end)
            return line

        return OfParts(name, self._store, open_line) if self._store.has_parts else open_line(self._store)

    async def _flush(self, jobs: list[NewJob], store: Store, durability: Durability) -> list[int]:
        # A claim behind a WAIT would keep its claimer for as long as the replicas take.
        riding = () if replicas_of(durability) else jobs
        claimers = {self._claimers[job.queue] for job in riding if job.queue in self._claimers}
        rides = [ride for claimer in claimers if (ride := claimer.ride()) is not None]
        try:
            return await store.submit(jobs, durability, rides)
        finally:
            for ride in rides:
                ride.end(None)

    async def _check(self, durability: Durability) -> None:
        """Raise ConfigError where the server does not give this durability."""
        if durability == "fsync":
            lacks = await self._store.lacks_fsync()
            if lacks is not None:
                raise ConfigError(f'durability "fsync" needs a server with {FSYNC_NEEDS}: {lacks}')
        elif asked := replicas_of(durability):
            there = 0 if self._store.in_memory else await self._store.replicas()
            if there < asked:
                raise ConfigError(
                    f'durability "{durability}" needs {asked} replicas, the server has {there}; '
                    "let more follow it (REPLICAOF), or ask for fewer"
                )
