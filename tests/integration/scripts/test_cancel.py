"""queue/cancel: keys before, ids, answers, keys after; what becomes of a wish is with the scripts that meet it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from aioflow.engine.keys import Queue, runtime_channels
from aioflow.engine.records import Settlement
from aioflow.engine.store import Store
from tests.conftest import Clock
from tests.integration.scripts.state import (
    CANCELLED,
    NOW,
    STEP,
    State,
    canonical,
    finished,
    history,
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

SUBMITTED = NOW - 99
PLACE = 4 * STEP + SUBMITTED
FAILED = history((NOW - 9, '{"error": "E", "message": "m"}'))
BY = f"cancel/{NOW}"


def cancelled(job_id: str, claim: str, *, submitted: int = SUBMITTED) -> State:
    return finished("dead", job_id, NOW, claim, CANCELLED, submitted=submitted, started=0)


@dataclass(frozen=True)
class Case:
    """A cancel at NOW."""

    name: str
    before: State
    ids: list[str]
    answers: list[int]
    after: State


CASES = [
    Case(
        "a job in line is dead at once, with its place and times",
        keys(ready("a", PLACE, submitted=SUBMITTED), ready("b")),
        ["a"],
        [2],
        keys(cancelled("a", row(BY, 0, place=PLACE)), ready("b"), totals={"dead": 1}),
    ),
    Case(
        "one that ran before takes its counts along, and keeps its history",
        keys(ready("a", PLACE, row("release/r.1", 5, 2, 1, PLACE), submitted=SUBMITTED), history={"a": FAILED}),
        ["a"],
        [2],
        keys(cancelled("a", row(BY, 5, 2, 1, PLACE)), history={"a": FAILED}, totals={"dead": 1}),
    ),
    Case(
        "so are those that wait for their time, or their next attempt",
        keys(
            scheduled("a", NOW + 9, row("-", 0, place=PLACE), submitted=SUBMITTED),
            scheduled("b", NOW + 9, row("retry/r.1", 1, 1, 0, PLACE), submitted=SUBMITTED),
            scheduled("c", NOW + 9, row("-", 0)),
        ),
        ["b", "a"],
        [2, 2],
        keys(
            cancelled("a", row(BY, 0, place=PLACE)),
            cancelled("b", row(BY, 1, 1, 0, PLACE)),
            scheduled("c", NOW + 9, row("-", 0)),
            totals={"dead": 2},
        ),
    ),
    Case(
        "the holder of a running one is asked",
        keys(running("a", NOW + 9, row("r.1")), running("b", NOW - 9, row("r.2", crashes=1002))),
        ["a", "b"],
        [1, 1],
        keys(
            running("a", NOW + 9, row("r.1")),
            running("b", NOW - 9, row("r.2", crashes=1002)),
            cancels={"a": NOW, "b": NOW},
        ),
    ),
    Case(
        "what is finished stays so",
        keys(
            finished("done", "a", NOW, row("r.1")),
            finished("dead", "b", NOW, row("r.1"), CANCELLED),
            finished("dead", "c", NOW, row("crash/r.1"), CANCELLED),
        ),
        ["a", "b", "c"],
        [0, 0, 0],
        keys(
            finished("done", "a", NOW, row("r.1")),
            finished("dead", "b", NOW, row("r.1"), CANCELLED),
            finished("dead", "c", NOW, row("crash/r.1"), CANCELLED),
        ),
    ),
    Case("nobody knows others", keys(ready("a")), ["b", "", "*", "a:"], [-1] * 4, keys(ready("a"))),
    Case("in an empty queue neither", {}, ["a"], [-1], {}),
    Case(
        "each for itself, and twice in one call is once",
        keys(
            ready("a"),
            running("b", NOW + 9, row("r.1")),
            finished("done", "c", NOW, row("r.1")),
            scheduled("d", NOW, row("-", 0)),
            totals={"dead": 7},
        ),
        ["a", "b", "c", "a", "x", "b", "d", "c", "x", "d"],
        [2, 1, 0, 2, -1, 1, 2, 0, -1, 2],
        keys(
            cancelled("a", row(BY, 0), submitted=NOW),
            running("b", NOW + 9, row("r.1")),
            finished("done", "c", NOW, row("r.1")),
            cancelled("d", row(BY, 0), submitted=NOW),
            cancels={"b": NOW},
            totals={"dead": 9},
        ),
    ),
    Case(
        "neither pause, bound nor bell matter",
        keys(ready("a"), ready("b"), paused=True, bound=0, bell=True),
        ["a"],
        [2],
        keys(
            cancelled("a", row(BY, 0), submitted=NOW), ready("b"), paused=True, bound=0, bell=True, totals={"dead": 1}
        ),
    ),
]


def channels(queue: Queue) -> str:
    return runtime_channels(queue.namespace)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_cancel(clocked: Store, queue: Queue, case: Case) -> None:
    await plant(clocked, queue, case.before)
    for _ in range(2):  # a repeat hears the same
        assert await clocked.cancel(queue, case.ids, channels(queue)) == case.answers
        assert await look(clocked, queue) == case.after


async def test_a_later_repeat_hears_the_same(clocked: Store, queue: Queue, clock: Clock) -> None:
    await plant(clocked, queue, keys(ready("a"), running("b", NOW + 9, row("r.1"))))
    assert await clocked.cancel(queue, ["a", "b"], channels(queue)) == [2, 1]
    before = await look(clocked, queue)
    clock.ms += 5
    assert await clocked.cancel(queue, ["a", "b"], channels(queue)) == [2, 1]
    assert await look(clocked, queue) == before | {"cancels": {"b": NOW + 5}}


async def test_a_cancelled_job_is_neither_claimed_nor_submitted_again(
    clocked: Store, queue: Queue, clock: Clock
) -> None:
    await clocked.submit([new(queue, "a"), new(queue, "b", due="+5")])
    assert await clocked.cancel(queue, ["a", "b"], channels(queue)) == [2, 2]
    clock.ms += 10
    assert await clocked.promote(queue) == 0
    assert await lease(clocked, queue, "r.1") == []
    assert await clocked.submit([new(queue, "a"), new(queue, "b")]) == [0, 0]
    assert set((await look(clocked, queue))["dead"]) == {"a", "b"}


async def test_what_waited_for_its_next_attempt_is_nobodys(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "ab")
    await clocked.settle(queue, [Settlement("a", "r.1", "retry", b"{}", delay_ms=5, failed=True)])
    await clocked.release(queue, [("b", "r.1")])
    assert await clocked.cancel(queue, ["a", "b"], channels(queue)) == [2, 2]
    before = await look(clocked, queue)
    assert await clocked.settle(queue, [Settlement(job_id, "r.1", "done") for job_id in "ab"]) == [0, 0]
    assert await clocked.progress(queue, [("a", "r.1", b"1"), ("b", "r.1", b"1")]) == [False, False]
    assert await look(clocked, queue) == before


@pytest.mark.parametrize("kind", ["done", "dead"])
async def test_a_holder_that_ends_the_job_first_fulfils_the_wish(clocked: Store, queue: Queue, kind: str) -> None:
    await start(clocked, queue, "a")
    assert await clocked.cancel(queue, ["a"], channels(queue)) == [1]
    assert await clocked.settle(queue, [Settlement("a", "r.1", "done" if kind == "done" else "dead")]) == [1]
    assert await look(clocked, queue) == keys(
        finished(kind, "a", NOW, row("r.1")), totals={"submitted": 1, kind: 1}, bell=True
    )
    assert await clocked.cancel(queue, ["a"], channels(queue)) == [0]


async def test_the_holder_is_told_and_those_who_wait_are(clocked: Store, queue: Queue) -> None:
    await plant(
        clocked,
        queue,
        keys(
            ready("a"),
            ready("b"),
            running("c", NOW + 9, row("r.1")),
            running("d", NOW + 9, row("s.7")),
            running("e", NOW + 9, row("s.8")),
        )
        | {"waiters": {"a": f"{channels(queue)}r {channels(queue)}s", "c": f"{channels(queue)}r"}},
    )
    async with listening(clocked, channels(queue) + "r", channels(queue) + "s") as hear:
        assert await clocked.cancel(queue, ["a", "c", "b", "d"], channels(queue)) == [2, 1, 2, 1]
        heard = await hear(4)
    state = await look(clocked, queue)
    orders = [(channel, text) for channel, text in heard if text.startswith("cancel\n")]
    assert orders == [
        (channels(queue) + "r", f"cancel\n{queue.keys['running']}\nc\nr.1"),
        (channels(queue) + "s", f"cancel\n{queue.keys['running']}\nd\ns.7"),
    ]
    told = [(channel, text.split("\n", 3)) for channel, text in heard if text.startswith("result\n")]
    assert [(channel, [*words, canonical(line)]) for channel, (*words, line) in told] == [
        (channels(queue) + runtime, ["result", queue.keys["waiters"], "a", state["results"]["a"]]) for runtime in "rs"
    ]
    assert state["waiters"] == {"c": channels(queue) + "r"}


async def test_a_job_whose_record_is_lost_is_unknown(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, keys(running("a", NOW + 9, row("r.1"))) | {"jobs": {"b": "\n1"}})
    assert await clocked.cancel(queue, ["a"], channels(queue)) == [-1]


@pytest.mark.parametrize("foreign", ["", "nonsense", "r.1:1:0:0"])
async def test_a_foreign_row_is_refused_before_a_write(clocked: Store, queue: Queue, foreign: str) -> None:
    await plant(clocked, queue, keys(ready("a"), running("b", NOW + 9, row("r.1")), ready("c", claim=foreign)))
    async with refused(clocked, queue, "foreign row of job c"):
        await clocked.cancel(queue, ["a", "b", "c"], channels(queue))


async def test_1000_jobs_are_cancelled_and_no_more(clocked: Store, queue: Queue) -> None:
    ids = [f"j{number:04}" for number in range(1000)]
    await submit(clocked, queue, ids)
    assert len(await lease(clocked, queue, "r.1", count=500)) == 500
    assert await clocked.cancel(queue, ids, channels(queue)) == [1] * 500 + [2] * 500
    state = await look(clocked, queue)
    assert (len(state["dead"]), len(state["cancels"])) == (500, 500)
    for count in (0, 1001):
        async with refused(clocked, queue, "cancel takes 1 to 1000 jobs"):
            await clocked.cancel(queue, ["a"] * count, channels(queue))
