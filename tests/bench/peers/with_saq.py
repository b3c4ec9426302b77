"""SAQ, on Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from saq import Queue, Worker


def payload(number: int, text: str, sent: int) -> dict[str, Any]:
    """What a job carries."""
    return {"number": number, "text": text, "sent": sent}


@asynccontextmanager
async def submitter(url: str) -> AsyncIterator[Callable[[dict[str, Any]], Awaitable[object]]]:
    """What takes a payload."""
    queue = Queue.from_url(url)
    await queue.connect()
    try:
        yield lambda load: queue.enqueue("work", **load)
    finally:
        await queue.disconnect()


@asynccontextmanager
async def worker(url: str, concurrency: int, handle: Callable[[int, int], Awaitable[None]]) -> AsyncIterator[None]:
    """Runs jobs."""

    async def work(_: Any, *, number: int, text: str, sent: int) -> None:
        await handle(number, sent)

    queue = Queue.from_url(url)
    await queue.connect()
    made: Any = Worker(queue, [("work", work)], concurrency=concurrency)
    made.SIGNALS = []
    running = asyncio.create_task(made.start(), name="saq")
    try:
        yield
    finally:
        await made.stop()
        running.cancel()
        await asyncio.wait([running])
        await queue.disconnect()
