"""A job leaves nothing to the garbage collector, which would hold up the event loop to find it."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import pytest

from aioflow import Batch, Breaker, Job, Runtime, Service, Task
from tests.valkey import Valkey
from tests.waiting import wait_until

JOBS = 200
service = Service("clean")


@service.task()
async def plain(number: int, job: Job) -> int:
    return number


@service.task()
def threaded(number: int) -> int:
    return number


@service.task(batch=50, linger=0.01, concurrency=100, breaker=Breaker(on=(ConnectionError,)))
async def batched(numbers: list[int], batch: Batch) -> None: ...


@pytest.mark.parametrize("task", [plain, threaded, batched], ids=lambda task: task.name)
async def test_a_job_leaves_no_cycles(valkey: Valkey, namespace: str, task: Task[Any, Any]) -> None:
    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:

        async def all_done() -> bool:
            return (await runtime.sizes(task)).open == 0

        async def run() -> None:
            await runtime.submit_many(task, list(range(JOBS)))
            await wait_until(all_done)

        await run()
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await run()
            gc.collect()
            left = Counter(type(thing).__name__ for thing in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
    # What other tests of this process have left may come to light here; it is not as many as the jobs.
    assert {kind: count for kind, count in left.items() if count >= JOBS / 2} == {}
