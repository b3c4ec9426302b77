"""Waiting for results without polling, from any process.

A runtime that waits registers its channel with the job; whatever ends the job publishes the result there. After every
(re)connection each outstanding wait is registered anew, which answers at once for jobs that have finished meanwhile;
so it is every half minute, since a failover may lose a registration while the channel's own connection lives.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from contextlib import suppress

from aioflow.engine.inbox import Inbox
from aioflow.engine.keys import Queue
from aioflow.engine.rows import parse_result
from aioflow.engine.store import Store
from aioflow.errors import ConfigError, NotFound, ProtocolError, ResultTimeout, StoreUnavailable
from aioflow.job import State

Result = tuple[State, bytes]
Key = tuple[str, str]
"""Of a wait: its queue's waiters, and the job."""

RENEW_SECONDS = 30.0
"""So often, about, each wait that is older is registered anew; jittered, or a whole fleet would do so as one."""
RENEWED = 100
"""Most of them at a time; many are spread over the whole span."""


class Results:
    """The waits of one runtime."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waits: dict[Key, tuple[Queue, asyncio.Future[Result], int]] = {}
        self._missed: set[Key] = set()
        self._later: asyncio.Task[None] | None = None  # registers those
        self._closed = False

    def __repr__(self) -> str:
        return f"<Results waits={len(self._waits)}>"

    async def wait(self, inbox: Inbox, queue: Queue, job_id: str, timeout: float | None) -> Result:
        """The job's final state and result. Raises ResultTimeout (seconds) and NotFound.

        A timeout of 0 looks once.
        """
        if timeout is not None and timeout <= 0:
            finished = await self._store.part(queue).look(queue, job_id)
            if finished is None:
                raise ResultTimeout(job_id, 0.0)
            return finished
        if self._closed:
            raise ResultTimeout(job_id, 0.0)
        key = (queue.keys["waiters"], job_id)
        _, future, others = self._waits.get(key, (queue, asyncio.get_running_loop().create_future(), 0))
        self._waits[key] = (queue, future, others + 1)
        inbox.wanted.set()
        try:
            async with asyncio.timeout(timeout):
                await inbox.subscribed.wait()
                await self._register_whatever_comes(inbox, queue, job_id, future)
                return await asyncio.shield(future)
        except TimeoutError:
            raise ResultTimeout(job_id, timeout or 0.0) from None
        finally:
            _, _, waiting = self._waits[key]
            if waiting == 1:
                del self._waits[key]
            else:
                self._waits[key] = (queue, future, waiting - 1)

    def waiting(self) -> bool:
        """Whether there are waits."""
        return bool(self._waits)

    def close(self) -> None:
        """End every wait, and each that begins later: the channel goes, and nobody could tell them any more."""
        self._closed = True
        self.give_up()

    def give_up(self) -> None:
        """End every wait with ResultTimeout, because the runtime stops; handlers may begin others until it has."""
        if self._later is not None:
            self._later.cancel()
        for (_, job_id), (_, future, _) in self._waits.items():
            if not future.done():
                future.set_exception(ResultTimeout(job_id, 0.0))

    async def run(self, channel: str) -> None:
        """Register again and again what goes on waiting, until cancelled."""
        while True:
            keys = list(self._waits)
            batches = [keys[first : first + RENEWED] for first in range(0, len(keys), RENEWED)] or [[]]
            for batch in batches:
                await asyncio.sleep(random.uniform(0.75, 1.0) * RENEW_SECONDS / len(batches))  # noqa: S311 - jitter
                with suppress(StoreUnavailable):  # the next round comes
                    await self._register_these(batch, channel)

    async def register_all(self, channel: str) -> None:
        """Register every wait anew. Raises StoreUnavailable.

        In a cluster it does what can be done, and those of a node that is away follow once it is back.
        """
        await self._register_these(list(self._waits), channel)

    async def _register_these(self, keys: list[Key], channel: str) -> None:
        failed = await self._register_some(keys, channel)
        if failed is None:
            return
        if not self._store.has_parts:
            self._missed.clear()
            raise failed[1]
        if self._later is None or self._later.done():
            self._later = asyncio.create_task(self._register_missed(channel, *failed), name="aioflow late waits")

    async def _register_some(self, keys: Iterable[Key], channel: str) -> tuple[Store, StoreUnavailable] | None:
        """Register waits, but for those of a part of the store that fails, which are missed; the last that failed."""
        failed: dict[Store, StoreUnavailable] = {}
        for key in keys:
            if key not in self._waits:
                continue
            queue, future, _ = self._waits[key]
            part = self._store.part(queue)
            if part not in failed:
                try:
                    await self._register(channel, queue, key[1], future)
                except (NotFound, ProtocolError, ConfigError) as error:
                    if not future.done():
                        future.set_exception(error)
                        future.exception()  # heard, or asyncio would complain where the wait has just ended
                except StoreUnavailable as error:
                    failed[part] = error
            if part in failed:
                self._missed.add(key)
        return failed.popitem() if failed else None

    async def _register_missed(self, channel: str, part: Store, error: StoreUnavailable) -> None:
        failed: tuple[Store, StoreUnavailable] | None = (part, error)
        while failed is not None:
            part, error = failed
            await part.line.setback(error, "waiting for results")
            keys, self._missed = self._missed, set()
            failed = await self._register_some(keys, channel)

    def tell(self, message: bytes) -> None:
        """Take the result of a job: the queue's waiters key, the id, the results row. Raises ValueError."""
        waiters, job_id, line = message.split(b"\n", 2)
        waiting = self._waits.get((waiters.decode(), job_id.decode()))
        if waiting and not waiting[1].done():
            try:
                waiting[1].set_result(parse_result(line, waiters.decode(), job_id.decode()))
            except ProtocolError as error:
                raise ValueError(str(error)) from error

    async def _register(self, channel: str, queue: Queue, job_id: str, future: asyncio.Future[Result]) -> None:
        finished = await self._store.part(queue).await_result(queue, job_id, channel)
        if finished is not None and not future.done():
            future.set_result(finished)

    async def _register_whatever_comes(
        self, inbox: Inbox, queue: Queue, job_id: str, future: asyncio.Future[Result]
    ) -> None:
        """Register, also over a line that breaks; whoever waits has said for how long."""
        while not future.done():
            try:
                await self._register(inbox.channel, queue, job_id, future)
            except StoreUnavailable as error:
                await self._store.part(queue).line.setback(error, "waiting for a result")
            else:
                return
