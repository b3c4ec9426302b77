"""What a submit may be told: when, in what order, under which id, how durable; many at once, and from threads."""

from __future__ import annotations

import asyncio
import enum
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, Field

from aioflow import (
    AioflowError,
    CodecError,
    ConfigError,
    Handle,
    IdConflict,
    Job,
    JobFailed,
    NotFound,
    QueueFull,
    ResultTimeout,
    Retry,
    Runtime,
    Service,
    State,
    StoreUnavailable,
)
from aioflow.engine.coalescer import Coalescer
from aioflow.engine.keys import Queue
from aioflow.service import live_runtimes
from tests import acl
from tests.proxy import Proxy
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until

FAR = 2**42 // 1000
"""Seconds since 1970: in 2109, when scores end."""


BUG = 77_777


def explode(number: int) -> int:
    """A validator with a bug of its own."""
    if number == BUG:
        raise LookupError("a validator's own bug")
    return number


class Order(BaseModel):
    """A payload."""

    number: Annotated[int, Field(ge=0), AfterValidator(explode)]


class Demo:
    """A service whose tasks note what ran."""

    def __init__(self, *, bound: int | None = None, concurrency: int = 100) -> None:
        self.service = Service("demo")
        self.ran: list[int] = []
        ran = self.ran

        @self.service.task(bound=bound, concurrency=concurrency)
        async def work(order: Order) -> int:
            ran.append(order.number)
            return order.number

        @self.service.task(retry=Retry(attempts=1))
        def fail(order: Order) -> int:
            raise ValueError(f"no {order.number}")

        self.work, self.fail = work, fail


@pytest.fixture
def demo() -> Demo:
    return Demo()


def submitter(demo: Demo, valkey: Valkey, namespace: str, **options: Any) -> Runtime:
    """A runtime that only submits."""
    return Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False, **options)


# ---- when


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=14)), timezone(-timedelta(hours=11, minutes=30))])
async def test_at_is_a_moment_whatever_its_zone(valkey: Valkey, namespace: str, demo: Demo, zone: timezone) -> None:
    at = datetime.now(zone) + timedelta(days=3)
    async with submitter(demo, valkey, namespace):
        handle = await demo.work.submit(Order(number=1), at=at)
        info = await handle.status()
        assert (info.state, info.at_ms) == (State.SCHEDULED, int(at.timestamp() * 1000))


async def test_at_in_the_past_is_now_and_at_in_2109_is_the_end(valkey: Valkey, namespace: str, demo: Demo) -> None:
    async with submitter(demo, valkey, namespace) as runtime:
        past = await demo.work.submit(Order(number=1), at=datetime(1970, 1, 2, tzinfo=UTC))
        assert (await past.status()).state is State.READY
        last = await demo.work.submit(Order(number=2), at=datetime.fromtimestamp(FAR, UTC), priority=9)
        assert (await last.status()).at_ms == FAR * 1000
        for wrong in (
            datetime.fromtimestamp(FAR + 1, UTC),
            datetime.max.replace(tzinfo=UTC),
            datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))),
            datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
            datetime(1969, 12, 31, tzinfo=UTC),
        ):
            with pytest.raises(ConfigError, match="not between 1970 and 2109"):
                await demo.work.submit(Order(number=3), at=wrong)
        assert (await runtime.sizes(demo.work)).open == 2
        # What is due only in 2109 stands in the line's places exactly, also at the last priority.
        claims = await runtime.redis.hget(Queue(namespace, "demo", "work").keys["claims"], last.id)
        assert bytes(claims or b"").endswith(f":{9 * 2**42 + FAR * 1000}".encode())  # type: ignore[arg-type]


