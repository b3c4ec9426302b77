"""What the benchmark runs."""

from __future__ import annotations

import asyncio
import time

from pydantic import BaseModel

from aioflow import Service

service = Service("bench")
starts: asyncio.Queue[float] = asyncio.Queue()


class Small(BaseModel):
    """A small typed payload."""

    number: int


@service.task(concurrency=100)
async def noop(payload: Small) -> int:
    """Note the time and return."""
    if starts.qsize() < 10:
        starts.put_nowait(time.perf_counter())
    return payload.number


sized = Service("sized")


class Fields(BaseModel):
    """Four small fields."""

    number: int
    name: str = "ann"
    amount: int = 1250
    currency: str = "USD"


@sized.task(concurrency=100)
async def fields(payload: Fields) -> int:
    """Return one of them."""
    return payload.number
