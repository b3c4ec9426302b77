"""The runtime on a real server: what is submitted runs, in order, on time, and ends in exactly one way."""

from __future__ import annotations

import asyncio
import logging
import statistics
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from aioflow import (
    CodecError,
    ConfigError,
    Discard,
    Handle,
    IdConflict,
    Job,
    JobFailed,
    NotFound,
    QueueFull,
    ResultTimeout,
    Retry,
    RetryLater,
    Runtime,
    Service,
    State,
    StoreUnavailable,
)
from aioflow.engine.keys import Queue
from aioflow.engine.records import NewJob
from aioflow.engine.store import Store
from aioflow.service import live_runtimes
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until

ONCE = Retry(attempts=1)
SOON = Retry(attempts=5, base=0.0)
"""Retries without a wait."""


class Order(BaseModel):
    """A payload."""

    item: str
    count: Annotated[int, Field(gt=0)] = 1


@pytest.fixture
def service() -> Service:
    return Service("demo")


@pytest.fixture(params=["valkey", "memory:"])
def redis_url(request: pytest.FixtureRequest, valkey: Valkey) -> str:
    """The same small contract holds on a server and in memory."""
    return valkey.url if request.param == "valkey" else "memory:"


async def data(runtime: Runtime, service: Service, name: str) -> dict[bytes, bytes]:
    """A hash that effects wrote."""
    found: Any = await runtime.redis.hgetall(runtime.key(service, name))
    return dict(found)


# ---- the small contract, on a server and in memory


async def test_a_job_is_submitted_run_and_answered(redis_url: str, namespace: str, service: Service) -> None:
    @service.task()
    async def pack(order: Order, job: Job) -> Order:
        assert job.attempt == 1
        job.commit.hset("packed", order.item, job.id)
        return Order(item=order.item.upper(), count=order.count + 1)

    async with Runtime([service], redis=redis_url, namespace=namespace) as runtime:
        handle = await pack.submit(Order(item="pen"))
        assert handle.created
        assert handle.task_name == "demo.pack"
        assert await handle.result(5) == Order(item="PEN", count=2)
        assert await handle.result(5) == Order(item="PEN", count=2), "a finished job answers at once and again"
        info = await handle.status()
        assert (info.state, info.attempt, info.failures, info.crashes) == (State.DONE, 1, 0, 0)
        assert info.payload == b'{"item":"pen","count":1}'
        assert info.result == b'{"item":"PEN","count":2}'
        assert info.submitted_ms <= (info.started_ms or 0) <= info.at_ms
        assert await data(runtime, service, "packed") == {b"pen": handle.id.encode()}
        sizes = await runtime.sizes(pack)
        assert (sizes.open, sizes.running, sizes.done) == (0, 0, 1)
        with pytest.raises(NotFound):
            await runtime.inspect(pack, "unknown")
        with pytest.raises(NotFound):
            await runtime.wait_result("demo.pack", "unknown", 5)


async def test_the_same_id_is_the_same_job(redis_url: str, namespace: str, service: Service) -> None:
    ran: list[str] = []

    @service.task()
    async def pack(order: Order) -> None:
        ran.append(order.item)

    async with Runtime([service], redis=redis_url, namespace=namespace):
        first = await pack.submit(Order(item="pen"), id="order-1")
        again = await pack.submit(Order(item="pen"), id="order-1")
        await first.result(5)
        late = await pack.submit(Order(item="pen"), id="order-1")
        assert [handle.created for handle in (first, again, late)] == [True, False, False]
        assert {handle.id for handle in (first, again, late)} == {"order-1"}
        await late.result(5)
        with pytest.raises(IdConflict) as conflict:
            await pack.submit(Order(item="ink"), id="order-1")
        assert (conflict.value.queue, conflict.value.job_id) == ("demo.pack", "order-1")
    assert ran == ["pen"]


async def test_failures_are_retried_and_counted(redis_url: str, namespace: str, service: Service) -> None:
    attempts: list[int] = []

    @service.task(retry=Retry(attempts=3, base=0.0))
    async def pack(order: Order, job: Job) -> int:
        attempts.append(job.attempt)
        if job.attempt < 3:
            raise ValueError(f"no {order.item}")
        return job.attempt

    async with Runtime([service], redis=redis_url, namespace=namespace):
        handle = await pack.submit(Order(item="pen"))
        assert await handle.result(5) == 3
        info = await handle.status()
        assert (info.attempt, info.failures, info.crashes) == (3, 2, 0)
    assert attempts == [1, 2, 3]


