"""taskiq with its Redis stream broker, which acknowledges; no result backend, as it is by default."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

STOP_SECONDS = 3.0


def payload(number: int, text: str, sent: int) -> dict[str, Any]:
    """What a job carries."""
    return {"number": number, "text": text, "sent": sent}


@asynccontextmanager
async def submitter(url: str) -> AsyncIterator[Callable[[dict[str, Any]], Awaitable[object]]]:
    """What takes a payload."""
    broker = RedisStreamBroker(url)

    @broker.task(task_name="work")  # type: ignore[untyped-decorator, unused-ignore]
    async def work(number: int, text: str, sent: int) -> None:
        """Is run elsewhere."""

    await broker.startup()
    try:
        yield lambda load: work.kiq(**load)
    finally:
        await broker.shutdown()


@asynccontextmanager
async def worker(url: str, concurrency: int, handle: Callable[[int, int], Awaitable[None]]) -> AsyncIterator[None]:
    """Runs jobs."""
    broker = RedisStreamBroker(url)

    @broker.task(task_name="work")  # type: ignore[untyped-decorator, unused-ignore]
    async def work(number: int, text: str, sent: int) -> None:
        await handle(number, sent)

    running = asyncio.create_task(
        run_receiver_task(broker, max_async_tasks=concurrency, run_startup=True), name="taskiq"
    )
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running], timeout=STOP_SECONDS)  # idle, it waits for a read that nobody cancels
        await broker.shutdown()
