"""The keys of a queue as one plain dict, so that a script's test compares whole states: before, answer, after.

A state is part -> content: {"ready": {id: place}, "jobs": {id: envelope}, "bell": ["1"], ...}; a service's own data is
under "d:<name>", the queue of its task `other` under "other:<part>", and a key that should not be there under its full
name. A stream is a list of its entries' fields. `plant` writes a state, `look` reads one and checks the invariants that
a state shows by itself.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from aioflow.engine.keys import PARTS, Queue, data_key
from aioflow.engine.records import NewJob
from aioflow.engine.store import Store
from aioflow.errors import ProtocolError

State = dict[str, Any]
"""What lies under a key is a dict, a list, a set or a str, as the key's type has it."""

NOW = 1_800_000_000_000
"""Where the `clock` fixture starts."""
STEP = 2**42
"""Between the places of two priorities."""
ENVELOPE = "\n1"
STATES = ("scheduled", "ready", "running", "done", "dead")
FINISHED = ("done", "dead")
CANCELLED = '{"error": "JobCancelled", "message": "cancelled on request"}'
MOST_FAILURES = 10
"""Lines of a history."""
OTHER = "other:"
"""What the parts of the queue of the task `other` begin with."""


# ---- what one job leaves in the keys of its queue, by its state


def row(token: str, attempt: int = 1, failures: int = 0, crashes: int = 0, place: int = NOW) -> str:
    """A claims row."""
    return f"{token}:{attempt}:{failures}:{crashes}:{place}"


def scheduled(job_id: str, due: int, claim: str, *, submitted: int = NOW, envelope: str = ENVELOPE) -> State:
    """A job that waits for its time."""
    return _unfinished("scheduled", job_id, due, submitted, envelope) | {"claims": {job_id: claim}}


def ready(
    job_id: str, place: int = NOW, claim: str | None = None, *, submitted: int = NOW, envelope: str = ENVELOPE
) -> State:
    """A job in line; it has a claims row only after a first schedule or claim."""
    claims = {} if claim is None else {"claims": {job_id: claim}}
    return _unfinished("ready", job_id, place, submitted, envelope) | claims


def running(
    job_id: str,
    deadline: int,
    claim: str,
    *,
    started: int = NOW,
    submitted: int = NOW,
    envelope: str = ENVELOPE,
) -> State:
    """A leased job."""
    return _unfinished("running", job_id, deadline, submitted, envelope) | {
        "started": {job_id: started},
        "claims": {job_id: claim},
    }


def finished(
    kind: str,
    job_id: str,
    at: int,
    claim: str,
    result: str = "null",
    *,
    submitted: int = NOW,
    started: int = NOW,
    envelope: str = ENVELOPE,
) -> State:
    """A job that is done or dead."""
    line = f"{kind}:{claim}:{submitted}:{started}\n{result}"
    return {kind: {job_id: at}, "jobs": {job_id: envelope}, "results": {job_id: canonical(line)}}


def canonical(line: str) -> str:
    """A results row with its JSON in one spelling: Lua's has the fields of an object in any order."""
    head, _, result = line.partition("\n")
    try:
        return f"{head}\n{json.dumps(json.loads(result), sort_keys=True)}"
    except ValueError:
        return line


def history(*failures: tuple[int, str]) -> str:
    """A history row of failed attempts, as (ms, JSON)."""
    return canonical_history("\n".join(f"{at} {failure}" for at, failure in failures))


def canonical_history(lines: str) -> str:
    """A history row with its JSON in one spelling."""
    return "\n".join(canonical(line.replace(" ", "\n", 1)).replace("\n", " ", 1) for line in lines.split("\n"))


def _unfinished(part: str, job_id: str, score: int, submitted: int, envelope: str) -> State:
    return {part: {job_id: score}, "jobs": {job_id: envelope}, "open": {job_id: submitted}}


def keys(*jobs: State, bell: bool = False, paused: bool = False, bound: int | None = None, **parts: Any) -> State:
    """The state of a queue that holds these jobs, with further parts; numbers in hashes become text."""
    config = ({"paused": "1"} if paused else {}) | ({} if bound is None else {"bound": str(bound)})
    rest: State = ({"config": config} if config else {}) | ({"bell": ["1"]} if bell else {})
    whole: State = {}
    for state in (*jobs, rest, parts):
        for part, content in state.items():
            if PARTS.get(part) == "hash":
                whole.setdefault(part, {}).update({field: str(value) for field, value in content.items()})
            elif isinstance(content, dict):
                whole.setdefault(part, {}).update(content)
            else:
                whole[part] = content
    return whole


