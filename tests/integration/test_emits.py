"""Jobs that handlers submit with their commit: each exactly once where the outcome lands, and none where it does not.

Those of the same service land with the acknowledgement; those of another lie in the outbox first, and a relay carries
them. What may be lost, cut or run twice on that way is lost, cut and run twice here.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import (
    CodecError,
    ConfigError,
    Discard,
    Job,
    JobFailed,
    Retry,
    RetryLater,
    Runtime,
    Service,
    State,
    StoreUnavailable,
)
from aioflow import runtime as runtime_module
from aioflow.engine import relay as relay_module
from aioflow.engine.keys import Queue
from aioflow.engine.records import Emitted
from aioflow.engine.relay import Relay
from aioflow.engine.store import Store
from tests.chaos.model import emitted_id
from tests.integration.test_line import sha
from tests.proxy import Proxy
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until

ONCE = Retry(attempts=1)
SOON = Retry(attempts=5, base=0.0)


class Entry(BaseModel):
    """What is booked."""

    number: int


class Books:
    """Two services: a shop, whose handlers emit, and a ledger, that counts what it was told."""

    def __init__(self, *, lease: float = 15.0, concurrency: int = 100) -> None:
        self.shop, self.ledger = Service("shop"), Service("ledger")
        self.booked: list[int] = []
        self.packed: list[int] = []
        self.ids: list[str] = []

        @self.ledger.task(concurrency=concurrency, lease=lease)
        async def book(entry: Entry, job: Job) -> int:
            self.booked.append(entry.number)
            self.ids.append(job.id)
            return entry.number

        @self.shop.task(lease=lease)
        async def pack(entry: Entry) -> int:
            self.packed.append(entry.number)
            return entry.number

        @self.shop.task(lease=lease, retry=SOON)
        async def sell(numbers: list[int], job: Job) -> int:
            for number in numbers:
                job.commit.submit(book, Entry(number=number))
                job.commit.submit("shop.pack", {"number": number})
            return len(numbers)

        self.book, self.pack, self.sell = book, pack, sell

    def outbox(self, namespace: str) -> Queue:
        return Queue(namespace, "shop", "sell")


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture(params=["valkey", "memory:"])
def redis_url(request: pytest.FixtureRequest, valkey: Valkey) -> str:
    return valkey.url if request.param == "valkey" else "memory:"


class DeadRelay(Relay):
    """Of a process that dies before it relays."""

    async def run(self) -> None:
        await asyncio.Event().wait()


@pytest.fixture
def no_relay(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Runtimes that are started before it is undone relay nothing."""
    monkeypatch.setattr(runtime_module, "Relay", DeadRelay)
    return monkeypatch


async def waiting_out(runtime: Runtime, queue: Queue) -> int:
    """How many jobs lie in an outbox."""
    return int(await runtime.redis.xlen(queue.keys["outbox"]))


async def settled(runtime: Runtime, task: Any, count: int, seconds: float = 15.0) -> None:
    """Wait until so many jobs of a task are done and none is open, and be sure that no more come."""

    async def there() -> bool:
        sizes = await runtime.sizes(task)
        assert sizes.done <= count
        return sizes.done == count and sizes.open == 0

    await wait_until(there, seconds)
    assert (await runtime.totals(task))["submitted"] == count


# ---- where they go


async def test_a_job_of_the_same_service_is_there_with_the_acknowledgement(
    redis_url: str, namespace: str, books: Books
) -> None:
    async with Runtime([books.shop], redis=redis_url, namespace=namespace) as runtime:
        await runtime.pause(books.pack)
        parent = await runtime.submit(books.sell, [1, 2, 3])
        assert await parent.result(5) == 3
        sizes = await runtime.sizes(books.pack)
        assert (sizes.ready, sizes.open) == (3, 3), "before anybody has heard of the result"
        await runtime.resume(books.pack)
        await settled(runtime, books.pack, 3)
    assert sorted(books.packed) == [1, 2, 3]


