"""queue/submit: keys before, jobs, answers, keys after."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from aioflow.engine.keys import Queue
from aioflow.engine.records import NewJob
from aioflow.engine.store import Store
from tests.conftest import Clock
from tests.integration.scripts.state import (
    NOW,
    STEP,
    State,
    finished,
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


@dataclass(frozen=True)
class Given:
    """A job to submit, without its queue."""

    id: str
    envelope: str = "\n1"
    priority: int = 0
    due: str = "0"

    def to(self, queue: Queue) -> NewJob:
        return new(queue, self.id, envelope=self.envelope, priority=self.priority, due=self.due)


@dataclass(frozen=True)
class Case:
    """`jobs` meet the keys `before`."""

    name: str
    jobs: list[Given]
    answers: list[int]
    after: State
    before: State = field(default_factory=dict)


FEW = keys(
    scheduled("a", NOW + 5, row("-", 0, place=NOW + 5)),
    running("b", NOW + 5, row("r.1")),
    finished("done", "c", NOW, row("r.2")),
)
CASES = [
    Case(
        "a first job takes its place and rings",
        [Given("a")],
        [1],
        keys(ready("a", NOW), totals={"submitted": 1}, bell=True),
    ),
    Case(
        "a place is the priority first, then the time",
        [Given("a", priority=9), Given("b", priority=0), Given("c", priority=3)],
        [1, 1, 1],
        keys(
            ready("a", 9 * STEP + NOW),
            ready("b", NOW),
            ready("c", 3 * STEP + NOW),
            totals={"submitted": 3},
            bell=True,
        ),
    ),
    Case(
        "a delay counts from the server's time",
        [Given("a", due="+500", priority=2)],
        [1],
        keys(
            scheduled("a", NOW + 500, row("-", 0, place=2 * STEP + NOW + 500)),
            totals={"submitted": 1},
            bell=True,
        ),
    ),
    Case(
        "a time to come is kept as it is",
        [Given("a", due=str(NOW + 700))],
        [1],
        keys(scheduled("a", NOW + 700, row("-", 0, place=NOW + 700)), totals={"submitted": 1}, bell=True),
    ),
    Case(
        "what is due now or was due before goes in line as of now",
        [Given("a", due="+0"), Given("b", due=str(NOW)), Given("c", due=str(NOW - 1))],
        [1, 1, 1],
        keys(ready("a"), ready("b"), ready("c"), totals={"submitted": 3}, bell=True),
    ),
    Case(
        "the same id and envelope is the same job, and the repeat is written down",
        [Given("a")],
        [0],
        keys(ready("a", NOW - 5, submitted=NOW - 5), totals={"submitted": 1, "repeated": 1}),
        keys(ready("a", NOW - 5, submitted=NOW - 5), totals={"submitted": 1}),
    ),
    Case(
        "a known job is not moved by another priority or time",
        [Given("a", priority=5, due="+500")],
        [0],
        keys(ready("a"), totals={"repeated": 1}),
        keys(ready("a")),
    ),
    Case(
        "the same id with another envelope is a conflict",
        [Given("a", envelope="\n2")],
        [-1],
        keys(ready("a"), totals={"repeated": 1}),
        keys(ready("a")),
    ),
    Case(
        "jobs are known in every state",
        [Given(job_id) for job_id in ("a", "b", "c", "d")],
        [0, 0, 0, 0],
        keys(FEW, finished("dead", "d", NOW, row("r.3")), totals={"repeated": 4}),
        keys(FEW, finished("dead", "d", NOW, row("r.3"))),
    ),
    Case(
        "twice in one batch is once",
        [Given("a"), Given("b"), Given("a"), Given("a", envelope="\n2")],
        [1, 1, 0, -1],
        keys(ready("a"), ready("b"), totals={"submitted": 2, "repeated": 2}, bell=True),
    ),
    Case(
        "the bound takes the items in turn, and known ones pass",
        [Given("b"), Given("c"), Given("a"), Given("d"), Given("c")],
        [1, -2, 0, -2, -2],
        keys(ready("a"), ready("b"), bound=2, totals={"submitted": 1, "repeated": 1}, bell=True),
        keys(ready("a"), bound=2),
    ),
    Case(
        "the bound counts what is scheduled and running, not what is finished",
        [Given("d", due="+9"), Given("e", due="+9")],
        [1, -2],
        keys(FEW, scheduled("d", NOW + 9, row("-", 0, place=NOW + 9)), bound=3, totals={"submitted": 1}),
        keys(FEW, bound=3),
    ),
    Case(
        "a full queue writes nothing and does not ring",
        [Given("b")],
        [-2],
        keys(ready("a"), bound=1),
        keys(ready("a"), bound=1),
    ),
    Case(
        "a bell that rings already gets no second token",
        [Given("a")],
        [1],
        keys(ready("a"), totals={"submitted": 1}, bell=True),
        keys(bell=True),
    ),
    Case(
        "a silent bell is rung over a queue that is not empty, too",
        [Given("b")],
        [1],
        keys(ready("a"), ready("b"), totals={"submitted": 1}, bell=True),
        keys(ready("a")),
    ),
    Case(
        "a paused queue is not rung",
        [Given("a"), Given("b", due="+5")],
        [1, 1],
        keys(
            ready("a"),
            scheduled("b", NOW + 5, row("-", 0, place=NOW + 5)),
            paused=True,
            totals={"submitted": 2},
        ),
        keys(paused=True),
    ),
    Case(
        "a job that is due after the first does not ring",
        [Given("b", due="+500"), Given("c", due="+501")],
        [1, 1],
        keys(
            scheduled("a", NOW + 500, row("-", 0, place=NOW + 500)),
            scheduled("b", NOW + 500, row("-", 0, place=NOW + 500)),
            scheduled("c", NOW + 501, row("-", 0, place=NOW + 501)),
            totals={"submitted": 2},
        ),
        keys(scheduled("a", NOW + 500, row("-", 0, place=NOW + 500))),
    ),
    Case(
        "a new first due time rings: somebody's timer is too late now",
        [Given("b", due="+499")],
        [1],
        keys(
            scheduled("a", NOW + 500, row("-", 0, place=NOW + 500)),
            scheduled("b", NOW + 499, row("-", 0, place=NOW + 499)),
            totals={"submitted": 1},
            bell=True,
        ),
        keys(scheduled("a", NOW + 500, row("-", 0, place=NOW + 500))),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_submit(clocked: Store, queue: Queue, case: Case) -> None:
    await plant(clocked, queue, case.before)
    assert await clocked.submit([job.to(queue) for job in case.jobs]) == case.answers
    assert await look(clocked, queue) == case.after


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_repeat_hears_of_every_job_that_was_taken(clocked: Store, queue: Queue, case: Case) -> None:
    await plant(clocked, queue, case.before)
    jobs = [job.to(queue) for job in case.jobs]
    first = await clocked.submit(jobs)
    again = await clocked.submit(jobs)
    assert again == [0 if answer == 1 else answer for answer in first]
    state = await look(clocked, queue)
    repeats = sum(answer in {0, -1} for answer in (*first, *again))
    assert state.get("totals", {}).get("repeated", "0") == str(repeats)
    assert {**state, "totals": None} == {**case.after, "totals": None}


async def test_later_jobs_stand_behind(clocked: Store, queue: Queue, clock: Clock) -> None:
    await clocked.submit([new(queue, "z")])
    clock.ms += 1
    await clocked.submit([new(queue, "b"), new(queue, "a")])
    state = await look(clocked, queue)
    assert list(state["ready"].items()) == [("z", NOW), ("a", NOW + 1), ("b", NOW + 1)]


async def test_a_call_may_go_to_many_queues(clocked: Store, namespace: str) -> None:
    first, second = Queue(namespace, "demo", "work"), Queue(namespace, "other", "play")
    await clocked.configure(second, 1)
    jobs = [new(first, "a"), new(second, "a"), new(second, "b"), new(first, "a")]
    assert await clocked.submit(jobs) == [1, 1, -2, 0]
    assert (await clocked.sizes(first)).ready == (await clocked.sizes(second)).ready == 1


async def test_an_envelope_is_any_bytes(clocked: Store, queue: Queue) -> None:
    envelope = bytes(range(256))
    assert await clocked.submit([new(queue, "a", envelope=envelope)]) == [1]
    assert await clocked.submit([new(queue, "a", envelope=envelope)]) == [0]
    claimed = await clocked.claim(queue, 1, 1000, "r.1")
    assert claimed.jobs[0].envelope == envelope


async def test_the_servers_time_is_used_without_a_clock(store: Store, queue: Queue) -> None:
    seconds, micros = await store.redis.time()
    await store.submit([new(queue, "a")])
    place = (await look(store, queue))["ready"]["a"]
    assert 0 <= place - (seconds * 1000 + micros // 1000) < 10_000
    assert store.clock.heard_ms == place


async def test_1001_jobs_are_refused(clocked: Store, queue: Queue) -> None:
    async with refused(clocked, queue, "submit takes 1 to 1000 jobs"):
        await clocked.submit([new(queue, f"j{number}") for number in range(1001)])
    assert await clocked.submit([new(queue, f"j{number}") for number in range(1000)]) == [1] * 1000
    assert len((await look(clocked, queue))["ready"]) == 1000


BAD = [
    pytest.param(Given("bad", due="soon"), id="due is no number"),
    pytest.param(Given("bad", due="inf"), id="due is never"),
    pytest.param(Given("bad", due="+inf"), id="delay is for ever"),
    pytest.param(Given("bad", due="nan"), id="due is no time"),
    pytest.param(Given("bad", due=str(2**42)), id="due beyond 2109 would be in the next priority"),
    pytest.param(Given("bad", priority=-1, due="+5"), id="priority below 0"),
    pytest.param(Given("bad", priority=10), id="priority above 9"),
]


@pytest.mark.parametrize("bad", BAD)
async def test_arguments_out_of_range_are_refused_before_a_write(clocked: Store, queue: Queue, bad: Given) -> None:
    async with refused(clocked, queue, "job bad has no priority from 0 to 9 or no time in ms"):
        await clocked.submit([new(queue, "a"), bad.to(queue)])
