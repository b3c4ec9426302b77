"""How soon a job starts again whose runtime has died."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

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


async def test_a_runtime_that_starts_after_the_servers_clock_was_set_back_takes_over(
    namespace: str, tmp_path: Path
) -> None:
    server = Server(tmp_path)
    if not server.can_step:
        server.close()
        pytest.skip("libfaketime is not installed")
    server.start()
    store = Store(server.url, name="aioflow:test")
    try:
        server.step(-3600)

        async def stepped() -> bool:
            seconds, _ = await store.redis.time()
            return bool(abs(int(seconds) - time.time() + 3600) < 5)

        await wait_until(stepped, 2 * STEPPED_IN)
        await recover(server.url, namespace, store)
    finally:
        await store.close()
        server.close()
