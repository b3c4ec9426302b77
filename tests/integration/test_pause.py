"""A paused queue: nobody claims from it, what runs goes on, and all that waits is there when it goes on.

Maintenance would ring a silent bell, and hide a wake-up that was lost: it comes round once and no more in most tests.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

import pytest

from aioflow import Handle, Job, JobFailed, Retry, RetryLater, Runtime, Service, State
from aioflow.engine import maintenance
from aioflow.engine.keys import Queue
from aioflow.engine.store import Store
from tests.integration.test_wait import idle
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until

LONG = 3600.0


@pytest.fixture
def no_maintenance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each queue is maintained once, when its runtime starts."""
    monkeypatch.setattr(maintenance, "TURN_MS", int(1000 * LONG))


class Demo:
    """A service whose handlers wait until they are let go."""

    def __init__(self, *, concurrency: int = 100) -> None:
        self.service = Service("demo")
        self.gate = asyncio.Event()
        self.started: list[str] = []

        @self.service.task(concurrency=concurrency, lease=LONG, retry=Retry(attempts=3, base=0.0))
        async def work(how: str, job: Job) -> str:
            self.started.append(job.id)
            await self.gate.wait()
            if how == "fail" and job.attempt == 1:
                raise ValueError
            if how == "later" and job.attempt == 1:
                raise RetryLater(0.02)
            return how

        self.work = work


@pytest.fixture
def demo() -> Demo:
    return Demo()


@pytest.fixture(params=["valkey", "memory:"])
def redis_url(request: pytest.FixtureRequest, valkey: Valkey) -> str:
    return valkey.url if request.param == "valkey" else "memory:"


async def looked(runtime: Runtime) -> None:
    """Make a runtime's claimer look, and wait until it has."""
    (claimer,) = runtime._claimers.values()
    claims = claimer._claims
    claimer._due()
    await wait_until(lambda: claimer._claims > claims and claimer._waiting)


async def test_a_paused_queue_is_claimed_by_nobody_and_what_runs_goes_on(
    valkey: Valkey, namespace: str, demo: Demo
) -> None:
    async with (
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as first,
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as second,
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as far,
    ):
        running = await far.submit(demo.work, "running")
        await wait_until(lambda: demo.started == [running.id])
        assert await far.pause(demo.work)
        assert not await first.pause("demo.work"), "it was so already"
        # By every way in: another's submit, a claim that rides with one, a due job, and a look of each.
        waiting = [await runtime.submit(demo.work, "waiting") for runtime in (far, first, second)]
        due = await far.submit(demo.work, "due", delay=0.02)
        await wait_until(lambda: past_due(far, due))
        for runtime in (first, second):
            await looked(runtime)
        assert demo.started == [running.id]
        demo.gate.set()
        assert await running.result(5) == "running"
        assert (await far.sizes(demo.work)).open == 4
        assert await far.resume(demo.work)
        assert not await second.resume(demo.work)
        for handle in (*waiting, due):
            await handle.result(5)
    assert Counter(demo.started) == Counter({handle.id: 1 for handle in (running, *waiting, due)})


async def past_due(runtime: Runtime, handle: Handle[Any]) -> bool:
    info = await handle.status()
    return info.state is State.READY or info.at_ms <= runtime.now_ms()


async def test_a_pause_in_memory(namespace: str, demo: Demo) -> None:
    demo.gate.set()
    async with Runtime([demo.service], redis="memory:", namespace=namespace) as runtime:
        assert await runtime.pause(demo.work)
        handle = await demo.work.submit("x")
        await looked(runtime)
        assert (await handle.status()).state is State.READY
        assert await runtime.resume(demo.work)
        assert await handle.result(5) == "x"


async def test_a_pause_is_of_one_task(valkey: Valkey, namespace: str, demo: Demo) -> None:
    @demo.service.task()
    async def other() -> str:
        return "other"

    async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
        await runtime.pause(demo.work)
        paused = await demo.work.submit("x")
        assert await (await other.submit()).result(5) == "other"
        assert (await paused.status()).state is State.READY


async def test_it_outlives_the_runtimes(valkey: Valkey, namespace: str, demo: Demo) -> None:
    demo.gate.set()
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as far:
        await far.pause(demo.work)
        handle = await far.submit(demo.work, "x")
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as worker:
        await looked(worker)
        assert (await worker.sizes(demo.work)).ready == 1
        await worker.resume(demo.work)
        assert await worker.wait_result("demo.work", handle.id, 5) == "x"


# ---- waking up


async def test_a_resume_wakes_as_many_idle_runtimes_as_there_is_work_at_once(
    valkey: Valkey, namespace: str, no_maintenance: None
) -> None:
    demo = Demo(concurrency=1)
    async with (
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as far,
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as first,
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as second,
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as third,
    ):
        for _ in range(3):
            demo.gate.clear()
            demo.started.clear()
            await far.pause(demo.work)
            handles = [await far.submit(demo.work, "x") for _ in range(3)]
            for runtime in (first, second, third):
                await idle(runtime)
            began = time.monotonic()
            await far.resume(demo.work)
            await wait_until(lambda: len(demo.started) == 3, 2)  # well before a pop ends by itself
            assert time.monotonic() - began < 1
            demo.gate.set()
            for handle in handles:
                await handle.result(5)


