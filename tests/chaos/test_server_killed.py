"""Redis itself is killed by SIGKILL under load, and comes back over its AOF."""

from __future__ import annotations

import asyncio

import pytest

from aioflow import Job, Retry, Runtime, Service, StoreUnavailable
from tests.valkey import Valkey
from tests.waiting import wait_until

JOBS, SUBMITTERS, KILLS = 6000, 100, 4


@pytest.mark.timeout(60)
async def test_a_server_that_is_killed_loses_and_doubles_nothing_that_was_receipted(
    own_valkey: Valkey, namespace: str
) -> None:
    service = Service("demo")

    @service.task(lease=1.0, retry=Retry(attempts=3, base=0.01))
    async def work(number: int, job: Job) -> int:
        job.commit.hincrby("ran", str(number), 1)
        return number

    receipts = 0

    async def submit(numbers: list[int]) -> None:
        nonlocal receipts
        for number in numbers:
            while True:
                try:
                    await work.submit(number, id=f"job-{number}")
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.01)  # whoever hears it asks again
            receipts += 1

    async with Runtime([service], redis=own_valkey.url, namespace=namespace) as runtime:
        assert runtime.durability == "fsync"
        numbers = list(range(JOBS))
        async with asyncio.TaskGroup() as submitters:
            for first in range(SUBMITTERS):
                submitters.create_task(submit(numbers[first::SUBMITTERS]))
            for kill in range(KILLS):
                await wait_until(lambda kill=kill: receipts >= JOBS * (kill + 1) // (KILLS + 1), 30)  # type: ignore[misc]
                await asyncio.to_thread(own_valkey.kill)
                await asyncio.to_thread(own_valkey.start)

        async def all_over() -> bool:
            return (await runtime.sizes(work)).open == 0

        await wait_until(all_over, 30)
        sizes, totals = await runtime.sizes(work), await runtime.totals(work)
        assert (sizes.done, sizes.dead, totals["submitted"], totals["done"]) == (JOBS, 0, JOBS, JOBS)
        ran = await runtime.redis.hgetall(runtime.key(service, "ran"))
        assert ran == {str(number).encode(): b"1" for number in numbers}
