"""How soon a job starts again whose runtime has died."""

from __future__ import annotations

import time

import pytest

from aioflow import Job, Runtime, Service
from aioflow.engine import maintenance
from aioflow.engine.keys import Queue
from aioflow.engine.store import Store
from tests.integration.test_wait import idle
from tests.valkey import Valkey

LEASE = 0.6


async def test_the_empty_turns_of_the_dead_delay_no_recovery(
    valkey: Valkey, namespace: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "TURN_MS", 3_600_000)  # as after many deaths: the next turn is far away
    service = Service("demo")

    @service.task(lease=LEASE)
    async def work(job: Job) -> int:
        return job.attempt

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
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