async def test_a_resume_over_delayed_jobs_only_starts_them_on_time(
    valkey: Valkey, namespace: str, demo: Demo, no_maintenance: None
) -> None:
    demo.gate.set()
    async with (
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as far,
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as worker,
    ):
        await idle(worker)
        await far.pause(demo.work)
        handle = await far.submit(demo.work, "x", delay=0.3)
        await looked(worker)  # and was told of no time
        await idle(worker)
        await far.resume(demo.work)
        assert await handle.result(2) == "x"
        info = await handle.status()
        assert 300 <= info.at_ms - info.submitted_ms < 600


@pytest.mark.parametrize("how", ["fail", "later"])
async def test_what_is_tried_again_waits_and_is_there_at_the_resume(
    valkey: Valkey, namespace: str, demo: Demo, how: str, no_maintenance: None
) -> None:
    async with (
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as far,
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as worker,
    ):
        handle = await far.submit(demo.work, how)
        await wait_until(lambda: demo.started == [handle.id])
        await far.pause(demo.work)
        demo.gate.set()
        await in_state(handle, State.SCHEDULED)
        await wait_until(lambda: past_due(far, handle))
        await looked(worker)
        await idle(worker)
        assert demo.started == [handle.id]
        await far.resume(demo.work)
        assert await handle.result(2) == how
        assert demo.started == [handle.id] * 2


async def test_a_requeue_a_release_and_an_emit_into_a_paused_queue_wait_for_the_resume(
    valkey: Valkey, namespace: str, demo: Demo, store: Store, no_maintenance: None
) -> None:
    source = Service("source")
    demo.gate.set()

    @source.task()
    async def emit(job: Job) -> None:
        job.commit.submit("demo.work", "emitted")

    @demo.service.task()
    async def emit_near(job: Job) -> None:
        job.commit.submit(demo.work, "near")

    queue = Queue(namespace, "demo", "work")
    async with Runtime([demo.service, source], redis=valkey.url, namespace=namespace) as runtime:
        await runtime.pause(demo.work)
        requeued, released = await runtime.submit(demo.work, "requeued"), await runtime.submit(demo.work, "released")
        await requeued.cancel()
        with pytest.raises(JobFailed):
            await requeued.result(5)
        await runtime.redis.hdel(queue.keys["config"], "paused")
        (leased,) = (await store.claim(queue, 1, 60_000, "t.1")).jobs
        await runtime.redis.delete(queue.keys["bell"])
        await runtime.pause(demo.work)
        assert await store.release(queue, [(leased.id, "t.1")]) == [True]
        assert await runtime.requeue(demo.work, requeued.id)
        for task in (emit, emit_near):
            await (await runtime.submit(task)).result(5)

        async def four() -> bool:
            return (await runtime.sizes(demo.work)).ready == 4

        await wait_until(four)
        await store.promote(queue)
        assert await runtime.redis.llen(queue.keys["bell"]) == 0, "nobody is called to what is paused"
        assert demo.started == []
        await runtime.resume(demo.work)
        await wait_until(lambda: len(demo.started) == 4, 2)
        assert await released.result(5) == "released"
        assert await requeued.result(5) == "requeued"


async def test_a_runtime_that_was_full_goes_on_after_the_resume(
    valkey: Valkey, namespace: str, no_maintenance: None
) -> None:
    demo = Demo(concurrency=1)
    async with (
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as far,
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as worker,
    ):
        await idle(worker)
        first = await far.submit(demo.work, "x")
        await wait_until(lambda: demo.started == [first.id])
        await far.pause(demo.work)
        second = await far.submit(demo.work, "y")
        await far.resume(demo.work)
        await far.pause(demo.work)
        await far.resume(demo.work)
        demo.gate.set()
        assert await second.result(2) == "y"
        await far.pause(demo.work)
        demo.gate.clear()
        third = await far.submit(demo.work, "z")
        await looked(worker)
        demo.gate.set()
        await far.resume(demo.work)
        assert await third.result(2) == "z"


async def test_pauses_and_resumes_at_any_moment_strand_and_double_nothing(
    valkey: Valkey, namespace: str, no_maintenance: None
) -> None:
    service = Service("demo")
    ran: list[int] = []
    chance = random.Random(5)

    @service.task(concurrency=3, retry=Retry(attempts=3, base=0.0))
    async def work(number: int, job: Job) -> int:
        ran.append(number)
        await asyncio.sleep(chance.uniform(0, 0.003))
        if number % 7 == 0 and job.attempt == 1:
            raise ValueError
        return number

    async with (
        Runtime([service], redis=valkey.url, namespace=namespace),
        Runtime([service], redis=valkey.url, namespace=namespace) as second,
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as far,
    ):
        handles: list[Handle[Any]] = []

        async def submit() -> None:
            for number in range(300):
                runtime = chance.choice([far, second])
                handles.append(await runtime.submit(work, number, delay=chance.choice([0, 0, 0.005])))
                await asyncio.sleep(chance.uniform(0, 0.003))

        submitting = asyncio.create_task(submit())
        while not submitting.done():
            await far.pause(work)
            await asyncio.sleep(chance.uniform(0, 0.01))
            await far.resume(work)
            await asyncio.sleep(chance.uniform(0, 0.01))
        await submitting
        assert [await handle.result(4) for handle in handles] == list(range(300))
    assert Counter(ran) == Counter([*range(300), *range(0, 300, 7)])
