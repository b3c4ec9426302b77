"""queue/relay: keys of the destination before, what is taken from a source's outbox, the answer, keys after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from aioflow.commit import Effect
from aioflow.engine.keys import Queue
from aioflow.engine.records import Emitted, Settlement
from aioflow.engine.store import Store
from aioflow.errors import StoreUnavailable
from tests.chaos.model import emitted_id
from tests.conftest import Clock
from tests.integration.scripts.state import (
    NOW,
    STEP,
    State,
    keys,
    lease,
    look,
    plant,
    ready,
    refused,
    row,
    scheduled,
    start,
)
from tests.valkey import Valkey

SOURCE = "shop.order"
PLACE = 4 * STEP + NOW


def emitted(sequence: str, *, envelope: bytes = b"\n1", priority: int = 4, due: int = 0) -> Emitted:
    return Emitted(sequence, "demo.work", envelope, priority, due)


def an_id(sequence: str) -> str:
    return emitted_id(SOURCE, sequence)


@dataclass(frozen=True)
class Case:
    """A relay of SOURCE's jobs at NOW."""

    name: str
    before: State
    jobs: Sequence[Emitted]
    taken: int
    after: State


CASES = [
    Case(
        "jobs stand in line under their source and sequence",
        {},
        [emitted("5-0"), emitted("5-1", envelope=b"\n2", priority=0), emitted("17-0", due=NOW)],
        3,
        keys(
            ready(an_id("5-0"), PLACE),
            ready(an_id("5-1"), NOW, envelope="\n2"),
            ready(an_id("17-0"), PLACE),
            seen={SOURCE: "17-0"},
            totals={"submitted": 3},
            bell=True,
        ),
    ),
    Case(
        "or wait for their time",
        {},
        [emitted("5-0", due=NOW + 1, priority=9)],
        1,
        keys(
            scheduled(an_id("5-0"), NOW + 1, row("-", 0, place=9 * STEP + NOW + 1)),
            seen={SOURCE: "5-0"},
            totals={"submitted": 1},
            bell=True,
        ),
    ),
    Case(
        "what is not above the last sequence was taken before",
        {"seen": {SOURCE: "9-5"}},
        [emitted(sequence) for sequence in ("1-0", "9-4", "9-5", "9-10", "10-0", "100-0")],
        3,
        keys(
            *(ready(an_id(sequence), PLACE) for sequence in ("9-10", "10-0", "100-0")),
            seen={SOURCE: "100-0"},
            totals={"submitted": 3},
            bell=True,
        ),
    ),
    Case(
        "all of it",
        {"seen": {SOURCE: "9-5"}},
        [emitted("9-5"), emitted("8-99")],
        0,
        {"seen": {SOURCE: "9-5"}},
    ),
    Case(
        "each source counts for itself",
        {"seen": {"shop.return": "99-0", "shop.orde": "99-0"}},
        [emitted("5-0")],
        1,
        keys(
            ready(an_id("5-0"), PLACE),
            seen={"shop.return": "99-0", "shop.orde": "99-0", SOURCE: "5-0"},
            totals={"submitted": 1},
            bell=True,
        ),
    ),
    Case(
        "twice in one call is once, and the sequence only grows",
        {},
        [emitted("5-0"), emitted("5-0", envelope=b"\n2"), emitted("4-9"), emitted("6-0"), emitted("5-0")],
        2,
        keys(
            ready(an_id("5-0"), PLACE),
            ready(an_id("6-0"), PLACE),
            seen={SOURCE: "6-0"},
            totals={"submitted": 2},
            bell=True,
        ),
    ),
    Case(
        "sequences of 16 digits are told apart",
        {"seen": {SOURCE: "1800000000000-9007199254740990"}},
        [emitted("1800000000000-9007199254740990"), emitted("1800000000000-9007199254740991")],
        1,
        keys(
            ready(an_id("1800000000000-9007199254740991"), PLACE),
            seen={SOURCE: "1800000000000-9007199254740991"},
            totals={"submitted": 1},
            bell=True,
        ),
    ),
    Case(
        "a bound holds back submits only, and a paused queue is not rung",
        keys(ready("a"), bound=0, paused=True),
        [emitted("5-0"), emitted("5-1", due=NOW + 9)],
        2,
        keys(
            ready("a"),
            ready(an_id("5-0"), PLACE),
            scheduled(an_id("5-1"), NOW + 9, row("-", 0, place=PLACE + 9)),
            seen={SOURCE: "5-1"},
            totals={"submitted": 2},
            bound=0,
            paused=True,
        ),
    ),
    Case(
        "one token in the bell is enough",
        keys(bell=True, totals={"submitted": 7}),
        [emitted("5-0")],
        1,
        keys(ready(an_id("5-0"), PLACE), seen={SOURCE: "5-0"}, totals={"submitted": 8}, bell=True),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_relay(clocked: Store, queue: Queue, clock: Clock, case: Case) -> None:
    await plant(clocked, queue, case.before)
    assert await clocked.relay(queue, SOURCE, case.jobs) == case.taken
    assert await look(clocked, queue) == case.after
    clock.ms += 5
    assert await clocked.relay(queue, SOURCE, case.jobs) == 0, "a repeat takes nothing"
    assert await look(clocked, queue) == case.after


async def test_a_repeat_takes_nothing_at_any_later_time(clocked: Store, queue: Queue, clock: Clock) -> None:
    jobs = [emitted("5-0"), emitted("5-1")]
    assert await clocked.relay(queue, SOURCE, jobs) == 2
    first, second = an_id("5-0"), an_id("5-1")
    assert await lease(clocked, queue, "r.1") == [first, second]
    await clocked.settle(queue, [Settlement(first, "r.1", "done"), Settlement(second, "r.1", "dead")])
    assert await clocked.relay(queue, SOURCE, jobs) == 0
    clock.ms += 10
    assert await clocked.trim(queue, keep_done_ms=1, keep_dead_ms=1) == 2
    before = await look(clocked, queue)
    assert await clocked.relay(queue, SOURCE, jobs) == 0, "not even when they are forgotten"
    assert await look(clocked, queue) == before


async def test_from_an_outbox_to_a_claim(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "a")
    emits = [Effect("emit", "shop.order", (f"\n{number}", "4", "0")) for number in range(25)]
    assert await clocked.settle(queue, [Settlement("a", "r.1", "done", effects=emits)]) == [1]
    order = Queue(queue.namespace, "shop", "order")
    jobs = await clocked.outbox(queue, 3)
    # Another runtime has read further meanwhile; whoever comes second brings what is new only.
    assert await clocked.relay(order, queue.name, jobs) == 3
    assert await clocked.relay(order, queue.name, await clocked.outbox(queue, 100)) == 22
    await clocked.forget(queue, [job.sequence for job in jobs])
    assert [job.envelope for job in await clocked.outbox(queue, 100)] == [b"\n%d" % number for number in range(3, 25)]
    claimed = await clocked.claim(order, 100, 1000, "r.1")
    assert [job.envelope for job in claimed.jobs] == [b"\n%d" % number for number in range(25)]


@pytest.mark.parametrize(
    "bad",
    [
        *(emitted(sequence) for sequence in ("", "5", "5-", "-5", "5-0-0", "5.0-1", "0x5-0", "a-0", " 5-0", "5-0\n")),
        *(emitted("6-0", priority=priority) for priority in (-1, 10)),
        *(emitted("6-0", due=due) for due in (-1, 2**42, 10**400)),
    ],
    ids=lambda bad: f"{bad.sequence!r} {bad.priority} {str(bad.due)[:20]}",
)
async def test_what_is_no_job_is_refused_before_a_write(clocked: Store, queue: Queue, bad: Emitted) -> None:
    async with refused(clocked, queue, "has no priority from 0 to 9 or no time in ms"):
        await clocked.relay(queue, SOURCE, [emitted("5-0"), bad])


@pytest.mark.parametrize("due", ["", "nan", "-nan", "inf", "soon"])
async def test_a_time_that_is_none_is_refused_before_a_write(clocked: Store, queue: Queue, due: str) -> None:
    async with refused(clocked, queue, "has no priority from 0 to 9 or no time in ms"):
        await clocked._call("queue/relay", queue, SOURCE, "1", "5-0", "\n1", "4", due)


async def test_a_foreign_last_sequence_is_refused_before_a_write(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, {"seen": {SOURCE: "nonsense"}})
    async with refused(clocked, queue, "foreign sequence of shop.order"):
        await clocked.relay(queue, SOURCE, [emitted("5-0")])


async def test_1000_jobs_and_no_more(clocked: Store, queue: Queue) -> None:
    jobs = [emitted(f"{number // 7}-{number % 7}", due=NOW + number % 2) for number in range(1, 1002)]
    assert await clocked.relay(queue, SOURCE, jobs[:1000]) == 1000
    state = await look(clocked, queue)
    assert (len(state["ready"]), len(state["scheduled"])) == (500, 500)
    for bad in ([], jobs):
        async with refused(clocked, queue, "relay takes 1 to 1000 jobs"):
            await clocked.relay(queue, SOURCE, bad)


async def test_at_maxmemory_the_outbox_is_held_back(own_valkey: Valkey, queue: Queue) -> None:
    store = Store(own_valkey.url, name="aioflow:test")
    try:
        await store.redis.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="redis cannot serve now"):
            await store.relay(queue, SOURCE, [emitted("5-0")])
        await store.redis.config_set("maxmemory", "0")
        assert await look(store, queue) == {}
        assert await store.relay(queue, SOURCE, [emitted("5-0")]) == 1
    finally:
        await store.close()
