"""Batch tasks: one call of a handler for many jobs, each of which keeps its own outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from aioflow import (
    Batch,
    ConfigError,
    Discard,
    Handle,
    Job,
    JobCancelled,
    JobFailed,
    Retry,
    RetryLater,
    Runtime,
    Service,
    State,
)
from aioflow.engine.keys import Queue
from aioflow.engine.store import Store
from aioflow.job import Failure
from aioflow.testing import run_handler
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until


@pytest.fixture
def service() -> Service:
    return Service("demo")


@pytest.fixture(params=["valkey", "memory:"])
def redis_url(request: pytest.FixtureRequest, valkey: Valkey) -> str:
    return valkey.url if request.param == "valkey" else "memory:"


async def submitted(task: Any, payloads: list[Any]) -> list[Handle[Any]]:
    """The handles of jobs that were all accepted."""
    answers = await task.submit_many(payloads)
    assert all(isinstance(answer, Handle) for answer in answers), answers
    return list(answers)


async def test_jobs_that_wait_are_one_call(redis_url: str, namespace: str, service: Service) -> None:
    calls: list[list[int]] = []

    @service.task(batch=50, linger=30)
    async def store(numbers: list[int], batch: Batch) -> None:
        assert [job.attempt for job in batch.jobs] == [1] * len(numbers)
        for number, job in zip(numbers, batch.jobs, strict=True):
            job.commit.hset("seen", job.id, str(number))
        calls.append(numbers)

    async with Runtime([service], redis=redis_url, namespace=namespace) as runtime:
        handles = await submitted(store, list(range(200)))
        assert await asyncio.gather(*[handle.result(10) for handle in handles]) == [None] * 200
        seen = await runtime.redis.hgetall(runtime.key(service, "seen"))
    assert [len(call) for call in calls] == [50] * 4, "full batches, without waiting for the linger"
    assert [number for call in calls for number in call] == list(range(200)), "in their order"
    assert seen == {handle.id.encode(): str(number).encode() for number, handle in enumerate(handles)}


async def test_a_few_wait_for_no_more_than_the_linger(valkey: Valkey, namespace: str, service: Service) -> None:
    calls: list[list[str]] = []

    @service.task(batch=1000, linger=0.2)
    async def store(names: list[str], _batch: Batch) -> None:
        calls.append(names)

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        began = time.monotonic()
        first = await store.submit("ann")
        second = await store.submit("bob")
        await first.result(10)
        assert time.monotonic() - began > 0.19, "the first one waits for others"
        await second.result(10)
    assert calls == [["ann", "bob"]]


async def test_those_that_come_while_a_call_runs_are_the_next_one(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    calls: list[list[int]] = []
    go_on = asyncio.Event()

    @service.task(batch=10, linger=0.0)
    async def store(numbers: list[int], _batch: Batch) -> None:
        calls.append(numbers)
        await go_on.wait()

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handles = [await store.submit(0)]
        await wait_until(lambda: calls)
        for number in range(1, 8):
            handles.append(await store.submit(number))
            await in_state(handles[-1], State.RUNNING)
        assert calls == [[0]], "concurrency=10 and batch=10: one call at a time"
        go_on.set()
        await asyncio.gather(*[handle.result(10) for handle in handles])
        assert (await runtime.totals(store))["done"] == 8
    assert calls == [[0], [1, 2, 3, 4, 5, 6, 7]]


async def test_one_may_fail_and_the_others_are_done(redis_url: str, namespace: str, service: Service) -> None:
    @service.task(batch=5, linger=30, retry=Retry(attempts=2, base=0.0))
    async def store(numbers: list[int], batch: Batch) -> None:
        for position, job in enumerate(batch.jobs):
            job.commit.hincrby("ends", str(numbers[position]), 1)
        if numbers == [0, 1, 2, 3, 4]:
            batch.fail(1, Discard("no such thing"))
            batch.fail(2, ValueError("wrong"))
            batch.fail(3, RetryLater(0))
        with pytest.raises(IndexError, match="no job 5"):
            batch.fail(5, ValueError())

    @service.task(batch=2, linger=0.01)
    async def other(_numbers: list[int], batch: Batch) -> None:
        batch.fail(0, StopIteration("cannot be raised into a future"))

    async with Runtime([service], redis=redis_url, namespace=namespace) as runtime:
        handles = await submitted(store, [0, 1, 2, 3, 4])
        assert await handles[0].result(10) is None
        assert await handles[4].result(10) is None
        with pytest.raises(JobFailed, match="no such thing"):
            await handles[1].result(10)
        # The two that are tried again would wait long for three more.
        await submitted(store, [5, 6, 7])
        await asyncio.gather(handles[2].result(10), handles[3].result(10))
        (failure,) = (await handles[2].status()).history
        assert (failure.error, failure.message) == ("ValueError", "wrong")
        assert (await handles[3].status()).failures == 0
        ends = await runtime.redis.hgetall(runtime.key(service, "ends"))
        broken = await other.submit(1)
        assert "StopIteration" in (await wait_for_history(broken))[0].message
        await broken.cancel()
    # An exception drops its job's effects; Discard and RetryLater land them.
    assert {name: int(count) for name, count in ends.items()} == {
        b"0": 1, b"1": 1, b"2": 1, b"3": 2, b"4": 1, b"5": 1, b"6": 1, b"7": 1,
    }  # fmt: skip


async def wait_for_history(handle: Handle[Any]) -> tuple[Failure, ...]:
    async def history() -> tuple[Failure, ...]:
        return (await handle.status()).history

    return await wait_until(history)


async def test_what_the_handler_raises_fails_all_of_them(valkey: Valkey, namespace: str, service: Service) -> None:
    @service.task(batch=100, retry=Retry(attempts=1))
    async def store(numbers: list[int], batch: Batch) -> None:
        batch.fail(0, Discard("never mind: all of them fail by what is raised"))
        raise OSError(f"the disk is full, {len(numbers)} times")

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        handles = await submitted(store, list(range(100)))
        errors = await asyncio.gather(*[handle.result(10) for handle in handles], return_exceptions=True)
    assert all(isinstance(error, JobFailed) for error in errors)
    assert all("OSError: the disk is full, 100 times" in str(error) for error in errors)


async def test_a_cancelled_job_leaves_the_others_alone(valkey: Valkey, namespace: str, service: Service) -> None:
    """While it waits it is gone at once; in a call, the call decides."""
    calls: list[list[str]] = []
    go_on = asyncio.Event()

    @service.task(batch=2, concurrency=4, linger=30)
    async def store(names: list[str], _batch: Batch) -> None:
        calls.append(names)
        await go_on.wait()

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        waits = await store.submit("waits")
        await in_state(waits, State.RUNNING)
        assert await waits.cancel()
        with pytest.raises(JobCancelled):
            await waits.result(10)
        running = await submitted(store, ["ann", "bob"])
        await wait_until(lambda: calls)
        assert await running[0].cancel()
        late = await submitted(store, ["cid", "dora"])
        await wait_until(lambda: len(calls) == 2)
        go_on.set()
        assert await asyncio.gather(*[handle.result(10) for handle in (*running, *late)]) == [None] * 4
    assert calls == [["ann", "bob"], ["cid", "dora"]]


async def test_a_call_of_which_all_are_cancelled_is_cancelled(valkey: Valkey, namespace: str, service: Service) -> None:
    seen: list[str] = []

    @service.task(batch=2, linger=30)
    async def store(_names: list[str], _batch: Batch) -> None:
        seen.append("began")
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("ended")

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        ann, bob = await submitted(store, ["ann", "bob"])
        await wait_until(lambda: seen)
        await ann.cancel()
        await bob.cancel()
        for handle in (ann, bob):
            with pytest.raises(JobCancelled):
                await handle.result(10)
        assert seen == ["began", "ended"]


async def test_the_time_limit_is_the_calls(valkey: Valkey, namespace: str, service: Service) -> None:
    """It runs from the call's begin, not while a job waits for others."""

    @service.task(batch=3, linger=0.3, timeout=0.2, retry=Retry(attempts=1))
    async def store(names: list[str], _batch: Batch) -> None:
        if "slow" in names:
            await asyncio.Event().wait()

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        await (await store.submit("quick")).result(10)
        handles = await submitted(store, ["slow", "one", "two"])
        errors = await asyncio.gather(*[handle.result(10) for handle in handles], return_exceptions=True)
    assert all("no result within 0.2 s" in str(error) for error in errors), errors


