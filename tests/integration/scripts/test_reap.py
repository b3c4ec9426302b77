"""queue/reap: keys before, the answer, keys after."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass

import pytest

from aioflow.engine.keys import Queue, results_channel
from aioflow.engine.records import Reaped
from aioflow.engine.store import Store
from aioflow.errors import ProtocolError
from tests.conftest import Clock
from tests.integration.scripts.state import (
    NOW,
    STEP,
    State,
    dump,
    finished,
    keys,
    lease,
    look,
    new,
    plant,
    ready,
    row,
    running,
    submit,
)

LONGEST_MS = 60_000
PLACE = 2 * STEP + NOW - 500


def crashed(crashes: int) -> str:
    return json.dumps({"error": "Crashed", "message": f"lease expired {crashes} times"})


@dataclass(frozen=True)
class Case:
    """A reap at NOW; the third crash is the last."""

    name: str
    before: State
    answer: Reaped
    after: State
    limit: int = 1000
    most_crashes: int = 3


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
                "dead", "a", NOW, row("crash/r.1", 4, 1, 3, PLACE), crashed(3), submitted=NOW - 99, started=NOW - 50
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
            totals={"reaped": 2},
            bell=True,
        ),
        limit=2,
    ),
    Case(
        "a paused queue is reaped but not rung",
        keys(running("a", NOW, row("r.1")), paused=True),
        Reaped(True, jobs=1),
        keys(ready("a", claim=row("-", crashes=1)), paused=True, totals={"reaped": 1}),
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
    answer = await clocked.reap(queue, most_crashes=case.most_crashes, longest_ms=LONGEST_MS, limit=case.limit)
    assert answer == case.answer
    assert await look(clocked, queue) == case.after


@pytest.mark.parametrize("off_ms", [-(10**9), -1500, 1500, 10**9])
async def test_a_clock_that_is_not_as_expected_takes_nothing_away(
    clocked: Store, queue: Queue, off_ms: int, caplog: pytest.LogCaptureFixture
) -> None:
    before = keys(running("a", NOW - 10**10, row("r.1", crashes=2)), running("b", NOW + 10**10, row("r.1")))
    await plant(clocked, queue, before)
    clocked.clock.hear(NOW + off_ms)
    with caplog.at_level(logging.WARNING):
        assert await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS) == Reaped(clock_agrees=False)
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
    for crash in (1, 2, 3):
        claimed = await clocked.claim(queue, 1, 100, f"r.{crash}", most_crashes=3)
        (job,) = claimed.jobs
        assert (job.attempt, job.failures, job.crashes) == (crash, 0, crash - 1)
        if crash == 3:
            assert await clocked.expose(queue, job)
        await look(clocked, queue)
        clock.ms += 100
        clocked.clock.hear(clock.ms)
        reaped = await clocked.reap(queue, most_crashes=3, longest_ms=100)
        assert (reaped.jobs, reaped.dead) == ((1, 0) if crash < 3 else (0, 1))
        await look(clocked, queue)
    assert await look(clocked, queue) == keys(
        finished("dead", "a", NOW + 300, row("crash/r.3", 3, 0, 3), crashed(3), started=NOW + 200),
        totals={"submitted": 1, "reaped": 2, "dead": 1},
        bell=True,
    )
    assert await lease(clocked, queue, "r.4") == []


async def test_a_crash_of_a_job_that_waits_for_its_last_chance_is_not_its_own(
    clocked: Store, queue: Queue, clock: Clock
) -> None:
    await plant(clocked, queue, keys(ready("a", claim=row("-", 2, 0, 2))))
    for crash in range(3):
        claimed = await clocked.claim(queue, 1, 100, f"r.{crash}", most_crashes=3)
        assert [job.crashes for job in claimed.jobs] == [2]
        clock.ms += 100
        clocked.clock.hear(clock.ms)
        assert (await clocked.reap(queue, most_crashes=3, longest_ms=100)).jobs == 1
        assert (await look(clocked, queue))["claims"] == {"a": row("-", 3 + crash, 0, 2)}


async def test_a_repeat_reaps_nothing_twice(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, keys(running("a", NOW, row("r.1")), running("b", NOW, row("r.1", crashes=2))))
    clocked.clock.hear(NOW)
    assert await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS) == Reaped(True, None, 1, 1)
    before = await look(clocked, queue)
    assert await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS) == Reaped(True)
    assert await look(clocked, queue) == before


async def test_who_waits_for_a_job_that_is_dead_of_its_crashes_is_told(clocked: Store, queue: Queue) -> None:
    channel = results_channel(queue.namespace, "r")
    waiting = keys(running("a", NOW, row("r.1", crashes=2)), running("b", NOW, row("r.1")))
    await plant(clocked, queue, waiting | {"waiters": {"a": channel, "b": channel}})
    clocked.clock.hear(NOW)
    pubsub = clocked.pubsub()
    try:
        await pubsub.subscribe(channel)
        async with asyncio.timeout(10):
            while not await pubsub.get_message(timeout=10):
                pass
            await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS)
            while not (message := await pubsub.get_message(timeout=10)):
                pass
    finally:
        await pubsub.aclose()
    assert message["data"].decode().split("\n")[:2] == [queue.keys["waiters"], "a"]
    assert (await look(clocked, queue))["waiters"] == {"b": channel}, "b goes on"


@pytest.mark.parametrize("foreign", [{}, {"b": ""}, {"b": "r.1:1:0:0"}])
async def test_a_foreign_row_is_refused_before_a_write(clocked: Store, queue: Queue, foreign: dict[str, str]) -> None:
    before = keys(running("a", NOW - 1, row("r.1")), running("b", NOW, row("r.1")))
    before["claims"] = {"a": row("r.1"), **foreign}
    await plant(clocked, queue, before)
    clocked.clock.hear(NOW)
    with pytest.raises(ProtocolError, match="foreign row of job b"):
        await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS)
    assert await dump(clocked, queue) == before


@pytest.mark.parametrize("limit", [0, 1001])
async def test_other_limits_are_refused(clocked: Store, queue: Queue, limit: int) -> None:
    before = keys(running("a", NOW, row("r.1")))
    await plant(clocked, queue, before)
    clocked.clock.hear(NOW)
    with pytest.raises(ProtocolError, match="reap takes 1 to 1000 jobs"):
        await clocked.reap(queue, most_crashes=3, longest_ms=LONGEST_MS, limit=limit)
    assert await look(clocked, queue) == before