# ---- between a state and Redis


def other(queue: Queue) -> Queue:
    """The queue of another task of the same service."""
    return Queue(queue.namespace, queue.service, "other")


def of_other(state: Mapping[str, Any]) -> State:
    """That queue's part of a state."""
    return {part.removeprefix(OTHER): content for part, content in state.items() if part.startswith(OTHER)}


def _key(queue: Queue, part: str) -> str:
    if part.startswith("d:"):
        return data_key(queue.namespace, queue.service, part[2:])
    return other(queue).keys[part.removeprefix(OTHER)] if part.startswith(OTHER) else queue.keys[part]


async def plant(store: Store, queue: Queue, state: Mapping[str, Any]) -> None:
    """Write these keys; where one exists already, it is replaced. A str is a foreign key in a part's place."""
    pipeline = store.redis.pipeline(transaction=False)
    for part, content in state.items():
        key = _key(queue, part)
        pipeline.delete(key)
        if isinstance(content, str):
            pipeline.set(key, content)
        elif part.endswith("outbox"):
            for fields in content:
                pipeline.xadd(key, fields)
        elif isinstance(content, list):
            pipeline.rpush(key, *content)
        elif isinstance(content, set):
            pipeline.sadd(key, *content)
        elif all(isinstance(value, int) for value in content.values()):
            pipeline.zadd(key, content)
        else:
            pipeline.hset(key, mapping=content)
    await pipeline.execute()


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


def _content(kind: str, reply: Any) -> Any:
    match kind:
        case "zset":
            return {_text(member): int(score) if score.is_integer() else score for member, score in reply}
        case "hash":
            return {_text(field): _text(value) for field, value in reply.items()}
        case "list":
            return [_text(word) for word in reply]
        case "set":
            return {_text(word) for word in reply}
        case "stream":
            return [{_text(field): _text(value) for field, value in fields.items()} for _, fields in reply]
    return _text(reply)


async def dump(store: Store, queue: Queue) -> State:
    """Every key of the queue's namespace, whatever its name."""
    found: Any = await store.redis.keys(f"{queue.namespace}:*")
    names: list[bytes] = sorted(found)
    pipeline = store.redis.pipeline(transaction=False)
    for name in names:
        pipeline.type(name)
    kinds = [kind.decode() for kind in await pipeline.execute()]
    for name, kind in zip(names, kinds, strict=True):
        match kind:
            case "zset":
                pipeline.zrange(name, 0, -1, withscores=True)
            case "hash":
                pipeline.hgetall(name)
            case "list":
                pipeline.lrange(name, 0, -1)
            case "set":
                pipeline.smembers(name)
            case "stream":
                pipeline.xrange(name)
            case _:
                pipeline.get(name)
    replies = await pipeline.execute()
    engine, data = queue.keys["jobs"].removesuffix("jobs"), data_key(queue.namespace, queue.service, "")
    state: State = {}
    for key, kind, reply in zip(map(_text, names), kinds, replies, strict=True):
        part = key.removeprefix(engine) if key.startswith(engine) else key.replace(data, "d:", 1)
        part = part.replace(other(queue).keys["jobs"].removesuffix("jobs"), OTHER, 1)
        state[part] = _content(kind, reply)
    if isinstance(state.get("results"), dict):
        state["results"] = {job_id: canonical(line) for job_id, line in state["results"].items()}
    if isinstance(state.get("history"), dict):
        state["history"] = {job_id: canonical_history(lines) for job_id, lines in state["history"].items()}
    return state


async def look(store: Store, queue: Queue, *, lost: Collection[str] = ()) -> State:
    """The state now, after a check of the invariants."""
    state = await dump(store, queue)
    assert_invariants(state, lost=lost)
    assert_invariants(of_other(state))
    return state


def data_of(state: Mapping[str, Any]) -> State:
    """The service's own data of a state."""
    return {part: content for part, content in state.items() if part.startswith("d:")}


@asynccontextmanager
async def refused(store: Store, queue: Queue, message: str) -> AsyncIterator[None]:
    """What is called in this block is refused with such a message, and has changed nothing."""
    before = await dump(store, queue)
    with pytest.raises(ProtocolError, match=message):
        yield
    assert await dump(store, queue) == before


