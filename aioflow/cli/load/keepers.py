"""Who is asked for the accepted jobs: the queue's records in Redis, else what their Locations answer over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
from redis import exceptions as driver
from redis.asyncio import Redis

from aioflow.cli.load.accounts import Seen
from aioflow.engine.keys import Queue
from aioflow.engine.records import MOST_JOBS
from aioflow.errors import StoreUnavailable
from aioflow.job import JobInfo, State

MOST_BYTES = 8 << 20
"""Payload of one look, about: records come with their payloads."""
CLOCK_SAMPLES = 5


class Records:
    """The queue's own records. Their times, in ms of the server's clock, become this process' monotonic seconds."""

    def __init__(
        self,
        inspect: Callable[[Sequence[str]], Awaitable[list[JobInfo | None]]],
        redis: Redis,
        queue: Queue,
        payload_bytes: int,
    ) -> None:
        self.batch = max(1, min(MOST_JOBS, MOST_BYTES // (payload_bytes + 1)))
        self._inspect = inspect
        self._redis = redis
        self._queue = queue
        self.can_tell = True
        self._ahead = 0.0  # of the server's clock over this process' monotonic one, in seconds

    async def look(self, ids: Sequence[str]) -> list[Seen | None]:
        """What is kept of each; None where its state or its record is gone."""
        return [self._seen(info) for info in await self._inspect(ids)]

    def _seen(self, info: JobInfo | None) -> Seen | None:
        if info is None or not info.payload:
            return None
        if info.state not in {State.DONE, State.DEAD}:
            return Seen(info.state.value)
        # A job that never started and is dead has no start.
        started = self._here(info.started_ms) if info.started_ms else None
        return Seen(info.state.value, started, self._here(info.at_ms))

    def _here(self, server_ms: int) -> float:
        return server_ms / 1000 - self._ahead

    async def totals(self) -> dict[str, int]:
        """The queue's counters."""
        try:
            counters: Any = await self._redis.hgetall(self._queue.keys["totals"])
        except (driver.RedisError, OSError) as error:
            raise StoreUnavailable(f"the totals of {self._queue.name} cannot be read: {error}") from error
        return {name.decode(): int(value) for name, value in counters.items()}

    async def synchronize(self) -> None:
        """Learn how far the clocks are apart, by the quickest of a few answers."""
        quickest = float("inf")
        try:
            for _ in range(CLOCK_SAMPLES):
                asked = time.monotonic()
                pipeline = self._redis.pipeline(transaction=False)
                pipeline.hlen(self._queue.keys["totals"])  # in a cluster, the time of the node that has the queue
                pipeline.time()
                _, (seconds, microseconds) = await pipeline.execute()
                took = time.monotonic() - asked
                if took < quickest:
                    quickest, self._ahead = took, seconds + microseconds / 1_000_000 - (asked + took / 2)
        except (driver.RedisError, OSError) as error:
            raise StoreUnavailable(f"the server's time cannot be read: {error}") from error


class Locations:
    """The Location that came with the receipts: 200 says that the job is kept, 404 or 410 that it is missing."""

    def __init__(self, session: aiohttp.ClientSession, batch: int) -> None:
        self.batch = batch
        self.template: str | None = None
        """With {id}; set with the first receipt."""
        self._session = session

    @property
    def can_tell(self) -> bool:
        """Whether the receipts named a Location."""
        return self.template is not None

    async def look(self, ids: Sequence[str]) -> list[Seen | None]:
        """Whether each is kept."""
        seen = await asyncio.gather(*(self._one(job_id) for job_id in ids), return_exceptions=True)
        for one in seen:
            if isinstance(one, BaseException):
                raise one
        return [one for one in seen if not isinstance(one, BaseException)]

    async def _one(self, job_id: str) -> Seen | None:
        if self.template is None:
            raise StoreUnavailable("the receipts name no Location with the job's id")
        url = self.template.replace("{id}", job_id)
        try:
            async with self._session.get(url) as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StoreUnavailable(f"GET {url}: {error!r}") from error
        if status in {404, 410}:
            return None
        if status != 200:
            raise StoreUnavailable(f"GET {url} answered {status}")
        return Seen("kept")

    async def totals(self) -> None:
        """None: they are not shown over HTTP."""

    async def synchronize(self) -> None:
        """Nothing: no times are known."""
