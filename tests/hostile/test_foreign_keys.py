"""Keys of another type under the engine's names, and rows in its hashes that nobody of ours wrote.

That a script which meets them changes nothing is in tests/integration/scripts; here it is what is said of it, and that
it is said of nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator

import pytest

from aioflow import ProtocolError, Runtime, Service, State
from aioflow.engine.keys import PARTS, Queue
from aioflow.engine.records import Emitted, Settlement
from aioflow.engine.store import Store
from tests.integration.scripts.state import new, submit
from tests.valkey import Valkey
from tests.waiting import wait_until

LEASE_MS = 60_000
Call = Callable[[], Awaitable[object]]


def calls(store: Store, queue: Queue) -> Iterator[tuple[str, Call]]:
    """One call of each kind, on two jobs of which the first is running under r.1, the second finished."""
    yield "submit", lambda: store.submit([new(queue, "c")])
    yield "claim", lambda: store.claim(queue, 1, LEASE_MS, "r.3")
    yield "progress", lambda: store.progress(queue, [("a", "r.1", b"1")])
    yield "renew", lambda: store.renew([(queue, LEASE_MS, [("a", "r.1")])])
    yield "cancel", lambda: store.cancel(queue, ["a"], "x:1:nobody:")
    yield "settle", lambda: store.settle(queue, [Settlement("a", "r.1", "done", b"1")])
    yield "release", lambda: store.release(queue, [("x", "r.9")])
    yield "promote", lambda: store.promote(queue)
    yield "reap", lambda: store.reap(queue, most_crashes=3, longest_ms=LEASE_MS)
    yield "trim", lambda: store.trim(queue, keep_done_ms=LEASE_MS, keep_dead_ms=LEASE_MS)
    yield "requeue", lambda: store.requeue(queue, [("b", "x")])
    yield "inspect", lambda: store.inspect(queue, ["a", "b"])
    yield "look", lambda: store.look(queue, "b")
    yield "await", lambda: store.await_result(queue, "b", "x:1:nobody:1")
    yield "pause", lambda: store.pause(queue, paused=False)
    yield "configure", lambda: store.configure(queue, 1000)
    yield "relay", lambda: store.relay(queue, "{else.0}:third", [Emitted("1-1", queue.name, b"\n1", 4, 0)])
    yield "outbox", lambda: store.outbox(queue, 10)
    yield "leave", lambda: store.leave(queue, "nobody")
    yield "bell", lambda: store.wait_bell(queue, 0.01)
    for part in ("done", "open"):
        yield f"page of {part}", lambda part=part: store.page(queue.keys[part], 0, 1, 10, None)  # type: ignore[misc]
        yield f"count of {part}", lambda part=part: store.count(queue.keys[part], 0, 1)  # type: ignore[misc]


async def begin(store: Store, queue: Queue) -> None:
    """Two jobs: the one finished, the other running."""
    await submit(store, queue, ["b"])
    await store.claim(queue, 1, LEASE_MS, "r.0")
    await store.settle(queue, [Settlement("b", "r.0", "done", b"1")])
    await submit(store, queue, ["a"])
    await store.claim(queue, 1, LEASE_MS, "r.1")


async def refusals(store: Store, queue: Queue) -> list[str]:
    """What is said by each call that is refused, and by which."""
    said = []
    for name, call in calls(store, queue):
        try:
            await call()
        except ProtocolError as error:
            said.append(f"{name}: {error}")
    return said


@pytest.mark.parametrize("part", PARTS)
async def test_a_key_of_another_type_is_named_and_is_nothing_to_other_queues(
    store: Store, queue: Queue, part: str
) -> None:
    other = Queue(queue.namespace, queue.service, "other")
    for each in (queue, other):
        await begin(store, each)
    key = queue.keys[part]
    await store.redis.delete(key)
    planted = store.redis.rpush if PARTS[part] != "list" else store.redis.sadd
    await planted(key, "foreign")
    refused = await refusals(store, queue)
    assert refused, f"no call looks at {part}"
    assert [said for said in refused if key not in said] == []
    for _, call in calls(store, other):
        await call()
    kept = await (store.redis.lrange(key, 0, -1) if PARTS[part] != "list" else store.redis.smembers(key))
    assert list(kept) == [b"foreign"], "it is another's, and left alone"
    await store.redis.delete(key)
    for name, call in calls(store, queue):
        if name in {"submit", "claim", "promote", "reap", "pause", "configure", "bell", "outbox", "leave"}:
            await call()


@pytest.mark.parametrize("part", ["ready", "claims", "results", "outbox"])
async def test_a_runtime_says_which_key_and_runs_other_tasks_meanwhile_and_all_of_them_again(
    valkey: Valkey, namespace: str, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service("demo")

    @service.task(lease=1.0)
    async def work(number: int) -> int:
        return number + 1

    @service.task()
    async def other(number: int) -> int:
        return number + 1

    caplog.set_level(logging.WARNING)
    key = Queue(namespace, "demo", "work").keys[part]
    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        assert await (await work.submit(1)).result(timeout=10) == 2
        await runtime.redis.delete(key)
        await runtime.redis.rpush(key, "foreign")

        async def named() -> bool:
            """Whether it was: by who submits, or by what runs the job."""
            try:
                await work.submit(2)
            except ProtocolError as error:
                return key in str(error)
            return any(key in record.getMessage() for record in caplog.records)

        await wait_until(named)
        assert await (await other.submit(3)).result(timeout=10) == 4
        assert not runtime.failed.is_set()
        await runtime.redis.delete(key)
        assert await (await work.submit(5)).result(timeout=15) == 6


ROWS = {
    "jobs": b"no envelope",
    "results": b"no row",
    "claims": b"no row",
    "history": b"no history",
    "progress": b"no JSON",
    "waiters": b"no channel",
}


@pytest.mark.parametrize("part", ROWS)
async def test_a_row_that_is_none_of_ours_is_named_and_harms_no_other_job(
    store: Store, queue: Queue, part: str
) -> None:
    await begin(store, queue)
    row = "b" if part == "results" else "a"
    await store.redis.hset(queue.keys[part], row, ROWS[part])
    await store.redis.hset(queue.keys[part], "of nobody", ROWS[part])
    assert [said for said in await refusals(store, queue) if queue.keys[part] not in said] == []
    await submit(store, queue, ["d"])
    claimed = await store.claim(queue, 10, LEASE_MS, "r.7")
    assert "d" in [job.id for job in claimed.jobs]
    assert await store.settle(queue, [Settlement("d", "r.7", "done", b"2")]) == [1]
    assert await store.look(queue, "d") == (State.DONE, b"2")


@pytest.mark.parametrize("payload", [b"no envelope", b"\n", b"\n{", b'\n"text"', b"\n\xff\xfe", b"\n1" * 1000])
async def test_a_payload_that_is_not_ours_ends_its_job_alone(valkey: Valkey, namespace: str, payload: bytes) -> None:
    service = Service("demo")

    @service.task()
    async def work(number: int) -> int:
        return number + 1

    queue = Queue(namespace, "demo", "work")
    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as runtime:
        handle = await work.submit(1)
        await runtime.redis.hset(queue.keys["jobs"], handle.id, payload)
        good = await work.submit(2)
        bad_id, good_id = handle.id, good.id
    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        assert await work.handle(good_id).result(timeout=10) == 3

        async def ended() -> State | None:
            state = (await work.handle(bad_id).status()).state
            return state if state in (State.DEAD, State.DONE) else None

        assert await wait_until(ended) is State.DEAD
        info = await runtime.inspect(work, bad_id)
        assert info.result is not None
        assert b"CodecError" in info.result, info.result
