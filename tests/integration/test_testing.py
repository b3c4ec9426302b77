"""aioflow.testing: one handler alone, a runtime of a test's own, drain, the clock; each on memory: and on Valkey."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, assert_type

import pytest
from pydantic import BaseModel

from aioflow import CodecError, ConfigError, Discard, Job, NotFound, Retry, RetryLater, Runtime, Service, State
from aioflow.engine.keys import Queue
from aioflow.testing import Clock, Effect, Emit, NotDrained, PrivateValkey, Ran, drain, fresh_runtime, run_handler
from tests.integration.test_readme import block
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until

HOUR = 3600.0

ledger = Service("ledger")
shop = Service("shop")
made_by = shop.timeline("made_by", keep="90d")


class Payment(BaseModel):
    payer: str
    amount: int


@dataclass
class Receipt:
    txn: str
    at: datetime


class Declined(Exception):
    pass


@ledger.task()
async def book(receipt: Receipt) -> str:
    return receipt.txn


@shop.task(retry=Retry(attempts=3, base=2.0))
async def charge(payment: Payment, job: Job) -> Receipt:
    job.progress("asked")
    job.commit.hset("failed", payment.payer, str(job.attempt), on_failure=True)
    txn = await job.resources(payment)
    job.progress({"part": 1})
    receipt = Receipt(txn, datetime(2030, 1, 1, tzinfo=UTC))
    job.commit.record(made_by[payment.payer], txn)
    job.commit.hincrby("amounts", payment.payer, payment.amount)
    job.commit.remove(made_by["nobody"], txn)
    job.commit.submit(tell, payment.payer, delay=1.5, priority=2)
    job.commit.submit(book, receipt)
    job.commit.submit("stock.take", {"payer": payment.payer})
    return receipt


@shop.task()
def tell(payer: str) -> str:
    """In a thread."""
    return f"told {payer}"


@shop.task(timeout=0.05)
async def slow(seconds: float) -> None:
    await asyncio.sleep(seconds)


@shop.task(timeout=None)
async def nothing(job: Job) -> int:
    if job.attempt == 1:
        raise RetryLater(30)
    raise Discard("not wanted")


@shop.task()
async def lies() -> int:
    return "no number"  # type: ignore[return-value]


@shop.task(cpu=True, concurrency=1, timeout=5)
def square(number: int, job: Job) -> int:
    job.commit.submit(tell, str(number))
    return number * number


async def gateway(payment: Payment) -> str:
    return f"txn-{payment.payer}"


async def declines(payment: Payment) -> str:
    raise Declined(payment.payer)


# ---- one handler alone


async def test_what_a_handler_returns_writes_and_emits() -> None:
    ran = await run_handler(charge, Payment(payer="ann", amount=7), resources=gateway, id="order-1")
    receipt = Receipt("txn-ann", datetime(2030, 1, 1, tzinfo=UTC))
    assert (ran.task, ran.id, ran.attempt, ran.outcome) == ("shop.charge", "order-1", 1, "done")
    assert_type(ran, Ran[Receipt])
    assert_type(await run_handler(tell, "ann"), Ran[str])
    assert ran.result == ran.value == receipt
    assert (ran.failure, ran.exception, ran.delay) == (None, None, None)
    assert ran.effects == (
        Effect("record", "made_by:ann", ("txn-ann",)),
        Effect("hincrby", "amounts", ("ann", 7)),
        Effect("remove", "made_by:nobody", ("txn-ann",)),
    )
    assert repr(ran.effects[0]) == "record('made_by:ann', 'txn-ann')"
    assert ran.emits == (
        Emit("shop.tell", "ann", delay=1.5, priority=2),
        Emit("ledger.book", receipt),
        Emit("stock.take", {"payer": "ann"}),
    )
    assert ran.progress == ("asked", {"part": 1})


async def test_a_payload_is_checked_as_submit_does() -> None:
    ran = await run_handler(charge, {"payer": "ann", "amount": 7}, resources=gateway)  # type: ignore[misc]
    assert ran.outcome == "done"
    with pytest.raises(CodecError, match="amount"):
        await run_handler(charge, {"payer": "ann", "amount": "much"})  # type: ignore[misc]
    with pytest.raises(ConfigError, match="attempt=0"):
        await run_handler(nothing, attempt=0)


async def test_a_handler_that_fails_is_retried_until_its_last_attempt(caplog: pytest.LogCaptureFixture) -> None:
    payment = Payment(payer="ann", amount=7)
    ran = await run_handler(charge, payment, resources=declines, attempt=2)
    assert ran.outcome == "retry"
    assert ran.delay is not None
    assert 0 <= ran.delay <= 4
    assert ran.failure is not None
    assert (ran.failure.error, ran.failure.message, ran.failure.attempt) == ("Declined", "ann", 2)
    assert isinstance(ran.exception, Declined)
    assert (ran.effects, ran.emits) == ((Effect("hset", "failed", ("ann", "2")),), ())
    with pytest.raises(AssertionError, match=r"shop.charge has no result: retry after Declined: ann") as caught:
        _ = ran.result
    assert caught.value.__cause__ is ran.exception
    last = await run_handler(charge, payment, resources=declines, attempt=3)
    assert (last.outcome, last.delay) == ("dead", None)


async def test_outcomes_that_are_no_faults() -> None:
    first = await run_handler(nothing)
    assert (first.outcome, first.delay, first.failure, first.exception) == ("retry", 30, None, None)
    second = await run_handler(nothing, attempt=2)
    assert second.failure is not None
    assert (second.outcome, second.failure.message, second.exception) == ("dead", "not wanted", None)


async def test_time_limit_thread_process_and_a_result_that_does_not_fit() -> None:
    ran = await run_handler(slow, 10.0)
    assert (ran.outcome, type(ran.exception)) == ("retry", TimeoutError)
    assert (await run_handler(tell, "ann")).result == "told ann"
    wrong = await run_handler(lies)
    assert (wrong.outcome, type(wrong.exception)) == ("dead", CodecError)
    squared = await run_handler(square, 7)
    assert (squared.result, squared.emits) == (49, (Emit("shop.tell", "7"),))


async def test_a_test_that_is_cancelled_ends_its_handler() -> None:
    ended = asyncio.Event()

    async def wait(payment: Payment) -> str:
        try:
            return await asyncio.sleep(60, payment.payer)
        finally:
            ended.set()

    running = asyncio.create_task(run_handler(charge, Payment(payer="ann", amount=7), resources=wait))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


async def test_middleware_goes_around_the_handler() -> None:
    async def louder(job: Job, call: Callable[[], Awaitable[Any]]) -> Any:
        return f"{await call()}!"

    assert (await run_handler(tell, "ann", middleware=[louder])).result == "told ann!"


# ---- a runtime of a test's own; the same on memory: and on Valkey


@pytest.fixture(params=["memory", "valkey"])
def redis(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory:"
    valkey: Valkey = request.getfixturevalue("valkey")
    return valkey.url


Start = Callable[..., Any]


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged as a warning or worse."""
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def time_() -> Clock:
    """A clock that the test moves."""
    return Clock()


