"""`python -m tests.integration.costing URL JOBS`: says ready; after a line on standard input submits and runs jobs."""

from __future__ import annotations

import asyncio
import sys

from pydantic import BaseModel

from aioflow import Runtime, Service
from aioflow.cli.serve import spare_collections
from tests.waiting import wait_until

SUBMITTERS = 200


class Load(BaseModel):
    """A small typed payload."""

    number: int
    text: str = ""


service = Service("cost")


@service.task(concurrency=100)
async def work(load: Load) -> int:
    """Nothing, typed."""
    return load.number


async def submit(jobs: int) -> None:
    """By many submitters, side by side."""

    async def submitter(number: int) -> None:
        for _ in range(jobs // SUBMITTERS):
            await work.submit(Load(number=number))

    await asyncio.gather(*(submitter(number) for number in range(SUBMITTERS)))


async def run(url: str, jobs: int) -> None:
    """Submit them all, then run them all."""
    async with Runtime([service], redis=url, workers=False):
        await submit(jobs)
    runtime = Runtime([service], redis=url)

    async def empty() -> bool:
        return (await runtime.sizes(work)).open == 0

    async with runtime:
        await wait_until(empty, 120)


if __name__ == "__main__":
    spare_collections()
    print("ready", flush=True)
    sys.stdin.readline()
    asyncio.run(run(sys.argv[1], int(sys.argv[2])))
