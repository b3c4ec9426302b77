"""How soon a job starts again whose runtime has died."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from aioflow import Job, Runtime, Service
from aioflow.engine import maintenance
from aioflow.engine.keys import Queue
from aioflow.engine.store import Store
from tests.chaos.server import STEPPED_IN, Server
from tests.integration.test_wait import idle
from tests.valkey import Valkey
from tests.waiting import wait_until

LEASE = 0.6


async def recover(url: str, namespace: str, store: Store) -> None:
    """A runtime that has just started takes over what another one claims and leaves, within a lease and a second."""
    service = Service("demo")

    @service.task(lease=LEASE)
    async def work(job: Job) -> int:
        return job.attempt

    async with Runtime([service], redis=url, namespace=namespace) as runtime:
        await idle(runtime)
        (pool,) = runtime._pools
        pool.be_quiet()
        handle = await runtime.submit(work)
        claimed = await store.claim(Queue(namespace, "demo", "work"), 1, int(LEASE * 1000), "gone.1")
        began = time.monotonic()
        assert [job.id for job in claimed.jobs] == [handle.id], "somebody else has it, and dies"
        pool.quiet = False
        pool.changed()
        assert await handle.result(10) == 2
        assert time.monotonic() - began < LEASE + 1


async def test_the_empty_turns_of_the_dead_delay_no_recovery(
    valkey: Valkey, namespace: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "TURN_MS", 3_600_000)  # as after many deaths: the next turn is far away
    await recover(valkey.url, namespace, store)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server whose clock can be set."""
    made = Server(tmp_path)
    try:
        if not made.can_step:
            pytest.skip("libfaketime is not installed")
        made.start()
        yield made
    finally:
        made.close()


async def step(server: Server, seconds: int) -> None:
    """Set its clock, and wait until it shows that."""
    server.step(seconds)
    async with Redis.from_url(server.url) as redis:

        async def stepped() -> bool:
            shown, _ = await redis.time()
            return bool(abs(int(shown) - time.time() - seconds) < 5)

        await wait_until(stepped, 2 * STEPPED_IN)


async def test_a_runtime_that_starts_after_the_servers_clock_was_set_back_takes_over(
    namespace: str, server: Server
) -> None:
    await step(server, -3600)
    store = Store(server.url, name="aioflow:test")
    await recover(server.url, namespace, store)
    await store.close()


async def test_a_runtime_that_starts_after_the_servers_clock_was_set_forward_takes_no_live_lease(
    namespace: str, server: Server
) -> None:
    service = Service("demo")
    starts: list[int] = []
    gate = asyncio.Event()

    @service.task(lease=6.0)
    async def work(job: Job) -> int:
        starts.append(job.attempt)
        await gate.wait()
        return job.attempt

    async with Runtime([service], redis=server.url, namespace=namespace) as holder:
        handle = await holder.submit(work)
        await wait_until(lambda: starts == [1])
        await step(server, 3600)
        async with Runtime([service], redis=server.url, namespace=namespace) as fresh:
            await idle(fresh)
            totals = await fresh.totals(work)
            assert totals.get("reaped", 0) == 0, "its holder has had no time to renew it by the new clock"
            gate.set()
            assert await handle.result(10) == 1
    assert starts == [1]
