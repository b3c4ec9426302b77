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

from aioflow import Handle, Runtime, Service, StoreUnavailable
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