@asynccontextmanager
async def listening(store: Store, *channels: str) -> AsyncIterator[Callable[[int], Awaitable[list[tuple[str, str]]]]]:
    """Listen on channels; what is given waits for so many messages, as (channel, text), sorted."""
    pubsub = store.pubsub()

    async def hear(count: int, kind: str = "message") -> list[tuple[str, str]]:
        heard: list[tuple[str, str]] = []
        async with asyncio.timeout(10):
            while len(heard) < count:
                message = await pubsub.get_message(timeout=10)
                if message and message["type"] == kind:
                    heard.append((message["channel"].decode(), message["data"].decode() if kind == "message" else ""))
        return sorted(heard)

    try:
        await pubsub.subscribe(*channels)
        await hear(len(channels), "subscribe")
        yield hear
    finally:
        await pubsub.aclose()


@dataclass(frozen=True)
class Case:
    """Under the keys `before`, what a script that takes (id, token) answers to each, and the keys after it."""

    name: str
    before: State
    asked: list[tuple[str, str]]
    answers: Sequence[int]
    after: State


# ---- what must hold in every state


def assert_invariants(state: Mapping[str, Any], *, lost: Collection[str] = ()) -> None:
    """I1 and I2 as a state shows them. `lost` are jobs whose records a test has taken away."""
    homes: dict[str, str] = {}
    for part in STATES:
        for job_id in state.get(part, {}):
            assert job_id not in homes, f"{job_id} is both {homes[job_id]} and {part}"
            homes[job_id] = part
    ended = {job_id for job_id, part in homes.items() if part in FINISHED}
    assert set(state.get("jobs", {})) == set(homes) - set(lost), "a record for each job, and for no other"
    assert set(state.get("open", {})) == set(homes) - ended, "open holds every unfinished job"
    assert set(state.get("started", {})) == set(state.get("running", {})), "what runs was started"
    assert set(state.get("results", {})) == ended, "a result for each finished job, and for no other"
    assert set(state.get("waiters", {})) <= set(homes) - ended, "nobody waits for a finished job"
    for job_id, line in state.get("results", {}).items():
        assert line.partition(":")[0] == homes[job_id], f"{job_id} is {homes[job_id]}, its result says {line!r}"
    assert set(state.get("cancels", {})) <= set(state.get("running", {})), "only what runs is still to be cancelled"
    for part in ("history", "progress"):
        assert set(state.get(part, {})) <= set(homes), f"no {part} outlives its job"
    for job_id, lines in state.get("history", {}).items():
        failures = lines.split("\n")
        assert len(failures) <= MOST_FAILURES, f"{job_id} has {len(failures)} failures in its history"
        assert all(re.fullmatch(r"[0-9]+ .+", failure) for failure in failures), f"{job_id} has the history {lines!r}"
    claims: dict[str, str] = state.get("claims", {})
    assert set(claims) <= set(homes) - ended, "no claims row outlives its job"
    assert {job_id for job_id, part in homes.items() if part in ("scheduled", "running")} <= set(claims)
    for job_id, claim in claims.items():
        token, *numbers, place = claim.split(":")
        assert len(numbers) == 3, f"{job_id} has the claims row {claim!r}"
        leased = token != "-" and "/" not in token
        assert leased == (homes[job_id] == "running"), f"{job_id} is {homes[job_id]} with the claims row {claim!r}"
        if homes[job_id] == "ready":
            assert state["ready"][job_id] == int(place), f"{job_id} left the place that its row {claim!r} keeps"
    assert len(state.get("bell", [])) <= 1, "one token in the bell is enough"


# ---- jobs to submit


def new(queue: Queue, job_id: str, *, envelope: str | bytes = ENVELOPE, priority: int = 0, due: str = "0") -> NewJob:
    """A job to submit."""
    return NewJob(queue, job_id, envelope.encode() if isinstance(envelope, str) else envelope, priority, due)


async def submit(store: Store, queue: Queue, ids: Iterable[str]) -> None:
    """Submit new jobs of the first priority, due now."""
    jobs = [new(queue, job_id) for job_id in ids]
    assert await store.submit(jobs) == [1] * len(jobs)


async def lease(store: Store, queue: Queue, token: str, *, count: int = 1000, lease_ms: int = 10_000) -> list[str]:
    """Claim, and the ids of what was claimed."""
    return [job.id for job in (await store.claim(queue, count, lease_ms, token)).jobs]


async def start(store: Store, queue: Queue, ids: Iterable[str], *, lease_ms: int = 10_000) -> None:
    """Submit new jobs and lease them all, under the token r.1."""
    await submit(store, queue, ids)
    await lease(store, queue, "r.1", lease_ms=lease_ms)