async def test_priorities_go_first_and_within_one_it_is_first_in_first_out(
    redis_url: str, namespace: str, service: Service
) -> None:
    gate = asyncio.Event()
    ran: list[int] = []

    @service.task(concurrency=1)
    async def work(number: int) -> None:
        if number < 0:
            await gate.wait()
        else:
            ran.append(number)

    async with Runtime([service], redis=redis_url, namespace=namespace):
        first = await work.submit(-1)
        await in_state(first, State.RUNNING)
        handles = [await work.submit(number, priority=9 - number // 10) for number in range(30)]
        handles += [await work.submit(100, priority=0), await work.submit(101)]
        gate.set()
        for handle in handles:
            await handle.result(5)
    assert ran == [100, 101, *range(20, 30), *range(10, 20), *range(10)]


# ---- on time


async def test_delayed_jobs_start_within_20_ms_of_their_time(valkey: Valkey, namespace: str, service: Service) -> None:
    started: dict[str, float] = {}

    @service.task()
    async def work(job: Job) -> None:
        started[job.id] = time.time() * 1000

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        delays = [0.5, 0.1, 0.23, 0.31, 0.42, 0.6, 0.17]  # not in order: a sooner one moves the timer
        handles = [await work.submit(delay=delay) for delay in delays]
        due = {handle.id: info.at_ms for handle in handles if (info := await handle.status()).state is State.SCHEDULED}
        assert len(due) == len(delays)
        for handle in handles:
            await handle.result(5)
    late = sorted(started[job_id] - at_ms for job_id, at_ms in due.items())
    assert late[0] >= 0, f"before its time: {late}"
    assert statistics.median(late) < 20, f"ms late: {late}"


async def test_a_delayed_job_that_another_runtime_submits_starts_on_time(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    late: list[float] = []
    due: dict[str, int] = {}

    @service.task()
    async def work(job: Job) -> None:
        late.append(time.time() * 1000 - due[job.id])

    async with (
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as submitter,
        Runtime([service], redis=valkey.url, namespace=namespace),
    ):
        for _ in range(5):
            handle = await submitter.submit(work, delay=0.1)
            due[handle.id] = (await handle.status()).at_ms
            await handle.result(5)
    assert statistics.median(late) < 20, f"ms late: {late}"


async def test_a_retry_starts_on_time(valkey: Valkey, namespace: str, service: Service) -> None:
    ends: list[float] = []
    starts: list[float] = []

    @service.task()
    async def work(job: Job) -> None:
        starts.append(time.time() * 1000)
        if job.attempt <= 5:
            ends.append(time.time() * 1000)
            raise RetryLater(0.1)

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        handle = await work.submit()
        await handle.result(5)
        info = await handle.status()
        assert (info.attempt, info.failures) == (6, 0), "RetryLater is no failure"
    waited = [start - end for start, end in zip(starts[1:], ends, strict=True)]
    assert min(waited) >= 99
    assert statistics.median(waited) < 100 + 20 + 5, f"ms: {waited}"  # a settle on top


# ---- how an attempt may end


async def test_a_timeout_ends_an_async_handler_and_its_effects(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    cancelled: list[str] = []

    @service.task(timeout=0.1, retry=ONCE)
    async def work(job: Job) -> None:
        job.commit.hset("good", "a", "1")
        job.commit.hset("bad", "a", "1", on_failure=True)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(job.id)
            raise

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handle = await work.submit()
        with pytest.raises(JobFailed) as failed:
            await handle.result(5)
        assert failed.value.error == "TimeoutError"
        assert "0.1 s" in failed.value.message
        assert cancelled == [handle.id]
        assert await data(runtime, service, "good") == {}
        assert await data(runtime, service, "bad") == {b"a": b"1"}


async def test_a_handler_that_returns_after_its_timeout_has_failed(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    @service.task(timeout=0.05, retry=ONCE)
    async def work(job: Job) -> str:
        job.commit.hset("good", "a", "1")
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "too late"

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        with pytest.raises(JobFailed, match="TimeoutError"):
            await (await work.submit()).result(5)
        assert await data(runtime, service, "good") == {}


@pytest.mark.parametrize("ending", ["returns", "raises"])
async def test_a_timeout_of_a_handler_in_a_thread_is_settled_once_the_thread_has_ended(
    valkey: Valkey, namespace: str, service: Service, ending: str
) -> None:
    began, end = threading.Event(), threading.Event()

    @service.task(timeout=0.1, lease=0.5, retry=ONCE)
    def work(job: Job) -> str:
        job.commit.hset("good", "a", "1")
        job.commit.hset("bad", "a", "1", on_failure=True)
        began.set()
        end.wait(10)
        if ending == "raises":
            raise ValueError("late as well")
        return "too late"

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handle = await work.submit()
        await wait_until(began.is_set)
        first = await handle.status()

        async def renewed_beyond_its_first_lease() -> bool:
            info = await handle.status()
            assert info.state is State.RUNNING
            return info.at_ms > first.at_ms + 700

        await wait_until(renewed_beyond_its_first_lease)  # well past timeout and lease
        end.set()
        with pytest.raises(JobFailed, match="TimeoutError"):
            await handle.result(5)
        info = await handle.status()
        assert (info.attempt, info.failures, info.crashes) == (1, 1, 0), "the last one counts as well"
        assert await data(runtime, service, "good") == {}
        assert await data(runtime, service, "bad") == {b"a": b"1"}


async def test_a_job_is_dead_after_its_last_attempt(valkey: Valkey, namespace: str, service: Service) -> None:
    @service.task(retry=SOON)
    async def work(job: Job) -> None:
        job.commit.hset("chosen", str(job.attempt), "1")
        job.commit.hset("failed", str(job.attempt), "1", on_failure=True)
        raise LookupError(f"attempt {job.attempt}")

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handle = await work.submit()
        with pytest.raises(JobFailed) as failed:
            await handle.result(5)
        assert (failed.value.job_id, failed.value.error, failed.value.message) == (
            handle.id,
            "LookupError",
            "attempt 5",
        )
        assert (await handle.status()).attempt == 5
        assert await data(runtime, service, "chosen") == {}
        assert set(await data(runtime, service, "failed")) == {b"1", b"2", b"3", b"4", b"5"}


async def test_a_retry_waits_with_full_jitter_below_its_bound(valkey: Valkey, namespace: str, service: Service) -> None:
    @service.task(retry=Retry(attempts=3, base=1000.0, longest=2000.0))
    async def work(number: int) -> None:
        raise ValueError

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        handles = [await work.submit(number) for number in range(20)]
        for handle in handles:
            await in_state(handle, State.SCHEDULED)
        infos = [await handle.status() for handle in handles]
        waits = [(info.at_ms - info.submitted_ms) / 1000 for info in infos]
        assert max(waits) < 1001
        assert max(waits) - min(waits) > 100, "20 draws of 0 to 1,000 s lie apart"
        assert {info.failures for info in infos} == {1}


async def test_only_the_named_exceptions_are_retried(valkey: Valkey, namespace: str, service: Service) -> None:
    @service.task(retry=Retry(attempts=5, base=0.0, on=(LookupError,), never=(KeyError,)))
    async def work(name: str) -> None:
        raise {"key": KeyError, "index": IndexError, "value": ValueError}[name](name)

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        for name, attempts in (("key", 1), ("index", 5), ("value", 1)):
            handle = await work.submit(name)
            with pytest.raises(JobFailed):
                await handle.result(5)
            assert (await handle.status()).attempt == attempts, name


async def test_outcomes_that_a_handler_chooses_land_with_their_effects(
    valkey: Valkey, namespace: str, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    @service.task(retry=ONCE)
    async def work(job: Job) -> None:
        job.commit.hset("chosen", str(job.attempt), "1")
        job.commit.hset("failed", str(job.attempt), "1", on_failure=True)
        if job.attempt < 3:
            raise RetryLater(0)
        raise Discard("nobody wants it")

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handle = await work.submit()
        with pytest.raises(JobFailed) as failed:
            await handle.result(5)
        assert (failed.value.error, failed.value.message) == ("Discard", "nobody wants it")
        assert set(await data(runtime, service, "chosen")) == {b"1", b"2", b"3"}
        assert await data(runtime, service, "failed") == {}
        info = await handle.status()
        assert (info.attempt, info.failures) == (3, 0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], "outcomes, not faults"


async def test_effects_land_all_or_none_and_a_bad_one_is_named(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    @service.task()
    async def work(bad: bool, job: Job) -> None:
        job.commit.hset("first", job.id, "1")
        if bad:
            job.commit.sadd("first", "x")
        job.commit.hset("last", job.id, "1")

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handles = await asyncio.gather(*[work.submit(number == 3) for number in range(6)])
        culprit = handles.pop(3)
        with pytest.raises(JobFailed) as failed:
            await culprit.result(5)
        assert failed.value.error == "BadEffect"
        assert "effect 2 (sadd on first)" in failed.value.message
        for handle in handles:
            await handle.result(5)
        mates = {handle.id.encode() for handle in handles}
        assert set(await data(runtime, service, "first")) == mates
        assert set(await data(runtime, service, "last")) == mates


@pytest.mark.parametrize("what", ["key", "surrogate"])
async def test_what_cannot_be_written_ends_its_job_and_no_other(
    valkey: Valkey, namespace: str, service: Service, what: str
) -> None:
    gate = asyncio.Event()

    @service.task(retry=ONCE)
    async def work(bad: bool, job: Job) -> int:
        await gate.wait()  # so that all are settled as one batch
        job.commit.hset("first", job.id, "1")
        if bad:
            job.commit.hset(*((7, "a", "1") if what == "key" else ("a", "\ud800", "1")))
        return job.attempt

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handles = await asyncio.gather(*[work.submit(number == 2) for number in range(5)])
        for handle in handles:
            await in_state(handle, State.RUNNING)
        gate.set()
        culprit = handles.pop(2)
        assert [await handle.result(5) for handle in handles] == [1] * 4
        with pytest.raises(JobFailed, match="ConfigError" if what == "key" else "CodecError"):
            await culprit.result(5)
        assert culprit.id.encode() not in await data(runtime, service, "first")


async def test_a_reason_to_discard_that_is_no_text_is_written_as_text(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    @service.task()
    async def work() -> None:
        raise Discard(ValueError("no text"))  # type: ignore[arg-type]

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        with pytest.raises(JobFailed, match="Discard: no text"):
            await (await work.submit()).result(5)


# ---- payloads and results


async def test_a_payload_that_does_not_fit_is_refused_at_submit(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    @service.task()
    async def pack(order: Order) -> None: ...

    @service.task()
    async def tick() -> None: ...

    @service.task(payload_limit=9)
    async def small(text: str) -> str:
        return text + "!"

    @service.task(payload_limit=4 << 20)
    async def large(text: str) -> str:
        return text

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        with pytest.raises(CodecError, match=r"demo\.pack"):
            await pack.submit({"item": "pen", "count": 0})  # type: ignore[arg-type]
        with pytest.raises(CodecError, match="takes no payload"):
            await tick.submit("x")  # type: ignore[call-overload]
        changed = Order(item="pen")
        changed.count = -1  # models may be changed after they were checked
        with pytest.raises(CodecError):
            await pack.submit(changed)
        with pytest.raises(CodecError, match="at most 1048576 bytes"):
            await pack.submit(Order(item="x" * (1 << 20)))
        with pytest.raises(CodecError, match="at most 9 bytes"):
            await small.submit("12345678")
        with pytest.raises(JobFailed, match="at most 9 bytes"):
            await (await small.submit("1234567")).result(5)
        assert await (await large.submit("x" * (2 << 20))).result(5) == "x" * (2 << 20)
        assert (await runtime.sizes(pack)).open == 0


async def test_a_payload_that_no_longer_decodes_goes_to_dead_with_the_reason_once(
    valkey: Valkey, namespace: str, service: Service, store: Store
) -> None:
    ran: list[str] = []

    @service.task(retry=SOON)
    async def pack(order: Order, job: Job) -> None:
        ran.append(job.id)

    queue = Queue(namespace, "demo", "pack")
    bad = {
        "json": b"\n{",
        "field": b'\n{"count":1}',
        "empty": b"",
        "binary": b"\n\xff\xfe",
        "constraint": b'\n{"item":"a","count":0}',
    }
    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        jobs = [NewJob(queue, job_id, envelope, 4, "0") for job_id, envelope in bad.items()]
        assert await store.submit([*jobs, NewJob(queue, "good", b'\n{"item":"a"}', 4, "0")]) == [1] * 6
        for job_id in bad:
            with pytest.raises(JobFailed) as failed:
                await runtime.wait_result("demo.pack", job_id, 5)
            assert failed.value.error == "CodecError"
            assert "no longer fits its type" in failed.value.message
            info = await runtime.inspect(pack, job_id)
            assert (info.attempt, info.failures, info.crashes) == (1, 0, 0)
        await runtime.wait_result("demo.pack", "good", 5)
    assert ran == ["good"]


async def test_a_job_whose_record_is_gone_goes_to_dead_with_the_reason(
    valkey: Valkey, namespace: str, service: Service, store: Store
) -> None:
    @service.task()
    async def pack(order: Order) -> None: ...

    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as submitter:
        handle = await submitter.submit(pack, Order(item="pen"))
        await store.redis.hdel(Queue(namespace, "demo", "pack").keys["jobs"], handle.id)
        async with Runtime([service], redis=valkey.url, namespace=namespace):
            await in_state(handle, State.DEAD)
            with pytest.raises(JobFailed, match="record of this job is missing"):
                await handle.result(5)


async def test_a_result_that_does_not_fit_is_dead_and_runs_once(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    attempts: list[str] = []

    @service.task(retry=SOON)
    async def pack(what: str, job: Job) -> Order:
        attempts.append(what)
        job.commit.hset("good", what, "1")
        answers: dict[str, Any] = {
            "none": None,
            "type": 5,
            "constraint": Order.model_construct(item="a", count=0),
            "large": Order(item="x" * (1 << 20)),
        }
        return answers[what]  # type: ignore[no-any-return]

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        for what in ("none", "type", "constraint", "large"):
            handle = await pack.submit(what)
            with pytest.raises(JobFailed, match="CodecError"):
                await handle.result(5)
        assert await data(runtime, service, "good") == {}
    assert attempts == ["none", "type", "constraint", "large"]


# ---- shapes of handlers


async def test_every_shape_of_a_handler_runs(redis_url: str, namespace: str, service: Service) -> None:
    @service.task()
    async def nothing() -> str:
        return "nothing"

    @service.task()
    async def only_job(job: Job) -> str:
        return job.id

    @service.task()
    async def only_payload(number: int) -> int:
        return number

    @service.task()
    async def job_first(job: Job, number: int) -> str:
        return f"{job.id} {number}"

    @service.task()
    def in_thread(number: int, job: Job) -> str:
        return f"{threading.current_thread().name} {number} {job.attempt}"

    async with Runtime([service], redis=redis_url, namespace=namespace):
        assert await (await nothing.submit()).result(5) == "nothing"
        assert await (await only_job.submit(id="me")).result(5) == "me"
        assert await (await only_payload.submit(3)).result(5) == 3
        first = await job_first.submit(3, id="x")
        assert await first.result(5) == "x 3"
        assert await (await in_thread.submit(3)).result(5) == "aioflow:in_thread 3 1"
    assert await nothing() == "nothing", "calling a task calls the handler"


async def test_other_shapes_are_refused_at_decoration(service: Service) -> None:
    def three(a: int, b: int, c: int) -> None: ...
    def keyword(*, a: int) -> None: ...
    def many(*a: int) -> None: ...
    def bare(a) -> None: ...  # type: ignore[no-untyped-def]

    def generator(a: int) -> Any:
        yield a

    async def stream(a: int) -> Any:
        yield a

    handlers: list[Any] = [three, keyword, many, bare, generator, stream]
    for handler in handlers:
        with pytest.raises(ConfigError, match=r"class Payment\(BaseModel\)") as error:
            service.task()(handler)
        assert f"demo.{handler.__name__}" in str(error.value)
    assert service.tasks == {}

    @service.task()
    async def work() -> None: ...

    with pytest.raises(ConfigError, match="with parentheses"):
        service.task(work.handler)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="already has a task work"):
        service.task(name="work")(work.handler)
    with pytest.raises(ConfigError, match="lower case"):
        service.task(name="No Name")(work.handler)
    with pytest.raises(ConfigError) as wrong:
        service.task(concurrency=0, timeout=0, lease=0.1, keep_done=1, bound=0, most_crashes=0)
    for name in ("concurrency=0", "timeout=0", "lease=0.1", "keep_done=1", "bound=0", "most_crashes=0"):
        assert name in str(wrong.value), "all problems in one error"


async def test_annotations_are_checked_before_anything_is_started(valkey: Valkey, namespace: str) -> None:
    def two(a: int, b: int) -> None: ...
    def jobs(a: Job, b: Job) -> None: ...
    def unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    handlers: list[tuple[Any, str]] = [(two, "one payload"), (jobs, "one payload"), (unknown, "Nowhere")]
    for handler, message in handlers:
        service = Service("demo")
        service.task()(handler)
        runtime = Runtime([service], redis=valkey.url, namespace=namespace)
        with pytest.raises(ConfigError, match=message):
            await runtime.start()
        assert live_runtimes == []


# ---- which runtime


async def test_submit_uses_the_only_live_runtime_that_holds_the_service(valkey: Valkey, namespace: str) -> None:
    one, other = Service("one"), Service("other")

    @one.task()
    async def ping() -> str:
        return "one"

    @other.task()
    async def pong() -> str:
        return await (await ping.submit()).result(5)

    with pytest.raises(ConfigError, match=r"no live runtime .* service one; call runtime\.submit\(task, \.\.\.\)"):
        await ping.submit()
    async with Runtime([one], redis=valkey.url, namespace=namespace):
        assert await (await ping.submit()).result(5) == "one"
        with pytest.raises(ConfigError, match="no live runtime"):
            await pong.submit()
        async with Runtime([other], redis=valkey.url, namespace=namespace) as runtime:
            # A handler of one runtime submits to another, which alone holds that service.
            assert await (await pong.submit()).result(5) == "one"
            with pytest.raises(ConfigError, match=r"holds no task demo\.x; it holds \['other\.pong'\]"):
                await runtime.submit("demo.x")
    with pytest.raises(ConfigError, match="no live runtime"):
        await ping.submit()


async def test_of_several_runtimes_a_handler_uses_its_own_and_others_must_name_one(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    @service.task()
    async def child(name: str) -> str:
        return name

    @service.task()
    async def parent(how: str) -> str:
        match how:
            case "task":
                async with asyncio.TaskGroup() as group:
                    submitting = group.create_task(child.submit("x"))
                return submitting.result().id
            case "thread":
                return (await asyncio.to_thread(child.submit_sync, "x")).id
        return (await child.submit("x")).id

    async def limited(job: Job, call: Callable[[], Awaitable[Any]]) -> Any:
        return await asyncio.wait_for(call(), 5)  # on Python 3.11 in a task of its own

    both = [Runtime([service], redis=valkey.url, namespace=f"{namespace}{name}", middleware=[limited]) for name in "ab"]
    async with both[0] as first, both[1] as second:
        with pytest.raises(ConfigError, match="2 live runtimes"):
            await parent.submit("plain")
        for runtime, stranger in ((first, second), (second, first)):
            for how in ("plain", "task", "thread"):
                child_id = await (await runtime.submit("demo.parent", how)).result(5)
                assert await runtime.handle(child, child_id).result(5) == "x"
                with pytest.raises(NotFound):
                    await stranger.handle("demo.child", child_id).status()


async def test_a_handle_is_had_by_the_jobs_id(valkey: Valkey, namespace: str, service: Service) -> None:
    gate = asyncio.Event()

    @service.task()
    async def work(number: int) -> int:
        await gate.wait()
        return number

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        submitted = await work.submit(7)
        handle = work.handle(submitted.id)
        assert (handle.id, handle.task_name, handle.created) == (submitted.id, "demo.work", False)
        with pytest.raises(ResultTimeout):
            await handle.result(0)
        gate.set()
        assert await handle.result(5) == 7
        assert await handle.result(0) == 7, "a look is enough"
        with pytest.raises(NotFound):
            await work.handle("nobody's").result(0)
        with pytest.raises(ConfigError, match="printable"):
            work.handle("two words")


async def test_two_runtimes_share_a_queue(valkey: Valkey, namespace: str, service: Service) -> None:
    running: set[str] = set()
    both = asyncio.Event()

    @service.task(concurrency=1)
    async def work(job: Job) -> str:
        running.add(job.id)
        if len(running) == 2:
            both.set()
        await both.wait()
        return job.id

    async with (
        Runtime([service], redis=valkey.url, namespace=namespace) as first,
        Runtime([service], redis=valkey.url, namespace=namespace),
    ):
        handles = [await first.submit(work) for _ in range(2)]
        assert [await handle.result(5) for handle in handles] == [handle.id for handle in handles]


# ---- bounds and dead jobs


async def test_a_full_queue_refuses_and_takes_again(valkey: Valkey, namespace: str, service: Service) -> None:
    gate = asyncio.Event()

    @service.task(bound=3, retry=SOON)
    async def work(number: int, job: Job) -> int:
        await gate.wait()
        if job.attempt == 1:
            raise ValueError("a retry is never refused")
        return number

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        handles = [await work.submit(number, id=f"job-{number}") for number in range(3)]
        with pytest.raises(QueueFull) as full:
            await work.submit(3, id="job-3")
        assert (full.value.queue, full.value.bound, full.value.job_id) == ("demo.work", 3, "job-3")
        assert not (await work.submit(0, id="job-0")).created, "a known job is known, full or not"
        gate.set()
        assert [await handle.result(5) for handle in handles] == [0, 1, 2]
        assert await (await work.submit(3, id="job-3")).result(5) == 3


async def test_a_dead_job_is_requeued_and_goes_on_counting_attempts(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    @service.task(retry=ONCE)
    async def work(job: Job) -> int:
        if job.attempt == 1:
            raise ValueError
        return job.attempt

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handle = await work.submit()
        with pytest.raises(JobFailed):
            await handle.result(5)
        assert await runtime.requeue(work, handle.id)
        assert await handle.result(5) == 2
        assert not await runtime.requeue(work, handle.id), "it is done, not dead"
        with pytest.raises(NotFound):
            await runtime.requeue(work, "unknown")


async def test_arguments_of_submit_are_checked(valkey: Valkey, namespace: str, service: Service) -> None:
    @service.task()
    async def work() -> None: ...

    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as runtime:
        wrong: list[dict[str, Any]] = [{"priority": 10}, {"priority": -1}, {"delay": -1.0}, {"delay": 1e9}]
        for arguments in (*wrong, {"id": ""}, {"id": "a b"}, {"id": "a" * 201}):
            with pytest.raises(ConfigError):
                await runtime.submit(work, **arguments)
        handle = await work.submit()
        with pytest.raises(ResultTimeout) as timeout:
            await handle.result(0.05)
        assert (timeout.value.job_id, timeout.value.timeout) == (handle.id, 0.05)


# ---- a runtime's life


async def test_lifespans_give_resources_and_are_left_after_the_handlers(valkey: Valkey, namespace: str) -> None:
    said: list[str] = []

    @asynccontextmanager
    async def lifespan(runtime: Runtime) -> AsyncIterator[dict[str, str]]:
        said.append("enter")
        await runtime.submit("demo.work", 0)  # the runtime takes jobs already
        yield {"name": "resource"}
        said.append("leave")

    service = Service("demo", lifespan=lifespan)
    finish = asyncio.Event()

    @service.task()
    async def work(number: int, job: Job) -> None:
        if number:
            await finish.wait()
        said.append(f"{job.resources['name']} {number}")

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        await wait_until(lambda: "resource 0" in said)
        await in_state(await work.submit(1), State.RUNNING)
        stopping = asyncio.create_task(runtime.stop())
        await wait_until(lambda: all(task.done() for task in runtime._claiming))
        finish.set()
        await stopping
    assert said == ["enter", "resource 0", "resource 1", "leave"]


async def connections(valkey: Valkey, name: str = "aioflow:") -> int:
    """How many clients of that name the server has."""
    store = Store(valkey.url, name="observer")
    try:
        return sum(str(client["name"]).startswith(name) for client in await store.redis.client_list())
    finally:
        await store.close()


async def test_double_start_and_double_stop_are_legal(own_valkey: Valkey, namespace: str, service: Service) -> None:
    @service.task()
    async def work() -> str:
        return "ran"

    runtime = Runtime([service], redis=own_valkey.url, namespace=namespace)
    await runtime.start()
    await runtime.start()
    assert await (await work.submit()).result(5) == "ran"
    await runtime.stop()
    await runtime.stop()
    assert live_runtimes == []
    assert await connections(own_valkey) == 0
    with pytest.raises(ConfigError, match="not running"):
        await runtime.submit(work)
    with pytest.raises(ConfigError, match="once"):
        await runtime.start()
    never = Runtime([service], redis=own_valkey.url, namespace=namespace)
    await never.stop()


async def test_a_start_that_fails_half_way_leaves_nothing(own_valkey: Valkey, namespace: str) -> None:
    left: list[str] = []

    @asynccontextmanager
    async def good(_: Runtime) -> AsyncIterator[None]:
        yield
        left.append("good")

    @asynccontextmanager
    async def bad(_: Runtime) -> AsyncIterator[None]:
        raise LookupError("no such thing")
        yield

    services = [Service("one", lifespan=good), Service("two", lifespan=bad)]
    runtime = Runtime(services, redis=own_valkey.url, namespace=namespace)
    with pytest.raises(LookupError):
        await runtime.start()
    assert left == ["good"]
    assert live_runtimes == []
    assert await connections(own_valkey) == 0


async def test_a_lifespan_that_fails_at_the_end_leaves_nothing(own_valkey: Valkey, namespace: str) -> None:
    @asynccontextmanager
    async def bad(_: Runtime) -> AsyncIterator[None]:
        yield
        raise LookupError("already gone")

    service = Service("one", lifespan=bad)

    @service.task()
    async def work() -> None: ...

    runtime = Runtime([service], redis=own_valkey.url, namespace=namespace)
    await runtime.start()
    with pytest.raises(LookupError):
        await runtime.stop()
    assert await connections(own_valkey) == 0  # and the fixture looks for tasks


async def test_a_redis_that_is_not_there_is_said_at_the_start(namespace: str, service: Service) -> None:
    runtime = Runtime([service], redis="unix:///nowhere/at/all", namespace=namespace)
    with pytest.raises(StoreUnavailable, match="redis is away"):
        await runtime.start()
    with pytest.raises(ConfigError, match="two services share a name"):
        Runtime([service, Service("demo")], redis="memory:")
    with pytest.raises(ConfigError, match="use redis://"):
        await Runtime([service], redis="http://x", namespace=namespace).start()
    with pytest.raises(ConfigError, match="workers"):
        Runtime([service], redis="memory:", workers=0)


# ---- stop


async def test_a_stop_lets_running_handlers_finish_and_claims_no_more(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    finish = asyncio.Event()

    @service.task(concurrency=2)
    async def work(number: int) -> int:
        await finish.wait()
        return number

    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as observer:
        runtime = Runtime([service], redis=valkey.url, namespace=namespace, grace=5.0)
        await runtime.start()
        handles = [await observer.submit(work, number) for number in range(4)]
        for handle in handles[:2]:
            await in_state(handle, State.RUNNING)
        stopping = asyncio.create_task(runtime.stop())
        await wait_until(lambda: all(task.done() for task in runtime._claiming))
        finish.set()
        began = time.monotonic()
        await stopping
        assert time.monotonic() - began < 2
        assert [await handle.result(1) for handle in handles[:2]] == [0, 1]
        states = [(await handle.status()) for handle in handles[2:]]
        assert [(info.state, info.attempt) for info in states] == [(State.READY, 0)] * 2


async def test_a_handler_may_submit_while_its_runtime_stops(valkey: Valkey, namespace: str, service: Service) -> None:
    finish = asyncio.Event()

    @service.task()
    async def child(number: int) -> int:
        return number

    @service.task()
    async def parent(number: int) -> list[str]:
        await finish.wait()
        handles = await asyncio.gather(child.submit(number), child.submit(number + 1))
        return [handle.id for handle in handles]

    runtime = Runtime([service], redis=valkey.url, namespace=namespace)
    await runtime.start()
    family = await parent.submit(7)
    await in_state(family, State.RUNNING)
    stopping = asyncio.create_task(runtime.stop())
    await wait_until(lambda: all(task.done() for task in runtime._claiming))
    finish.set()
    await stopping
    with pytest.raises(ConfigError, match="no live runtime"):
        await child.submit(9)
    async with Runtime([service], redis=valkey.url, namespace=namespace) as next_one:
        ids = await next_one.wait_result("demo.parent", family.id, 5)
        assert [await next_one.wait_result("demo.child", child_id, 5) for child_id in ids] == [7, 8]
        assert (await next_one.inspect(parent, family.id)).attempt == 1


async def test_handlers_longer_than_the_grace_are_released_to_their_old_place(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    order: list[int] = []
    slow = asyncio.Event()

    @service.task(concurrency=1)
    async def work(number: int, job: Job) -> None:
        if not slow.is_set():
            job.commit.hset("bad", "a", "1")
            job.commit.hset("bad", "b", "1", on_failure=True)
            await slow.wait()
        order.append(number)

    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as observer:
        runtime = Runtime([service], redis=valkey.url, namespace=namespace, grace=0.1)
        await runtime.start()
        handles = [await observer.submit(work, number) for number in range(3)]
        await in_state(handles[0], State.RUNNING)
        began = time.monotonic()
        await runtime.stop()
        assert time.monotonic() - began < 0.1 + 2
        info = await handles[0].status()
        assert (info.state, info.attempt, info.failures, info.crashes) == (State.READY, 1, 0, 0)
        assert await data(observer, service, "bad") == {}
        slow.set()
        async with Runtime([service], redis=valkey.url, namespace=namespace):
            for handle in handles:
                await handle.result(5)
    assert order == [0, 1, 2]


async def test_a_handler_that_swallows_its_cancellation_keeps_its_lease(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    end = asyncio.Event()
    swallowed = asyncio.Event()

    @service.task(concurrency=1)
    async def work() -> str:
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                swallowed.set()
        return "at last"

    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as observer:
        runtime = Runtime([service], redis=valkey.url, namespace=namespace, grace=0.05)
        await runtime.start()
        handle = await observer.submit(work)
        await in_state(handle, State.RUNNING)
        (attempt,) = runtime._pools[0].running
        began = time.monotonic()
        await runtime.stop()
        assert time.monotonic() - began < 0.05 + 2
        assert swallowed.is_set()
        # Given back, it would start elsewhere while it still runs here.
        assert (await handle.status()).state is State.RUNNING
        end.set()
        assert attempt.task is not None
        await asyncio.wait([attempt.task])


async def test_handlers_in_threads_keep_their_lease_at_a_stop(valkey: Valkey, namespace: str, service: Service) -> None:
    began, end = threading.Event(), threading.Event()

    @service.task(concurrency=1)
    def work() -> str:
        began.set()
        end.wait(10)
        return "late"

    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as observer:
        runtime = Runtime([service], redis=valkey.url, namespace=namespace, grace=0.05)
        await runtime.start()
        handle = await observer.submit(work)
        await wait_until(began.is_set)
        (attempt,) = runtime._pools[0].running
        await runtime.stop()
        info = await handle.status()
        assert (info.state, info.attempt) == (State.RUNNING, 1)
        end.set()
        assert attempt.task is not None
        await asyncio.wait([attempt.task])


# ---- the last chance


async def crash_twice(store: Store, namespace: str, suspects: list[Handle[Any]]) -> None:
    """Make it so that these jobs of demo.work, which are ready, have crashed their worker twice."""
    for suspect in suspects:
        row = f"-:2:0:2:{4 * 2**42 + (await suspect.status()).at_ms}"
        await store.redis.hset(Queue(namespace, "demo", "work").keys["claims"], suspect.id, row)


async def test_suspects_run_one_at_a_time_and_count_their_time_from_their_start(
    valkey: Valkey, namespace: str, service: Service, store: Store
) -> None:
    running: set[str] = set()
    most: list[int] = []
    innocent_ran = asyncio.Event()

    @service.task(concurrency=10, timeout=0.5, retry=ONCE)
    async def work(seconds: float, job: Job) -> int:
        if seconds == 0:
            innocent_ran.set()
            return job.attempt
        running.add(job.id)
        most.append(len(running))
        await innocent_ran.wait()
        await asyncio.sleep(seconds)
        running.remove(job.id)
        return job.attempt

    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as submitter:
        suspects = [await submitter.submit(work, 0.2) for _ in range(4)]
        await crash_twice(store, namespace, suspects)
        innocent = await submitter.submit(work, 0)
        async with Runtime([service], redis=valkey.url, namespace=namespace):
            # Others run beside them, and waiting is not held against them: 4 x 0.2 s is more than the timeout.
            assert await innocent.result(5) == 1
            assert [await handle.result(5) for handle in suspects] == [3] * 4
    assert most == [1] * 4


async def test_a_suspect_that_waits_is_released_at_a_stop(
    valkey: Valkey, namespace: str, service: Service, store: Store
) -> None:
    @service.task(concurrency=10)
    async def work() -> None:
        await asyncio.Event().wait()

    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as observer:
        suspects = [await observer.submit(work) for _ in range(3)]
        await crash_twice(store, namespace, suspects)
        runtime = Runtime([service], redis=valkey.url, namespace=namespace, grace=0.0)
        await runtime.start()
        for handle in suspects:
            await in_state(handle, State.RUNNING)
        await runtime.stop()
        for handle in suspects:
            info = await handle.status()
            assert (info.state, info.attempt, info.crashes) == (State.READY, 3, 2)


async def test_calls_that_ask_for_too_much_say_so(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")
    entries = service.timeline("entries")

    @service.task()
    async def work() -> None: ...

    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as runtime:
        ids = [str(number) for number in range(1001)]
        for call in (runtime.inspect_many(work, ids), runtime.cancel_many(work, ids)):
            with pytest.raises(ConfigError, match=r"takes up to 1,000 jobs, not 1,001"):
                await call
        for limit in (0, 1001):
            for reading in (entries["a"].page(limit=limit), runtime.jobs_page(work, "open", limit=limit)):
                with pytest.raises(ConfigError, match=f"1 to 1,000 entries, not limit={limit}"):
                    await reading
        assert (await entries["a"].page(limit=1000)).entries == []
