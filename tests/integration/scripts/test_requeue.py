"""queue/requeue: keys before, (id, token that settled it), answers, keys after."""

from __future__ import annotations

import pytest

from aioflow.engine.keys import Queue
from aioflow.engine.records import Settlement
from aioflow.engine.store import Store
from tests.conftest import Clock
from tests.integration.scripts.state import (
    CANCELLED,
    NOW,
    STEP,
    Case,
    finished,
    history,
    keys,
    lease,
    look,
    new,
    plant,
    ready,
    refused,
    row,
    running,
    scheduled,
    start,
)

OLD = 5 * STEP + NOW - 999
DEAD = finished("dead", "a", NOW - 50, row("r.1", 6, 4, 2, OLD), '{"error":"E"}', submitted=NOW - 99, started=NOW - 60)
ALIVE = ready("a", 5 * STEP + NOW, row("requeue/r.1", 6, 0, 0, 5 * STEP + NOW)) | {
    "history": {"a": history((NOW, '{"error":"E"}'))}
}
TEN = history(*((NOW - at, '{"error": "F"}') for at in range(10, 0, -1)))
OTHERS = keys(
    ready("p", claim=row("release/r.1")),
    scheduled("q", NOW, row("retry/r.1")),
    running("r", NOW + 9, row("r.1")),
    finished("done", "s", NOW, row("r.1")),
)


