"""docket (pydocket)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from docket import Docket, Worker

MOST_CONNECTIONS = "?max_connections=2000"
"""It opens one per call that is under way; its default ends submitters that are more than that."""


def payload(number: int, text: str, sent: int) -> dict[str, Any]:
    """What a job carries."""
    return {"number": number, "text": text, "sent": sent}


@asynccontextmanager
async def submitter(url: str) -> AsyncIterator[Callable[[dict[str, Any]], Awaitable[object]]]:
    """What takes a payload."""

    async def work(number: int, text: str, sent: int) -> None:
        """Is run elsewhere."""

    async with Docket("bench", url + MOST_CONNECTIONS) as docket:
        docket.register(work)
        yield lambda load: docket.add(work)(**load)


@asynccontextmanager
async def worker(url: str, concurrency: int, handle: Callable[[int, int], Awaitable[None]]) -> AsyncIterator[None]:
    """Runs jobs."""

    async def work(number: int, text: str, sent: int) -> None:
        await handle(number, sent)

    async with Docket("bench", url + MOST_CONNECTIONS) as docket:
        docket.register(work)
        async with Worker(docket, concurrency=concurrency) as made:
            running = asyncio.create_task(made.run_forever(), name="docket")
            try:
                yield
            finally:
                running.cancel()
                await asyncio.wait([running])