def started_service() -> tuple[Service, list[str]]:
    """A service of which each handler says what it did."""
    service, said = Service("demo"), list[str]()

    @service.task(lease=0.6)
    async def work(what: str, job: Job) -> str:
        said.append(f"{what} {job.attempt}")
        if what == "fails" and job.attempt < 3:
            raise ValueError(what)
        if what.startswith("chain") and len(what) < 10:
            job.commit.submit(work, what + "+")
        if what == "later":
            job.commit.submit(work, "much later", delay=HOUR)
        return what

    return service, said


async def test_drain_waits_for_emitted_jobs_and_outboxes(redis: str, quiet: Callable[[], list[str]]) -> None:
    @asynccontextmanager
    async def lifespan(_: Runtime) -> AsyncIterator[Any]:
        yield gateway

    till = Service("till", lifespan=lifespan)
    booked = list[str]()
    book_keeping = Service("books")

    @book_keeping.task()
    async def enter(txn: str, job: Job) -> None:
        booked.append(txn)
        job.commit.submit("elsewhere.note", txn)

    @till.task()
    async def pay(payment: Payment, job: Job) -> None:
        job.commit.submit("books.enter", await job.resources(payment))

    async with fresh_runtime([till, book_keeping], redis=redis) as runtime:
        await drain(runtime)
        await pay.submit_many([Payment(payer=str(number), amount=1) for number in range(300)])
        await drain(runtime)
        assert sorted(booked) == sorted(f"txn-{number}" for number in range(300))
        assert (await runtime.sizes(enter)).done == 300
        elsewhere = Queue(runtime.namespace, "elsewhere", "note")
        assert await runtime.redis.zcard(elsewhere.keys["ready"]) == 300, "delivered, though nobody runs it"
    assert quiet() == ["books.enter: it emits jobs of elsewhere.note, which no live runtime serves; they wait"]


