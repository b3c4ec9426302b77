"""What handlers have around them: the record of their failures, progress, logs and middleware."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import orjson
import pytest
from pydantic import AfterValidator

from aioflow import CodecError, Discard, Job, JobFailed, Retry, RetryLater, Runtime, Service, State
from aioflow.cli.logs import JsonFormatter
from aioflow.engine import executor
from aioflow.engine.keys import Queue
from aioflow.engine.records import Leased, NewJob
from aioflow.engine.store import Store
from tests.integration.test_line import sha
from tests.proxy import Proxy
from tests.serving import Serve
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until

ONCE = Retry(attempts=1)
SOON = Retry(attempts=5, base=0.0)
Call = Callable[[], Awaitable[Any]]


@pytest.fixture
def service() -> Service:
    return Service("demo")


@pytest.fixture(params=["valkey", "memory:"])
def redis_url(request: pytest.FixtureRequest, valkey: Valkey) -> str:
    return valkey.url if request.param == "valkey" else "memory:"


async def failed(handle: Any) -> JobFailed:
    """How a job failed."""
    with pytest.raises(JobFailed) as caught:
        await handle.result(10)
    return caught.value


# ---- the record of failures


class OutOfInk(Exception):
    """Of a user's own."""


class Gone(Discard):
    """Of a user's own."""


async def test_each_failed_attempt_is_told_with_its_traceback(redis_url: str, namespace: str, service: Service) -> None:
    @service.task(retry=Retry(attempts=4, base=0.0), timeout=0.05)
    async def work(job: Job) -> str:
        match job.attempt:
            case 1:
                raise OutOfInk("the first\nof two lines — größer")
            case 2:
                await asyncio.Event().wait()
            case 3:
                raise RetryLater(0)
            case 4:
                try:
                    _ = os.environ["INNER"]
                except KeyError as error:
                    raise ValueError("outer") from error
        return "at last"

    async with Runtime([service], redis=redis_url, namespace=namespace) as runtime:
        handle = await work.submit()
        assert await handle.result(5) == "at last"
        info = await handle.status()
        first, second, third = info.history
        assert (first.error, first.message) == ("OutOfInk", "the first\nof two lines — größer")
        assert (second.error, second.message) == ("TimeoutError", "no result within 0.05 s")
        assert (third.error, third.message) == ("ValueError", "outer")
        assert [failure.attempt for failure in info.history] == [1, 2, 4], "RetryLater is no failure"
        assert {failure.worker for failure in info.history} == {runtime.name}
        assert "in work\n" in first.traceback
        assert 'raise OutOfInk("the first' in first.traceback
        assert third.traceback.index("KeyError: 'INNER'") < third.traceback.index("ValueError: outer")
        times = [failure.at_ms or 0 for failure in info.history]
        assert info.submitted_ms <= times[0] <= times[1] <= times[2] <= info.at_ms
        assert (info.attempt, info.failures) == (5, 3)


async def test_a_dead_job_says_how_its_last_attempt_failed(redis_url: str, namespace: str, service: Service) -> None:
    @service.task(retry=Retry(attempts=2, base=0.0))
    def work(job: Job) -> None:
        raise OutOfInk(f"attempt {job.attempt}")

    async with Runtime([service], redis=redis_url, namespace=namespace) as runtime:
        handle = await work.submit()
        error = await failed(handle)
        assert (error.job_id, error.error, error.message, error.attempt) == (handle.id, "OutOfInk", "attempt 2", 2)
        assert error.worker == runtime.name
        assert "in work\n" in error.traceback
        assert str(error) == f"job {handle.id} is dead: OutOfInk: attempt 2"
        assert [failure.message for failure in (await handle.status()).history] == ["attempt 1"]
        discarded = await runtime.submit(work, id="again")
        await failed(discarded)


async def test_the_last_ten_are_kept(valkey: Valkey, namespace: str, service: Service) -> None:
    @service.task(retry=Retry(attempts=25, base=0.0))
    async def work(job: Job) -> None:
        raise OutOfInk("x" * 20_000 + str(job.attempt))

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handle = await work.submit()
        assert (await failed(handle)).attempt == 25
        info = await handle.status()
        assert [failure.attempt for failure in info.history] == list(range(15, 25))
        assert all(len(failure.message) == 10_000 and len(failure.traceback) <= 4000 for failure in info.history)
        assert (info.attempt, info.failures) == (25, 25)
        size = await runtime.redis.hstrlen(Queue(namespace, "demo", "work").keys["history"], handle.id)
        assert size < 200_000