@pytest.mark.parametrize("when", ["waiting", "running"])
async def test_a_stop_gives_all_of_them_back(
    valkey: Valkey, namespace: str, service: Service, store: Store, when: str
) -> None:
    calls: list[list[int]] = []
    linger = 30.0 if when == "waiting" else 0.0

    @service.task(batch=10, linger=linger, name="work")
    async def work(numbers: list[int], _batch: Batch) -> None:
        calls.append(numbers)
        await asyncio.Event().wait()

    async with Runtime([service], redis=valkey.url, namespace=namespace, grace=0.1):
        handles = await submitted(work, [1, 2, 3])
        for handle in handles:
            await in_state(handle, State.RUNNING)
        if when == "running":
            await wait_until(lambda: calls)
    queue = Queue(namespace, "demo", "work")
    infos = await store.inspect(queue, [handle.id for handle in handles])
    assert [info.state for info in infos if info] == [State.READY] * 3
    assert [(info.failures, info.crashes) for info in infos if info] == [(0, 0)] * 3
    assert calls == [[1, 2, 3]], "also those that waited: nobody would have joined them"


async def test_middleware_goes_around_each_job(valkey: Valkey, namespace: str) -> None:
    seen: list[str] = []

    async def note(job: Job, call: Callable[[], Any]) -> Any:
        result = await call()
        seen.append(job.id)
        return result

    service = Service("demo", middleware=[note])

    @service.task(batch=3)
    async def store(_numbers: list[int], _batch: Batch) -> None: ...

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        handles = await submitted(store, [1, 2, 3])
        await asyncio.gather(*[handle.result(10) for handle in handles])
    assert sorted(seen) == sorted(handle.id for handle in handles)