async def test_drain_follows_a_chain_and_leaves_what_is_due_later(redis: str) -> None:
    service, said = started_service()
    async with fresh_runtime(service, redis=redis, clock=Clock()) as runtime:
        await runtime.submit("demo.work", "chain")
        await runtime.submit("demo.work", "later")
        await runtime.submit("demo.work", "tomorrow", delay=24 * HOUR)
        await drain(runtime)
        assert sorted(said) == sorted([*(f"chain{'+' * n} 1" for n in range(6)), "later 1"])
        assert (await runtime.sizes("demo.work")).scheduled == 2


async def test_drain_says_what_is_left(redis: str) -> None:
    service = Service("demo")
    go = asyncio.Event()

    @service.task()
    async def wait() -> None:
        await go.wait()

    @service.task()
    async def other(number: int) -> None: ...

    async with fresh_runtime(service, redis=redis) as runtime:
        await in_state(await runtime.submit(wait, id="w1"), State.RUNNING)
        await runtime.pause(other)
        await runtime.submit(other, 1, id="o1")
        with pytest.raises(NotDrained) as caught:
            await drain(runtime, timeout=1)
        assert str(caught.value) == (
            "not drained within 1 s: demo.wait: 1 running (w1); demo.other (paused): 1 ready (o1)"
        )
        go.set()
        await runtime.resume(other)
        await drain(runtime)
    with pytest.raises(ConfigError, match="not running"):
        await drain(runtime)


async def test_jobs_run_when_the_clock_is_moved_and_not_before(
    redis: str, time_: Clock, quiet: Callable[[], list[str]]
) -> None:
    service, said = started_service()
    async with fresh_runtime(service, redis=redis, clock=time_) as runtime:
        handle = await runtime.submit("demo.work", "a", delay=2 * HOUR)
        await runtime.submit("demo.work", "b", at=datetime.fromtimestamp(time_() / 1000 + 3 * HOUR, UTC))
        soon = await runtime.submit("demo.work", "soon", delay=0.001)
        time_.advance(0)
        await drain(runtime)
        assert said == []
        assert (await soon.status()).state is State.SCHEDULED
        began = time.monotonic()
        time_.advance(2 * HOUR)
        assert await handle.result(timeout=5) == "a"
        assert time.monotonic() - began < 1, "promptly"
        await drain(runtime)
        assert said == ["soon 1", "a 1"]
        assert runtime.now_ms() == time_()
        time_.advance(HOUR)
        await drain(runtime)
        assert said == ["soon 1", "a 1", "b 1"]
    assert quiet() == []


