"""streaq."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from streaq import Worker


def payload(number: int, text: str, sent: int) -> dict[str, Any]:
    """What a job carries."""
    return {"number": number, "text": text, "sent": sent}


@asynccontextmanager
async def submitter(url: str) -> AsyncIterator[Callable[[dict[str, Any]], Awaitable[object]]]:
    """What takes a payload."""
    made: Any = Worker(redis_url=url, handle_signals=False)

    @made.task(name="work")  # type: ignore[untyped-decorator, unused-ignore]
    async def work(load: dict[str, Any]) -> None:
        """Is run elsewhere."""

    async def send(load: dict[str, Any]) -> object:
        return await work.enqueue(load)

    async with made:
        yield send


@asynccontextmanager
async def worker(url: str, concurrency: int, handle: Callable[[int, int], Awaitable[None]]) -> AsyncIterator[None]:
    """Runs jobs."""
    made: Any = Worker(redis_url=url, concurrency=concurrency, handle_signals=False)

    @made.task(name="work")  # type: ignore[untyped-decorator, unused-ignore]
    async def work(load: dict[str, Any]) -> None:
        await handle(load["number"], load["sent"])

    running = asyncio.create_task(made.run_async(), name="streaq")
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])
