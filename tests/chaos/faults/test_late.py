"""What comes late: when the record of its job was trimmed, when the job is another's, when another job has its id."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from aioflow import ConfigError, Job, Runtime, Service
from aioflow.commit import Effect
from aioflow.engine import wire
from aioflow.engine.keys import PARTS, Queue, data_key
from aioflow.engine.records import Leased, NewJob, Settlement
from aioflow.engine.store import Store
from aioflow.policy import RETENTION_FLOOR, TaskOptions
from tests.chaos.faults.lanes import World
from tests.chaos.model import emitted_id
from tests.proxy import Proxy
from tests.waiting import wait_until

SOLD = Effect("hincrby", "sold", ("a", "1"))
EMIT = Effect("emit", "ledger.book", ("\n1", "4", "0"))


async def all_of(near: Store, queue: Queue) -> dict[str, Any]:
    """Everything under a queue's keys and in its service's counter, to the last byte."""
    found: dict[str, Any] = {}
    for part, key in (*queue.keys.items(), ("sold", data_key(queue.namespace, queue.service, "sold"))):
        if part != "totals":  # a repeated submit is counted there
            found[part] = await near.redis.dump(key)
    return found


async def trimmed(near: Store, queue: Queue) -> None:
    """Shorten the retention to nothing, and forget what is finished."""

    async def gone() -> bool:
        await near.trim(queue, keep_done_ms=0, keep_dead_ms=0)
        return not await near.redis.exists(queue.keys["jobs"], queue.keys["results"])

    await wait_until(gone)


def test_every_repeat_of_the_store_comes_before_the_shortest_retention_is_over() -> None:
    longest = 2 * wire.ROUND_TRIP_SECONDS + TaskOptions().lease
    assert longest * 10 < RETENTION_FLOOR
    with pytest.raises(ConfigError):
        TaskOptions(keep_done=RETENTION_FLOOR - 1)
    with pytest.raises(ConfigError):
        TaskOptions(keep_dead=RETENTION_FLOOR - 1)


async def test_an_id_is_the_same_job_for_as_long_as_its_record_is_kept_and_a_new_one_after_it(
    world: World, namespace: str
) -> None:
    service = Service("shop")

    @service.task()
    async def sell(name: str, job: Job) -> str:
        job.commit.hincrby("sold", name, 1)
        return name

    async def sold() -> bytes | None:
        found: Any = await world.near.redis.hget(data_key(namespace, "shop", "sold"), "a")
        return bytes(found)

    queue = Queue(namespace, "shop", "sell")
    async with Runtime([service], redis=world.valkey.url, namespace=namespace) as runtime:
        first = await runtime.submit(sell, "a", id="a")
        assert first.created
        for _ in range(3):  # before, while and after it runs
            assert not (await runtime.submit(sell, "a", id="a")).created
            assert await first.result(5) == "a"
        assert await sold() == b"1"
        await trimmed(world.near, queue)
        assert (await runtime.submit(sell, "a", id="a")).created, "nothing of the first is kept"
        assert await first.result(5) == "a"
        assert await sold() == b"2"
        assert (await world.near.totals(queue))["submitted"] == 2


async def test_a_relay_that_is_repeated_after_its_jobs_were_trimmed_takes_none_again(
    world: World, namespace: str
) -> None:
    source, target = Queue(namespace, "shop", "sell"), Queue(namespace, "ledger", "book")
    near = world.near
    await near.submit([NewJob(source, "a", b"\n1", 4, "0")])
    await near.claim(source, 1, 60_000, "t.1")
    assert await near.settle(source, [Settlement("a", "t.1", "done", effects=[EMIT, EMIT, EMIT])]) == [1]
    emitted = await near.outbox(source, 10)
    assert await near.relay(target, source.name, emitted[:2]) == 2
    await near.claim(target, 2, 60_000, "t.2")
    ids = [emitted_id(source.name, job.sequence) for job in emitted]
    assert await near.settle(target, [Settlement(job_id, "t.2", "done") for job_id in ids[:2]]) == [1, 1]
    await trimmed(near, target)
    before = await all_of(near, target)
    assert await near.relay(target, source.name, emitted[:2]) == 0
    assert await all_of(near, target) == before
    assert await near.relay(target, source.name, emitted) == 1, "only what was never taken"
    assert [job.id for job in (await near.claim(target, 3, 60_000, "t.3")).jobs] == ids[2:]


@pytest.mark.parametrize("now", ["trimmed", "another's", "another job of that id"])
async def test_a_zombie_changes_nothing_whatever_it_calls(world: World, namespace: str, now: str) -> None:
    queue, near = Queue(namespace, "shop", "sell"), world.near
    await near.submit([NewJob(queue, "a", b"\n1", 4, "0")])
    await near.claim(queue, 1, 1, "zombie.1")
    await wait_until(lambda: reaped(near, queue))
    await near.claim(queue, 1, 60_000, "other.1")
    if now != "another's":
        assert await near.settle(queue, [Settlement("a", "other.1", "done", effects=[SOLD])]) == [1]
        await trimmed(near, queue)
    if now == "another job of that id":
        await near.submit([NewJob(queue, "a", b"\n1", 4, "0")])
        await near.claim(queue, 1, 60_000, "other.2")
    before = await all_of(near, queue)
    for _ in range(2):
        for kind in ("done", "retry", "dead"):
            late = Settlement("a", "zombie.1", kind, b"{}", effects=[SOLD, EMIT])
            assert await near.settle(queue, [late]) == [0]
        assert await near.renew([(queue, 60_000, [("a", "zombie.1")])]) == [[0]]
        assert await near.release(queue, [("a", "zombie.1")]) == [False]
        assert await near.requeue(queue, [("a", "zombie.1")]) == [False]
        assert await near.progress(queue, [("a", "zombie.1", b"1")]) == [False]
        assert not await near.expose(queue, Leased("a", "zombie.1", b"", 1, 0, 0))
    after = await all_of(near, queue)
    assert {part for part in PARTS if before.get(part) != after.get(part)} == set()
    assert before["sold"] == after["sold"]


async def reaped(near: Store, queue: Queue) -> bool:
    return (await near.reap(queue, most_crashes=3, longest_ms=60_000)).jobs == 1


async def test_a_runtime_that_was_cut_off_for_longer_than_its_lease_is_told_so(
    world: World, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    await be_a_zombie(world, namespace)
    assert "a: its lease was lost; its outcome is dropped" in caplog.text


async def be_a_zombie(world: World, namespace: str) -> None:
    """Run a handler in a thread beyond its lease, behind a line that says nothing, until its job was trimmed."""
    service, queue = Service("shop"), Queue(namespace, "shop", "sell")
    began, gate = threading.Event(), threading.Event()

    @service.task(lease=0.6)
    def sell(job: Job) -> int:
        if not began.is_set():
            began.set()
            assert gate.wait(10)
        job.commit.hincrby("sold", "a", 1)
        return job.attempt

    async with Proxy(world.valkey.socket) as proxy:
        async with Runtime([service], redis=proxy.url, namespace=namespace) as zombie:
            await zombie.submit(sell, id="a")
            await wait_until(began.is_set)
            (held,) = zombie._pools[0].held
            proxy.stall()
            async with Runtime([service], redis=world.valkey.url, namespace=namespace) as other:
                assert await other.wait_result("shop.sell", "a", 10) == 2
            await trimmed(world.near, queue)
            before = await all_of(world.near, queue)
            gate.set()
            await wait_until(lambda: held not in zombie._pools[0].running)
            assert held.lease_until < time.monotonic()
            proxy.flow()
            await wait_until(lambda: held not in zombie._pools[0].held)
            await asyncio.sleep(0)
        after = await all_of(world.near, queue)
    kept = {"runners", "bell"}
    assert {part for part in after if part not in kept and before[part] != after[part]} == set()
    sold: Any = await world.near.redis.hgetall(data_key(namespace, "shop", "sold"))
    assert sold == {b"a": b"1"}
