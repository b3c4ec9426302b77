"""The circuit breaker of a task: while what its handlers need is away, jobs wait and lose no attempt."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import pytest

from aioflow import Breaker, ConfigError, Discard, Job, JobFailed, Retry, Runtime, Service, State
from aioflow.engine.attempt import Attempt
from aioflow.engine.records import Leased
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until


class Away(Exception):
    """What the handlers need is away."""


class Outside:
    """Something that handlers need."""

    def __init__(self) -> None:
        self.is_away = False
        self.asked: list[Any] = []

    def ask(self, what: Any) -> None:
        self.asked.append(what)
        if self.is_away:
            raise Away("not there")


@pytest.fixture
def outside() -> Outside:
    return Outside()


@pytest.fixture
def service() -> Service:
    return Service("demo")


SHORT = Breaker(on=(Away,), failures=3, wait=0.02, longest=0.1)
ONCE = Retry(attempts=1)


async def test_an_outage_costs_no_more_attempts_than_it_takes_to_see_it(
    valkey: Valkey, namespace: str, service: Service, outside: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aioflow")

    @service.task(concurrency=1, retry=Retry(attempts=5, base=0.01), breaker=SHORT)
    async def work(number: int, job: Job) -> int:
        job.commit.hincrby("done", str(number), 1)
        outside.ask(number)
        return number

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        outside.is_away = True
        handles = [await work.submit(number) for number in range(50)]
        await wait_until(lambda: len(outside.asked) >= 8)
        outside.is_away = False
        assert await asyncio.gather(*[handle.result(10) for handle in handles]) == list(range(50))
        totals = await runtime.totals(work)
        done = await runtime.redis.hgetall(runtime.key(service, "done"))
        failures = [failure for handle in handles for failure in (await handle.status()).history]
    assert len(failures) == 2, "the third in a row pauses the task, and none after it counts"
    assert totals["done"] == 50
    assert set(done.values()) == {b"1"}, "what a job that was put off wanted written is dropped"
    said = [record.message for record in caplog.records if record.name == "aioflow.engine.breaker"]
    assert said[0].startswith("demo.work is paused here: Away: not there; one job is tried in 0.0")
    assert said[-1].startswith("demo.work goes on after ")
    assert [record.levelno for record in caplog.records if "is paused here" in record.message][:2] == [
        logging.WARNING,
        logging.INFO,
    ], "said aloud once"


async def test_one_job_is_tried_at_a_time_and_another_each_time(
    valkey: Valkey, namespace: str, service: Service, outside: Outside
) -> None:
    at_once = most_at_once = 0

    @service.task(concurrency=10, retry=ONCE, breaker=Breaker(on=(Away,), failures=1, wait=0.02, longest=0.02))
    async def work(number: int) -> None:
        nonlocal at_once, most_at_once
        at_once += 1
        most_at_once = max(most_at_once, at_once)
        try:
            await asyncio.sleep(0)
            outside.ask(number)
        finally:
            at_once -= 1

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        outside.is_away = True
        handles = [await work.submit(number) for number in range(30)]
        await wait_until(lambda: len(outside.asked) >= 20)
        most_at_once = 0
        seen = len(outside.asked)
        await wait_until(lambda: len(outside.asked) >= seen + 5)
        assert most_at_once == 1
        assert len(set(outside.asked[seen : seen + 5])) == 5, "a job that fails by itself does not keep the others"
        outside.is_away = False
        await asyncio.gather(*[handle.result(10) for handle in handles])


async def test_only_what_is_named_and_only_in_a_row_pauses_a_task(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    """A job that always fails so, between others that do not, ends by its own retry policy."""

    @service.task(
        concurrency=1, retry=Retry(attempts=3, base=0.0), breaker=Breaker(on=(Away,), failures=4, wait=60, longest=60)
    )
    async def work(kind: str) -> str:
        if kind == "away":
            raise Away("this one always")
        if kind == "wrong":
            raise ValueError("something else")
        if kind == "discard":
            raise Discard("no")
        return kind

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        for _ in range(4):
            bad = await work.submit("away", priority=9)
            for _ in range(3):
                good = await work.submit("good")
                assert await good.result(10) == "good"
                wrong = await work.submit("wrong", priority=0)
                with pytest.raises(JobFailed):
                    await wrong.result(10)
            with pytest.raises(JobFailed, match="this one always"):
                await bad.result(10)
            await (await work.submit("good")).result(10)  # so that no more than one job's three are in a row


async def test_what_began_before_the_outage_says_nothing_of_it(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    release = asyncio.Event()
    away = True
    tried: list[str] = []

    @service.task(concurrency=3, retry=ONCE, breaker=Breaker(on=(Away,), failures=1, wait=0.02, longest=0.02))
    async def work(kind: str) -> None:
        tried.append(kind)
        if kind == "early":
            await release.wait()
        elif away:
            raise Away("not there")

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        early = await work.submit("early")
        await wait_until(lambda: tried == ["early"])
        late = await work.submit("late")
        await wait_until(lambda: tried.count("late") >= 2)
        other = await work.submit("other")
        release.set()
        await early.result(10)
        await wait_until(lambda: len(tried) > 8)
        assert not {(await handle.status()).state for handle in (late, other)} & {State.DEAD, State.DONE}
        away = False
        await asyncio.gather(late.result(10), other.result(10))


async def test_a_probe_that_ends_in_another_way_is_followed_by_one(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    """Cancelled, timed out, or not to be decoded: another job is tried."""
    tried: list[str] = []
    away = True

    @service.task(
        concurrency=1,
        retry=Retry(attempts=1),
        timeout=0.1,
        breaker=Breaker(on=(Away,), failures=1, wait=0.02, longest=0.02),
    )
    async def work(kind: str) -> None:
        tried.append(kind)
        if kind == "hangs":
            await asyncio.Event().wait()
        if away:
            raise Away("not there")

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        first = await work.submit("first")
        await wait_until(lambda: tried.count("first") >= 2)
        hangs = await work.submit("hangs", priority=0)
        with pytest.raises(JobFailed, match="no result within"):
            await hangs.result(10)
        cancelled = await work.submit("hangs", priority=0)
        await in_state(cancelled, State.RUNNING)
        await cancelled.cancel()
        away = False
        await first.result(10)


async def test_the_waits_double_and_are_spread(
    valkey: Valkey, namespace: str, service: Service, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, float]] = []

    def uniform(least: float, most: float) -> float:
        drawn.append((least, most))
        return 0.001

    @service.task(retry=ONCE, breaker=Breaker(on=(Away,), failures=1, wait=1.0, longest=5.0))
    async def work() -> None:
        outside.ask(None)

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        outside.is_away = True
        monkeypatch.setattr(random, "uniform", uniform)
        handle = await work.submit()
        await wait_until(lambda: len(outside.asked) >= 5)
        outside.is_away = False
        await handle.result(10)
    assert drawn[:5] == [(0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (2.5, 5.0), (2.5, 5.0)]


async def test_a_runtime_that_is_paused_stops_in_order(
    valkey: Valkey, namespace: str, service: Service, outside: Outside
) -> None:
    @service.task(retry=ONCE, breaker=Breaker(on=(Away,), failures=1, wait=60, longest=60))
    async def work() -> None:
        outside.ask(None)

    outside.is_away = True
    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handle = await work.submit()
        await in_state(handle, State.SCHEDULED)
        assert await runtime.ready() is None, "it waits in order"


def test_a_breaker_is_checked() -> None:
    for wrong in ({"on": ()}, {"on": OSError}, {"failures": 0}, {"wait": 0.0}, {"wait": 9.0, "longest": 1.0}):
        options: dict[str, Any] = {"on": (OSError,), **wrong}
        with pytest.raises(ConfigError, match="Breaker"):
            Breaker(**options)


async def test_jobs_that_fail_at_once_are_one_outage(valkey: Valkey, namespace: str, service: Service) -> None:
    """Those that start after the trip, in the same claim, teach nothing new: the first wait is the first."""

    @service.task(retry=Retry(attempts=9), breaker=Breaker(on=(Away,), wait=60, longest=600))
    async def work(_number: int) -> None:
        raise Away("in its first step")

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        await work.submit_many(list(range(100)))

        async def all_put_off() -> bool:
            return (await runtime.sizes(work)).scheduled == 100

        await wait_until(all_put_off)
        circuit = runtime._pools[0]._circuit
        assert circuit is not None
        assert (circuit._trips, circuit._wait <= 60) == (1, True)


async def test_a_job_of_a_claim_that_was_under_way_at_the_trip_is_no_probe(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    """It began in the outage, so what becomes of it says nothing; while it runs, others are tried."""
    away, hangs = True, asyncio.Event()

    @service.task(retry=Retry(attempts=9), breaker=Breaker(on=(Away,), failures=1, wait=0.05, longest=0.05))
    async def work(kind: str) -> None:
        if kind == "hangs":
            await hangs.wait()
        elif away:
            raise Away("not there")

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        circuit = runtime._pools[0]._circuit
        assert circuit is not None
        first = await work.submit("first")
        await wait_until(lambda: circuit._trips)
        # As a claim that was sent before the trip, and is answered after it.
        late = Attempt(Leased("late", "t.1", b"", 1, 0, 0), 0.0, 0.0)
        circuit.started([late])
        assert circuit._probe is None
        away = False
        await first.result(10)
        hangs.set()


async def test_how_a_handler_ends_its_job_on_purpose_is_an_answer(
    valkey: Valkey, namespace: str, service: Service
) -> None:
    @service.task(concurrency=1, breaker=Breaker(on=(Exception,), failures=2, wait=60, longest=60))
    async def work(number: int) -> None:
        raise Discard(f"number {number}")

    async with Runtime([service], redis=valkey.url, namespace=namespace):
        for number in range(4):
            with pytest.raises(JobFailed, match=f"Discard: number {number}"):
                await (await work.submit(number)).result(10)


async def test_a_group_that_holds_it_says_so_too(
    valkey: Valkey, namespace: str, service: Service, outside: Outside
) -> None:
    @service.task(retry=ONCE, breaker=SHORT)
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(outside.ask, None))

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        outside.is_away = True
        for _ in range(2):
            with pytest.raises(JobFailed, match="ExceptionGroup"):
                await (await work.submit()).result(10)
        third = await work.submit()
        circuit = runtime._pools[0]._circuit
        assert circuit is not None
        await wait_until(lambda: circuit._trips >= 2)
        outside.is_away = False
        await third.result(10)