async def test_a_time_that_says_nothing_is_refused_before_anything_is_sent(
    valkey: Valkey, namespace: str, demo: Demo
) -> None:
    class Nowhere(timezone.__base__):  # type: ignore[name-defined, misc]
        def utcoffset(self, when: datetime | None) -> timedelta | None:
            return None

    soon = datetime.now(UTC) + timedelta(seconds=9)
    wrong: list[dict[str, Any]] = [
        {"at": soon.replace(tzinfo=None)},
        {"at": soon.replace(tzinfo=Nowhere())},
        {"at": soon, "delay": 1.0},
        {"delay": -0.001},
        {"delay": 367 * 86_400.0},
        {"delay": float("nan")},
        {"delay": float("inf")},
        {"delay": "5"},
        {"delay": timedelta(seconds=5)},
        {"delay": timedelta(0)},
        {"delay": None},
        {"at": "2030-01-01T00:00Z"},
        {"priority": 10},
        {"priority": -1},
        {"priority": 4.5},
        {"priority": 4.0},
        {"priority": "4"},
        {"id": ""},
        {"id": "two words"},
        {"id": "line\nbreak"},
        {"id": "x" * 201},
        {"id": 5},
        {"durability": "disk"},
        {"durability": "replicated:0"},
        {"durability": ""},
        {"durability": 5},
    ]
    async with submitter(demo, valkey, namespace) as runtime:
        for options in wrong:
            with pytest.raises(ConfigError):
                await demo.work.submit(Order(number=1), **options)
        sizes, totals = await runtime.sizes(demo.work), await runtime.totals(demo.work)
        assert (sizes.open, totals) == (0, {})


async def test_a_priority_that_is_a_member_of_an_enum_or_a_bool_is_its_number(
    valkey: Valkey, namespace: str, demo: Demo
) -> None:
    class Level(enum.IntEnum):
        URGENT = 1

    async with submitter(demo, valkey, namespace) as runtime:
        for number, priority in enumerate((Level.URGENT, True)):
            handle = await demo.work.submit(Order(number=number), priority=priority)
            ready = Queue(namespace, "demo", "work").keys["ready"]
            score = await runtime.redis.zscore(ready, handle.id)
            assert score is not None
            assert int(score) // 2**42 == 1


async def test_a_delay_that_is_hardly_one_is_now(valkey: Valkey, namespace: str, demo: Demo) -> None:
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace):
        for delay in (0.0001, -0.0, 0):
            assert await (await demo.work.submit(Order(number=1), delay=delay)).result(5) == 1


# ---- ids and order


async def test_the_same_id_with_other_options_is_the_job_that_was_first(
    valkey: Valkey, namespace: str, demo: Demo
) -> None:
    async with submitter(demo, valkey, namespace) as runtime:
        first = await demo.work.submit(Order(number=1), id="a", delay=1000, priority=0)
        again = await demo.work.submit(Order(number=1), id="a", priority=9)
        assert (first.created, again.created) == (True, False)
        assert (await again.status()).state is State.SCHEDULED
        assert (await runtime.sizes(demo.work)).open == 1
        with pytest.raises(IdConflict):
            await demo.work.submit(Order(number=2), id="a")
        # Another task has ids of its own.
        assert (await demo.fail.submit(Order(number=2), id="a")).created


async def test_a_hundred_submits_of_one_id_make_one_job(valkey: Valkey, namespace: str, demo: Demo) -> None:
    async with (
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as first,
        submitter(demo, valkey, namespace) as second,
    ):
        handles = await asyncio.gather(
            *[runtime.submit(demo.work, Order(number=1), id="one") for runtime in (first, second) for _ in range(50)]
        )
        assert sum(handle.created for handle in handles) == 1
        assert [await handle.result(5) for handle in handles] == [1] * 100
    assert demo.ran == [1]


