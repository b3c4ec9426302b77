"""queue/pause: keys before, whether to pause, the answer, keys after."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from aioflow.engine.keys import Queue
from aioflow.engine.records import Settlement
from aioflow.engine.store import Store
from tests.conftest import Clock
from tests.integration.scripts.state import (
    NOW,
    State,
    finished,
    keys,
    lease,
    look,
    new,
    plant,
    ready,
    row,
    running,
    scheduled,
    start,
)

LATER = scheduled("a", NOW + 9, row("-", 0))


@dataclass(frozen=True)
class Case:
    """A pause, or the end of one; `changed` is the answer."""

    name: str
    before: State
    paused: bool
    changed: bool
    after: State


CASES = [
    Case("an empty queue stops", {}, True, True, keys(paused=True)),
    Case("and goes on, unrung", keys(paused=True), False, True, {}),
    Case("what is paused is so already", keys(ready("a"), paused=True), True, False, keys(ready("a"), paused=True)),
    Case("what is not neither", {}, False, False, {}),
    Case(
        "going on rings over what is in line", keys(ready("a"), paused=True), False, True, keys(ready("a"), bell=True)
    ),
    Case(
        "and over what is scheduled: nobody knows when", keys(LATER, paused=True), False, True, keys(LATER, bell=True)
    ),
    Case(
        "not over what runs or is finished",
        keys(running("a", NOW + 9, row("r.1")), finished("dead", "b", NOW, row("r.1")), paused=True),
        False,
        True,
        keys(running("a", NOW + 9, row("r.1")), finished("dead", "b", NOW, row("r.1"))),
    ),
    Case("a queue that goes on anyway is rung as well", keys(ready("a")), False, False, keys(ready("a"), bell=True)),
    Case("one token is enough", keys(ready("a"), paused=True, bell=True), False, True, keys(ready("a"), bell=True)),
    Case(
        "the token in the bell is left to whoever takes it",
        keys(ready("a"), bell=True),
        True,
        True,
        keys(ready("a"), paused=True, bell=True),
    ),
    Case("a bound stays", keys(bound=5), True, True, keys(bound=5, paused=True)),
    Case("both ways", keys(bound=5, paused=True), False, True, keys(bound=5)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_pause(clocked: Store, queue: Queue, case: Case) -> None:
    await plant(clocked, queue, case.before)
    assert await clocked.pause(queue, paused=case.paused) == case.changed
    assert await look(clocked, queue) == case.after
    assert not await clocked.pause(queue, paused=case.paused), "a repeat changes nothing"
    assert await look(clocked, queue) == case.after


async def test_a_paused_queue_takes_jobs_and_ends_attempts_but_gives_none(
    clocked: Store, queue: Queue, clock: Clock
) -> None:
    await start(clocked, queue, "abc")
    assert await clocked.wait_bell(queue, 1)
    await clocked.pause(queue, paused=True)
    assert await clocked.submit([new(queue, "d"), new(queue, "e", due="+5")]) == [1, 1]
    assert await clocked.settle(queue, [Settlement("a", "r.1", "done"), Settlement("b", "r.1", "retry")]) == [1, 1]
    assert await clocked.release(queue, [("c", "r.1")]) == [True]
    clock.ms += 5
    clocked.clock.hear(clock.ms)
    assert (await clocked.reap(queue, most_crashes=3, longest_ms=1000)).promoted == 2
    assert await lease(clocked, queue, "r.2") == []
    state = await look(clocked, queue)
    assert "bell" not in state
    assert set(state["ready"]) == {"b", "c", "d", "e"}
    assert await clocked.pause(queue, paused=False)
    assert await clocked.wait_bell(queue, 1)
    assert await lease(clocked, queue, "r.3") == ["b", "c", "d", "e"]
