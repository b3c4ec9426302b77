"""Group commit: what many callers want sent becomes few batches.

A stated number of flushes is in flight; whatever arrives meanwhile is the next batch. There is no timer, so an idle
system adds no delay. A batch is flushed when a flush before it has been answered; it holds at most 1,000 items and
1 MiB, the line before it at most `MOST_WAITING` items, and whoever comes beyond that hears StoreUnavailable at once.

A caller that is cancelled before its item was sent takes it out; in flight, the item goes on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from aioflow.engine.records import MOST_BYTES, MOST_JOBS
from aioflow.errors import StoreUnavailable

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Heard_contra = TypeVar("Heard_contra", contravariant=True)

MOST_WAITING = 100_000
MOST_WAITING_BYTES = 256 << 20


class Receiver(Protocol[Heard_contra]):
    """Who hears the answer to an item: a future, or what does without its costs. It must not raise."""

    def cancelled(self) -> bool:
        """Whether the item need not be sent any more."""

    def done(self) -> bool:
        """Whether the answer would come too late."""

    def set_result(self, result: Heard_contra, /) -> None:
        """The item was flushed."""

    def set_exception(self, exception: Exception, /) -> None:
        """It was not, or nobody knows."""


class Coalescer(Generic[Item, Answer]):
    """Collects items and flushes them batch by batch; `flush` answers a batch in its order.

    With one flight batches are as large as can be. With two, the server works on one batch while this process prepares
    the other; they run side by side only where `most_items` cuts the line into more than one.
    """

    def __init__(
        self,
        name: str,
        flush: Callable[[list[Item]], Awaitable[list[Answer]]],
        *,
        flights: int = 1,
        most_items: int = MOST_JOBS,
    ) -> None:
        self.name = name
        self._flights = flights
        self._most_items = most_items
        self._flush = flush
        self._line: deque[tuple[Item, int, Receiver[Answer]]] = deque()  # a class costs four times as much
        self._line_bytes = 0
        self._in_flight = 0
        self._ended = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: deque[asyncio.Future[None]] = deque()  # of flights that wait for items
        self._emptied = asyncio.Event()
        self._emptied.set()

    def __repr__(self) -> str:
        return f"<Coalescer {self.name} waiting={len(self._line)} in_flight={self._in_flight}>"

    def __len__(self) -> int:
        return len(self._line) + self._in_flight

    def put(self, item: Item, size: int) -> asyncio.Future[Answer]:
        """Add an item of so many bytes; the future answers, or raises what the flush raised for it."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()  # kept: on Python 3.11 each call of it is a system call
        future: asyncio.Future[Answer] = self._loop.create_future()
        self.put_for(future, item, size)
        return future

    def put_for(self, receiver: Receiver[Answer], item: Item, size: int) -> None:
        """As `put`; the receiver hears the answer, at once."""
        if self._ended:
            raise StoreUnavailable("the runtime has stopped; nothing is sent to redis any more")
        if len(self._line) >= MOST_WAITING or self._line_bytes + size > MOST_WAITING_BYTES:
            raise StoreUnavailable(
                f"{len(self._line)} items of {self._line_bytes} bytes wait to be sent to redis already; try again later"
            )
        self._line.append((item, size, receiver))
        self._line_bytes += size
        if len(self._line) == 1:
            self._emptied.clear()
            self._wake_one()

    async def run(self) -> None:
        """Flush until cancelled; `drain` first, or whoever still waits hears StoreUnavailable."""
        try:
            async with asyncio.TaskGroup() as flights:
                for number in range(self._flights):
                    flights.create_task(self._fly(), name=f"aioflow {self.name} flight {number}")
        finally:
            self.end()

    def end(self, _: object = None) -> None:
        """Nothing is sent any more: whoever still waits hears StoreUnavailable. May be repeated.

        Also for the done callback of the task that runs it: one that is cancelled before its first step runs nothing.
        """
        self._ended = True
        self._fail([receiver for _, _, receiver in self._line], unanswered())
        self._line.clear()
        self._emptied.set()

    async def _fly(self) -> None:
        while True:
            while not self._line:
                idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._idle.append(idle)
                await idle
            items, receivers = self._next_batch()
            if self._line:
                self._wake_one()
            self._in_flight += len(items)
            try:
                await self._answer(items, receivers)
            except BaseException:  # the end, or a bug, which ends the line
                self._fail(receivers, unanswered())
                raise
            self._in_flight -= len(items)
            if not len(self):
                self._emptied.set()

    def _wake_one(self) -> None:
        """Another flight takes what is in the line; one that finds nothing would only be in the way of the first."""
        if self._idle and not (idle := self._idle.popleft()).done():
            idle.set_result(None)

    async def drain(self) -> None:
        """Wait until the line is empty and nothing is in flight."""
        await self._emptied.wait()

    def _next_batch(self) -> tuple[list[Item], list[Receiver[Answer]]]:
        items: list[Item] = []
        receivers: list[Receiver[Answer]] = []
        bytes_taken = 0
        line = self._line
        while line and len(items) < self._most_items:
            item, size, receiver = line[0]
            if items and bytes_taken + size > MOST_BYTES:
                break
            line.popleft()
            self._line_bytes -= size
            if not receiver.cancelled():
                bytes_taken += size
                items.append(item)
                receivers.append(receiver)
        return items, receivers

    async def _answer(self, items: list[Item], receivers: list[Receiver[Answer]]) -> None:
        if not items:
            return  # all of it was cancelled
        try:
            answers = await self._flush(items)
        except StoreUnavailable as error:
            self._fail(receivers, error)
        except Exception as error:  # noqa: BLE001 - refused by redis, or not to be packed at all
            # One bad item must not fail its batch-mates: split until the culprit stands alone.
            if len(items) == 1:
                self._fail(receivers, error)
            else:
                half = len(items) // 2
                await self._answer(items[:half], receivers[:half])
                await self._answer(items[half:], receivers[half:])
        else:
            for receiver, answer in zip(receivers, answers, strict=True):
                if not receiver.done():
                    receiver.set_result(answer)

    @staticmethod
    def _fail(receivers: list[Receiver[Answer]], error: Exception) -> None:
        for receiver in receivers:
            if not receiver.done():
                receiver.set_exception(error)


def unanswered() -> StoreUnavailable:
    """What those hear whose batch was not answered before the end."""
    return StoreUnavailable("the runtime stopped before redis answered; it may or may not have been done")
