"""A failover that closes no connection: the address leads to the new primary, and the old one lives on as its replica.

So do a DNS name, a virtual address and a proxy before managed servers. Whoever keeps a connection from before still
speaks to the old one, which reads, loads scripts, and refuses every write.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from redis.asyncio import Redis

from aioflow import Handle, Job, Runtime, Service, StoreUnavailable
from aioflow.engine import inbox
from aioflow.engine.keys import Queue
from aioflow.engine.records import NewJob
from aioflow.engine.store import Store
from tests.integration.test_replicated import free_port
from tests.proxy import Proxy
from tests.valkey import Valkey
from tests.waiting import wait_until


@dataclass
class Pair:
    """A primary, its replica, and an address that leads to whichever is the primary."""

    servers: list[Valkey]
    ports: list[int]
    proxy: Proxy

    async def fail_over(self) -> None:
        """The replica takes over, and the primary follows it; no connection is closed."""
        old, new = self.servers
        self.proxy._server = new.socket
        async with Redis.from_url(new.admin_url, protocol=2) as admin:
            await admin.replicaof("NO", "ONE")
        async with Redis.from_url(old.admin_url, protocol=2) as admin:
            await admin.replicaof("127.0.0.1", self.ports[1])

    async def in_step(self) -> bool:
        """Whether the replica follows."""
        async with Redis.from_url(self.servers[1].admin_url, protocol=2) as admin:
            return bool((await admin.info("replication")).get("master_link_status") == "up")


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    ports = [free_port(), free_port()]
    follows = [("--repl-diskless-sync-delay", "0"), ("--replicaof", "127.0.0.1", str(ports[0]))]
    servers = [Valkey(arguments=("--port", str(port), *more)) for port, more in zip(ports, follows, strict=True)]
    try:
        for server in servers:
            server.start()
        async with Proxy(servers[0].socket) as proxy:
            made = Pair(servers, ports, proxy)
            await wait_until(made.in_step)
            yield made
    finally:
        for server in servers:
            server.close()


def new(queue: Queue, job_id: str) -> NewJob:
    return NewJob(queue, job_id, b"\n1", 4, "0")


@pytest.mark.parametrize("first", ["a script", "a plain command"])
async def test_whichever_call_hears_it_first_all_others_go_to_the_new_primary(
    pair: Pair, queue: Queue, first: str
) -> None:
    store = Store(pair.proxy.url, name="aioflow:test")
    async with Redis.from_url(pair.servers[1].admin_url, protocol=2) as promoted:
        assert await store.submit([new(queue, "a")]) == [1]
        await store.configure(queue, 7)
        await wait_until(lambda: promoted.hexists(queue.keys["config"], "bound"))
        await pair.fail_over()
        with pytest.raises(StoreUnavailable, match="read only"):
            await (store.submit([new(queue, "b")]) if first == "a script" else store.configure(queue, 8))
        assert await store.submit([new(queue, "c")]) == [1], "the new primary is told the script"
        await store.configure(queue, 9)
        assert await promoted.hget(queue.keys["config"], "bound") == b"9"
        assert set(await promoted.hkeys(queue.keys["jobs"])) == {b"a", b"c"}
    await store.close()


async def test_a_runtime_goes_on_and_what_a_handler_has_done_is_not_done_again(
    pair: Pair, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service("demo")
    started, gate = asyncio.Event(), asyncio.Event()
    ran: list[int] = []

    @service.task(concurrency=5)
    async def work(number: int) -> int:
        ran.append(number)
        started.set()
        await gate.wait()
        return number

    async def submitted() -> Handle[int] | None:
        try:
            return await work.submit(2, id="after")
        except StoreUnavailable:
            return None

    async with Runtime([service], redis=pair.proxy.url, namespace=namespace, durability="memory"):
        before = await work.submit(1, durability="replicated:1")
        await started.wait()
        await pair.fail_over()
        gate.set()
        assert await before.result(20) == 1
        after = await wait_until(submitted, 20)
        assert after is not None
        assert await after.result(20) == 2
        assert ran == [1, 2]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_whoever_waits_for_a_result_listens_at_the_new_primary(
    pair: Pair, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "SILENCE_SECONDS", 0.2)
    service = Service("demo")
    gate = asyncio.Event()

    @service.task()
    async def work(number: int) -> int:
        await gate.wait()
        return number

    async with (
        Redis.from_url(pair.servers[1].admin_url, protocol=2) as promoted,
        Runtime([service], redis=pair.proxy.url, namespace=namespace, durability="memory"),
    ):
        handle = await work.submit(1, durability="replicated:1")
        result = asyncio.create_task(handle.result(30))
        await pair.fail_over()
        await wait_until(promoted.pubsub_channels, 20)
        gate.set()
        assert await result == 1


async def test_emits_reach_their_queues(pair: Pair, namespace: str) -> None:
    service, other = Service("demo"), Service("other")
    taken: list[int] = []

    @service.task()
    async def work(number: int, job: Job) -> None:
        job.commit.submit("other.take", number)

    @other.task()
    async def take(number: int) -> None:
        taken.append(number)

    async def submitted() -> bool:
        try:
            await work.submit(2, id="after")
        except StoreUnavailable:
            return False
        return True

    outbox = Queue(namespace, "demo", "work").keys["outbox"]
    knowing = Store(pair.servers[1].admin_url, name="aioflow:test")
    await knowing.begin([])  # so that no call of a script meets what a replica that takes over does not know
    await knowing.close()
    async with (
        Redis.from_url(pair.servers[1].admin_url, protocol=2) as promoted,
        Runtime([service, other], redis=pair.proxy.url, namespace=namespace, durability="memory"),
    ):
        await work.submit(1)
        await wait_until(lambda: taken == [1])
        await pair.fail_over()
        await wait_until(submitted, 20)
        await wait_until(lambda: taken == [1, 2], 20)

        async def relayed() -> bool:
            return await promoted.xlen(outbox) == 0

        await wait_until(relayed)
