"""queue/promote: keys before, how many were due, keys after."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from aioflow.engine.keys import Queue
from aioflow.engine.store import Store
from tests.conftest import Clock
from tests.integration.scripts.state import (
    NOW,
    STEP,
    State,
    keys,
    look,
    new,
    plant,
    ready,
    refused,
    row,
    running,
    scheduled,
)

DUE = row("-", 0, place=3 * STEP + NOW - 5)
AGAIN = row("retry/r.1", 2, 1, 0, NOW)


@dataclass(frozen=True)
class Case:
    """A promotion of at most `limit` jobs."""

    name: str
    before: State
    promoted: int
    after: State
    limit: int = 1000


CASES = [
    Case("an empty queue", {}, 0, {}),
    Case(
        "what is due goes to the place that its row keeps, and rings",
        keys(
            scheduled("a", NOW - 5, DUE),
            scheduled("b", NOW, AGAIN),
            scheduled("c", NOW + 1, row("-", 0, place=NOW + 1)),
        ),
        2,
        keys(
            ready("a", 3 * STEP + NOW - 5, DUE),
            ready("b", NOW, AGAIN),
            scheduled("c", NOW + 1, row("-", 0, place=NOW + 1)),
            bell=True,
        ),
    ),
    Case(
        "the first due go first, and no more than the limit",
        keys(*(scheduled(job_id, NOW - 9 + at, row("-", 0)) for at, job_id in enumerate("cba"))),
        2,
        keys(
            ready("c", claim=row("-", 0)),
            ready("b", claim=row("-", 0)),
            scheduled("a", NOW - 7, row("-", 0)),
            bell=True,
        ),
        limit=2,
    ),
    Case("a silent bell over a line is rung", keys(ready("a")), 0, keys(ready("a"), bell=True)),
    Case("a bell that rings gets no second token", keys(ready("a"), bell=True), 0, keys(ready("a"), bell=True)),
    Case(
        "an empty line is not rung over",
        keys(running("a", NOW, row("r.1")), scheduled("b", NOW + 1, row("-", 0))),
        0,
        keys(running("a", NOW, row("r.1")), scheduled("b", NOW + 1, row("-", 0))),
    ),
    Case(
        "a paused queue is promoted but not rung",
        keys(scheduled("a", NOW, AGAIN), paused=True),
        1,
        keys(ready("a", NOW, AGAIN), paused=True),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_promote(clocked: Store, queue: Queue, case: Case) -> None:
    await plant(clocked, queue, case.before)
    assert await clocked.promote(queue, case.limit) == case.promoted
    assert await look(clocked, queue) == case.after


async def test_a_repeat_promotes_nothing_twice(clocked: Store, queue: Queue, clock: Clock) -> None:
    await clocked.submit([new(queue, "a", due="+5", priority=1), new(queue, "b", due="+7")])
    clock.ms += 6
    assert await clocked.promote(queue) == 1
    state = await look(clocked, queue)
    assert state["ready"] == {"a": STEP + NOW + 5}
    assert await clocked.promote(queue) == 0
    assert await look(clocked, queue) == state
    clock.ms += 1
    assert await clocked.promote(queue) == 1
    assert (await look(clocked, queue))["ready"] == {"b": NOW + 7, "a": STEP + NOW + 5}
    assert clocked.clock.heard_ms == clock.ms


@pytest.mark.parametrize("foreign", [{}, {"b": ""}, {"b": "-:0:0:0"}, {"b": "-:0:0:0:-7"}])
async def test_a_foreign_row_is_refused_before_a_write(clocked: Store, queue: Queue, foreign: dict[str, str]) -> None:
    before = {**keys(scheduled("a", NOW - 1, AGAIN), scheduled("b", NOW, AGAIN)), "claims": {"a": AGAIN, **foreign}}
    await plant(clocked, queue, before)
    async with refused(clocked, queue, "foreign row of job b"):
        await clocked.promote(queue)


@pytest.mark.parametrize("limit", [0, 1001])
async def test_other_limits_are_refused(clocked: Store, queue: Queue, limit: int) -> None:
    before = keys(scheduled("a", NOW, AGAIN))
    await plant(clocked, queue, before)
    async with refused(clocked, queue, "promote takes 1 to 1000 jobs"):
        await clocked.promote(queue, limit)