CASES = [
    Case(
        "at the end of its priority's line; failures and crashes begin again, attempts go on",
        keys(DEAD),
        [("a", "r.1")],
        [True],
        keys(ALIVE, totals={"requeued": 1}, bell=True),
    ),
    Case(
        "only by the token that settled it",
        keys(DEAD),
        [("a", "r.2"), ("a", ""), ("a", "-"), ("a", "r."), ("a", "r%.1")],
        [False] * 5,
        keys(DEAD),
    ),
    Case(
        "twice in one call is once",
        keys(DEAD),
        [("a", "r.1"), ("a", "r.0"), ("a", "r.1")],
        [True, False, True],
        keys(ALIVE, totals={"requeued": 1}, bell=True),
    ),
    Case("what is not dead stays as it is", OTHERS, [(job_id, "r.1") for job_id in "pqrsx"], [False] * 5, OTHERS),
    Case(
        "each for itself",
        keys(DEAD, OTHERS, finished("dead", "b", NOW, row("r.2"))),
        [("s", "r.1"), ("b", "r.1"), ("a", "r.1")],
        [False, False, True],
        keys(ALIVE, OTHERS, finished("dead", "b", NOW, row("r.2")), totals={"requeued": 1}, bell=True),
    ),
    Case(
        "what it died of joins its earlier failures, of which the last ten are kept",
        keys(DEAD, history={"a": TEN}),
        [("a", "r.1")],
        [True],
        keys(
            ALIVE,
            history={"a": TEN.partition("\n")[2] + "\n" + history((NOW, '{"error":"E"}'))},
            totals={"requeued": 1},
            bell=True,
        ),
    ),
    Case(
        "a death may be told in lines, a history is not",
        keys(finished("dead", "a", NOW - 50, row("r.1", 6, 4, 2, OLD), '{"error":\r\n\n"E"}')),
        [("a", "r.1")],
        [True],
        keys(ALIVE, totals={"requeued": 1}, bell=True),
    ),
    Case(
        "a bound holds back submits only",
        keys(DEAD, bound=0),
        [("a", "r.1")],
        [True],
        keys(ALIVE, bound=0, totals={"requeued": 1}, bell=True),
    ),
    Case(
        "a paused queue is not rung",
        keys(DEAD, paused=True),
        [("a", "r.1")],
        [True],
        keys(ALIVE, paused=True, totals={"requeued": 1}),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_requeue(clocked: Store, queue: Queue, clock: Clock, case: Case) -> None:
    await plant(clocked, queue, case.before)
    assert await clocked.requeue(queue, case.asked) == case.answers
    assert await look(clocked, queue) == case.after
    clock.ms += 5
    assert await clocked.requeue(queue, case.asked) == case.answers, "a repeat hears the same"
    assert await look(clocked, queue) == case.after


async def test_two_who_requeue_the_same_death_do_it_once(clocked: Store, queue: Queue, clock: Clock) -> None:
    await clocked.submit([new(queue, "a", priority=1)])
    await lease(clocked, queue, "r.1")
    await clocked.settle(queue, [Settlement("a", "r.1", "dead", b'{"error": "E", "message": "m"}')])
    await look(clocked, queue)
    clock.ms += 10
    assert await clocked.requeue(queue, [("a", "r.1")]) == [True]
    await look(clocked, queue)
    claimed = await clocked.claim(queue, 1, 1000, "r.2")
    assert [(job.attempt, job.failures, job.crashes) for job in claimed.jobs] == [(2, 0, 0)]
    before = await look(clocked, queue)
    assert before["open"] == {"a": NOW + 10}
    assert await clocked.requeue(queue, [("a", "r.1")]) == [False], "it is claimed again"
    assert await look(clocked, queue) == before
    await clocked.settle(queue, [Settlement("a", "r.2", "dead", b'{"error": "E", "message": "m"}')])
    before = await look(clocked, queue)
    assert await clocked.requeue(queue, [("a", "r.1")]) == [False], "that was another death"
    assert await look(clocked, queue) == before
    assert await clocked.requeue(queue, [("a", "r.2")]) == [True]
    assert (await look(clocked, queue))["ready"] == {"a": STEP + NOW + 10}


async def test_a_requeued_job_stands_behind_those_in_line(clocked: Store, queue: Queue, clock: Clock) -> None:
    await clocked.submit([new(queue, "a", priority=1), new(queue, "low", priority=2)])
    await lease(clocked, queue, "r.1", count=1)
    await clocked.settle(queue, [Settlement("a", "r.1", "dead")])
    clock.ms += 1
    await clocked.submit([new(queue, "b", priority=1)])
    clock.ms += 1
    assert await clocked.requeue(queue, [("a", "r.1")]) == [True]
    await look(clocked, queue)
    assert await lease(clocked, queue, "r.2") == ["b", "a", "low"]


async def test_a_job_dead_of_its_crashes_can_be_requeued_by_what_inspect_says(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "a", lease_ms=0)
    assert (await clocked.reap(queue, most_crashes=1, longest_ms=1000)).dead == 1
    (info,) = await clocked.inspect(queue, ["a"])
    assert info is not None
    assert await clocked.requeue(queue, [("a", info.token)]) == [True]
    await look(clocked, queue)


async def test_a_requeued_job_keeps_its_place_when_it_is_released(clocked: Store, queue: Queue, clock: Clock) -> None:
    await plant(clocked, queue, keys(DEAD))
    await clocked.requeue(queue, [("a", "r.1")])
    clock.ms += 100
    await lease(clocked, queue, "r.2")
    await clocked.release(queue, [("a", "r.2")])
    assert (await look(clocked, queue))["ready"] == {"a": 5 * STEP + NOW}


async def test_a_token_that_is_none_does_not_spoil_the_row(clocked: Store, queue: Queue) -> None:
    # Whoever requeues may be a person: what is no token must not find its way into the claims row.
    await plant(clocked, queue, keys(DEAD))
    assert await clocked.requeue(queue, [("a", "r.1:6")]) == [False]
    assert await look(clocked, queue) == keys(DEAD)


async def test_a_foreign_row_is_refused_before_a_write(clocked: Store, queue: Queue) -> None:
    before = keys(DEAD, finished("dead", "b", NOW, "r.1:nonsense"))
    await plant(clocked, queue, before)
    async with refused(clocked, queue, "foreign row of job b"):
        await clocked.requeue(queue, [("a", "r.1"), ("b", "r.1")])


async def test_a_cancelled_job_lives_again_by_what_inspect_says_and_that_once(
    clocked: Store, queue: Queue, clock: Clock
) -> None:
    await clocked.submit([new(queue, "a")])
    assert await clocked.cancel(queue, ["a"], "channel:") == [2]
    (info,) = await clocked.inspect(queue, ["a"])
    assert info is not None
    clock.ms += 1
    assert await clocked.requeue(queue, [("a", info.token)]) == [True]
    assert (await look(clocked, queue))["history"] == {"a": history((NOW + 1, CANCELLED))}
    assert await clocked.cancel(queue, ["a"], "channel:") == [2]
    before = await look(clocked, queue)
    assert await clocked.requeue(queue, [("a", info.token)]) == [False], "that was another death"
    assert await look(clocked, queue) == before


async def test_1000_jobs_live_again(clocked: Store, queue: Queue) -> None:
    ids = [f"j{number:04}" for number in range(1000)]
    await plant(clocked, queue, keys(*(finished("dead", job_id, NOW, row("r.1")) for job_id in ids)))
    assert await clocked.requeue(queue, [(job_id, "r.1") for job_id in ids]) == [True] * 1000
    assert len((await look(clocked, queue))["history"]) == 1000


@pytest.mark.parametrize("count", [0, 1001])
async def test_other_counts_are_refused(clocked: Store, queue: Queue, count: int) -> None:
    await plant(clocked, queue, keys(DEAD))
    async with refused(clocked, queue, "requeue takes 1 to 1000 jobs"):
        await clocked.requeue(queue, [("a", "r.1")] * count)