async def test_jobs_of_another_service_come_once_in_order_with_ids_of_their_source(
    redis_url: str, namespace: str
) -> None:
    books = Books(concurrency=1)
    async with Runtime([books.shop, books.ledger], redis=redis_url, namespace=namespace) as runtime:
        for first in range(0, 40, 10):
            await (await runtime.submit(books.sell, list(range(first, first + 10)))).result(5)
        await settled(runtime, books.book, 40)
        assert books.booked == list(range(40))
        assert await waiting_out(runtime, books.outbox(namespace)) == 0
    assert all(re.fullmatch(r"shop\.sell-\d+-\d+", job_id) for job_id in books.ids)
    assert len(set(books.ids)) == 40


async def test_the_ids_are_the_sequence_in_the_outbox(
    valkey: Valkey, namespace: str, books: Books, no_relay: pytest.MonkeyPatch
) -> None:
    async with Runtime([books.shop], redis=valkey.url, namespace=namespace) as runtime:
        await (await runtime.submit(books.sell, [7, 8])).result(5)
        emitted = await runtime._live_store().outbox(books.outbox(namespace), 10)
        assert [(job.to, job.envelope, job.priority, job.due) for job in emitted] == [
            ("ledger.book", b'\n{"number":7}', 4, 0),
            ("ledger.book", b'\n{"number":8}', 4, 0),
        ]
    no_relay.undo()
    async with Runtime([books.shop, books.ledger], redis=valkey.url, namespace=namespace) as runtime:
        await settled(runtime, books.book, 2)
    assert sorted(books.ids) == [emitted_id("shop.sell", job.sequence) for job in emitted]