async def test_retries_wait_for_the_clock(redis: str, time_: Clock) -> None:
    service, said = started_service()
    async with fresh_runtime(service, redis=redis, clock=time_) as runtime:
        handle = await runtime.submit("demo.work", "fails")
        for attempts in (1, 2, 3):
            await drain(runtime)
            assert said == [f"fails {attempt}" for attempt in range(1, attempts + 1)]
            time_.advance(300)
        info = await handle.status()
        assert (info.state, info.attempt, info.failures) == (State.DONE, 3, 2)


async def test_a_moved_clock_takes_no_lease_from_a_handler_that_runs(
    redis: str, time_: Clock, quiet: Callable[[], list[str]]
) -> None:
    service = Service("demo")
    go = asyncio.Event()

    @service.task(lease=0.6)
    async def wait(number: int, job: Job) -> int:
        await go.wait()
        return job.attempt

    async with fresh_runtime(service, redis=redis, clock=time_) as runtime:
        handle = await runtime.submit(wait, 0)
        await in_state(handle, State.RUNNING)
        for number in range(5):
            time_.advance(HOUR)
            claimed = await runtime.submit(wait, number)  # a claim that is on its way when the clock moves
            await asyncio.sleep(0.25)
        assert (await claimed.status()).attempt == 1
        # Two renewals and two rounds of maintenance after the last move.
        await asyncio.sleep(1.2)
        go.set()
        assert await handle.result(timeout=5) == 1
        await drain(runtime)
    assert quiet() == []


async def test_a_lease_that_nobody_renews_is_over_when_the_clock_says_so(redis: str, time_: Clock) -> None:
    service, said = started_service()
    async with fresh_runtime(service, redis=redis, clock=time_) as runtime:
        (queue,) = runtime._queues.values()
        await runtime.pause("demo.work")
        handle = await runtime.submit("demo.work", "a")
        await runtime.resume("demo.work")
        await wait_until(lambda: said)
        await drain(runtime)
        assert runtime._store is not None
        await runtime.pause("demo.work")
        await runtime.submit("demo.work", "b", id="b")
        await runtime.redis.hdel(queue.keys["config"], "paused")
        # Somebody who dies at once: no bell has rung, so the runtime has not seen the job.
        claimed = await runtime._store.claim(queue, 1, 600_000, "dead.1")
        assert [job.id for job in claimed.jobs] == ["b"]
        with pytest.raises(NotDrained, match=r"demo.work: 1 running \(b\)"):
            await drain(runtime, timeout=1)
        time_.advance(600)
        await drain(runtime, timeout=5)
        assert said == ["a 1", "b 2"]
        assert await handle.result() == "a"


async def test_records_are_kept_by_the_clock(redis: str, time_: Clock) -> None:
    service, _ = started_service()
    async with fresh_runtime(service, redis=redis, clock=time_) as runtime:
        handle = await runtime.submit("demo.work", "a")
        await drain(runtime)
        time_.advance(23 * HOUR)
        assert (await handle.status()).state is State.DONE
        time_.advance(2 * HOUR)

        async def gone() -> bool:
            try:
                await handle.status()
            except NotFound:
                return True
            return False

        await wait_until(gone, 2)


async def test_the_clock_begins_where_it_is_told_to_and_goes_forward() -> None:
    start = datetime(2030, 1, 1, tzinfo=UTC)
    clock = Clock(start)
    clock.advance(1.5)
    assert clock() == int(start.timestamp() * 1000) + 1500
    assert abs(Clock()() - time.time() * 1000) < 5000
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="forward"):
            clock.advance(wrong)
    with pytest.raises(ConfigError, match="zone"):
        Clock(datetime(2030, 1, 1))  # noqa: DTZ001
    service, _ = started_service()
    async with fresh_runtime(service, clock=clock) as runtime:
        handle = await runtime.submit("demo.work", "a")
        await drain(runtime)
        assert (await handle.status()).at_ms == clock()
    assert clock._followers == []


