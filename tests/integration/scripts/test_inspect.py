"""queue/inspect: what is known of a job in every state; it writes nothing."""

from __future__ import annotations

import pytest

from aioflow.engine.keys import Queue
from aioflow.engine.store import Store
from aioflow.errors import ProtocolError
from aioflow.job import Failure, JobInfo, State
from tests.integration.scripts.state import (
    NOW,
    STEP,
    finished,
    history,
    keys,
    look,
    plant,
    ready,
    row,
    running,
    scheduled,
)

SUBMITTED, STARTED = NOW - 100, NOW - 50
PLACE = 7 * STEP + NOW - 100
JOBS = keys(
    scheduled("new", NOW + 5, row("-", 0, place=NOW + 5), submitted=SUBMITTED, envelope="\n11"),
    scheduled("again", NOW + 6, row("retry/r.1", 2, 1, 0, NOW + 6), submitted=SUBMITTED, envelope="\n12"),
    ready("first", PLACE, submitted=SUBMITTED, envelope="\n13"),
    ready("back", PLACE, row("release/r.1", 3, 1, 2, PLACE), submitted=SUBMITTED, envelope="head\n14"),
    running("runs", NOW + 9, row("r.1", 4, 2, 1, PLACE), submitted=SUBMITTED, started=STARTED, envelope="\n15"),
    finished("done", "fine", NOW, row("r.1", 5, 3), '"ok"', submitted=SUBMITTED, started=STARTED, envelope="\n16"),
    finished(
        "dead", "bad", NOW, row("r.2", 6, 4, 3), '{"e": 1}', submitted=SUBMITTED, started=STARTED, envelope="\n17"
    ),
)


def info(
    job_id: str,
    state: State,
    at_ms: int,
    payload: bytes,
    *,
    token: str,
    attempt: int,
    failures: int = 0,
    crashes: int = 0,
    started_ms: int | None = None,
    result: bytes | None = None,
) -> JobInfo:
    return JobInfo(job_id, state, at_ms, SUBMITTED, started_ms, attempt, failures, crashes, token, payload, result)


KNOWN = [
    info("new", State.SCHEDULED, NOW + 5, b"11", token="-", attempt=0),
    info("again", State.SCHEDULED, NOW + 6, b"12", token="r.1", attempt=2, failures=1),
    info("first", State.READY, NOW - 100, b"13", token="", attempt=0),
    info("back", State.READY, NOW - 100, b"14", token="r.1", attempt=3, failures=1, crashes=2),
    info("runs", State.RUNNING, NOW + 9, b"15", token="r.1", attempt=4, failures=2, crashes=1, started_ms=STARTED),
    info("fine", State.DONE, NOW, b"16", token="r.1", attempt=5, failures=3, started_ms=STARTED, result=b'"ok"'),
    info(
        "bad",
        State.DEAD,
        NOW,
        b"17",
        token="r.2",
        attempt=6,
        failures=4,
        crashes=3,
        started_ms=STARTED,
        result=b'{"e": 1}',
    ),
]


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.id)
async def test_every_state(clocked: Store, queue: Queue, known: JobInfo) -> None:
    await plant(clocked, queue, JOBS)
    assert await clocked.inspect(queue, [known.id]) == [known]
    assert await look(clocked, queue) == JOBS


async def test_how_it_failed_and_how_far_it_is(clocked: Store, queue: Queue) -> None:
    failures = [(NOW - 9, '{"error": "E", "message": "m", "attempt": 1, "worker": "r"}'), (NOW - 5, '{"error": "F"}')]
    described = {"history": {"runs": history(*failures)}, "progress": {"runs": '{"done": 3}', "fine": "7"}}
    await plant(clocked, queue, JOBS | described)
    runs, fine, back = await clocked.inspect(queue, ["runs", "fine", "back"])
    assert runs is not None
    assert fine is not None
    assert back is not None
    assert runs.history == (Failure("E", "m", "", 1, "r", NOW - 9), Failure("F", "", at_ms=NOW - 5))
    assert [runs.progress, fine.progress, back.progress] == [b'{"done": 3}', b"7", None]
    assert (fine.history, back.history) == ((), ())
    assert await look(clocked, queue) == JOBS | described


async def test_answers_come_in_the_order_of_the_questions(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, JOBS)
    ids = ["bad", "nobody", "new", "bad", "runs", ""]
    known = {job.id: job for job in KNOWN}
    assert await clocked.inspect(queue, ids) == [known.get(job_id) for job_id in ids]


async def test_an_empty_queue_knows_nobody(clocked: Store, queue: Queue) -> None:
    assert await clocked.inspect(queue, ["a", "b"]) == [None, None]
    assert await look(clocked, queue) == {}


async def test_a_job_whose_record_is_lost_is_still_seen(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, JOBS)
    await clocked.redis.delete(queue.keys["jobs"])
    (seen,) = await clocked.inspect(queue, ["runs"])
    assert seen is not None
    assert (seen.state, seen.payload) == (State.RUNNING, b"")


async def test_1000_jobs_and_no_more(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, JOBS)
    assert len(await clocked.inspect(queue, ["new"] * 1000)) == 1000
    for ids in ([], ["new"] * 1001):
        with pytest.raises(ProtocolError, match="inspect takes 1 to 1000 jobs"):
            await clocked.inspect(queue, ids)