async def test_delay_and_priority_hold_from_the_commit_on(redis_url: str, namespace: str) -> None:
    shop, ledger = Service("shop"), Service("ledger")

    @ledger.task()
    async def book(number: int) -> None: ...

    @shop.task()
    async def pack(number: int) -> None: ...

    @shop.task()
    async def sell(job: Job) -> None:
        for task in ("ledger.book", pack):
            job.commit.submit(task, 1, delay=500, priority=9)
            job.commit.submit(task, 2, priority=0)
            job.commit.submit(task, 3, delay=0.0001)

    async with Runtime([shop, ledger], redis=redis_url, namespace=namespace) as runtime:
        await runtime.pause(book)
        await runtime.pause(pack)
        parent = await runtime.submit(sell)
        await parent.result(5)
        done_ms = (await parent.status()).at_ms
        for task in (book, pack):

            async def all_three(task: Any = task) -> bool:
                return (await runtime.sizes(task)).open == 3

            await wait_until(all_three)
            queue = Queue(namespace, "ledger" if task is book else "shop", task.name)
            scheduled: Any = await runtime.redis.zrange(queue.keys["scheduled"], 0, -1, withscores=True)
            assert [score for _, score in scheduled] == [done_ms + 500_000]
            ready: Any = await runtime.redis.zrange(queue.keys["ready"], 0, -1, withscores=True)
            assert [score // 2**42 for _, score in ready] == [0, 4]
            rows: Any = await runtime.redis.hgetall(queue.keys["claims"])
            (row,) = rows.values()
            assert row.endswith(f":{9 * 2**42 + done_ms + 500_000}".encode())


async def test_a_bound_refuses_no_job_that_a_handler_emits(valkey: Valkey, namespace: str) -> None:
    shop, ledger = Service("shop"), Service("ledger")

    @ledger.task(bound=1)
    async def book(number: int) -> int:
        return number

    @shop.task(bound=1)
    async def pack(number: int) -> int:
        return number

    @shop.task()
    async def sell(job: Job) -> None:
        for number in range(400):
            job.commit.submit(book, number)
            job.commit.submit(pack, number)

    async with Runtime([shop, ledger], redis=valkey.url, namespace=namespace) as runtime:
        await (await runtime.submit(sell)).result(5)
        await settled(runtime, book, 400)
        await settled(runtime, pack, 400)


async def test_a_task_may_emit_itself(redis_url: str, namespace: str) -> None:
    shop = Service("shop")
    ran: list[int] = []

    @shop.task()
    async def count(number: int, job: Job) -> None:
        ran.append(number)
        if number < 30:
            job.commit.submit("shop.count", number + 1)

    async with Runtime([shop], redis=redis_url, namespace=namespace) as runtime:
        await runtime.submit(count, 0)
        await wait_until(lambda: len(ran) == 31)
        await settled(runtime, count, 31)
    assert ran == list(range(31))


async def test_an_unknown_task_keeps_its_jobs_until_somebody_serves_it(
    redis_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    shop, ghost = Service("shop"), Service("ghost")
    seen: list[str] = []

    @shop.task()
    async def sell(job: Job) -> None:
        job.commit.submit("ghost.walk", {"far": True})
        job.commit.submit("shop.later", "near")

    async with Runtime([shop], redis=redis_url, namespace=namespace) as runtime:
        store = runtime._live_store()
        await (await runtime.submit(sell)).result(5)
        await wait_until(lambda: store.redis.zcard(Queue(namespace, "ghost", "walk").keys["ready"]))
        await wait_until(lambda: len(caplog.records) >= 2)
        said = [record.getMessage() for record in caplog.records]
        assert sorted(said) == [
            f"shop.sell: it emits jobs of {task}, which no live runtime serves; they wait"
            for task in ("ghost.walk", "shop.later")
        ]
        assert await store.redis.zcard(Queue(namespace, "shop", "later").keys["ready"]) == 1
        if redis_url != "memory:":  # which lives in its runtime

            @ghost.task()
            async def walk(payload: dict[str, bool]) -> None:
                seen.append(str(payload))

            younger = Service("shop")

            @younger.task()
            async def later(payload: str) -> None:
                seen.append(payload)

            async with Runtime([ghost, younger], redis=redis_url, namespace=namespace) as late:
                await settled(late, walk, 1)
                await settled(late, later, 1)
            assert sorted(seen) == ["near", "{'far': True}"]


async def test_a_payload_that_the_unknown_task_does_not_take_is_dead_there(valkey: Valkey, namespace: str) -> None:
    shop = Service("shop")

    @shop.task()
    async def sell(job: Job) -> None:
        job.commit.submit("ledger.book", {"number": "many"})

    async with Runtime([shop], redis=valkey.url, namespace=namespace) as runtime:
        await (await runtime.submit(sell)).result(5)
    books = Books()
    async with Runtime([shop, books.ledger], redis=valkey.url, namespace=namespace) as runtime:

        async def dead() -> int:
            return (await runtime.sizes(books.book)).dead

        await wait_until(dead)
        (entry,) = (await runtime.jobs_page(books.book, "dead")).entries
        with pytest.raises(JobFailed, match="CodecError"):
            await runtime.wait_result("ledger.book", entry[0], 5)
    assert books.booked == []


# ---- which outcomes they land with


async def test_what_fails_emits_nothing_but_what_was_meant_for_failures(valkey: Valkey, namespace: str) -> None:
    shop, ledger = Service("shop"), Service("ledger")
    booked: list[str] = []
    held = asyncio.Event()

    @ledger.task()
    async def book(what: str) -> None:
        booked.append(what)

    @shop.task()
    async def note(what: str) -> None:
        booked.append(f"near {what}")

    @shop.task(retry=ONCE, timeout=0.2)
    async def sell(how: str, job: Job) -> str:
        for task in (book, note):
            job.commit.submit(task, f"{how} good")
            job.commit.submit(task, f"{how} bad", on_failure=True)
        match how:
            case "raises":
                raise ValueError(how)
            case "result":
                return 7  # type: ignore[return-value]
            case "timeout":
                await asyncio.Event().wait()
            case "discard":
                raise Discard(how)
            case "later" if job.attempt < 3:
                raise RetryLater(0)
            case "swallowed":
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    return how
        return how

    @shop.task(timeout=None)
    async def wait(job: Job) -> None:
        for task in (book, note):
            job.commit.submit(task, "cancel good")
            job.commit.submit(task, "cancel bad", on_failure=True)
        held.set()
        await asyncio.Event().wait()

    async with Runtime([shop, ledger], redis=valkey.url, namespace=namespace) as runtime:
        endings = ["raises", "result", "timeout", "swallowed", "discard", "later", "returns"]
        handles = [await runtime.submit(sell, how) for how in endings]
        cancelled = await runtime.submit(wait)
        await held.wait()
        assert await cancelled.cancel()
        outcomes = await asyncio.gather(*[handle.result(5) for handle in [*handles, cancelled]], return_exceptions=True)
        assert [type(outcome).__name__ for outcome in outcomes] == [
            *["JobFailed"] * 5, "str", "str", "JobCancelled",
        ]  # fmt: skip
        expected = [f"{how} bad" for how in ("raises", "result", "timeout", "swallowed", "cancel")]
        expected += ["discard good", "returns good", *["later good"] * 3]
        await settled(runtime, book, len(expected))
        await settled(runtime, note, len(expected))
    assert Counter(booked) == Counter([*expected, *[f"near {what}" for what in expected]])


async def test_a_failure_that_is_retried_emits_what_is_meant_for_failures_each_time(
    valkey: Valkey, namespace: str, books: Books
) -> None:
    @books.shop.task(retry=Retry(attempts=4, base=0.0))
    async def flaky(job: Job) -> int:
        job.commit.submit(books.book, Entry(number=100))
        job.commit.submit(books.book, Entry(number=job.attempt), on_failure=True)
        if job.attempt < 4:
            raise ValueError
        return job.attempt

    async with Runtime([books.shop, books.ledger], redis=valkey.url, namespace=namespace) as runtime:
        assert await (await runtime.submit(flaky)).result(5) == 4
        await settled(runtime, books.book, 4)
    assert sorted(books.booked) == [1, 2, 3, 100]


async def test_what_cannot_be_emitted_raises_in_the_handler(valkey: Valkey, namespace: str, books: Books) -> None:
    seen: list[str] = []
    loop: list[Any] = []
    loop.append(loop)
    wrong: Sequence[tuple[tuple[Any, ...], dict[str, Any], type[Exception]]] = [
        ((books.pack, {"number": "many"}), {}, CodecError),
        (("shop.pack", {"number": "many"}), {}, CodecError),
        ((books.sell, None), {}, CodecError),
        (("other.task", object()), {}, CodecError),
        (("other.task", "\ud800"), {}, CodecError),
        (("other.task", loop), {}, CodecError),
        (("other.task", "x" * (1 << 20)), {}, CodecError),
        (("pack",), {}, ConfigError),
        (("Other.Task",), {}, ConfigError),
        (("a.b.c",), {}, ConfigError),
        ((7,), {}, ConfigError),
        (("other.task", 1), {"priority": 10}, ConfigError),
        (("other.task", 1), {"priority": -1}, ConfigError),
        (("other.task", 1), {"priority": 4.5}, ConfigError),
        (("other.task", 1), {"delay": -1}, ConfigError),
        (("other.task", 1), {"delay": float("nan")}, ConfigError),
        (("other.task", 1), {"delay": 367 * 86_400.0}, ConfigError),
    ]

    @books.shop.task(retry=ONCE)
    async def careful(job: Job) -> int:
        for arguments, options, kind in wrong:
            with pytest.raises(kind):
                job.commit.submit(*arguments, **options)
            seen.append(kind.__name__)
        for number in range(1000):
            job.commit.submit(books.pack, Entry(number=number))
        with pytest.raises(ConfigError, match="at most 1000"):
            job.commit.submit(books.pack, Entry(number=1000))
        job.commit.effects.clear()
        for number in range(33):
            job.commit.submit("other.task", "x" * 1_000_000, on_failure=number % 2 == 0)
        with pytest.raises(ConfigError, match="at most 33554432 bytes"):
            job.commit.submit("other.task", "x" * 1_000_000)
        job.commit.effects.clear()
        return len(seen)

    @books.shop.task(retry=ONCE)
    async def careless(job: Job) -> None:
        job.commit.submit(books.book, Entry(number=1))
        job.commit.submit(books.pack, {"number": "many"})

    async with Runtime([books.shop, books.ledger], redis=valkey.url, namespace=namespace) as runtime:
        assert await (await runtime.submit(careful)).result(5) == len(wrong)
        with pytest.raises(JobFailed, match="CodecError"):
            await (await runtime.submit(careless)).result(5)
        for task in (books.pack, books.book):
            assert (await runtime.totals(task)) == {}
        assert await waiting_out(runtime, Queue(namespace, "shop", "careless")) == 0


async def test_a_bad_effect_takes_the_emits_of_its_job_with_it_and_of_no_other(
    valkey: Valkey, namespace: str, books: Books
) -> None:
    gate = asyncio.Event()

    @books.shop.task(retry=ONCE)
    async def mixed(number: int, job: Job) -> int:
        await gate.wait()  # so that all are settled as one batch
        job.commit.submit(books.pack, Entry(number=number))
        job.commit.submit(books.book, Entry(number=number))
        job.commit.hset("data", "x", "1")
        if number == 2:
            job.commit.sadd("data", "x")
        return number

    async with Runtime([books.shop, books.ledger], redis=valkey.url, namespace=namespace) as runtime:
        handles = [await runtime.submit(mixed, number) for number in range(5)]
        for handle in handles:
            await in_state(handle, State.RUNNING)
        gate.set()
        with pytest.raises(JobFailed, match="BadEffect"):
            await handles.pop(2).result(5)
        for handle in handles:
            await handle.result(5)
        await settled(runtime, books.book, 4)
        await settled(runtime, books.pack, 4)
    assert sorted(books.booked) == sorted(books.packed) == [0, 1, 3, 4]


async def test_a_foreign_key_in_the_way_of_the_child_is_named_and_nothing_lands(
    valkey: Valkey, namespace: str, books: Books
) -> None:
    async with Runtime([books.shop, books.ledger], redis=valkey.url, namespace=namespace) as runtime:
        await runtime.redis.set(Queue(namespace, "shop", "pack").keys["jobs"], "foreign")
        with pytest.raises(JobFailed, match=r"effect 2 \(submit on pack\): its queue holds a string as jobs"):
            await (await runtime.submit(books.sell, [1])).result(5)
        assert await waiting_out(runtime, books.outbox(namespace)) == 0
        await runtime.redis.delete(Queue(namespace, "shop", "pack").keys["jobs"])


# ---- lost replies, cut lines, relays that die or run twice


@pytest.mark.parametrize("lost", ["queue/relay", "XDEL", "XRANGE", "queue/settle"])
@pytest.mark.parametrize("times", [1, 3])
async def test_a_lost_reply_on_the_way_neither_loses_nor_doubles(
    valkey: Valkey, namespace: str, books: Books, lost: str, times: int
) -> None:
    mark = sha(lost) if "/" in lost else lost.encode()
    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([books.shop], redis=proxy.url, namespace=namespace) as emitter,
        Runtime([books.ledger], redis=valkey.url, namespace=namespace) as taker,
    ):
        await (await emitter.submit(books.sell, [0])).result(5)  # every script is loaded
        await settled(taker, books.book, 1)
        happened = proxy.lose_reply(mark, times)
        await emitter.submit(books.sell, list(range(1, 50)))
        async with asyncio.timeout(10):
            await happened.wait()
        await settled(taker, books.book, 50)
        await settled(emitter, books.pack, 50)
        await wait_until(lambda: outbox_empty(taker, books, namespace))
    assert sorted(books.booked) == sorted(books.packed) == list(range(50))


async def outbox_empty(runtime: Runtime, books: Books, namespace: str) -> bool:
    return await waiting_out(runtime, books.outbox(namespace)) == 0


async def test_two_runtimes_that_relay_one_outbox_at_once_make_each_job_once(
    valkey: Valkey, namespace: str, books: Books, no_relay: pytest.MonkeyPatch
) -> None:
    count = 1000
    async with (
        Runtime([books.shop], redis=valkey.url, namespace=namespace) as emitter,
        Runtime([books.ledger], redis=valkey.url, namespace=namespace) as taker,
    ):
        for first in range(0, count, 500):
            await (await emitter.submit(books.sell, list(range(first, first + 500)))).result(5)
        source = books.outbox(namespace)
        assert await waiting_out(emitter, source) == count
        stores = [Store(valkey.url, name=f"relay:{number}") for number in range(3)]
        no_relay.setattr(relay_module, "BATCH", 7)  # so that they meet often
        try:

            async def empty(store: Store) -> None:
                relay = Relay(source, store)
                while await relay._some():
                    pass

            await asyncio.gather(*map(empty, stores))
        finally:
            for store in stores:
                await store.close()
        await settled(taker, books.book, count)
    assert Counter(books.booked) == Counter(range(count))


async def test_a_relay_that_comes_back_much_later_changes_nothing(
    valkey: Valkey, namespace: str, books: Books, no_relay: pytest.MonkeyPatch, store: Store
) -> None:
    source, target = books.outbox(namespace), Queue(namespace, "ledger", "book")
    async with Runtime([books.shop, books.ledger], redis=valkey.url, namespace=namespace) as runtime:
        await (await runtime.submit(books.sell, [1, 2, 3])).result(5)
        early = await store.outbox(source, 2)
        assert await store.relay(target, source.name, early) == 2  # and then its process is stopped for an hour
        relay = Relay(source, store)
        while await relay._some():
            pass
        await settled(runtime, books.book, 3)
        assert await store.relay(target, source.name, early) == 0
        await store.forget(source, [job.sequence for job in early])
        await (await runtime.submit(books.sell, [4])).result(5)
        later = await store.outbox(source, 10)
        assert len(later) == 1
        assert await store.relay(target, source.name, [*early, *later, *early]) == 1
        assert await store.relay(target, "other.source", early) == 2, "sources do not know of one another"
        await settled(runtime, books.book, 6)
    assert Counter(books.booked) == Counter([1, 2, 3, 4, 1, 2])


@pytest.mark.parametrize("when", ["while it runs", "at its next start"])
async def test_what_a_dead_process_has_left_in_its_outbox_another_relays(
    valkey: Valkey, namespace: str, books: Books, no_relay: pytest.MonkeyPatch, when: str
) -> None:
    async with Runtime([books.shop], redis=valkey.url, namespace=namespace) as dying:
        no_relay.undo()
        if when == "while it runs":
            async with Runtime([books.shop, books.ledger], redis=valkey.url, namespace=namespace) as other:
                await other.pause(books.sell)
                await dying.resume(books.sell)
                for pool in other._pools:
                    pool.concurrency = 0 if pool.task is books.sell else pool.concurrency  # the other one is to emit
                await (await dying.submit(books.sell, list(range(30)))).result(5)
                await settled(other, books.book, 30)
        else:
            await (await dying.submit(books.sell, list(range(30)))).result(5)
    if when == "at its next start":
        async with Runtime([books.shop, books.ledger], redis=valkey.url, namespace=namespace) as other:
            await settled(other, books.book, 30)
    assert Counter(books.booked) == Counter(range(30))


async def test_nothing_is_lost_or_doubled_over_a_line_that_is_cut_again_and_again(
    valkey: Valkey, namespace: str
) -> None:
    books = Books(lease=1.0)
    count = 0
    chance = random.Random(7)

    def nearly_done() -> bool:
        return cutting.done() or len(set(books.booked)) > count - 20

    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([books.shop], redis=proxy.url, namespace=namespace) as first,
        Runtime([books.shop], redis=proxy.url, namespace=namespace) as second,
        Runtime([books.ledger, books.shop], redis=valkey.url, namespace=namespace, workers=False) as near,
        Runtime([books.ledger], redis=valkey.url, namespace=namespace),
    ):
        cutting = asyncio.create_task(cut_now_and_then(proxy, chance, 30))
        while not cutting.done():
            answers = await near.submit_many(books.sell, [[number] for number in range(count, count + 10)])
            assert not [answer for answer in answers if isinstance(answer, Exception)]
            count += 10
            await wait_until(nearly_done)
        await cutting
        await settled(near, books.sell, count, 20)
        await settled(near, books.book, count)
        await settled(near, books.pack, count)
        await wait_until(lambda: outbox_empty(near, books, namespace))
        assert (first.failed.is_set(), second.failed.is_set()) == (False, False)
    # Children run at least once, as every job does; that each is one job is what the totals above say.
    assert set(books.booked) == set(books.packed) == set(range(count))
    assert len(set(books.ids)) == count


