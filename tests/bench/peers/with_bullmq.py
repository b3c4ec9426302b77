"""BullMQ for Python."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from bullmq import Queue, Worker


def payload(number: int, text: str, sent: int) -> dict[str, Any]:
    """What a job carries."""
    return {"number": number, "text": text, "sent": sent}


@asynccontextmanager
async def submitter(url: str) -> AsyncIterator[Callable[[dict[str, Any]], Awaitable[object]]]:
    """What takes a payload."""
    queue: Any = Queue("bench", {"connection": url})
    try:
        yield lambda load: queue.add("work", load)
    finally:
        await queue.close()


@asynccontextmanager
async def worker(url: str, concurrency: int, handle: Callable[[int, int], Awaitable[None]]) -> AsyncIterator[None]:
    """Runs jobs."""

    async def work(job: Any, _: str) -> None:
        await handle(job.data["number"], job.data["sent"])

    made: Any = Worker("bench", work, {"connection": url, "concurrency": concurrency})
    try:
        yield
    finally:
        await made.close(force=True)
