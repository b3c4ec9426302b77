"""queue/renew: keys before, (id, token) of leases, answers, keys after."""

from __future__ import annotations

import pytest

from aioflow.commit import Effect
from aioflow.engine.keys import Queue
from aioflow.engine.records import Settlement
from aioflow.engine.store import Store
from aioflow.errors import ProtocolError
from tests.conftest import Clock
from tests.integration.scripts.state import (
    NOW,
    Case,
    dump,
    finished,
    keys,
    look,
    of_other,
    other,
    plant,
    ready,
    refused,
    row,
    running,
    scheduled,
    start,
)

LEASE_MS = 30_000
HELD = keys(running("a", NOW + 9, row("r.1")), running("b", NOW + 9, row("r.2")))
OTHERS = keys(
    ready("a", claim=row("release/r.1")),
    ready("b"),
    scheduled("c", NOW, row("retry/r.1")),
    finished("done", "d", NOW, row("r.1")),
    finished("dead", "e", NOW, row("r.1")),
)


CASES = [
    Case(
        "the deadline moves, nothing else",
        HELD,
        [("a", "r.1"), ("b", "r.2")],
        [1, 1],
        keys(running("a", NOW + LEASE_MS, row("r.1")), running("b", NOW + LEASE_MS, row("r.2"))),
    ),
    Case(
        "each by its own token",
        HELD,
        [("b", "r.1"), ("a", "r.1"), ("a", "r.2")],
        [0, 1, 0],
        keys(running("a", NOW + LEASE_MS, row("r.1")), running("b", NOW + 9, row("r.2"))),
    ),
    Case("part of a token is none", HELD, [("a", "r"), ("a", "r."), ("a", "r.10"), ("a", "")], [0] * 4, HELD),
    Case(
        "a lease that is over but not reaped lives on",
        keys(running("a", NOW - 5000, row("r.1"))),
        [("a", "r.1")],
        [1],
        keys(running("a", NOW + LEASE_MS, row("r.1"))),
    ),
    Case(
        "a deadline may come nearer",
        keys(running("a", NOW + 10**9, row("r.1"))),
        [("a", "r.1")],
        [1],
        keys(running("a", NOW + LEASE_MS, row("r.1"))),
    ),
    Case(
        "twice in one call",
        keys(running("a", NOW + 9, row("r.1"))),
        [("a", "r.1"), ("a", "r.1")],
        [1, 1],
        keys(running("a", NOW + LEASE_MS, row("r.1"))),
    ),
    Case(
        "the holder of a job to be cancelled hears so, and keeps its lease",
        keys(HELD, cancels={"a": NOW - 3}),
        [("a", "r.1"), ("b", "r.2"), ("a", "r.2")],
        [2, 1, 0],
        keys(
            running("a", NOW + LEASE_MS, row("r.1")),
            running("b", NOW + LEASE_MS, row("r.2")),
            cancels={"a": NOW - 3},
        ),
    ),
    Case("what does not run has no lease", OTHERS, [(job_id, "r.1") for job_id in "abcdef"], [0] * 6, OTHERS),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_renew(clocked: Store, queue: Queue, case: Case) -> None:
    await plant(clocked, queue, case.before)
    assert await clocked.renew([(queue, LEASE_MS, case.asked)]) == [case.answers]
    assert await look(clocked, queue) == case.after
    assert await clocked.renew([(queue, LEASE_MS, case.asked)]) == [case.answers], "a repeat hears the same"
    assert await look(clocked, queue) == case.after


async def test_a_renewed_lease_is_not_reaped(clocked: Store, queue: Queue, clock: Clock) -> None:
    await start(clocked, queue, "ab", lease_ms=100)
    clock.ms += 90
    assert await clocked.renew([(queue, 100, [("a", "r.1")])]) == [[1]]
    clock.ms += 90
    assert (await clocked.reap(queue, most_crashes=3, longest_ms=100)).jobs == 1
    assert set((await look(clocked, queue))["running"]) == {"a"}
    assert await clocked.renew([(queue, 100, [("a", "r.1"), ("b", "r.1")])]) == [[1, 0]]
    assert await clocked.settle(queue, [Settlement("a", "r.1", "done", effects=[Effect("set", "s", ("v",))])]) == [1]
    assert await clocked.renew([(queue, 100, [("a", "r.1")])]) == [[0]]
    await look(clocked, queue)


async def test_a_renewal_puts_no_job_among_the_running(clocked: Store, queue: Queue) -> None:
    # A row that names a lease without a deadline is nothing that a script leaves behind; it must not spread either.
    before = {"claims": {"a": row("r.1")}, "running": {"b": NOW + 9}}
    await plant(clocked, queue, before)
    await clocked.renew([(queue, LEASE_MS, [("a", "r.1")])])
    assert await dump(clocked, queue) == before


async def test_leases_of_many_queues_are_renewed_in_one_round_trip(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, HELD)
    await start(clocked, other(queue), "ab")
    calls = [(queue, 1000, [("a", "r.1")]), (other(queue), 2000, [("b", "r.1"), ("a", "r.2")])]
    assert await clocked.renew(calls) == [[1], [1, 0]]
    state = await look(clocked, queue)
    assert state["running"] == {"a": NOW + 1000, "b": NOW + 9}
    assert of_other(state)["running"] == {"a": NOW + 10_000, "b": NOW + 2000}


async def test_one_bad_call_of_many_is_an_error(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, {"running": "foreign"})
    with pytest.raises(ProtocolError, match="holds a string, not a"):
        await clocked.renew([(other(queue), 1000, [("a", "r.1")]), (queue, 1000, [("a", "r.1")])])


@pytest.mark.parametrize("count", [0, 1001])
async def test_other_counts_are_refused(clocked: Store, queue: Queue, count: int) -> None:
    await plant(clocked, queue, HELD)
    async with refused(clocked, queue, "renew takes 1 to 1000 jobs"):
        await clocked.renew([(queue, LEASE_MS, [("a", "r.1")] * count)])
