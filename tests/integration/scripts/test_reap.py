"""queue/reap: keys before, the answer, keys after."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace

import pytest

from aioflow.engine.keys import Queue, runtime_channels
from aioflow.engine.records import Reaped
from aioflow.engine.store import Store
from tests.conftest import Clock
from tests.integration.scripts.state import (
    CANCELLED,
    NOW,
    STEP,
    State,
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
    submit,
)

LONGEST_MS = 60_000
PLACE = 2 * STEP + NOW - 500


ROW = row("r.1")
FAILED = history((NOW - 9, '{"error": "E", "message": "m"}'))


def crash(message: str, attempt: int = 1) -> str:
    return json.dumps({"error": "Crashed", "message": message, "attempt": attempt, "worker": "r"})


def crashed(crashes: int, attempt: int = 1) -> str:
    return crash(f"lease expired {crashes} times", attempt)


def expired(attempt: int = 1, *, at: int = NOW) -> str:
    """The history of one lost lease."""
    return history((at, crash("its lease expired", attempt)))


@dataclass(frozen=True)
class Case:
    """A reap at NOW; the third crash is the last."""

    name: str
    before: State
    answer: Reaped
    after: State
    limit: int = 1000
    most_crashes: int = 3
    judge: bool = True
    runner: str = ""


CASES = [
    Case("an empty queue", {}, Reaped(True), {}),
    Case(
        "a live lease is left alone, and its deadline is told",
        keys(running("a", NOW + 1, row("r.1"))),
        Reaped(True, next_ms=1),
        keys(running("a", NOW + 1, row("r.1"))),
    ),
    Case(
        "an expired job goes back to its place, one crash richer",
        keys(running("a", NOW, row("r.1", 4, 2, 0, PLACE), submitted=NOW - 99)),
        Reaped(True, jobs=1),
        keys(
            ready("a", PLACE, row("-", 4, 2, 1, PLACE), submitted=NOW - 99),
            history={"a": expired(4)},
            totals={"reaped": 1},
            bell=True,
        ),
    ),
    Case(
        "the third crash ends it",
        keys(running("a", NOW - 7, row("r.1", 4, 1, 2, PLACE), submitted=NOW - 99, started=NOW - 50)),
        Reaped(True, dead=1),
        keys(
            finished(
                "dead", "a", NOW, row("crash/r.1", 4, 1, 3, PLACE), crashed(3, 4), submitted=NOW - 99, started=NOW - 50
            ),
            totals={"dead": 1},
        ),
    ),
    Case(
        "the first, where that is what the task says",
        keys(running("a", NOW - 7, row("r.1"))),
        Reaped(True, dead=1),
        keys(finished("dead", "a", NOW, row("crash/r.1", crashes=1), crashed(1)), totals={"dead": 1}),
        most_crashes=1,
    ),
    Case(
        "each for itself",
        keys(
            running("a", NOW - 2, row("r.1")),
            running("b", NOW - 1, row("r.2", crashes=2)),
            running("c", NOW + 40, row("r.1", crashes=2)),
            ready("d"),
        ),
        Reaped(True, next_ms=40, jobs=1, dead=1),
        keys(
            ready("a", claim=row("-", crashes=1)),
            finished("dead", "b", NOW, row("crash/r.2", crashes=3), crashed(3)),
            running("c", NOW + 40, row("r.1", crashes=2)),
            ready("d"),
            history={"a": expired()},
            totals={"reaped": 1, "dead": 1},
            bell=True,
        ),
    ),
    Case(
        "the longest expired first, and no more than the limit",
        keys(*(running(job_id, NOW - at, row("r.1")) for at, job_id in enumerate("abc"))),
        Reaped(True, next_ms=0, jobs=2),
        keys(
            running("a", NOW, row("r.1")),
            ready("b", claim=row("-", crashes=1)),
            ready("c", claim=row("-", crashes=1)),
            history={"b": expired(), "c": expired()},
            totals={"reaped": 2},
            bell=True,
        ),
        limit=2,
    ),
    Case(
        "a paused queue is reaped but not rung",
        keys(running("a", NOW, row("r.1")), paused=True),
        Reaped(True, jobs=1),
        keys(ready("a", claim=row("-", crashes=1)), paused=True, history={"a": expired()}, totals={"reaped": 1}),
    ),
    Case(
        "due jobs stand in line, and ring",
        keys(scheduled("a", NOW, row("-", 0, place=PLACE)), scheduled("b", NOW + 1, row("-", 0))),
        Reaped(True, promoted=1),
        keys(ready("a", PLACE, row("-", 0, place=PLACE)), scheduled("b", NOW + 1, row("-", 0)), bell=True),
    ),
    Case(
        "also where no lease is judged",
        keys(scheduled("a", NOW, row("-", 0)), running("b", NOW - 1, ROW), running("c", NOW + 10**10, ROW)),
        Reaped(False, promoted=1),
        keys(ready("a", claim=row("-", 0)), running("b", NOW - 1, ROW), running("c", NOW + 10**10, ROW), bell=True),
        judge=False,
    ),
    Case(
        "no more of them than the limit",
        keys(*(scheduled(job_id, NOW - at, row("-", 0)) for at, job_id in enumerate("abc"))),
        Reaped(True, promoted=2),
        keys(scheduled("a", NOW, row("-", 0)), *(ready(job_id, claim=row("-", 0)) for job_id in "bc"), bell=True),
        limit=2,
    ),
    Case("a silent bell over a line is rung", keys(ready("a")), Reaped(True), keys(ready("a"), bell=True)),
    Case("one that rings is left", keys(ready("a"), bell=True), Reaped(True), keys(ready("a"), bell=True)),
    Case("not over a paused line", keys(ready("a"), paused=True), Reaped(True), keys(ready("a"), paused=True)),
    Case(
        "a job to be cancelled does not go back in line",
        keys(
            running("a", NOW, row("r.1", 4, 2, 0, PLACE), submitted=NOW - 99, started=NOW - 50),
            running("b", NOW + 1, ROW),
            cancels={"a": NOW - 3, "b": NOW - 3},
            history={"a": FAILED},
        ),
        Reaped(True, next_ms=1, dead=1),
        keys(
            finished(
                "dead", "a", NOW, row("crash/r.1", 4, 2, 1, PLACE), CANCELLED, submitted=NOW - 99, started=NOW - 50
            ),
            running("b", NOW + 1, ROW),
            cancels={"b": NOW - 3},
            history={"a": FAILED},
            totals={"dead": 1},
        ),
    ),
    Case(
        "a history grows",
        keys(running("a", NOW, row("r.1", 2, 1)), history={"a": FAILED}),
        Reaped(True, jobs=1),
        keys(
            ready("a", claim=row("-", 2, 1, 1)),
            history={"a": f"{FAILED}\n{expired(2)}"},
            totals={"reaped": 1},
            bell=True,
        ),
    ),
    Case(
        "what lies in the outbox is told",
        {"outbox": [{"to": "shop.order"}] * 3},
        Reaped(True, outbox=3),
        {"outbox": [{"to": "shop.order"}] * 3},
    ),
    Case(
        "a runner is noted; its rank is that of its id",
        {"runners": {"p": NOW - 500, "s": NOW - 9000, "q": NOW - 400}},
        Reaped(True, runners=4, rank=2),
        {"runners": {"p": NOW - 500, "s": NOW - 9000, "q": NOW - 400, "r": NOW}},
        runner="r",
    ),
    Case(
        "also where no lease is judged, once in ten seconds",
        {"runners": {"r": NOW - 10_000, "q": NOW - 400}},
        Reaped(False, runners=2, rank=1),
        {"runners": {"r": NOW - 10_000, "q": NOW - 400}},
        judge=False,
        runner="r",
    ),
    Case(
        "then again",
        {"runners": {"r": NOW - 10_001, "q": NOW - 400}},
        Reaped(True, runners=2, rank=1),
        {"runners": {"r": NOW, "q": NOW - 400}},
        runner="r",
    ),
    Case(
        "one that is gone for 30 s, and one more for each that is there, is forgotten",
        {"runners": {"p": NOW - 33_000, "q": NOW - 32_999}},
        Reaped(True, runners=2, rank=1),
        {"runners": {"q": NOW - 32_999, "r": NOW}},
        runner="r",
    ),
    Case(
        "who only looks is not noted, and forgets nobody",
        {"runners": {"p": NOW - 10**6}},
        Reaped(True, runners=1),
        {"runners": {"p": NOW - 10**6}},
    ),
    Case(
        "no deadline lies beyond the longest lease from now",
        keys(
            running("a", NOW + LONGEST_MS, row("r.1")),
            running("b", NOW + LONGEST_MS + 1, row("r.1")),
            running("c", NOW + 10**10, row("r.1")),
        ),
        Reaped(True, next_ms=LONGEST_MS),
        keys(*(running(job_id, NOW + LONGEST_MS, row("r.1")) for job_id in "abc")),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_reap(clocked: Store, queue: Queue, case: Case) -> None:
    await plant(clocked, queue, case.before)
    clocked.clock.hear(NOW)

    async def reap() -> Reaped:
        return await clocked.reap(
            queue,
            most_crashes=case.most_crashes,
            longest_ms=LONGEST_MS,
            limit=case.limit,
            judge=case.judge,
            runner=case.runner,
        )

    assert await reap() == case.answer
    assert await look(clocked, queue) == case.after
    if case.limit == 1000:
        # A repeat of the same moment has nothing left to do.
        assert await reap() == replace(case.answer, jobs=0, dead=0, promoted=0)
        assert await look(clocked, queue) == case.after


@pytest.mark.parametrize("off_ms", [-(10**9), -1500, 1500, 10**9])
async def test_a_clock_that_is_not_as_expected_takes_nothing_away(
    clocked: Store, queue: Queue, off_ms: int, caplog: pytest.LogCaptureFixture
) -> None:
    before = keys(running("a", NOW - 10**10, row("r.1", crashes=2)), running("b", NOW + 10**10, row("r.1")))
    await plant(clocked, queue, before)
    clocked.clock.hear(NOW + off_ms)
    with caplog.at_level(logging.WARNING):
        assert await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS) == Reaped(judged=False)
    assert await look(clocked, queue) == before
    assert "no lease of demo.work is taken away" in caplog.text
    # The caller has heard the new time; what it does in between is its own affair.
    assert await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS) == Reaped(True, LONGEST_MS, 0, 1)
    await look(clocked, queue)


@pytest.mark.parametrize("off_ms", [-500, 500])
async def test_a_clock_may_be_a_little_off(clocked: Store, queue: Queue, off_ms: int) -> None:
    await plant(clocked, queue, keys(running("a", NOW, row("r.1"))))
    clocked.clock.hear(NOW + off_ms)
    assert await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS) == Reaped(True, jobs=1)


async def test_reaped_jobs_stand_before_those_that_came_later(clocked: Store, queue: Queue, clock: Clock) -> None:
    await clocked.submit([new(queue, "b"), new(queue, "low", priority=1)])
    assert await lease(clocked, queue, "r.1", lease_ms=100) == ["b", "low"]
    clock.ms += 100
    await submit(clocked, queue, "a")
    assert (await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS)).jobs == 2
    assert (await look(clocked, queue))["ready"] == {"b": NOW, "a": NOW + 100, "low": STEP + NOW}
    assert await lease(clocked, queue, "r.2") == ["b", "a", "low"]


async def test_a_job_that_kills_its_worker_three_times_is_dead(clocked: Store, queue: Queue, clock: Clock) -> None:
    await submit(clocked, queue, "a")
    for number in (1, 2, 3):
        claimed = await clocked.claim(queue, 1, 100, f"r.{number}", most_crashes=3)
        (job,) = claimed.jobs
        assert (job.attempt, job.failures, job.crashes) == (number, 0, number - 1)
        if number == 3:
            assert await clocked.expose(queue, job)
        await look(clocked, queue)
        clock.ms += 100
        clocked.clock.hear(clock.ms)
        reaped = await clocked.reap(queue, most_crashes=3, longest_ms=100)
        assert (reaped.jobs, reaped.dead) == ((1, 0) if number < 3 else (0, 1))
        await look(clocked, queue)
    assert await look(clocked, queue) == keys(
        finished("dead", "a", NOW + 300, row("crash/r.3", 3, 0, 3), crashed(3, 3), started=NOW + 200),
        history={"a": "\n".join(expired(attempt, at=NOW + 100 * attempt) for attempt in (1, 2))},
        totals={"submitted": 1, "reaped": 2, "dead": 1},
        bell=True,
    )
    assert await lease(clocked, queue, "r.4") == []


async def test_a_crash_of_a_job_that_waits_for_its_last_chance_is_not_its_own(
    clocked: Store, queue: Queue, clock: Clock
) -> None:
    await plant(clocked, queue, keys(ready("a", claim=row("-", 2, 0, 2))))
    for number in range(3):
        claimed = await clocked.claim(queue, 1, 100, f"r.{number}", most_crashes=3)
        assert [job.crashes for job in claimed.jobs] == [2]
        clock.ms += 100
        clocked.clock.hear(clock.ms)
        assert (await clocked.reap(queue, most_crashes=3, longest_ms=100)).jobs == 1
        assert (await look(clocked, queue))["claims"] == {"a": row("-", 3 + number, 0, 2)}


async def test_a_repeat_reaps_nothing_twice(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, keys(running("a", NOW, row("r.1")), running("b", NOW, row("r.1", crashes=2))))
    clocked.clock.hear(NOW)
    assert await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS) == Reaped(True, None, 1, 1)
    before = await look(clocked, queue)
    assert await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS) == Reaped(True)
    assert await look(clocked, queue) == before


async def test_a_foreign_row_of_a_due_job_keeps_no_lease_from_being_reaped_in_part(
    clocked: Store, queue: Queue
) -> None:
    # The same rule as for its own rows: the call changes nothing, rather than half of what it should.
    before = keys(running("a", NOW, ROW), running("b", NOW, row("r.1", crashes=2)), scheduled("c", NOW, "nonsense"))
    await plant(clocked, queue, before | {"waiters": {"b": "x:1:channel"}})
    clocked.clock.hear(NOW)
    async with refused(clocked, queue, "foreign row of job c"):
        await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS, runner="r")


async def test_1000_leases_expire_and_1000_jobs_are_due(clocked: Store, queue: Queue) -> None:
    ids = [f"j{number:04}" for number in range(1000)]
    await plant(
        clocked,
        queue,
        keys(
            *(running(job_id, NOW, row("r.1", crashes=number % 2)) for number, job_id in enumerate(ids)),
            *(scheduled(f"due-{job_id}", NOW, row("-", 0)) for job_id in ids),
            cancels={ids[0]: NOW},
        ),
    )
    clocked.clock.hear(NOW)
    reaped = await clocked.reap(queue, most_crashes=2, longest_ms=LONGEST_MS, runner="r")
    assert reaped == Reaped(True, jobs=499, dead=501, promoted=1000, runners=1, rank=0)
    assert len((await look(clocked, queue))["ready"]) == 1499


async def test_a_runner_that_leaves_is_counted_no_more(clocked: Store, queue: Queue) -> None:
    clocked.clock.hear(NOW)
    for runner in "pq":
        await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS, runner=runner)
    await clocked.leave(queue, "p")
    await clocked.leave(queue, "p")
    reaped = await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS, runner="q")
    assert (reaped.runners, reaped.rank) == (1, 0)


async def test_who_waits_for_a_job_that_is_dead_of_its_crashes_is_told(clocked: Store, queue: Queue) -> None:
    channel = runtime_channels(queue.namespace) + "r"
    waiting = keys(running("a", NOW, row("r.1", crashes=2)), running("b", NOW, row("r.1")))
    await plant(clocked, queue, waiting | {"waiters": {"a": channel, "b": channel}})
    clocked.clock.hear(NOW)
    async with listening(clocked, channel) as hear:
        await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS)
        ((_, message),) = await hear(1)
    assert message.split("\n")[:3] == ["result", queue.keys["waiters"], "a"]
    assert (await look(clocked, queue))["waiters"] == {"b": channel}, "b goes on"


@pytest.mark.parametrize("foreign", [{}, {"b": ""}, {"b": "r.1:1:0:0"}])
async def test_a_foreign_row_is_refused_before_a_write(clocked: Store, queue: Queue, foreign: dict[str, str]) -> None:
    before = keys(running("a", NOW - 1, row("r.1")), running("b", NOW, row("r.1")))
    before["claims"] = {"a": row("r.1"), **foreign}
    await plant(clocked, queue, before)
    clocked.clock.hear(NOW)
    async with refused(clocked, queue, "foreign row of job b"):
        await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS)


@pytest.mark.parametrize("limit", [0, 1001])
async def test_other_limits_are_refused(clocked: Store, queue: Queue, limit: int) -> None:
    before = keys(running("a", NOW, row("r.1")))
    await plant(clocked, queue, before)
    clocked.clock.hear(NOW)
    async with refused(clocked, queue, "reap takes 1 to 1000 jobs"):
        await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS, limit=limit)
