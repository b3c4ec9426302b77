"""queue/expose: the row of a job on its last chance before, the answer, the row after."""

from __future__ import annotations

import pytest

from aioflow.engine.keys import Queue
from aioflow.engine.records import Leased
from aioflow.engine.store import Store
from tests.integration.scripts.state import NOW, dump, finished, keys, look, plant, ready, row, running, scheduled


def leased(job_id: str, token: str, crashes: int = 2) -> Leased:
    return Leased(job_id, token, b"\n1", 3, 1, crashes)


async def test_from_here_on_the_row_counts_all_crashes(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, keys(running("a", NOW + 9, row("r.1", 3, 1, 1002, NOW - 5))))
    for _ in range(2):  # a repeat hears the same
        assert await clocked.expose(queue, leased("a", "r.1"))
        assert await look(clocked, queue) == keys(running("a", NOW + 9, row("r.1", 3, 1, 2, NOW - 5)))


@pytest.mark.parametrize("token", ["r.2", "r", "r.", "r.10", ""])
async def test_another_token_exposes_nothing(clocked: Store, queue: Queue, token: str) -> None:
    before = keys(running("a", NOW + 9, row("r.1", 3, 1, 1)))
    await plant(clocked, queue, before)
    assert not await clocked.expose(queue, leased("a", token))
    assert await dump(clocked, queue) == before


async def test_what_does_not_run_is_not_exposed(clocked: Store, queue: Queue) -> None:
    before = keys(
        ready("a", claim=row("release/r.1")),
        ready("b", claim=row("-")),
        scheduled("c", NOW, row("retry/r.1")),
        finished("dead", "d", NOW, row("r.1")),
    )
    await plant(clocked, queue, before)
    for job_id in "abcdx":
        assert not await clocked.expose(queue, leased(job_id, "r.1"))
    assert await look(clocked, queue) == before
