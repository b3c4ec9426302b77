"""queue/trim: keys before, how many were forgotten, keys after."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from aioflow.engine.keys import Queue
from aioflow.engine.maintenance import Maintenance
from aioflow.engine.records import Settlement
from aioflow.engine.relay import Relay
from aioflow.engine.store import Store
from aioflow.policy import TaskOptions
from tests.conftest import Clock
from tests.integration.scripts.state import (
    NOW,
    State,
    finished,
    history,
    keys,
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

KEEP_DONE, KEEP_DEAD = 1000, 5000
ROW = row("r.1")
FAILED = history((NOW - 9, '{"error": "E", "message": "m"}'))
UNFINISHED = keys(
    ready("p", submitted=1, place=1),
    scheduled("q", 1, row("-", 0), submitted=1),
    running("r", 1, ROW, submitted=1, started=1),
)


@dataclass(frozen=True)
class Case:
    """A trim with KEEP_DONE and KEEP_DEAD."""

    name: str
    before: State
    forgotten: int
    after: State
    limit: int = 1000


CASES = [
    Case("an empty queue", {}, 0, {}),
    Case(
        "what is older than its retention is forgotten",
        keys(
            finished("done", "a", NOW - KEEP_DONE - 1, ROW),
            finished("done", "b", NOW - KEEP_DONE, ROW),
            finished("done", "c", NOW, ROW),
            finished("dead", "d", NOW - KEEP_DEAD - 1, ROW),
            finished("dead", "e", NOW - KEEP_DEAD, ROW),
            finished("dead", "f", NOW - KEEP_DONE - 1, ROW),
        ),
        2,
        keys(
            finished("done", "b", NOW - KEEP_DONE, ROW),
            finished("done", "c", NOW, ROW),
            finished("dead", "e", NOW - KEEP_DEAD, ROW),
            finished("dead", "f", NOW - KEEP_DONE - 1, ROW),
            totals={"trimmed": 2},
        ),
    ),
    Case(
        "with all that is known of it",
        keys(
            finished("done", "a", 1, ROW),
            finished("dead", "b", 1, ROW),
            finished("dead", "c", NOW, ROW),
            ready("d", claim=row("-", 0)),
            history={"a": FAILED, "b": FAILED, "c": FAILED, "d": FAILED},
            progress={"a": "1", "b": "2", "c": "3", "d": "4"},
        ),
        2,
        keys(
            finished("dead", "c", NOW, ROW),
            ready("d", claim=row("-", 0)),
            history={"c": FAILED, "d": FAILED},
            progress={"c": "3", "d": "4"},
            totals={"trimmed": 2},
        ),
    ),
    Case(
        "where only progress was told",
        keys(finished("done", "a", 1, ROW), progress={"a": "1"}),
        1,
        {"totals": {"trimmed": "1"}},
    ),
    Case("what is unfinished is kept, however old", UNFINISHED, 0, UNFINISHED),
    Case(
        "the oldest first, and no more than the limit per outcome",
        keys(
            *(finished("done", job_id, 10 - at, ROW) for at, job_id in enumerate("abc")),
            *(finished("dead", job_id, 10 - at, ROW) for at, job_id in enumerate("def")),
        ),
        4,
        keys(finished("done", "a", 10, ROW), finished("dead", "d", 10, ROW), totals={"trimmed": 4}),
        limit=2,
    ),
    Case(
        "neither bell nor pause matter",
        keys(finished("done", "a", 1, ROW), ready("b"), paused=True, totals={"trimmed": 7, "done": 1}),
        1,
        keys(ready("b"), paused=True, totals={"trimmed": 8, "done": 1}),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_trim(clocked: Store, queue: Queue, case: Case) -> None:
    await plant(clocked, queue, case.before)
    forgotten = await clocked.trim(queue, keep_done_ms=KEEP_DONE, keep_dead_ms=KEEP_DEAD, limit=case.limit)
    assert forgotten == case.forgotten
    assert await look(clocked, queue) == case.after


async def test_many_young_jobs_are_all_kept(clocked: Store, queue: Queue) -> None:
    before = keys(*(finished("done", f"j{number:03}", NOW - KEEP_DONE, ROW) for number in range(500)))
    await plant(clocked, queue, before)
    assert await clocked.trim(queue, keep_done_ms=KEEP_DONE, keep_dead_ms=0) == 0
    assert await look(clocked, queue) == before


async def test_a_job_is_known_until_it_is_forgotten(clocked: Store, queue: Queue, clock: Clock) -> None:
    await start(clocked, queue, "a")
    await clocked.settle(queue, [Settlement("a", "r.1", "done")])
    clock.ms += KEEP_DONE
    assert await clocked.trim(queue, keep_done_ms=KEEP_DONE, keep_dead_ms=KEEP_DEAD) == 0
    assert await clocked.submit([new(queue, "a")]) == [0]
    clock.ms += 1
    assert await clocked.trim(queue, keep_done_ms=KEEP_DONE, keep_dead_ms=KEEP_DEAD) == 1
    assert await clocked.trim(queue, keep_done_ms=KEEP_DONE, keep_dead_ms=KEEP_DEAD) == 0, "a repeat"
    await look(clocked, queue)
    assert await clocked.inspect(queue, ["a"]) == [None]
    assert await clocked.submit([new(queue, "a")]) == [1]
    await look(clocked, queue)


@pytest.mark.parametrize("limit", [0, 1001])
async def test_other_limits_are_refused(clocked: Store, queue: Queue, limit: int) -> None:
    before = keys(finished("done", "a", 1, ROW))
    await plant(clocked, queue, before)
    async with refused(clocked, queue, "trim takes 1 to 1000 jobs"):
        await clocked.trim(queue, keep_done_ms=1, keep_dead_ms=1, limit=limit)


async def test_what_is_over_is_forgotten_round_after_round_without_a_pause(clocked: Store, queue: Queue) -> None:
    old = NOW - 700_000
    await plant(clocked, queue, keys(*(finished("done", f"j{number}", old, ROW) for number in range(2500))))
    maintenance = Maintenance(queue, TaskOptions(keep_done=600.0), clocked, Relay(queue, clocked), "r")
    pauses = [await maintenance._once() for _ in range(3)]
    assert pauses[:2] == [0.0, 0.0]
    assert pauses[2] > 0
    assert (await clocked.sizes(queue)).done == 0