async def test_two_runtimes_share_a_clock_and_a_valkey(
    valkey: Valkey, namespace: str, time_: Clock, quiet: Callable[[], list[str]]
) -> None:
    service, said = started_service()
    one = fresh_runtime(service, redis=valkey.url, clock=time_, namespace=namespace)
    two = fresh_runtime(service, redis=valkey.url, clock=time_, namespace=namespace)
    async with one as first, two as second:
        for number in range(40):
            await first.submit("demo.work", str(number), delay=number * 60)
        for _ in range(40):
            await drain(second)
            time_.advance(60)
        await drain(first)
        assert said == [f"{number} 1" for number in range(40)]
    assert quiet() == []


def test_a_synchronous_program_moves_the_clock_of_its_runtime(valkey: Valkey, namespace: str) -> None:
    service, said = started_service()
    clock = Clock()
    with Runtime([service], redis=valkey.url, namespace=namespace, grace=1, clock=clock) as runtime:
        handle = runtime.submit_sync("demo.work", "a", delay=HOUR)
        clock.advance(HOUR)
        runtime.call_sync(drain(runtime))
        assert handle.result_sync(timeout=5) == "a"
    assert said == ["a 1"]


# ---- the private server


async def test_a_private_valkey_lives_as_long_as_its_runtime() -> None:
    service, _ = started_service()
    async with fresh_runtime(service, redis="valkey:") as runtime:
        await runtime.submit("demo.work", "a")
        await drain(runtime)
        process = Path(f"/proc/{(await runtime.redis.info('server'))['process_id']}")
        socket = Path(runtime.settings.redis.removeprefix("unix://"))
        assert process.exists()
        assert socket.exists()
    assert not process.exists()
    assert not socket.parent.exists()