async def test_ten_priorities_in_order_also_of_jobs_that_were_delayed(valkey: Valkey, namespace: str) -> None:
    demo = Demo(concurrency=1)
    async with submitter(demo, valkey, namespace) as near:
        for priority in range(9, -1, -1):
            for step in range(3):
                number = 10 * priority + step
                # A delayed job takes its place by when it is due: behind those that were there before.
                await near.submit(demo.work, Order(number=number), priority=priority, delay=0.05 if step == 2 else 0.0)

        async def due() -> bool:
            return (await near._live_store().promote(Queue(namespace, "demo", "work"))) == 0 and (
                await near.sizes(demo.work)
            ).ready == 30

        await wait_until(due)
        async with Runtime([demo.service], redis=valkey.url, namespace=namespace):
            await wait_until(lambda: len(demo.ran) == 30)
    assert demo.ran == [10 * priority + step for priority in range(10) for step in range(3)]


# ---- durability


async def test_each_submit_may_say_how_durable_it_is(own_valkey: Valkey, namespace: str, demo: Demo) -> None:
    async with Runtime([demo.service], redis=own_valkey.url, namespace=namespace, durability="memory") as runtime:
        assert runtime.durability == "memory"

        async def waitaofs() -> int:
            stats = await runtime.redis.info("commandstats")
            return int(stats.get("cmdstat_waitaof", {}).get("calls", 0))

        await demo.work.submit(Order(number=1))
        await demo.work.submit(Order(number=2), durability="memory")
        assert await waitaofs() == 0
        await demo.work.submit(Order(number=3), durability="fsync")
        assert await waitaofs() == 2, "whether it is there, and the receipt's"
        await demo.work.submit(Order(number=3), durability="fsync")
        assert await waitaofs() == 3
        handles = await asyncio.gather(
            *[
                demo.work.submit(Order(number=number), durability=durability)
                for number in range(4, 54)
                for durability in ("memory", "fsync")
            ]
        )
        assert sorted([await handle.result(5) for handle in handles]) == sorted([*range(4, 54)] * 2)
        with pytest.raises(ConfigError, match=r"needs 1 replicas, the server has 0; .*REPLICAOF"):
            await demo.work.submit(Order(number=4), durability="replicated:1")


async def test_a_durability_that_is_not_to_be_had_says_what_to_change_and_submits_nothing(
    valkey: Valkey, namespace: str, demo: Demo
) -> None:
    config_set = "CONFIG SET appendonly yes, CONFIG SET appendfsync always"
    for url, change in ((valkey.url, config_set), ("memory:", "use another server")):
        async with Runtime([demo.service], redis=url, namespace=namespace, workers=False) as runtime:
            with pytest.raises(ConfigError, match=change):
                await demo.work.submit(Order(number=1), durability="fsync")
            with pytest.raises(ConfigError, match="use memory, fsync, or replicated:N"):
                await demo.work.submit(Order(number=1), durability="paper")
            assert (await runtime.sizes(demo.work)).open == 0


# ---- many


def kinds(answers: list[Handle[Any] | AioflowError]) -> list[str]:
    return [type(answer).__name__ for answer in answers]


async def test_of_many_each_has_its_own_answer(valkey: Valkey, namespace: str) -> None:
    demo = Demo(bound=3)
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as runtime:
        payloads: list[Any] = [{"number": 1}, {"number": -1}, "no", Order(number=2), {"number": 3}, Order(number=1)]
        payloads += [Order(number=4), Order(number=5), Order(number=6)]
        ids = ["a", "b", "c", "d", "a", "a", "bad id", "e", "f"]
        answers = await demo.work.submit_many(payloads, ids=ids)
        assert kinds(answers[:5]) == ["Handle", "CodecError", "CodecError", "Handle", "IdConflict"]
        assert kinds(answers[5:]) == ["Handle", "ConfigError", "Handle", "QueueFull"]
        again = answers[5]
        assert isinstance(again, Handle)
        assert (again.id, again.created) == ("a", False)
        full = answers[8]
        assert isinstance(full, QueueFull)
        assert (full.job_id, full.bound) == ("f", 3)
        assert (await runtime.sizes(demo.work)).open == 3
        assert await demo.work.submit_many([]) == []
        by_name = await runtime.submit_many("demo.fail", [Order(number=1)], ids=["x"])
        assert kinds(by_name) == ["Handle"]


