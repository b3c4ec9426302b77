"""What the scripts answer as rows, as Python sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio.client import Pipeline

from aioflow.engine import codec
from aioflow.engine.keys import Queue
from aioflow.engine.records import NO_EVICTION, Memory, Sizes
from aioflow.errors import ProtocolError
from aioflow.job import JobInfo, State


def foreign(key: str, job_id: str) -> ProtocolError:
    """What to raise where a row cannot be one of ours."""
    return ProtocolError(f"what {key} holds of {job_id} is not aioflow's")


def parse_result(line: bytes, key: str, job_id: str) -> tuple[State, bytes]:
    """(state, result) of a results row. Raises ProtocolError that names the key where it is none."""
    head, _, result = line.partition(b"\n")
    try:
        return State(head.partition(b":")[0].decode()), result
    except ValueError as error:
        raise foreign(key, job_id) from error


def ask_sizes(pipeline: Pipeline, queue: Queue) -> None:
    for part in ("scheduled", "ready", "running", "done", "dead", "open"):
        pipeline.zcard(queue.keys[part])
    pipeline.zrange(queue.keys["open"], 0, 0, withscores=True)


def memory_of(about: Mapping[str, Any]) -> Memory:
    """What INFO says of a server's memory."""
    return Memory(about["used_memory"], about.get("maxmemory", 0), about.get("maxmemory_policy", NO_EVICTION))


def sizes_of(replies: Sequence[Any]) -> Sizes:
    scheduled, ready, running, done, dead, unfinished, oldest = replies
    return Sizes(scheduled, ready, running, done, dead, unfinished, int(oldest[0][1]) if oldest else None)


def job_info(queue: Queue, job_id: str, reply: list[Any]) -> JobInfo:
    """What is known of a job. Raises ProtocolError that names the key where a row is none of ours."""
    line = reply[5]
    try:
        return _job_info(job_id, reply)
    except ValueError as error:
        raise foreign(queue.keys["claims" if line is None else "results"], job_id) from error


def _job_info(job_id: str, reply: list[Any]) -> JobInfo:
    state, score, submitted, started, row, line, envelope, history, progress = reply
    result = None
    if line is not None:
        head, _, result = line.partition(b"\n")
        _, token, attempt, failures, crashes, _, submitted, started = head.split(b":")
    elif row is not None:
        token, attempt, failures, crashes, _ = row.rpartition(b"/")[2].split(b":")
    else:
        token, attempt, failures, crashes = b"", 0, 0, 0
    at_ms = int(float(score))
    return JobInfo(
        id=job_id,
        state=State(state.decode()),
        at_ms=at_ms % 2**42,  # a ready score is priority * 2**42 + time
        submitted_ms=int(float(submitted or 0)),
        started_ms=int(float(started or 0)) or None,
        attempt=int(attempt),
        failures=int(failures),
        crashes=int(crashes) % 1000,  # more while it waits for its last chance
        token=token.decode(),
        payload=(envelope or b"").partition(b"\n")[2],
        result=result,
        history=tuple(codec.decode_failure(failure) for failure in (history or b"").splitlines()),
        progress=progress,
    )
