"""queue/release: keys before, (id, token) of leases, answers, keys after."""

from __future__ import annotations

import pytest

from aioflow.engine.keys import Queue, runtime_channels
from aioflow.engine.records import Settlement
from aioflow.engine.store import Store
from aioflow.errors import ProtocolError
from tests.conftest import Clock
from tests.integration.scripts.state import (
    CANCELLED,
    NOW,
    STEP,
    Case,
    canonical,
    finished,
    keys,
    lease,
    listening,
    look,
    new,
    plant,
    ready,
    refused,
    row,
    running,
    scheduled,
    start,
    submit,
)

PLACE = 4 * STEP + NOW - 77
OTHERS = keys(
    ready("p"),
    scheduled("q", NOW, row("retry/r.1")),
    finished("done", "s", NOW, row("r.1")),
    finished("dead", "t", NOW, row("r.1")),
)


CASES = [
    Case(
        "a job goes back to its place; neither a failure nor a crash is counted",
        keys(running("a", NOW + 9, row("r.1", 5, 2, 1, PLACE), submitted=NOW - 99)),
        [("a", "r.1")],
        [True],
        keys(
            ready("a", PLACE, row("release/r.1", 5, 2, 1, PLACE), submitted=NOW - 99),
            totals={"released": 1},
            bell=True,
        ),
    ),
    Case(
        "each by its own token",
        keys(running("a", NOW + 9, row("r.1")), running("b", NOW + 9, row("r.2"))),
        [("a", "r.2"), ("b", "r.2"), ("a", ""), ("a", "r."), ("a", "r.10")],
        [False, True, False, False, False],
        keys(
            running("a", NOW + 9, row("r.1")),
            ready("b", claim=row("release/r.2")),
            totals={"released": 1},
            bell=True,
        ),
    ),
    Case(
        "twice in one call is once",
        keys(running("a", NOW + 9, row("r.1"))),
        [("a", "r.1"), ("a", "r.0"), ("a", "r.1")],
        [True, False, True],
        keys(ready("a", claim=row("release/r.1")), totals={"released": 1}, bell=True),
    ),
    Case(
        "a job to be cancelled is dead instead",
        keys(
            running("a", NOW + 9, row("r.1", 5, 2, 1, PLACE), submitted=NOW - 99, started=NOW - 50),
            running("b", NOW + 9, row("r.1")),
            running("c", NOW + 9, row("r.2")),
            cancels={"a": NOW - 3, "c": NOW - 3},
        ),
        [("a", "r.1"), ("b", "r.1"), ("c", "r.1"), ("a", "r.1"), ("a", "r.2")],
        [True, True, False, True, False],
        keys(
            finished(
                "dead", "a", NOW, row("release/r.1", 5, 2, 1, PLACE), CANCELLED, submitted=NOW - 99, started=NOW - 50
            ),
            ready("b", claim=row("release/r.1")),
            running("c", NOW + 9, row("r.2")),
            cancels={"c": NOW - 3},
            totals={"released": 1, "dead": 1},
            bell=True,
        ),
    ),
    Case(
        "nobody is rung over it",
        keys(running("a", NOW + 9, row("r.1")), cancels={"a": NOW}),
        [("a", "r.1")],
        [True],
        keys(finished("dead", "a", NOW, row("release/r.1"), CANCELLED), totals={"dead": 1}),
    ),
    Case("what does not run has no lease", OTHERS, [(job_id, "r.1") for job_id in "pqstx"], [False] * 5, OTHERS),
    Case(
        "a paused queue is not rung",
        keys(running("a", NOW + 9, row("r.1")), paused=True),
        [("a", "r.1")],
        [True],
        keys(ready("a", claim=row("release/r.1")), paused=True, totals={"released": 1}),
    ),
    Case(
        "a bell that rings gets no second token",
        keys(running("a", NOW + 9, row("r.1")), bell=True),
        [("a", "r.1")],
        [True],
        keys(ready("a", claim=row("release/r.1")), totals={"released": 1}, bell=True),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_release(clocked: Store, queue: Queue, clock: Clock, case: Case) -> None:
    await plant(clocked, queue, case.before)
    assert await clocked.release(queue, case.asked) == case.answers
    assert await look(clocked, queue) == case.after
    clock.ms += 5
    assert await clocked.release(queue, case.asked) == case.answers, "a repeat hears the same"
    assert await look(clocked, queue) == case.after


async def test_released_jobs_stand_before_those_that_came_later(clocked: Store, queue: Queue, clock: Clock) -> None:
    await clocked.submit([new(queue, "c"), new(queue, "b"), new(queue, "low", priority=1)])
    await lease(clocked, queue, "r.1")
    clock.ms += 1000
    await submit(clocked, queue, "a")
    before = await look(clocked, queue)
    assert before["ready"] == {"a": NOW + 1000}
    assert await clocked.release(queue, [("low", "r.1"), ("b", "r.1"), ("c", "r.1")]) == [True] * 3
    await look(clocked, queue)
    assert await lease(clocked, queue, "r.2") == ["b", "c", "a", "low"]
    # And again, however often: a place is kept from one lease to the next.
    clock.ms += 1000
    await clocked.release(queue, [(job_id, "r.2") for job_id in ("a", "b", "c", "low")])
    assert await lease(clocked, queue, "r.3") == ["b", "c", "a", "low"]
    claims = (await look(clocked, queue))["claims"]
    assert claims == {
        "a": row("r.3", 2, place=NOW + 1000),
        "b": row("r.3", 3),
        "c": row("r.3", 3),
        "low": row("r.3", 3, place=STEP + NOW),
    }


async def test_a_job_that_is_released_for_later_waits_and_then_stands_where_it_stood(
    clocked: Store, queue: Queue, clock: Clock
) -> None:
    await submit(clocked, queue, "a")
    await lease(clocked, queue, "r.1")
    clock.ms += 1000
    await submit(clocked, queue, "b")
    for _ in range(2):
        assert await clocked.release(queue, [("a", "r.1")], after_ms=3000) == [True], "a repeat hears the same"
        held = await look(clocked, queue)
        assert (held["ready"], held["scheduled"]) == ({"b": NOW + 1000}, {"a": NOW + 4000})
        assert held["claims"] == {"a": row("release/r.1")}
    clock.ms += 2999
    assert await clocked.promote(queue) == 0
    clock.ms += 1
    assert await clocked.promote(queue) == 1
    assert await lease(clocked, queue, "r.2") == ["a", "b"]
    with pytest.raises(ProtocolError, match="release takes 0 to"):
        await clocked.release(queue, [("a", "r.2")], after_ms=-1)


async def test_a_retried_job_is_released_to_the_place_of_its_retry(clocked: Store, queue: Queue, clock: Clock) -> None:
    await clocked.submit([new(queue, "a", priority=2)])
    await lease(clocked, queue, "r.1")
    await clocked.settle(queue, [Settlement("a", "r.1", "retry", delay_ms=300, failed=True)])
    clock.ms += 1000
    await lease(clocked, queue, "r.2")
    await clocked.release(queue, [("a", "r.2")])
    assert (await look(clocked, queue))["ready"] == {"a": 2 * STEP + NOW + 300}


async def test_after_a_release_the_token_settles_nothing(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "a")
    await clocked.release(queue, [("a", "r.1")])
    before = await look(clocked, queue)
    assert await clocked.settle(queue, [Settlement("a", "r.1", "done"), Settlement("a", "r.1", "retry")]) == [0, 0]
    assert await clocked.renew([(queue, 1000, [("a", "r.1")])]) == [[0]]
    assert await look(clocked, queue) == before


async def test_a_repeat_after_the_next_claim_takes_nothing_away(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "a")
    await clocked.release(queue, [("a", "r.1")])
    await lease(clocked, queue, "r.2")
    before = await look(clocked, queue)
    assert await clocked.release(queue, [("a", "r.1")]) == [False]
    assert await look(clocked, queue) == before


async def test_a_job_on_its_last_chance_that_never_ran_keeps_its_crashes(clocked: Store, queue: Queue) -> None:
    before = keys(ready("a", claim=row("-", 2, 0, 2)))
    await plant(clocked, queue, before)
    claimed = await clocked.claim(queue, 1, 1000, "r.1", most_crashes=3)
    assert [job.crashes for job in claimed.jobs] == [2]
    assert await clocked.release(queue, [("a", "r.1")]) == [True]
    assert (await look(clocked, queue))["claims"] == {"a": row("release/r.1", 3, 0, 2)}


async def test_who_waits_for_a_job_that_is_cancelled_by_its_release_is_told(clocked: Store, queue: Queue) -> None:
    before = keys(running("a", NOW + 9, row("r.1")), cancels={"a": NOW})
    channel = runtime_channels(queue.namespace) + "r"
    await plant(clocked, queue, before | {"waiters": {"a": channel}})
    async with listening(clocked, channel) as hear:
        assert await clocked.release(queue, [("a", "r.1")]) == [True]
        ((_, message),) = await hear(1)
    state = await look(clocked, queue)
    *words, line = message.split("\n", 3)
    assert (words, canonical(line)) == (["result", queue.keys["waiters"], "a"], state["results"]["a"])
    assert "waiters" not in state


async def test_a_job_cancelled_by_its_release_is_nothing_that_its_token_settled(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, keys(running("a", NOW + 9, row("r.1")), cancels={"a": NOW}))
    await clocked.release(queue, [("a", "r.1")])
    before = await look(clocked, queue)
    late = [Settlement("a", "r.1", "done"), Settlement("a", "r.1", "retry"), Settlement("a", "r.1", "dead")]
    assert await clocked.settle(queue, late) == [0, 0, 0]
    assert await look(clocked, queue) == before


async def test_1000_jobs_are_released_half_of_them_cancelled(clocked: Store, queue: Queue) -> None:
    ids = [f"j{number:03}" for number in range(1000)]
    await start(clocked, queue, ids)
    await plant(clocked, queue, {"cancels": dict.fromkeys(ids[:500], NOW)})
    for _ in range(2):  # a repeat hears the same
        assert await clocked.release(queue, [(job_id, "r.1") for job_id in ids]) == [True] * 1000
        state = await look(clocked, queue)
        assert (len(state["dead"]), len(state["ready"]), "cancels" in state) == (500, 500, False)


@pytest.mark.parametrize("foreign", ["r.1:nonsense", "r.1:1:0:0"])
async def test_a_foreign_row_is_refused_before_a_write(clocked: Store, queue: Queue, foreign: str) -> None:
    before = keys(running("a", NOW + 9, row("r.1")), running("b", NOW + 9, foreign))
    await plant(clocked, queue, before)
    async with refused(clocked, queue, "foreign row of job b"):
        await clocked.release(queue, [("a", "r.1"), ("b", "r.1")])


@pytest.mark.parametrize("count", [0, 1001])
async def test_other_counts_are_refused(clocked: Store, queue: Queue, count: int) -> None:
    before = keys(running("a", NOW + 9, row("r.1")))
    await plant(clocked, queue, before)
    async with refused(clocked, queue, "release takes 1 to 1000 jobs"):
        await clocked.release(queue, [("a", "r.1")] * count)