async def test_what_is_wrong_with_all_of_many_is_raised(valkey: Valkey, namespace: str, demo: Demo) -> None:
    orders = [Order(number=number) for number in range(3)]
    soon = datetime.now(UTC) + timedelta(seconds=9)
    wrong: list[dict[str, Any]] = [
        {"priority": 10},
        {"delay": -1},
        {"at": soon.replace(tzinfo=None)},
        {"at": soon, "delay": 1},
        {"durability": "paper"},
        {"durability": "fsync"},
        {"ids": ["a", "b"]},
    ]
    async with submitter(demo, valkey, namespace) as runtime:
        for options in wrong:
            with pytest.raises(ConfigError):
                await demo.work.submit_many(orders, **options)
        with pytest.raises(ConfigError, match=r"holds no task demo\.x"):
            await runtime.submit_many("demo.x", [1])
        assert (await runtime.sizes(demo.work)).open == 0
    with pytest.raises(ConfigError, match="not running"):
        await runtime.submit_many(demo.work, orders)


async def test_a_bug_in_a_validator_raises_before_any_of_its_thousand_is_sent(
    valkey: Valkey, namespace: str, demo: Demo
) -> None:
    async with submitter(demo, valkey, namespace) as runtime:
        with pytest.raises(LookupError, match="own bug"):
            await demo.work.submit_many([{"number": number} for number in (1, 2, BUG, 3)])  # type: ignore[misc]
        assert (await runtime.sizes(demo.work)).open == 0, "a caller that gets no handles submitted nothing"


async def test_many_thousands_are_each_one_job_and_answer_in_order(valkey: Valkey, namespace: str, demo: Demo) -> None:
    count = 2500
    orders = [Order(number=number) for number in range(count)]
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
        answers = await demo.work.submit_many(orders)
        handles = [answer for answer in answers if isinstance(answer, Handle)]
        assert len(handles) == count
        assert [handle.id for handle in handles] == sorted(handle.id for handle in handles)
        results = await asyncio.gather(*[handle.result(20) for handle in handles])
        assert results == list(range(count))
        assert (await runtime.totals(demo.work))["submitted"] == count
    assert sorted(demo.ran) == list(range(count))


async def test_many_over_a_line_that_breaks_are_each_one_job(valkey: Valkey, namespace: str, demo: Demo) -> None:
    count = 1500
    orders = [Order(number=number) for number in range(count)]
    ids = [f"job-{number}" for number in range(count)]
    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([demo.service], redis=valkey.url, namespace=namespace),
        Runtime([demo.service], redis=proxy.url, namespace=namespace, workers=False) as far,
    ):
        proxy.lose_reply(b"job-", times=4)
        answers = await far.submit_many(demo.work, orders, ids=ids)
        assert {type(answer) for answer in answers} <= {Handle, StoreUnavailable}
        for answer, job_id in zip(answers, ids, strict=True):
            assert isinstance(answer, Handle) or getattr(answer, "job_id", None) == job_id
        # Whoever heard that it is unclear says it again.
        again = await far.submit_many(demo.work, orders, ids=ids)
        assert set(kinds(again)) == {"Handle"}
        await asyncio.gather(*[handle.result(20) for handle in again if isinstance(handle, Handle)])
    assert sorted(demo.ran) == list(range(count))


async def test_many_that_are_cancelled_are_submitted_at_most_once(valkey: Valkey, namespace: str, demo: Demo) -> None:
    async with submitter(demo, valkey, namespace) as runtime:
        assert runtime._submitter is not None
        line = runtime._submitter.lines[runtime.durability].many
        assert isinstance(line, Coalescer)
        many = asyncio.create_task(demo.work.submit_many([Order(number=number) for number in range(3000)]))
        while not line._in_flight:  # noqa: ASYNC110 - the coalescer has nothing to wait for
            await asyncio.sleep(0)
        many.cancel()
        with pytest.raises(asyncio.CancelledError):
            await many
        await line.drain()
        sizes = await runtime.sizes(demo.work)
        assert 0 < sizes.open < 3000


