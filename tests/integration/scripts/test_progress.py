"""queue/progress: keys before, (id, token, JSON), answers, keys after."""

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
    plant,
    ready,
    refused,
    row,
    running,
    scheduled,
    start,
)

HELD = keys(running("a", NOW + 9, row("r.1")), running("b", NOW - 9, row("r.2")))
OTHERS = keys(
    ready("p", claim=row("release/r.1")),
    ready("q"),
    scheduled("s", NOW, row("retry/r.1")),
    finished("done", "t", NOW, row("r.1")),
    finished("dead", "u", NOW, row("r.1")),
)


@dataclass(frozen=True)
class Case:
    """What is noted of jobs."""

    name: str
    before: State
    notes: list[tuple[str, str, bytes]]
    answers: list[bool]
    after: State


CASES = [
    Case(
        "of a running job, also of one whose lease is over but not reaped",
        HELD,
        [("a", "r.1", b'{"done": 1}'), ("b", "r.2", b"2")],
        [True, True],
        keys(HELD, progress={"a": '{"done": 1}', "b": "2"}),
    ),
    Case(
        "the last one counts",
        keys(HELD, progress={"a": "1", "b": "7"}),
        [("a", "r.1", b"2"), ("a", "r.1", b"3")],
        [True, True],
        keys(HELD, progress={"a": "3", "b": "7"}),
    ),
    Case(
        "each by its own token",
        HELD,
        [("a", "r.2", b"1"), ("b", "r.2", b"2"), ("b", "r.1", b"3")],
        [False, True, False],
        keys(HELD, progress={"b": "2"}),
    ),
    Case(
        "part of a token is none",
        HELD,
        [("a", token, b"1") for token in ("", "r", "r.", "r.10", "r%.1", ".*")],
        [False] * 6,
        HELD,
    ),
    Case("what does not run has no lease", OTHERS, [(job, "r.1", b"1") for job in "pqstux"], [False] * 6, OTHERS),
    Case(
        "a job to be cancelled still tells",
        keys(HELD, cancels={"a": NOW}),
        [("a", "r.1", b"1")],
        [True],
        keys(HELD, cancels={"a": NOW}, progress={"a": "1"}),
    ),
    Case("any bytes", HELD, [("a", "r.1", b"\xff\n")], [True], keys(HELD, progress={"a": "\\xff\n"})),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_progress(clocked: Store, queue: Queue, case: Case) -> None:
    await plant(clocked, queue, case.before)
    for _ in range(2):  # a repeat hears the same
        assert await clocked.progress(queue, case.notes) == case.answers
        assert await look(clocked, queue) == case.after


async def test_it_is_kept_until_the_next_attempt_tells_more(clocked: Store, queue: Queue, clock: Clock) -> None:
    await start(clocked, queue, "a")
    await clocked.progress(queue, [("a", "r.1", b"1")])
    assert await clocked.settle(queue, [Settlement("a", "r.1", "retry", b"{}", failed=True)]) == [1]
    assert await clocked.progress(queue, [("a", "r.1", b"2")]) == [False], "that attempt is over"
    assert await lease(clocked, queue, "r.2") == ["a"]
    assert await clocked.progress(queue, [("a", "r.1", b"3")]) == [False]
    assert (await look(clocked, queue))["progress"] == {"a": "1"}
    assert await clocked.progress(queue, [("a", "r.2", b"4")]) == [True]
    assert await clocked.settle(queue, [Settlement("a", "r.2", "done")]) == [1]
    assert (await look(clocked, queue))["progress"] == {"a": "4"}
    clock.ms += 10
    assert await clocked.trim(queue, keep_done_ms=1, keep_dead_ms=1) == 1
    assert "progress" not in await look(clocked, queue)


async def test_1000_notes_and_no_more(clocked: Store, queue: Queue) -> None:
    ids = [f"j{number:04}" for number in range(1000)]
    await start(clocked, queue, ids)
    assert await clocked.progress(queue, [(job_id, "r.1", b"1") for job_id in ids]) == [True] * 1000
    assert len((await look(clocked, queue))["progress"]) == 1000
    for count in (0, 1001):
        async with refused(clocked, queue, "progress takes 1 to 1000 jobs"):
            await clocked.progress(queue, [("j0000", "r.1", b"2")] * count)