async def test_a_requeue_keeps_what_was_and_adds_the_death(valkey: Valkey, namespace: str, service: Service) -> None:
    gate = asyncio.Event()

    @service.task(retry=Retry(attempts=2, base=0.0))
    async def work(job: Job) -> str:
        if gate.is_set():
            return "ok"
        raise OutOfInk(str(job.attempt))

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handle = await work.submit()
        for _ in range(2):
            dead = await failed(handle)
            died_ms = (await handle.status()).at_ms
            assert await runtime.requeue(work, handle.id)
        await failed(handle)
        gate.set()
        assert await runtime.requeue(work, handle.id)
        assert await handle.result(5) == "ok"
        info = await handle.status()
        assert [failure.message for failure in info.history] == ["1", "2", "3", "4", "5", "6"]
        assert (info.history[3].attempt, info.history[3].worker) == (dead.attempt, dead.worker)
        assert info.history[3].traceback == dead.traceback
        assert died_ms <= (info.history[3].at_ms or 0) <= info.at_ms
        assert (info.attempt, info.failures) == (7, 0)


async def test_crashes_are_told_too(valkey: Valkey, namespace: str, service: Service, store: Store) -> None:
    @service.task(lease=0.5, most_crashes=3)
    async def work(job: Job) -> int:
        return job.attempt

    @service.task(lease=0.5, most_crashes=1)
    async def fragile() -> None: ...

    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as near:
        handle, doomed = await near.submit(work), await near.submit(fragile)
        # By processes that are gone after it.
        assert (await store.claim(Queue(namespace, "demo", "work"), 1, 200, "gone.1")).jobs
        assert (await store.claim(Queue(namespace, "demo", "fragile"), 1, 200, "gone.2", most_crashes=1)).jobs
        async with Runtime([service], redis=valkey.url, namespace=namespace):
            assert await handle.result(10) == 2
            error = await failed(doomed)
        (crash,) = (await handle.status()).history
        assert (crash.error, crash.message, crash.attempt, crash.worker) == ("Crashed", "its lease expired", 1, "gone")
        assert crash.at_ms
        assert (error.error, error.message) == ("Crashed", "lease expired 1 times")
        assert (error.attempt, error.worker) == (1, "gone")


class Mute(Exception):
    """One that cannot say what it is."""

    def __str__(self) -> str:
        raise LookupError("no words")


NASTY: dict[str, Callable[[], BaseException]] = {
    "mute": Mute,
    "surrogate": lambda: OutOfInk("\ud800 and \x00 and \u2028 and \r\n"),
    "braces": lambda: OutOfInk('{"error": "fake"}\n1700000000000 {"error": "forged"}'),
    "group": lambda: ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
    "endless": lambda: RecursionError("deep"),
    "stop": StopAsyncIteration,
    "percent": lambda: OutOfInk("100 %s %d %"),
    "empty": OutOfInk,
}