# ---- by name


async def test_a_task_is_known_by_its_name(valkey: Valkey, namespace: str, demo: Demo) -> None:
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
        assert await (await runtime.submit("demo.work", {"number": 3}, priority=1)).result(5) == 3
        with pytest.raises(CodecError, match=r"demo\.work"):
            await runtime.submit("demo.work", {"number": "three"})
        stranger = Demo()
        for unknown in ("demo.nothing", "work", "", stranger.work):
            with pytest.raises(ConfigError, match=r"it holds \['demo\.fail', 'demo\.work'\]"):
                await runtime.submit(unknown, {"number": 3})


# ---- threads and synchronous programs


async def in_thread(call: Callable[[], Any]) -> Any:
    """Run a blocking call in a thread and wait for it without blocking the loop."""
    return await asyncio.get_running_loop().run_in_executor(None, call)


async def test_a_thread_submits_and_waits(valkey: Valkey, namespace: str, demo: Demo) -> None:
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
        handle: Handle[int] = await in_thread(lambda: demo.work.submit_sync(Order(number=1), id="a", priority=0))
        assert handle.created
        assert await in_thread(lambda: handle.result_sync(5)) == 1
        again = await in_thread(lambda: runtime.submit_sync("demo.work", {"number": 1}, id="a"))
        assert not again.created
        wrong: list[tuple[type[Exception], Callable[[], Any]]] = [
            (CodecError, lambda: demo.work.submit_sync({"number": -1})),  # type: ignore[arg-type]
            (IdConflict, lambda: demo.work.submit_sync(Order(number=2), id="a")),
            (ConfigError, lambda: demo.work.submit_sync(Order(number=2), priority=11)),
            (ConfigError, lambda: runtime.submit_sync("demo.nothing", 1)),
            (JobFailed, lambda: demo.fail.submit_sync(Order(number=2)).result_sync(5)),
            (ResultTimeout, lambda: demo.work.submit_sync(Order(number=2), delay=1000).result_sync(0.01)),
            (NotFound, lambda: Handle("unknown", "demo.work", False, runtime).result_sync(5)),
        ]
        for kind, call in wrong:
            with pytest.raises(kind):
                await in_thread(call)
        with pytest.raises(ConfigError, match="in the runtime's own thread"):
            demo.work.submit_sync(Order(number=1))
        with pytest.raises(ConfigError, match="in the runtime's own thread"):
            handle.result_sync(1)
    for call in (lambda: runtime.submit_sync(demo.work, Order(number=1)), lambda: handle.result_sync(1)):
        with pytest.raises(ConfigError, match="not running"):
            await in_thread(call)


