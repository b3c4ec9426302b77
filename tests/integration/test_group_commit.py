"""Group commit: what a coalescer does with what arrives, and how few calls that costs a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aioflow import Runtime, Service, StoreUnavailable
from aioflow.engine import coalescer as module
from aioflow.engine.coalescer import Coalescer
from aioflow.engine.keys import Queue
from aioflow.engine.records import MOST_BYTES, MOST_JOBS, NewJob
from aioflow.engine.store import Store
from aioflow.engine.submitter import IN_FLIGHT, Submitter
from aioflow.errors import ProtocolError
from tests.valkey import Valkey
from tests.waiting import wait_until


class Flush:
    """A flush that ends when the test lets it, batch by batch; it answers ten times the item."""

    def __init__(self, *, held: bool = True) -> None:
        self.batches: list[list[int]] = []
        self._steps = asyncio.Semaphore(0)
        self._held = held
        self.poison: int | None = None
        self.poisons_with: Exception = ProtocolError("no")
        self.error: Exception | None = None

    async def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        if self._held:
            await self._steps.acquire()
        if self.error is not None:
            raise self.error
        if self.poison in items:
            raise self.poisons_with
        return [10 * item for item in items]

    def let_go(self, batches: int = 1) -> None:
        for _ in range(batches):
            self._steps.release()

    async def holds(self, batches: int) -> None:
        """Wait until so many batches were begun."""
        await wait_until(lambda: len(self.batches) >= batches)


async def passes(count: int = 5) -> None:
    """Passes of the loop, in which all that is ready goes on; a timer would not fire in them."""
    for _ in range(count):
        await asyncio.sleep(0)


@asynccontextmanager
async def running(flush: Flush, *, flights: int = 1, most_items: int = MOST_JOBS) -> AsyncIterator[Coalescer[int, int]]:
    coalescer = Coalescer("test", flush, flights=flights, most_items=most_items)
    task = asyncio.create_task(coalescer.run())
    try:
        yield coalescer
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_one_flush_is_in_flight_and_what_arrives_meanwhile_is_the_next_batch() -> None:
    flush = Flush()
    async with running(flush) as coalescer:
        first = coalescer.put(1, 1)
        await flush.holds(1)
        later = [coalescer.put(item, 1) for item in (2, 3, 4)]
        await passes()
        assert flush.batches == [[1]], "a second flush was begun before the first was answered"
        flush.let_go()
        assert await first == 10
        await flush.holds(2)
        later.append(coalescer.put(5, 1))
        flush.let_go(2)
        assert await asyncio.gather(*later) == [20, 30, 40, 50]
    assert flush.batches == [[1], [2, 3, 4], [5]]


async def test_two_flights_share_the_line_and_a_third_batch_waits() -> None:
    flush = Flush()
    async with running(flush, flights=2, most_items=2) as coalescer:
        answers = [coalescer.put(item, 1) for item in range(5)]
        await flush.holds(2)
        await passes()
        assert flush.batches == [[0, 1], [2, 3]]
        assert len(coalescer) == 5
        draining = asyncio.create_task(coalescer.drain())
        flush.let_go()
        await flush.holds(3)
        flush.let_go()
        await asyncio.gather(*answers[:4])
        assert not draining.done(), "the third batch is in flight"
        flush.let_go()
        await draining
        assert [answer.result() for answer in answers] == [0, 10, 20, 30, 40]
    assert flush.batches[2] == [4]


async def test_an_idle_coalescer_adds_no_delay() -> None:
    flush = Flush()
    async with running(flush) as coalescer:
        await passes(1)  # it waits for a first item now
        answer = coalescer.put(1, 1)
        await passes(3)
        assert flush.batches == [[1]]
        flush.let_go()
        assert await answer == 10


async def test_a_batch_holds_at_most_so_many_items() -> None:
    flush = Flush(held=False)
    async with running(flush) as coalescer:
        answers = [coalescer.put(item, 1) for item in range(2 * MOST_JOBS + 1)]
        assert await asyncio.gather(*answers) == [10 * item for item in range(2 * MOST_JOBS + 1)]
    assert [len(batch) for batch in flush.batches] == [MOST_JOBS, MOST_JOBS, 1]


async def test_a_batch_holds_at_most_so_many_bytes_and_a_larger_item_goes_alone() -> None:
    flush = Flush(held=False)
    sizes = [MOST_BYTES // 2, MOST_BYTES // 2, 1, 2 * MOST_BYTES, 1]
    async with running(flush) as coalescer:
        await asyncio.gather(*[coalescer.put(item, size) for item, size in enumerate(sizes)])
    assert flush.batches == [[0, 1], [2], [3], [4]]


async def test_the_line_is_bounded_by_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    flush = Flush()
    async with running(flush) as coalescer:
        waiting = [coalescer.put(0, 1)]
        await flush.holds(1)
        waiting += [coalescer.put(item, 1) for item in (1, 2, 3)]
        with pytest.raises(StoreUnavailable, match="try again later"):
            coalescer.put(4, 1)
        flush.let_go()
        await flush.holds(2)
        waiting.append(coalescer.put(5, 1))  # there is room again
        flush.let_go(2)
        assert await asyncio.gather(*waiting) == [0, 10, 20, 30, 50]


async def test_the_line_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING_BYTES", 100)
    flush = Flush()
    async with running(flush) as coalescer:
        waiting = [coalescer.put(0, 100)]
        await flush.holds(1)
        taken_out = coalescer.put(1, 60)
        waiting.append(coalescer.put(2, 40))
        with pytest.raises(StoreUnavailable, match="100 bytes wait"):
            coalescer.put(3, 1)
        taken_out.cancel()
        flush.let_go()
        await flush.holds(2)
        waiting.append(coalescer.put(4, 100))  # what was taken out has given its bytes back
        flush.let_go(2)
        assert await asyncio.gather(*waiting) == [0, 20, 40]


async def test_a_caller_cancelled_before_the_flush_takes_its_item_out() -> None:
    flush = Flush()
    async with running(flush) as coalescer:

        async def caller(item: int) -> int:
            return await coalescer.put(item, 1)

        first, second, third = (asyncio.create_task(caller(item)) for item in (1, 2, 3))
        await passes(1)
        second.cancel()
        flush.let_go()
        assert [await first, await third] == [10, 30]
        assert flush.batches == [[1, 3]]
        assert second.cancelled()
        # A line of nothing but cancelled items is an empty line.
        fourth = asyncio.create_task(caller(4))
        await passes(1)
        fourth.cancel()
        await coalescer.drain()
        assert len(coalescer) == 0
    assert flush.batches == [[1, 3]]


async def test_an_item_in_flight_goes_on_when_its_caller_is_cancelled() -> None:
    flush = Flush()
    async with running(flush) as coalescer:

        async def caller(item: int) -> int:
            return await coalescer.put(item, 1)

        callers = [asyncio.create_task(caller(item)) for item in (1, 2)]
        await flush.holds(1)
        callers[0].cancel()
        await asyncio.wait([callers[0]])
        assert len(coalescer) == 2, "it is still in flight"
        flush.let_go()
        assert await callers[1] == 20
        await coalescer.drain()
    assert flush.batches == [[1, 2]]


@pytest.mark.parametrize(
    "error",
    [ProtocolError("redis refuses it"), UnicodeEncodeError("utf-8", "x", 0, 1, "it cannot be packed")],
    ids=["protocol", "packing"],
)
async def test_a_culprit_is_split_out_and_its_batch_mates_get_their_answers(error: Exception) -> None:
    flush = Flush(held=False)
    flush.poison, flush.poisons_with = 613, error
    async with running(flush) as coalescer:
        answers = await asyncio.gather(*[coalescer.put(item, 1) for item in range(1000)], return_exceptions=True)
    assert list(answers) == [error if item == 613 else 10 * item for item in range(1000)]
    assert len(flush.batches) <= 2 * 10 + 1, "1,000 items are halved ten times"


async def test_a_server_that_is_away_is_told_to_the_whole_batch_and_the_next_one_goes() -> None:
    flush = Flush(held=False)
    flush.error = StoreUnavailable("away")
    async with running(flush) as coalescer:
        answers = await asyncio.gather(*[coalescer.put(item, 1) for item in range(3)], return_exceptions=True)
        assert list(answers) == [flush.error] * 3
        assert flush.batches == [[0, 1, 2]], "what may have happened is not sent again"
        flush.error = None
        assert await coalescer.put(4, 1) == 40


async def test_drain_waits_for_the_line_and_for_what_is_in_flight() -> None:
    flush = Flush()
    async with running(flush) as coalescer:
        await coalescer.drain()  # nothing to wait for
        first = coalescer.put(1, 1)
        await flush.holds(1)
        second = coalescer.put(2, 1)
        draining = asyncio.create_task(coalescer.drain())
        flush.let_go()
        await first
        await flush.holds(2)
        assert not draining.done()
        flush.let_go()
        await draining
        assert second.done()
        assert len(coalescer) == 0


async def test_whoever_waits_when_the_coalescer_ends_hears_that_it_may_not_have_happened() -> None:
    flush = Flush()
    async with running(flush) as coalescer:
        in_flight = coalescer.put(1, 1)
        await flush.holds(1)
        in_line = coalescer.put(2, 1)
    for future in (in_flight, in_line):
        with pytest.raises(StoreUnavailable, match="stopped"):
            await asyncio.wait_for(future, 1)
    with pytest.raises(StoreUnavailable, match="stopped"):
        coalescer.put(3, 1)
    await asyncio.wait_for(coalescer.drain(), 1)


async def test_a_batch_whose_flush_fails_by_a_bug_is_told_so_and_the_line_ends() -> None:
    async def flush(items: list[int]) -> list[int]:
        return items[1:]  # an answer too few

    coalescer = Coalescer("test", flush)
    run = asyncio.create_task(coalescer.run())
    answers = [coalescer.put(item, 1) for item in (1, 2)]
    await asyncio.wait([run], timeout=5)
    assert [type(error) for error in getattr(run.exception(), "exceptions", ())] == [ValueError]
    assert await asyncio.wait_for(answers[0], 1) == 2
    with pytest.raises(StoreUnavailable, match="stopped"):
        await asyncio.wait_for(answers[1], 1)
    with pytest.raises(StoreUnavailable, match="stopped"):
        coalescer.put(3, 1)


async def test_whoever_is_in_a_line_that_a_stop_cancels_before_its_first_step_is_told(
    store: Store, queue: Queue
) -> None:
    loops: list[asyncio.Task[None]] = []

    def spawn(loop: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        loops.append(asyncio.create_task(loop, name=name))
        return loops[-1]

    submitter = Submitter(store, {}, spawn)
    line = (await submitter.open("memory")).single
    answer = line.put(NewJob(queue, "a", b"\n1", 4, "+0"), 10)
    for loop in loops:
        loop.cancel()
    with pytest.raises(StoreUnavailable, match="stopped"):
        await asyncio.wait_for(answer, 1)
    with pytest.raises(StoreUnavailable, match="stopped"):
        line.put(NewJob(queue, "b", b"\n1", 4, "+0"), 10)
    await asyncio.wait_for(submitter.drain(), 1)


# ---- what it costs a real server


async def scripts_run(runtime: Runtime) -> int:
    """How many script calls the server has had."""
    stats = await runtime.redis.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))


async def test_a_thousand_concurrent_submits_cost_few_calls(own_valkey: Valkey, namespace: str) -> None:
    service = Service("demo")

    @service.task()
    async def work(number: int) -> int:
        return number

    async with Runtime([service], redis=own_valkey.url, namespace=namespace, workers=False) as runtime:
        assert runtime.durability == "fsync"
        await work.submit(0)  # loads the script
        before = await scripts_run(runtime)
        handles = await asyncio.gather(*[work.submit(number) for number in range(1000)])
        assert await scripts_run(runtime) - before <= 1000 // IN_FLIGHT + 4
        assert all(handle.created for handle in handles)
        assert (await runtime.sizes(work)).open == 1001
        before = await scripts_run(runtime)
        assert len(await work.submit_many(list(range(1000)))) == 1000
        assert await scripts_run(runtime) - before == 1, "one flush"


async def test_a_thousand_jobs_cost_few_claims_and_settles(own_valkey: Valkey, namespace: str) -> None:
    service = Service("demo")

    @service.task(concurrency=100)
    async def work(number: int) -> int:
        return number

    async with Runtime([service], redis=own_valkey.url, namespace=namespace, workers=False) as runtime:
        handles = await asyncio.gather(*[runtime.submit(work, number) for number in range(1000)])
        before = await scripts_run(runtime)
        async with Runtime([service], redis=own_valkey.url, namespace=namespace):

            async def all_done() -> bool:
                return (await runtime.sizes(work)).done == 1000

            await wait_until(all_done)
            # At least 10 claims of 100; a claim and a settle per job would be 2,000.
            assert await scripts_run(runtime) - before <= 60
        assert await handles[999].result(1) == 999
