"""queue/claim: keys before, the claim, the leased jobs, keys after."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from aioflow.engine import scripts
from aioflow.engine.keys import Queue
from aioflow.engine.records import MOST_BYTES, Leased
from aioflow.engine.store import Store
from tests.conftest import Clock
from tests.integration.scripts.state import (
    NOW,
    STEP,
    State,
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
    submit,
)

LEASE_MS = 10_000
DEADLINE = NOW + LEASE_MS


def leased(job_id: str, attempt: int = 1, failures: int = 0, crashes: int = 0) -> Leased:
    return Leased(job_id, "r.1", b"\n1", attempt, failures, crashes)


@dataclass(frozen=True)
class Case:
    """A claim of `count` jobs under the token r.1."""

    name: str
    before: State
    jobs: list[Leased]
    after: State
    count: int = 10
    wait_ms: int | None = None
    lost: list[str] = field(default_factory=list)


CASES = [
    Case("an empty queue has nothing", {}, [], {}),
    Case(
        "a job becomes the token's, and the claims row keeps its place",
        keys(ready("a", NOW - 7)),
        [leased("a")],
        keys(running("a", DEADLINE, row("r.1", 1, place=NOW - 7))),
    ),
    Case(
        "first by priority, then by time, then by id",
        keys(ready("a", STEP + NOW - 9), ready("b", NOW), ready("c", NOW - 5), ready("d", NOW - 5)),
        [leased("c"), leased("d"), leased("b"), leased("a")],
        keys(
            running("a", DEADLINE, row("r.1", place=STEP + NOW - 9)),
            running("b", DEADLINE, row("r.1")),
            running("c", DEADLINE, row("r.1", place=NOW - 5)),
            running("d", DEADLINE, row("r.1", place=NOW - 5)),
        ),
    ),
    Case(
        "who leaves jobs behind rings",
        keys(ready("a"), ready("b"), ready("c")),
        [leased("a"), leased("b")],
        keys(running("a", DEADLINE, row("r.1")), running("b", DEADLINE, row("r.1")), ready("c"), bell=True),
        count=2,
    ),
    Case(
        "who leaves jobs behind does not ring twice",
        keys(ready("a"), ready("b"), bell=True),
        [leased("a")],
        keys(running("a", DEADLINE, row("r.1")), ready("b"), bell=True),
        count=1,
    ),
    Case(
        "who takes the last does not ring, and hears when the next is due",
        keys(ready("a"), scheduled("b", NOW + 40, row("-", 0, place=NOW + 40))),
        [leased("a")],
        keys(running("a", DEADLINE, row("r.1")), scheduled("b", NOW + 40, row("-", 0, place=NOW + 40))),
        wait_ms=40,
    ),
    Case(
        "what is due is promoted to the place that its row keeps, before it is claimed",
        keys(
            ready("a", NOW - 3),
            scheduled("b", NOW, row("-", 0, place=NOW - 4)),
            scheduled("c", NOW - 1, row("retry/r.0", 2, 1, 0, STEP + NOW - 9)),
            scheduled("d", NOW + 1, row("-", 0, place=NOW - 5)),
        ),
        [leased("b"), leased("a")],
        keys(
            running("a", DEADLINE, row("r.1", place=NOW - 3)),
            running("b", DEADLINE, row("r.1", place=NOW - 4)),
            ready("c", STEP + NOW - 9, row("retry/r.0", 2, 1, 0, STEP + NOW - 9)),
            scheduled("d", NOW + 1, row("-", 0, place=NOW - 5)),
            bell=True,
        ),
        count=2,
        wait_ms=1,
    ),
    Case(
        "attempts, failures and crashes go on counting from the row",
        keys(ready("a", NOW - 5, row("-", 4, 2, 1, NOW - 5))),
        [leased("a", attempt=5, failures=2, crashes=1)],
        keys(running("a", DEADLINE, row("r.1", 5, 2, 1, NOW - 5))),
    ),
    Case(
        "a crash before a job on its last chance runs alone is not its own, and adds up to none",
        keys(ready("a", claim=row("-", 4, 0, 2)), ready("b", claim=row("-", 2, 0, 1))),
        [leased("a", attempt=5, crashes=2), leased("b", attempt=3, crashes=1)],
        keys(running("a", DEADLINE, row("r.1", 5, 0, 1002)), running("b", DEADLINE, row("r.1", 3, 0, 1))),
    ),
    Case(
        "a paused queue gives nothing, promotes nothing and does not ring",
        keys(ready("a"), scheduled("b", NOW - 1, row("-", 0, place=NOW - 1)), paused=True),
        [],
        keys(ready("a"), scheduled("b", NOW - 1, row("-", 0, place=NOW - 1)), paused=True),
    ),
    Case(
        "paused is the text 1 only",
        keys(ready("a"), config={"paused": "0"}),
        [leased("a")],
        keys(running("a", DEADLINE, row("r.1")), config={"paused": "0"}),
    ),
    Case(
        "a job whose record is lost is claimed all the same, so that somebody ends it",
        {**keys(ready("a"), ready("b")), "jobs": {"b": "\n1"}},
        [Leased("a", "r.1", None, 1, 0, 0), leased("b")],
        {**keys(running("a", DEADLINE, row("r.1")), running("b", DEADLINE, row("r.1"))), "jobs": {"b": "\n1"}},
        lost=["a"],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_claim(clocked: Store, queue: Queue, case: Case) -> None:
    await plant(clocked, queue, case.before)
    claimed = await clocked.claim(queue, case.count, LEASE_MS, "r.1")
    assert (claimed.jobs, claimed.wait_ms) == (case.jobs, case.wait_ms)
    assert await look(clocked, queue, lost=case.lost) == case.after


async def test_a_job_is_leased_once(clocked: Store, queue: Queue) -> None:
    await submit(clocked, queue, "abc")
    assert await lease(clocked, queue, "r.1", count=2) == ["a", "b"]
    assert await lease(clocked, queue, "r.2") == ["c"]
    assert await lease(clocked, queue, "r.3") == []
    state = await look(clocked, queue)
    assert {job_id: claim.partition(":")[0] for job_id, claim in state["claims"].items()} == {
        "a": "r.1",
        "b": "r.1",
        "c": "r.2",
    }


async def test_a_delayed_job_stands_where_its_due_time_puts_it(clocked: Store, queue: Queue, clock: Clock) -> None:
    await clocked.submit([new(queue, "late", due="+10")])
    clock.ms += 5
    await submit(clocked, queue, ["early"])
    clock.ms += 20
    await submit(clocked, queue, ["last"])
    assert await lease(clocked, queue, "r.1") == ["early", "late", "last"]


async def test_a_due_time_in_the_past_is_not_waited_for(clocked: Store, queue: Queue, clock: Clock) -> None:
    await clocked.submit([new(queue, f"j{number:04}", due="+1") for number in range(1000)])
    await clocked.submit([new(queue, "k", due="+1")])
    clock.ms += 50
    # A claim promotes at most 1,000 jobs; what is overdue after that asks for a claim at once.
    claimed = await clocked.claim(queue, 1, LEASE_MS, "r.1")
    assert (claimed.jobs[0].id, claimed.wait_ms) == ("j0000", 0)
    state = await look(clocked, queue)
    assert (len(state["ready"]), state["scheduled"]) == (999, {"k": NOW + 1})


@pytest.mark.parametrize(
    ("sizes", "taken"),
    [
        pytest.param([400 << 10] * 4, 2, id="two of four"),
        pytest.param([MOST_BYTES // 4] * 5, 4, id="exactly the budget"),
        pytest.param([MOST_BYTES + 1, 1], 1, id="one that is larger by itself"),
        pytest.param([1, MOST_BYTES + 1, 1], 1, id="a small one before a large one"),
        pytest.param([20 << 10] * 60, 51, id="past the first chunk"),
        pytest.param([MOST_BYTES // 50] * 49 + [MOST_BYTES] * 2, 49, id="the last of the first chunk is too much"),
    ],
)
async def test_a_claim_takes_as_many_bytes_as_a_batch_may_have(
    clocked: Store, queue: Queue, sizes: list[int], taken: int
) -> None:
    ids = [f"j{number:02}" for number in range(len(sizes))]
    for job_id, size in zip(ids, sizes, strict=True):
        await clocked.submit([new(queue, job_id, envelope=b"x" * size)])
    claimed = await clocked.claim(queue, 1000, LEASE_MS, "r.1")
    assert [(job.id, len(job.envelope or b"")) for job in claimed.jobs] == list(zip(ids, sizes, strict=True))[:taken]
    state = await look(clocked, queue)
    assert set(state["running"]) == set(ids[:taken])
    assert set(state.get("ready", {})) == set(ids[taken:])
    assert state.get("bell", []) == ["1"]
    assert await lease(clocked, queue, "r.2", count=1) == ids[taken : taken + 1]


async def test_the_store_cuts_a_count_above_1000(clocked: Store, queue: Queue) -> None:
    await submit(clocked, queue, (f"j{number:04}" for number in range(1000)))
    await submit(clocked, queue, ["k"])
    assert len(await lease(clocked, queue, "r.1", count=5000)) == 1000
    assert (await look(clocked, queue))["ready"] == {"k": NOW}


@pytest.mark.parametrize("count", [0, 1001])
async def test_the_script_refuses_other_counts(clocked: Store, queue: Queue, count: int) -> None:
    await submit(clocked, queue, "a")
    async with refused(clocked, queue, "claim takes 1 to 1000 jobs"):
        await clocked._call("queue/claim", queue, str(count), str(LEASE_MS), "r.1", str(MOST_BYTES), "3")


@pytest.mark.parametrize("foreign", ["", "nonsense", "r.0:1:0:0", "r.0:1:0:0:-5", "r.0:1:0:0:1e9"])
async def test_a_foreign_row_is_refused_before_a_write(clocked: Store, queue: Queue, foreign: str) -> None:
    before = keys(ready("a"), ready("b"), claims={"b": foreign})
    await plant(clocked, queue, before)
    async with refused(clocked, queue, "foreign row of job b"):
        await clocked.claim(queue, 10, LEASE_MS, "r.1")


def test_a_claim_is_the_one_script_that_is_not_repeated_by_itself() -> None:
    names = sorted(path.stem for path in (scripts.script_root() / "queue").glob("*.lua"))
    assert [name for name in names if not scripts.load(f"queue/{name}").may_repeat] == ["claim"]
