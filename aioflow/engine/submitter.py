"""Group commit of submits: a line per durability, and the claims that ride along."""

from __future__ import annotations

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


class Lines(NamedTuple):
    """The lines of one durability: of jobs that come one by one, and of those that come together."""

    single: Coalescer[NewJob, int]
    many: Coalescer[NewJob, int]


class Submitter:
    """Sends jobs. `spawn` runs a loop for as long as the runtime lives."""

    def __init__(
        self,
        store: Store,
        claimers: Mapping[Queue, Claimer],
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
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
            flush = partial(self._flush, durability=durability)
            single = Coalescer(f"submit {durability}", flush, flights=2, most_items=IN_FLIGHT)
            lines = self.lines[durability] = Lines(single, Coalescer(f"submit_many {durability}", flush))
            for line in lines:
                self._spawn(line.run(), line.name)
        return lines

    async def _flush(self, jobs: list[NewJob], durability: Durability) -> list[int]:
        # A claim behind a WAIT would keep its claimer for as long as the replicas take.
        riding = () if replicas_of(durability) else jobs
        claimers = {self._claimers[job.queue] for job in riding if job.queue in self._claimers}
        rides = [ride for claimer in claimers if (ride := claimer.ride()) is not None]
        try:
            return await self._store.submit(jobs, durability, rides)
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