async def test_a_batch_handler_is_tried_with_one_payload(service: Service) -> None:
    @service.task(batch=500)
    async def store(numbers: list[int], batch: Batch) -> None:
        batch.jobs[0].commit.hset("seen", "x", f"{numbers} {batch.resources}")
        if numbers == [2]:
            batch.fail(0, ValueError("two"))

    ran = await run_handler(store, 1, resources="things")
    assert (ran.outcome, ran.effects[0].args) == ("done", ("x", "[1] things"))
    assert (await run_handler(store, 2)).outcome == "retry"


def test_a_batch_handler_has_one_form(service: Service) -> None:
    async def fits(_numbers: list[int], _batch: Batch) -> None: ...
    async def alone(_numbers: list[int]) -> None: ...
    async def single(_number: int, _batch: Batch) -> None: ...
    async def answers(numbers: list[int], _batch: Batch) -> list[int]:
        return numbers

    def plain(_numbers: list[int], _batch: Batch) -> None: ...

    declare: Any = service.task
    wrong_shapes: list[Any] = [alone, plain]
    wrong_types: list[Any] = [single, answers]
    for handler in wrong_shapes:
        with pytest.raises(ConfigError, match="a batch handler takes the payloads and a Batch"):
            declare(batch=10)(handler)
    for handler in wrong_types:
        with pytest.raises(ConfigError, match="a batch handler takes the payloads and a Batch"):
            _ = declare(batch=10)(handler).signature
    with pytest.raises(ConfigError, match="a batch handler takes the payloads and a Batch"):
        _ = declare(name="no-batch")(fits).signature
    for options, named in (
        ({"batch": 0}, "batch=0"),
        ({"batch": 1001}, "batch=1001"),
        ({"batch": 5, "cpu": True}, "do not go together"),
        ({"batch": 5, "linger": -1}, "linger=-1"),
        ({"batch": 5, "linger": float("nan")}, "linger=nan"),
    ):
        with pytest.raises(ConfigError, match=named):
            declare(**options)(fits)
    assert declare(batch=10)(fits).options.concurrency == 10