async def cut_now_and_then(proxy: Proxy, chance: random.Random, replies: int) -> None:
    """Lose so many replies, one after the other, and cut now and then what is under way."""
    marks = [sha("queue/relay"), sha("queue/settle"), b"XDEL", b"XRANGE"]
    for _ in range(replies):
        await proxy.lose_reply(chance.choice(marks)).wait()
        if chance.random() < 0.3:
            await asyncio.sleep(chance.uniform(0.0, 0.02))
            proxy.cut()


# ---- a destination that cannot take


async def test_a_destination_at_maxmemory_holds_the_outbox_back_and_goes_on_later(
    own_valkey: Valkey, namespace: str, books: Books, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused_at: list[float] = []
    relay = Store.relay

    async def noting(store: Store, queue: Queue, source: str, jobs: Sequence[Emitted]) -> int:
        try:
            return await relay(store, queue, source, jobs)
        except StoreUnavailable:
            refused_at.append(time.monotonic())
            raise

    monkeypatch.setattr(Store, "relay", noting)
    async with Runtime([books.shop, books.ledger], redis=own_valkey.url, namespace=namespace) as runtime:
        caplog.set_level(logging.INFO)
        await runtime.pause(books.sell)
        handle = await runtime.submit(books.sell, list(range(20)))
        await runtime.redis.config_set("maxmemory", "1mb")
        await runtime.resume(books.sell)
        assert await handle.result(5) == 20, "what settles is never refused"
        await wait_until(lambda: len(refused_at) >= 7)
        held = [record for record in caplog.records if "its outbox is held back" in record.getMessage()]
        assert len(held) == 1, "said once"
        assert "maxmemory" in held[0].getMessage()
        assert await waiting_out(runtime, books.outbox(namespace)) == 20
        assert (await runtime.sizes(books.book)).open == 0
        assert refused_at[6] - refused_at[5] > 0.1, "not asked again and again at full speed"
        await runtime.redis.config_set("maxmemory", "0")
        await settled(runtime, books.book, 20)
        assert await waiting_out(runtime, books.outbox(namespace)) == 0
        assert [record for record in caplog.records if "its outbox goes on" in record.getMessage()]
    assert sorted(books.booked) == list(range(20))


async def test_large_jobs_are_relayed_without_reading_the_outbox_over_and_over(
    own_valkey: Valkey, namespace: str
) -> None:
    shop, ledger = Service("shop"), Service("ledger")
    count, size = 40, 500_000

    @ledger.task()
    async def book(text: str) -> int:
        return len(text)

    @shop.task()
    async def sell(job: Job) -> None:
        for _ in range(count):
            job.commit.submit(book, "x" * size)

    async with Runtime([shop, ledger], redis=own_valkey.url, namespace=namespace) as runtime:
        before = (await runtime.redis.info("stats"))["total_net_output_bytes"]
        await (await runtime.submit(sell)).result(10)
        await settled(runtime, book, count)
        sent = (await runtime.redis.info("stats"))["total_net_output_bytes"] - before
    # Once from the outbox and once to the claimer, and a little more; not the rest of the outbox at each batch.
    assert sent < 5 * count * size, f"{sent / (count * size):.1f} times what was emitted"


async def test_foreign_data_in_an_outbox_is_said_and_kills_nothing(
    valkey: Valkey, namespace: str, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    async with Runtime([books.shop, books.ledger], redis=valkey.url, namespace=namespace) as runtime:
        foreign = await runtime.redis.xadd(books.outbox(namespace).keys["outbox"], {"what": "foreign"})
        await (await runtime.submit(books.sell, [1])).result(5)
        await wait_until(lambda: "its outbox is held back" in caplog.text)
        assert not runtime.failed.is_set()
        await runtime.redis.xdel(books.outbox(namespace).keys["outbox"], foreign)
        await settled(runtime, books.book, 1)