async def test_a_handler_in_a_thread_submits_to_the_runtime_that_runs_it(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")

    @service.task()
    async def child(name: str) -> str:
        return name

    @service.task()
    def parent(name: str) -> str:
        handle = child.submit_sync(name)
        return handle.id + " " + handle.result_sync(5)

    async with (
        Runtime([service], redis=valkey.url, namespace=f"{namespace}a") as first,
        Runtime([service], redis=valkey.url, namespace=f"{namespace}b") as second,
    ):
        for runtime, stranger in ((first, second), (second, first)):
            child_id, name = (await (await runtime.submit(parent, "x")).result(5)).split()
            assert name == "x"
            assert (await runtime.inspect(child, child_id)).state is State.DONE
            with pytest.raises(NotFound):
                await stranger.inspect(child, child_id)
        with pytest.raises(ConfigError, match="2 live runtimes"):
            await in_thread(lambda: child.submit_sync("x"))


def test_a_synchronous_program_submits_and_waits(valkey: Valkey, namespace: str, demo: Demo) -> None:
    with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
        handles = [demo.work.submit_sync(Order(number=number)) for number in range(10)]
        assert [handle.result_sync(5) for handle in handles] == list(range(10))
        with pytest.raises(JobFailed, match="no 1"):
            demo.fail.submit_sync(Order(number=1)).result_sync(5)
        with pytest.raises(CodecError):
            runtime.submit_sync(demo.work, {"number": -1})
        left = demo.work.submit_sync(Order(number=1), delay=1000)
    assert live_runtimes == []
    with pytest.raises(ConfigError, match="not running"):
        left.result_sync(1)
    with pytest.raises(ConfigError, match="not running"):
        runtime.submit_sync(demo.work, Order(number=1))
    with pytest.raises(ConfigError, match="no live runtime"):
        demo.work.submit_sync(Order(number=1))
    with pytest.raises(ConfigError, match="started once"), runtime:
        pass


def test_a_start_that_fails_is_raised_where_it_was_asked_for(valkey: Valkey, namespace: str, demo: Demo) -> None:
    for options, kind, message in (
        ({"redis": "unix:///nowhere/at/all"}, StoreUnavailable, "away"),
        ({"redis": valkey.url, "durability": "fsync"}, ConfigError, "appendfsync"),
    ):
        with (
            pytest.raises(kind, match=message),
            Runtime([demo.service], namespace=namespace, **options),  # type: ignore[arg-type]
        ):
            pytest.fail("it was not started")
    assert live_runtimes == []
    assert not [thread for thread in threading.enumerate() if thread.name == "aioflow runtime"]


def test_an_error_in_a_synchronous_program_stops_its_runtime(valkey: Valkey, namespace: str, demo: Demo) -> None:
    def fail() -> None:
        with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
            runtime.submit_sync(demo.work, Order(number=1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert live_runtimes == []
    assert not [thread for thread in threading.enumerate() if thread.name == "aioflow runtime"]


def test_what_ended_the_runtime_of_a_synchronous_program_is_raised(own_valkey: Valkey, namespace: str) -> None:
    demo = Demo()

    def refuse() -> Any:
        with Runtime([demo.service], redis=own_valkey.url, namespace=namespace) as runtime:

            async def forbid() -> None:
                await runtime.redis.execute_command("ACL", "SETUSER", acl.USER, "-blpop")
                await runtime.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

            runtime.call_sync(forbid())
            end = time.monotonic() + 10
            while not runtime.failed.is_set():
                assert time.monotonic() < end
                time.sleep(0.01)

    with pytest.raises(ConfigError, match=r"BLPOP|blpop"):
        refuse()
    assert live_runtimes == []


async def test_whoever_waits_when_the_runtime_stops_is_told(valkey: Valkey, namespace: str, demo: Demo) -> None:
    async with submitter(demo, valkey, namespace) as runtime:
        waiting = []
        for number in range(2):
            handle = await demo.work.submit(Order(number=number))
            waiting.append(asyncio.create_task(handle.result()))
            waiting.append(asyncio.create_task(handle.result(60)))
        assert runtime._inbox is not None
        await wait_until(runtime._inbox.subscribed.is_set)
    done, pending = await asyncio.wait(waiting, timeout=3)
    for task in pending:
        task.cancel()
    assert not pending, "nobody is left who could tell them"
    for task in done:
        assert isinstance(task.exception(), ResultTimeout)


async def test_a_wait_that_begins_in_any_turn_of_the_stop_is_told(valkey: Valkey, namespace: str, demo: Demo) -> None:
    asking: list[asyncio.Task[int]] = []
    async with submitter(demo, valkey, namespace) as runtime:
        handles = await asyncio.gather(*[demo.work.submit(Order(number=number)) for number in range(500)])
        stopping = asyncio.create_task(runtime.stop())
        for handle in handles:
            asking.append(asyncio.create_task(handle.result()))
            await asyncio.sleep(0)  # a turn of the loop
            if stopping.done():
                break
        await stopping
    done, pending = await asyncio.wait(asking, timeout=3)
    for task in pending:
        task.cancel()
    assert not pending, f"{len(pending)} of {len(asking)} wait for a channel that nobody listens to"
    assert {type(task.exception()) for task in done} <= {ResultTimeout, ConfigError}


@pytest.mark.parametrize("turns", range(10))
async def test_a_first_submit_of_its_durability_in_any_turn_of_the_stop_is_answered(
    own_valkey: Valkey, namespace: str, turns: int
) -> None:
    @asynccontextmanager
    async def lifespan(_: Runtime) -> AsyncIterator[None]:
        yield  # leaving it is what comes between the last flush and the end of the lines

    service = Service("demo", lifespan=lifespan)

    @service.task()
    async def work(number: int) -> int:
        return number

    runtime = Runtime([service], redis=own_valkey.url, namespace=namespace, durability="fsync", workers=False)

    async def late() -> Handle[int]:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await runtime.submit(work, 1, durability="memory")

    await runtime.start()
    submitting, stopping = asyncio.create_task(late()), asyncio.create_task(runtime.stop())
    await stopping
    try:
        assert (await asyncio.wait_for(submitting, 3)).created
    except (StoreUnavailable, ConfigError) as error:
        assert re.search("stopped|not running", str(error))  # noqa: PT017 - or it is created


def test_a_thread_that_waits_when_the_runtime_stops_is_told(valkey: Valkey, namespace: str, demo: Demo) -> None:
    told: Future[BaseException] = Future()
    with submitter(demo, valkey, namespace) as runtime:
        handle = runtime.submit_sync(demo.work, Order(number=1))

        def wait() -> None:
            try:
                handle.result_sync()
            except BaseException as error:  # noqa: BLE001 - the test says what it was
                told.set_result(error)

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        end = time.monotonic() + 5
        while not (runtime._results and runtime._results._waits):
            assert time.monotonic() < end
            time.sleep(0.005)
    assert isinstance(told.result(5), ResultTimeout)
    waiting.join(5)


def test_threads_that_submit_while_the_runtime_stops_all_come_back(valkey: Valkey, namespace: str, demo: Demo) -> None:
    outcomes: list[str] = []
    taken: list[str] = []
    busy = threading.Semaphore(0)

    def submit(runtime: Runtime) -> None:
        while True:
            try:
                taken.append(runtime.submit_sync(demo.work, Order(number=1)).id)
                busy.release()
            except (ConfigError, StoreUnavailable) as error:
                outcomes.append(type(error).__name__)
                return
            except BaseException as error:  # noqa: BLE001 - the test says what it was
                outcomes.append(repr(error))
                return

    with submitter(demo, valkey, namespace) as runtime:
        threads = [threading.Thread(target=submit, args=(runtime,), daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(50):
            assert busy.acquire(timeout=5)
    for thread in threads:
        thread.join(5)
    assert not [thread for thread in threads if thread.is_alive()], "a call that nobody will answer must end"
    assert set(outcomes) <= {"ConfigError", "StoreUnavailable"}, outcomes

    with submitter(demo, valkey, namespace) as after:
        infos = after.call_sync(after.inspect_many(demo.work, taken[-1000:]))
        assert all(infos), "whoever had a handle has a job"


async def test_a_waiting_job_is_seen_by_a_thread(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")
    gate = asyncio.Event()

    @service.task()
    async def work(job: Job) -> str:
        await gate.wait()
        return job.id

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        handle = await work.submit()
        waiting = asyncio.get_running_loop().run_in_executor(None, lambda: handle.result_sync(5))
        await in_state(handle, State.RUNNING)
        gate.set()
        assert await waiting == handle.id