async def test_a_private_valkey_dies_with_a_process_that_is_killed() -> None:
    program = (
        "import os, signal\n"
        "from aioflow.testing import PrivateValkey\n"
        "server = PrivateValkey().__enter__()\n"
        "print(server._server.pid, server._folder, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert killed.stdout is not None
    process, folder = (await killed.stdout.readline()).decode().split()
    await killed.wait()

    def gone() -> bool:
        try:
            ended = Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"
        except FileNotFoundError:
            ended = True
        return ended and not Path(folder).exists()

    await wait_until(gone)


def test_a_private_valkey_that_does_not_come_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aioflow.testing.valkey.find_binary", lambda: Path("/bin/false"))
    server = PrivateValkey()
    with pytest.raises(Exception, match="exit status 1"):
        server.__enter__()
    assert not server._folder.exists()


# ---- what users write: a project of its own, run by pytest in a process of its own with every warning an error

SERVICE = """
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import BaseModel

from aioflow import Job, Retry, Service

ledger = Service("ledger")

@ledger.task()
async def book(order: str) -> str:
    return order

class Order(BaseModel):
    id: str
    items: int = 1

shop = Service("shop")
packed = shop.timeline("packed")

@shop.task(retry=Retry(attempts=3))
async def pack(order: Order, job: Job) -> int:
    if order.items == 0 and job.attempt < 3:
        raise ValueError("nothing to pack")
    job.commit.record(packed, order.id)
    job.commit.submit(book, order.id)
    return order.items

@shop.task()
def weigh(order: Order) -> int:
    return order.items * 10
"""

APP = """
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from shop import Order, ledger, pack, shop

from aioflow import Runtime

@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with Runtime([shop, ledger], redis=os.environ["REDIS"], namespace=os.environ["NAMESPACE"]) as runtime:
        app.state.runtime = runtime
        yield

app = FastAPI(lifespan=lifespan)

@app.post("/orders")
async def take(order: Order) -> int:
    return await (await pack.submit(order)).result(timeout=5)
"""

USERS_TESTS = """
import asyncio
import logging
import secrets
import warnings

import httpx
import pytest
import pytest_asyncio
from app import app
from shop import Order, book, ledger, pack, packed, shop, weigh

from aioflow.testing import drain, fresh_runtime, run_handler

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer versions of starlette ask for httpx2
    from fastapi.testclient import TestClient


@pytest.fixture(autouse=True)
def no_warning_logged(caplog):
    yield
    said = [r.getMessage() for r in caplog.get_records("call") if r.levelno >= logging.WARNING]
    assert [line for line in said if "nothing to pack" not in line] == []


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, aioflow_redis):
    monkeypatch.setenv("REDIS", aioflow_redis)
    monkeypatch.setenv("NAMESPACE", f"t{secrets.token_hex(4)}")


@pytest_asyncio.fixture
async def runtime(aioflow_runtime):
    async with aioflow_runtime(shop, ledger) as runtime:
        yield runtime


@pytest.mark.asyncio
async def test_a_handler():
    ran = await run_handler(pack, Order(id="a", items=3))
    assert ran.result == 3
    assert [emit.task for emit in ran.emits] == ["ledger.book"]


@pytest.mark.asyncio
@pytest.mark.parametrize("number", range(5))
async def test_a_runtime_per_test(runtime, number):
    handles = [await pack.submit(Order(id=f"{number}.{i}", items=i + 1)) for i in range(10)]
    await drain(runtime)
    assert [await handle.result() for handle in handles] == list(range(1, 11))
    assert await packed.count() == 10
    assert (await runtime.sizes(book)).done == 10
    assert await (await weigh.submit(Order(id="w", items=2))).result(timeout=5) == 20


@pytest.mark.asyncio
async def test_a_runtime_that_is_left_with_jobs_that_run(aioflow_runtime):
    async with aioflow_runtime(shop, ledger) as runtime:
        for i in range(50):
            await pack.submit(Order(id=str(i)))


@pytest.mark.asyncio
async def test_retries(aioflow_runtime, aioflow_clock):
    async with aioflow_runtime(shop, ledger) as runtime:
        handle = await pack.submit(Order(id="a", items=0))
        for _ in range(3):
            await drain(runtime)
            aioflow_clock.advance(300)
        assert await handle.result() == 0
        assert (await handle.status()).attempt == 3


@pytest.mark.asyncio
async def test_two_runtimes(aioflow_runtime):
    async with aioflow_runtime(shop) as one, aioflow_runtime(ledger) as two:
        assert await (await book.submit("a")).result(timeout=5) == "a"
        assert await (await weigh.submit(Order(id="a"))).result(timeout=5) == 10
        await drain(one)
        await drain(two)


@pytest.mark.asyncio
async def test_two_runtimes_of_the_same_service(aioflow_runtime):
    async with aioflow_runtime(shop, ledger) as one, aioflow_runtime(shop, ledger) as two:
        handles = [await runtime.submit(pack, Order(id=str(i))) for i in range(10) for runtime in (one, two)]
        await asyncio.gather(drain(one), drain(two))
        assert [await handle.result() for handle in handles] == [1] * 20
        assert (await one.sizes(pack)).done == (await two.sizes(pack)).done == 10


@pytest.mark.asyncio
async def test_an_app_in_the_loop_of_the_test():
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            orders = [{"id": str(i), "items": i} for i in range(1, 9)]
            answers = await asyncio.gather(*(client.post("/orders", json=order) for order in orders))
            assert [answer.json() for answer in answers] == list(range(1, 9))
        await drain(app.state.runtime)


@pytest.mark.parametrize("number", range(2))
def test_an_app_in_a_loop_of_its_own(number):
    with TestClient(app) as client:
        assert client.post("/orders", json={"id": "a", "items": 4}).json() == 4


@pytest.mark.asyncio
async def test_a_server_of_its_own():
    async with fresh_runtime([shop, ledger], redis="valkey:") as runtime:
        assert await (await pack.submit(Order(id="a"))).result(timeout=5) == 1
        await drain(runtime)
"""

USERS_CONFTEST = """
import asyncio
import gc
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    left = [thread for thread in threading.enumerate() if thread.name.startswith("aioflow")]
    for thread in left:
        thread.join(5)  # its handler has returned, and told the loop; its last instructions may be to come
    assert [thread.name for thread in left if thread.is_alive()] == []


def pytest_sessionfinish(session):
    gc.collect()
    sockets = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing
            sockets += ["socket:" in os.readlink(f"/proc/self/fd/{fd}")]
    children = [task.read_text().split() for task in Path("/proc/self/task").glob("*/children")]
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    loops = [each for each in gc.get_objects() if isinstance(each, asyncio.AbstractEventLoop) and not each.is_closed()]
    print(f"\\nLEFT sockets={sum(sockets)} children={sum(map(len, children))} threads={threads} loops={len(loops)}")
"""


def run_users_pytest(folder: Path, *options: str) -> str:
    """What pytest prints about the tests in a folder; every one must pass."""
    strict = ("-W", "error", "--strict-config", "--strict-markers")
    command = [sys.executable, "-m", "pytest", *strict, "-q", "-s", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "AIOFLOW_"))}
    ran = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


