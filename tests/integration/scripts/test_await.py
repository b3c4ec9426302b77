"""queue/await: keys before, the answer, keys after."""

from __future__ import annotations

import pytest

from aioflow.engine.keys import Queue
from aioflow.engine.records import Settlement
from aioflow.engine.store import Store
from aioflow.errors import NotFound, StoreUnavailable
from aioflow.job import State as JobState
from tests.integration.scripts.state import (
    NOW,
    State,
    finished,
    keys,
    look,
    plant,
    ready,
    row,
    running,
    scheduled,
    start,
)


@pytest.mark.parametrize(
    "job",
    [
        pytest.param(scheduled("a", NOW, row("-", 0)), id="scheduled"),
        pytest.param(ready("a"), id="ready"),
        pytest.param(running("a", NOW, row("r.1")), id="running"),
    ],
)
async def test_an_unfinished_jobs_finish_will_be_told(clocked: Store, queue: Queue, job: State) -> None:
    await plant(clocked, queue, job)
    for _ in range(2):  # a repeat hears the same
        assert await clocked.await_result(queue, "a", "x:1:one") is None
        assert await look(clocked, queue) == keys(job, waiters={"a": "x:1:one"})


@pytest.mark.parametrize("kind", ["done", "dead"])
async def test_a_finished_job_answers_at_once(clocked: Store, queue: Queue, kind: str) -> None:
    before = keys(finished(kind, "a", NOW, row("r.1"), '{"a": "\\n"}'))
    await plant(clocked, queue, before)
    assert await clocked.await_result(queue, "a", "x:1:one") == (JobState(kind), b'{"a": "\\n"}')
    assert await look(clocked, queue) == before


async def test_a_result_may_have_lines(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "a")
    await clocked.settle(queue, [Settlement("a", "r.1", "done", b'{"a":\n\n1}')])
    assert await clocked.await_result(queue, "a", "x:1:one") == (JobState.DONE, b'{"a":\n\n1}')


async def test_an_unknown_job_is_not_waited_for(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, keys(ready("b")))
    with pytest.raises(NotFound, match=r"demo\.work keeps no record of a job a"):
        await clocked.await_result(queue, "a", "x:1:one")
    assert await look(clocked, queue) == keys(ready("b"))


async def test_many_may_wait_each_on_its_channel_once(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, keys(ready("a")))
    for channel in ("x:1:one", "x:1:two", "x:1:one", "x:1:three", "x:1:two"):
        assert await clocked.await_result(queue, "a", channel) is None
    assert (await look(clocked, queue))["waiters"] == {"a": "x:1:two x:1:three x:1:one"}


async def test_64_channels_wait_at_most(clocked: Store, queue: Queue) -> None:
    channels = [f"c{number}" for number in range(65)]
    await plant(clocked, queue, keys(ready("a"), waiters={"a": " ".join(channels[:63])}))
    assert await clocked.await_result(queue, "a", channels[63]) is None
    before = await look(clocked, queue)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"too many runtimes wait for demo\.work a; ask again"):
            await clocked.await_result(queue, "a", channels[64])
        assert await look(clocked, queue) == before
    assert await clocked.await_result(queue, "a", channels[7]) is None, "who waits already may ask again"
    assert sorted((await look(clocked, queue))["waiters"]["a"].split(" ")) == sorted(channels[:64])


async def test_the_finish_clears_the_line(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "ab")
    for job_id in "ab":
        await clocked.await_result(queue, job_id, "x:1:one")
    await clocked.settle(queue, [Settlement("a", "r.1", "done")])
    assert (await look(clocked, queue))["waiters"] == {"b": "x:1:one"}
    assert await clocked.await_result(queue, "a", "x:1:one") == (JobState.DONE, b"null")
    await look(clocked, queue)
