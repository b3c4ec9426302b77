"""aioflow, as `serve` runs it: typed payloads, timeout, retries, metrics and fenced settles."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from pydantic import BaseModel

from aioflow import Handle, Runtime, Service
from aioflow.cli.serve import spare_collections

BOUND = 2_000_000
"""So many may wait; the default of a million is what growth is measured at."""


class Load(BaseModel):
    """What a job carries."""

    number: int
    text: str = ""
    sent: int = 0


def prepare() -> None:
    """What `serve` does in its process."""
    spare_collections()


def payload(number: int, text: str, sent: int) -> Load:
    """What a job carries."""
    return Load(number=number, text=text, sent=sent)


@asynccontextmanager
async def submitter(url: str) -> AsyncIterator[Callable[[Load], Awaitable[Handle[None]]]]:
    """What takes a payload."""
    service = Service("bench")

    @service.task(bound=BOUND)
    async def work(load: Load) -> None:
        """Is run elsewhere."""

    async with Runtime([service], redis=url, workers=False):
        yield work.submit


@asynccontextmanager
async def worker(url: str, concurrency: int, handle: Callable[[int, int], Awaitable[None]]) -> AsyncIterator[None]:
    """Runs jobs."""
    service = Service("bench")

    @service.task(bound=BOUND, concurrency=concurrency)
    async def work(load: Load) -> None:
        """Hand over."""
        await handle(load.number, load.sent)

    async with Runtime([service], redis=url):
        yield