@pytest.mark.parametrize("kind", ["async", "thread"])
@pytest.mark.parametrize("what", NASTY)
async def test_whatever_a_handler_raises_is_recorded_and_ends_its_attempt_only(
    valkey: Valkey, namespace: str, service: Service, what: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a test logs travels to xdist's controller, which takes no lone surrogate.
    monkeypatch.setattr(executor.log, "disabled", what == "surrogate")

    def body(name: str, job: Job) -> str:
        if name != "good" and job.attempt < 3:
            error = NASTY[name]()
            raise error
        return name

    if kind == "thread":
        work = service.task(name="work", retry=SOON)(body)
    else:

        async def awaited(name: str, job: Job) -> str:
            return body(name, job)

        work = service.task(name="work", retry=SOON)(awaited)

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        mates = [await work.submit("good") for _ in range(3)]
        handle = await work.submit(what)
        assert await handle.result(5) == what
        for mate in mates:
            assert await mate.result(5) == "good"
        info = await handle.status()
        assert [failure.attempt for failure in info.history] == [1, 2]
        raised = NASTY[what]()
        assert {failure.error for failure in info.history} == {type(raised).__qualname__}
        if what != "mute":
            assert {failure.message for failure in info.history} == {str(raised)}


def picky(number: int) -> int:
    """A validator with a bug of its own for one number, in a version that came later."""
    if number == 13:
        raise LookupError("a bug")
    return number


async def test_a_bug_in_a_validator_ends_its_job_with_the_reason(
    valkey: Valkey, namespace: str, service: Service, store: Store
) -> None:
    ran: list[int] = []

    @service.task(retry=SOON)
    async def take(number: Annotated[int, AfterValidator(picky)]) -> int:
        ran.append(number)
        return number

    @service.task(retry=SOON)
    async def give(number: int) -> Annotated[int, AfterValidator(picky)]:
        ran.append(number)
        return number

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        await store.submit([NewJob(Queue(namespace, "demo", "take"), "old", b"\n13", 4, "0")])
        with pytest.raises(JobFailed, match=r"CodecError.*LookupError.*a bug"):
            await runtime.wait_result("demo.take", "old", 5)
        with pytest.raises(JobFailed, match=r"CodecError.*LookupError.*a bug"):
            await (await give.submit(13)).result(5)
        assert await (await take.submit(1)).result(5) == 1
    assert ran == [13, 1], "the handler that gave it ran once"


class OutOfOrder(BaseException):
    """What is no Exception, as pytest's own outcomes are."""


async def test_an_outcome_that_is_no_exception_is_a_failure_as_well(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    @service.task(retry=SOON)
    async def work() -> None:
        raise OutOfOrder("mine")

    @service.task(retry=SOON)
    def thread() -> None:
        raise OutOfOrder("mine")

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        for task in (work, thread):
            with pytest.raises(JobFailed, match="OutOfOrder") as failed:
                await (await task.submit()).result(5)
            assert "raise OutOfOrder" in failed.value.traceback


# ---- progress


async def progress_of(runtime: Runtime, handle: Any) -> Any:
    """What another runtime reads of a job's progress."""
    told = (await runtime.inspect(handle.task_name, handle.id)).progress
    return None if told is None else orjson.loads(told)


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_progress_is_read_by_another_runtime_while_the_handler_runs(
    valkey: Valkey, namespace: str, service: Service, kind: str
) -> None:
    end, stop = asyncio.Event(), threading.Event()
    steps: list[Any] = [0.5, {"done": 3, "of": 10, "where": "größer"}, None, [1, 2], "x" * 9_998]

    @service.task(name="work", timeout=None)
    async def awaited(job: Job) -> None:
        for step in steps:
            job.progress(step)
        await end.wait()

    @service.task(name="threaded", timeout=None)
    def threaded(job: Job) -> None:
        for step in steps:
            job.progress(step)
        stop.wait(10)

    task = awaited if kind == "async" else threaded
    async with (
        Runtime([service], redis=valkey.url, namespace=namespace) as worker,
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as reader,
    ):
        handle = await reader.submit(task)
        assert await progress_of(reader, handle) is None or (await handle.status()).state is State.RUNNING

        async def last() -> bool:
            return bool(await progress_of(reader, handle) == steps[-1])

        await wait_until(last)
        assert (await handle.status()).state is State.RUNNING
        end.set()
        stop.set()
        await handle.result(5)
        assert await progress_of(reader, handle) == steps[-1], "it stays with the record"
        assert not any(pool.notes.latest for pool in worker._pools)


async def test_of_much_progress_the_last_counts_and_little_is_sent(
    own_valkey: Valkey, namespace: str, service: Service
) -> None:
    end = asyncio.Event()

    @service.task(timeout=None)
    async def work(job: Job) -> None:
        for number in range(10_000):
            job.progress(number)
            if number % 100 == 0:
                await asyncio.sleep(0)
        await end.wait()

    async with Runtime([service], redis=own_valkey.url, namespace=namespace, durability="memory") as runtime:
        handles = [await work.submit() for _ in range(5)]
        for handle in handles:

            async def last(job: Any = handle) -> bool:
                return bool(await progress_of(runtime, job) == 9_999)

            await wait_until(last)
        stats = await runtime.redis.info("commandstats")
        assert stats["cmdstat_evalsha"]["calls"] < 5_000
        end.set()
        for handle in handles:
            await handle.result(5)


async def test_progress_of_a_job_that_ends_at_once_travels_with_its_settle(
    valkey: Valkey, namespace: str, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    @service.task()
    async def work(number: int, job: Job) -> None:
        job.progress(number)

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        for number in range(20):
            handle = await work.submit(number)
            await handle.result(5)
            assert await progress_of(runtime, handle) == number
    assert caplog.text == ""


async def test_progress_of_a_lost_lease_changes_nothing(valkey: Valkey, namespace: str, service: Service) -> None:
    told, go_on = asyncio.Event(), asyncio.Event()
    jobs: list[Job] = []

    @service.task(timeout=None)
    async def work(job: Job) -> None:
        jobs.append(job)
        job.progress(f"attempt {job.attempt}")
        told.set()
        with suppress(asyncio.CancelledError):
            await go_on.wait()

    queue = Queue(namespace, "demo", "work")
    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handle = await work.submit()
        await told.wait()

        async def first() -> bool:
            return bool(await progress_of(runtime, handle) == "attempt 1")

        await wait_until(first)
        # Another takes it away and claims it: the first holder has not heard of it yet.
        store = runtime._live_store()
        await runtime.pause(work)
        assert await store.release(queue, [(handle.id, (await handle.status()).token)]) == [True]
        jobs[0].progress("stale, while nobody holds it")
        await runtime.redis.hdel(queue.keys["config"], "paused")  # and no bell
        (leased,) = (await store.claim(queue, 1, 60_000, "other.1")).jobs
        assert await store.progress(queue, [(leased.id, leased.token, b'"attempt 2"')]) == [True]
        jobs[0].progress("stale")
        notes = runtime._pools[0].notes
        await wait_until(lambda: not notes.latest and not notes._wanted.is_set())
        assert await store.progress(queue, [(leased.id, "gone.1", b"1"), ("unknown", "gone.1", b"1")]) == [False, False]
        assert await progress_of(runtime, handle) == "attempt 2"
        go_on.set()


async def test_progress_that_does_not_fit_raises_in_the_handler(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    loop: list[Any] = []
    loop.append(loop)
    wrong: list[Any] = ["x" * 9_999, object(), b"bytes", {1: 2}, {"a"}, 2**64, "\ud800", loop]

    @service.task(retry=ONCE)
    async def work(job: Job) -> str:
        for value in wrong:
            with pytest.raises(CodecError, match=job.id):
                job.progress(value)
        job.progress("fine")
        return "ok"

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        assert await (await work.submit()).result(5) == "ok"


async def test_progress_survives_a_cut_line(valkey: Valkey, namespace: str, service: Service) -> None:
    go_on, end = asyncio.Event(), asyncio.Event()

    @service.task(timeout=None)
    async def work(job: Job) -> None:
        job.progress("before")
        await go_on.wait()
        job.progress("after")
        await end.wait()

    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([service], redis=proxy.url, namespace=namespace),
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as near,
    ):
        handle = await near.submit(work)
        for told in ("before", "after"):

            async def there(value: str = told) -> bool:
                return bool(await progress_of(near, handle) == value)

            await wait_until(there)
            proxy.lose_reply(sha("queue/progress"), times=2)
            proxy.refusing = True
            proxy.cut()
            go_on.set()
            await asyncio.sleep(0)
            proxy.refusing = False
        end.set()
        await handle.result(5)


async def test_progress_after_the_end_is_dropped(valkey: Valkey, namespace: str, service: Service) -> None:
    kept: list[Job] = []
    began, go_on, over = threading.Event(), threading.Event(), threading.Event()
    raised: list[BaseException] = []

    @service.task()
    async def work(job: Job) -> None:
        job.progress("last")
        kept.append(job)

    @service.task(timeout=None)
    def stuck(job: Job) -> None:
        began.set()
        go_on.wait(10)
        try:
            job.progress("from beyond")
        except BaseException as error:  # noqa: BLE001 - the test says what it was
            raised.append(error)
        over.set()

    async def live() -> None:
        async with Runtime([service], redis=valkey.url, namespace=namespace, grace=0) as runtime:
            handle = await work.submit()
            await handle.result(5)
            kept[0].progress("too late")
            notes = runtime._pools[0].notes
            await wait_until(lambda: not notes.latest and not notes._wanted.is_set())
            assert await progress_of(runtime, handle) in ("last", None)
            await stuck.submit()
            await wait_until(began.is_set)

    await asyncio.to_thread(asyncio.run, live())  # on a loop that is closed when it returns
    go_on.set()
    await wait_until(over.is_set)
    assert raised == []


async def test_a_note_belongs_to_its_attempt(valkey: Valkey, namespace: str, service: Service) -> None:
    seen = asyncio.Event()

    @service.task(retry=Retry(attempts=2, base=0.0))
    async def work(job: Job) -> int:
        job.progress(job.attempt)
        if job.attempt == 1:
            raise ValueError
        await seen.wait()
        return job.attempt

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handle = await work.submit()

        async def second() -> bool:
            return bool(await progress_of(runtime, handle) == 2)

        await wait_until(second)
        seen.set()
        assert await handle.result(5) == 2
        assert await progress_of(runtime, handle) == 2
        stale = Leased(handle.id, "gone.1", None, 1, 0, 0)
        runtime._pools[0].notes.put(stale, b"0")
        notes = runtime._pools[0].notes
        await wait_until(lambda: not notes.latest and not notes._wanted.is_set())
        assert await progress_of(runtime, handle) == 2


# ---- logs


async def test_the_log_of_a_job_carries_its_id_and_attempt(
    valkey: Valkey, namespace: str, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aioflow.job")

    @service.task(retry=SOON)
    async def work(job: Job) -> None:
        job.log.info("charged %d %s", 5, "EUR", extra={"payer": "alice"})
        job.log.warning("100% sure", extra=None)
        if job.attempt == 1:
            try:
                int("of the handler")
            except ValueError:
                job.log.exception("it failed")
            raise ValueError

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        for job_id in ("plain", "100%s%d%"):
            caplog.clear()
            await (await work.submit(id=job_id)).result(5)
            records = [record for record in caplog.records if record.name == "aioflow.job.demo.work"]
            said = [record.getMessage() for record in records]
            assert said == [
                f"{job_id} attempt 1: charged 5 EUR",
                f"{job_id} attempt 1: 100% sure",
                f"{job_id} attempt 1: it failed",
                f"{job_id} attempt 2: charged 5 EUR",
                f"{job_id} attempt 2: 100% sure",
            ]
            assert {record.filename for record in records} == {Path(__file__).name}, "the caller's line"
            assert {record.funcName for record in records} == {"work"}
            line = json.loads(JsonFormatter().format(records[0]))
            assert (line["job_id"], line["attempt"], line["level"]) == (job_id, 1, "INFO")
            assert line["message"] == said[0]
            assert getattr(records[0], "payer", None) == "alice"
            assert "of the handler" in json.loads(JsonFormatter().format(records[2]))["exception"]


SERVED = """
import asyncio
from aioflow import Job, Service

service = Service("served")

@service.task()
async def work(job: Job) -> str:
    job.log.info("from %s", "async")
    return "ok"

@service.task()
def threaded(job: Job) -> str:
    job.log.info("from a thread")
    return "ok"
"""


async def test_serve_writes_it_as_json(valkey: Valkey, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(SERVED)
    served = Service("served")

    @served.task()
    async def work(job: Job) -> str: ...  # type: ignore[empty-body]

    @served.task()
    async def threaded(job: Job) -> str: ...  # type: ignore[empty-body]

    process = Serve(
        "served:service", "--log-format", "json", "--redis", valkey.url, "--port", "0",
        environment={"AIOFLOW_NAMESPACE": namespace, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
        cwd=tmp_path,
    )  # fmt: skip
    try:
        process.spawn()
        async with Runtime([served], redis=valkey.url, namespace=namespace, workers=False):
            for task, message in ((work, "from async"), (threaded, "from a thread")):
                handle = await task.submit()
                assert await handle.result(20) == "ok"
                line = await wait_until(partial(found, process, message))
                assert (line["job_id"], line["attempt"]) == (handle.id, 1)
                assert (line["logger"], line["level"]) == (f"aioflow.job.{task.full_name}", "INFO")
                assert line["message"] == f"{handle.id} attempt 1: {message}"
        assert await process.stop() == 0
    finally:
        process.close()


def found(process: Serve, message: str) -> dict[str, Any]:
    """The JSON log line whose message ends so."""
    for text in process.said.splitlines():
        if text.startswith("{"):
            line: dict[str, Any] = json.loads(text)
            if line["message"].endswith(message):
                return line
    return {}


# ---- middleware


class Around:
    """Notes when it is entered and left."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name = name
        self.seen = seen

    async def __call__(self, job: Job, call: Call, /) -> Any:
        self.seen.append(f"> {self.name} {job.task}")
        try:
            return await call()
        finally:
            self.seen.append(f"< {self.name}")


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_middleware_goes_around_every_call_the_runtimes_outermost(
    redis_url: str, namespace: str, kind: str
) -> None:
    seen: list[str] = []
    service = Service("demo", middleware=[Around("c", seen), Around("d", seen)])
    other = Service("other")

    @service.task()
    async def awaited(number: int, job: Job) -> int:
        seen.append(f"{job.task} {number}")
        return number

    @service.task()
    def threaded(number: int, job: Job) -> int:
        seen.append(f"{job.task} {number}")
        return number

    @other.task()
    async def plain(job: Job) -> str:
        return job.task

    task = awaited if kind == "async" else threaded
    around = [Around("a", seen), Around("b", seen)]
    async with Runtime([service, other], redis=redis_url, namespace=namespace, middleware=around):
        assert await (await task.submit(7)).result(5) == 7
        name = task.full_name
        assert seen == [
            f"> a {name}", f"> b {name}", f"> c {name}", f"> d {name}", f"{name} 7", "< d", "< c", "< b", "< a",
        ]  # fmt: skip
        seen.clear()
        assert await (await plain.submit()).result(5) == "other.plain"
        assert seen == ["> a other.plain", "> b other.plain", "< b", "< a"], "a service's own are its own"
    assert await awaited(1, Job("x", 1)) == 1, "a plain call has no middleware"


async def test_what_middleware_does_is_the_handlers_doing(valkey: Valkey, namespace: str) -> None:
    ran: list[str] = []

    async def meddle(job: Job, call: Call) -> Any:
        how = job.id
        job.commit.hset("by middleware", job.id, str(job.attempt))
        match how:
            case "changes":
                return f"<{await call()}>"
            case "wrong-type":
                return 7
            case "skips":
                return "cached"
            case "twice":
                return f"{await call()} {await call()}"
            case "saves":
                with suppress(ValueError):
                    return await call()
                return "saved"
            case "raises":
                raise OutOfInk(how)
            case "discards":
                raise Discard(how)
            case "later" if job.attempt == 1:
                raise RetryLater(0)
            case "fails-once":
                result = await call()
                if job.attempt == 1:
                    raise OutOfInk(how)
                return result
            case "hangs":
                await asyncio.Event().wait()
        return await call()

    service = Service("demo", middleware=[meddle])

    @service.task(retry=Retry(attempts=2, base=0.0), timeout=0.2)
    def work(job: Job) -> str:
        ran.append(job.id)
        job.commit.hset("by handler", job.id, str(job.attempt))
        if job.id == "saves":
            raise ValueError
        return "ok"

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        expected: dict[str, tuple[str, int]] = {
            "plain": ("ok", 1),
            "changes": ("<ok>", 1),
            "skips": ("cached", 0),
            "twice": ("ok ok", 2),
            "saves": ("saved", 1),
            "later": ("ok", 1),
            "fails-once": ("ok", 2),
        }
        for how, (result, calls) in expected.items():
            assert await (await runtime.submit(work, id=how)).result(5) == result, how
            assert ran.count(how) == calls, how
        dead = {"raises": "OutOfInk", "discards": "Discard", "hangs": "TimeoutError", "wrong-type": "CodecError"}
        for how, error in dead.items():
            assert (await failed(await runtime.submit(work, id=how))).error == error, how
        landed = await runtime.redis.hgetall(runtime.key(service, "by middleware"))
        assert landed[b"later"] == b"2"
        assert b"discards" in landed
        assert b"raises" not in landed
        assert b"hangs" not in landed


async def test_a_discard_of_ones_own_names_the_error(valkey: Valkey, namespace: str, service: Service) -> None:
    @service.task()
    async def work(job: Job) -> None:
        job.commit.hset("landed", job.id, "yes")
        raise Gone("for good")

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        ended = await failed(await runtime.submit(work))
        assert (ended.error, ended.message, ended.attempt) == ("Gone", "for good", 1)
        assert await runtime.redis.hlen(runtime.key(service, "landed")) == 1


async def test_a_cancel_goes_through_the_middleware(valkey: Valkey, namespace: str) -> None:
    seen: list[str] = []
    service = Service("demo", middleware=[Around("a", seen)])

    @service.task(timeout=None)
    async def work() -> None:
        seen.append("runs")
        await asyncio.Event().wait()

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        handle = await work.submit()
        await in_state(handle, State.RUNNING)
        await wait_until(lambda: "runs" in seen)
        assert await handle.cancel()
        assert (await failed(handle)).error == "JobCancelled"
    assert seen == ["> a demo.work", "runs", "< a"]


async def test_middleware_that_is_no_coroutine_function_fails_its_jobs_plainly(valkey: Valkey, namespace: str) -> None:
    def wrong(job: Job, call: Call) -> str:
        return "not awaited"

    service = Service("demo", middleware=[wrong])  # type: ignore[list-item]

    @service.task(retry=ONCE)
    async def work() -> str:
        return "ok"

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        assert (await failed(await work.submit())).error == "TypeError"
        assert not runtime.failed.is_set()
