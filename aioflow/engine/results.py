"""Waiting for results without polling, from any process.

A runtime that waits registers its channel with the job; whatever ends the job publishes the result there. Messages
are lost while the line is down, so after every (re)connection each outstanding wait is registered anew, which answers
at once for jobs that have finished meanwhile.
"""

from __future__ import annotations

import asyncio

from redis import exceptions as driver

from aioflow.engine.keys import Queue, results_channel
from aioflow.engine.store import Store, parse_result
from aioflow.errors import NotFound, ProtocolError, ResultTimeout, StoreUnavailable
from aioflow.job import State

SILENCE_SECONDS = 5.0
"""After so long without a message the line is asked whether it lives; after as long again it counts as lost."""
Result = tuple[State, bytes]


class Results:
    """The waits of one runtime."""

    def __init__(self, store: Store, namespace: str, runtime_id: str) -> None:
        self._store = store
        self._channel = results_channel(namespace, runtime_id)
        self._waits: dict[tuple[str, str], tuple[Queue, asyncio.Future[Result], int]] = {}
        self._subscribed = asyncio.Event()
        self._wanted = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Results waits={len(self._waits)} subscribed={self._subscribed.is_set()}>"

    async def wait(self, queue: Queue, job_id: str, timeout: float | None) -> Result:
        """The job's final state and result. Raises ResultTimeout (seconds) and NotFound."""
        key = (queue.keys["waiters"], job_id)
        _, future, others = self._waits.get(key, (queue, asyncio.get_running_loop().create_future(), 0))
        self._waits[key] = (queue, future, others + 1)
        self._wanted.set()
        try:
            async with asyncio.timeout(timeout):
                await self._subscribed.wait()
                await self._register_whatever_comes(queue, job_id, future)
                return await asyncio.shield(future)
        except TimeoutError:
            raise ResultTimeout(job_id, timeout or 0.0) from None
        finally:
            _, _, waiting = self._waits[key]
            if waiting == 1:
                del self._waits[key]
            else:
                self._waits[key] = (queue, future, waiting - 1)

    def give_up(self) -> None:
        """End every wait with ResultTimeout, because the runtime stops."""
        for (_, job_id), (_, future, _) in self._waits.items():
            if not future.done():
                future.set_exception(ResultTimeout(job_id, 0.0))

    async def _register(self, queue: Queue, job_id: str, future: asyncio.Future[Result]) -> None:
        finished = await self._store.await_result(queue, job_id, self._channel)
        if finished is not None and not future.done():
            future.set_result(finished)

    async def _register_whatever_comes(self, queue: Queue, job_id: str, future: asyncio.Future[Result]) -> None:
        """Register, also over a line that breaks; whoever waits has said for how long."""
        while not future.done():
            try:
                await self._register(queue, job_id, future)
            except StoreUnavailable as error:
                await self._store.line.setback(error, "waiting for a result")
            else:
                return

    async def run(self) -> None:
        """Listen until cancelled; connects when the first wait comes."""
        await self._wanted.wait()
        while True:
            try:
                await self._listen()
            except (driver.RedisError, OSError, StoreUnavailable, ProtocolError) as error:
                self._subscribed.clear()
                lost = error if isinstance(error, ProtocolError) else self._store.lost(error)
                await self._store.line.setback(lost, "waiting for results")

    async def _listen(self) -> None:
        pubsub = self._store.pubsub()
        asked = False
        try:
            await pubsub.subscribe(self._channel)
            while True:
                message = await pubsub.get_message(timeout=SILENCE_SECONDS)
                if message is None:
                    # A peer that vanished says nothing, ever: whoever only listens must ask.
                    if asked:
                        raise driver.TimeoutError("no answer on the results' channel")
                    asked = True
                    await pubsub.ping()
                    continue
                asked = False
                if message["type"] == "message":
                    self._tell(message["data"])
                elif message["type"] == "subscribe":
                    for (_, job_id), (queue, future, _) in list(self._waits.items()):
                        await self._register_again(queue, job_id, future)
                    self._subscribed.set()
        finally:
            await pubsub.aclose()

    async def _register_again(self, queue: Queue, job_id: str, future: asyncio.Future[Result]) -> None:
        try:
            await self._register(queue, job_id, future)
        except NotFound as error:
            if not future.done():
                future.set_exception(error)

    def _tell(self, message: bytes) -> None:
        waiters, job_id, line = message.split(b"\n", 2)
        waiting = self._waits.get((waiters.decode(), job_id.decode()))
        if waiting and not waiting[1].done():
            waiting[1].set_result(parse_result(line))