@pytest.mark.timeout(90)
@pytest.mark.parametrize(("redis_option", "mode"), [("memory", "auto"), ("valkey", "strict")])
def test_what_users_write_works_without_a_warning_and_leaves_nothing(
    tmp_path: Path, redis_option: str, mode: str
) -> None:
    for name, text in {"shop": SERVICE, "app": APP, "test_shop": USERS_TESTS, "conftest": USERS_CONFTEST}.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\npythonpath = .\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\n"
        f"aioflow_redis = {redis_option}\n"
    )
    printed = run_users_pytest(tmp_path)
    assert "14 passed" in printed
    assert "LEFT sockets=0 children=0 threads=[] loops=0" in printed


SNIPPET = """
from hello import Person, greet, greeted, service

from aioflow.testing import drain, run_handler


async def test_the_handler_alone():
    ran = await run_handler(greet, Person(name="Ann"), id="job-1")  # no Redis; also resources=, attempt=
    assert ran.result == "Hello, Ann!"
    assert [str(effect) for effect in ran.effects] == ["record('greeted:Ann', 'job-1')"]


async def test_in_a_runtime(aioflow_runtime, aioflow_clock):
    async with aioflow_runtime(service) as runtime:
        handle = await greet.submit(Person(name="Ann"), delay=3600)
        aioflow_clock.advance(3600)
        await drain(runtime)
        assert await handle.result() == "Hello, Ann!"
        assert await greeted["Ann"].count() == 1
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("redis_option", ["memory", "valkey"])
def test_the_snippet_of_the_readme(tmp_path: Path, redis_option: str) -> None:
    (tmp_path / "hello.py").write_text(block("service: hello.py"))
    (tmp_path / "test_hello.py").write_text(SNIPPET)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\npythonpath = .\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    assert "2 passed" in run_users_pytest(tmp_path, f"--aioflow-redis={redis_option}")


def test_the_plugin_imports_nothing_of_aioflow_for_those_who_do_not_use_it(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\n\ndef test_other():\n    assert 'pytest_aioflow' in sys.modules\n"
        "    assert not {'aioflow', 'redis', 'pydantic', 'aiohttp'} & set(sys.modules)\n"
    )
    only_ours = [f"no:{name}" for name in ("asyncio", "anyio", "xdist", "timeout", "randomly", "hypothesispytest")]
    assert "1 passed" in run_users_pytest(tmp_path, *(word for name in only_ours for word in ("-p", name)))


def test_a_wrong_redis_is_said(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_other(aioflow_redis): ...\n")
    with pytest.raises(AssertionError, match="aioflow_redis = 'mysql': use one of memory, valkey"):
        run_users_pytest(tmp_path, "-p", "no:asyncio", "-o", "aioflow_redis=mysql")