async def test_what_is_no_exception_fails_the_call_and_says_so(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    @service.task(batch=3, retry=Retry(attempts=1))
    async def store(_numbers: list[int], batch: Batch) -> None:
        batch.fail(1, ValueError)  # type: ignore[arg-type]

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        handles = await submitted(store, [1, 2, 3])
        errors = await asyncio.gather(*[handle.result(10) for handle in handles], return_exceptions=True)
    assert all("batch.fail takes an exception, not <class 'ValueError'>" in str(error) for error in errors), errors


async def test_a_call_hears_of_a_stop_also_where_it_takes_its_time_over_a_timeout(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    heard: list[str] = []

    @service.task(batch=2, linger=0.0, timeout=0.1)
    async def store(_numbers: list[int], _batch: Batch) -> None:
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                heard.append(str(error))

    async with Runtime([service], redis=valkey.url, namespace=namespace, grace=0.0) as runtime:
        await submitted(store, [1, 2])
        await wait_until(lambda: heard)
        await runtime.stop()
        assert len(heard) == 2
        assert runtime.running_on() == 0


async def test_a_stop_and_quiet_wait_for_nobody_to_join(valkey: Valkey, namespace: str, service: Service) -> None:
    calls: list[list[int]] = []

    @service.task(batch=10, linger=60)
    async def store(numbers: list[int], _batch: Batch) -> None:
        calls.append(numbers)

    runtimes = [Runtime([service], redis=valkey.url, namespace=namespace, grace=20) for _ in range(2)]
    for runtime, end in zip(runtimes, ("stop", "quiet"), strict=True):
        await runtime.start()
        handles = [await runtime.submit(store, number) for number in (1, 2)]
        for handle in handles:
            await in_state(handle, State.RUNNING)
        began = time.monotonic()
        if end == "quiet":
            runtime.quiet()
            await asyncio.gather(*[handle.result(10) for handle in handles])
        await runtime.stop()
        assert time.monotonic() - began < 10
    assert calls == [[1, 2], [1, 2]], "they were done, not given back"


async def test_jobs_that_nobody_can_join_do_not_wait(
    valkey: Valkey, namespace: str, service: Service, store: Store
) -> None:
    """On their last chance they run one at a time, so the linger would be waited out by each of them."""
    calls: list[int] = []

    @service.task(batch=5, linger=30, name="work", most_crashes=1)
    async def work(numbers: list[int], _batch: Batch) -> None:
        calls.append(len(numbers))

    queue = Queue(namespace, "demo", "work")
    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as submitter:
        handles = [await submitter.submit(work, number) for number in range(4)]
    for handle in handles:
        await store.redis.hset(queue.keys["claims"], handle.id, "-:1:0:1:17592186044416")
    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        waited = [runtime.handle(work, handle.id).result(10) for handle in handles]
        await asyncio.gather(*waited)
    assert calls == [1, 1, 1, 1]


async def test_a_call_runs_in_the_context_of_its_first_job(valkey: Valkey, namespace: str) -> None:
    current: ContextVar[str] = ContextVar("current", default="")

    async def mark(job: Job, call: Callable[[], Any]) -> Any:
        current.set(job.id)
        return await call()

    service = Service("demo", middleware=[mark])
    wrong: list[str] = []

    @service.task(batch=4, concurrency=8, linger=0.0)
    async def store(_numbers: list[int], batch: Batch) -> None:
        if current.get() != batch.jobs[0].id:
            wrong.append(current.get())
        await asyncio.sleep(0)

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        handles = await submitted(store, list(range(100)))
        await asyncio.gather(*[handle.result(10) for handle in handles])
    assert wrong == []


async def test_fewer_jobs_at_a_time_are_smaller_batches_and_a_new_cap_is_heard_of(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    calls: list[int] = []
    go_on = asyncio.Event()

    @service.task(batch=4, linger=30)
    async def store(numbers: list[int], _batch: Batch) -> None:
        calls.append(len(numbers))
        await go_on.wait()

    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=2) as runtime:
        handles = await submitted(store, list(range(14)))
        await wait_until(lambda: calls == [2])
        runtime.scale(10)
        await wait_until(lambda: calls == [2, 4, 4])
        go_on.set()
        await asyncio.gather(*[handle.result(10) for handle in handles[:12]])
        runtime.quiet()
        await asyncio.gather(*[handle.result(10) for handle in handles[12:]])


async def test_a_waiter_that_goes_takes_its_linger_along(valkey: Valkey, namespace: str, service: Service) -> None:
    calls: list[list[int]] = []

    @service.task(batch=2, linger=1.0)
    async def store(numbers: list[int], _batch: Batch) -> None:
        calls.append(numbers)

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        first = await runtime.submit(store, 1)
        await in_state(first, State.RUNNING)
        await first.cancel()
        batches = runtime._pools[0]._executor._batches
        assert batches is not None
        await wait_until(lambda: not batches._line)
        assert batches._timer is None
        assert not batches._lingered
