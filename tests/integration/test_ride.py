"""A claim that rides with a submit: one round trip to the handler's start, and no bell."""

from __future__ import annotations

import asyncio

import pytest

from aioflow import QueueFull, Runtime, Service, State, StoreUnavailable
from aioflow.engine import maintenance
from aioflow.engine.store import Store
from tests.integration.test_line import load_all, sha
from tests.integration.test_wait import idle
from tests.proxy import Proxy
from tests.valkey import Valkey
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def no_maintenance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maintenance runs once and no more, so that it mends nothing."""
    monkeypatch.setattr(maintenance, "TURN_MS", 60_000)


async def calls(store: Store, command: str) -> int:
    """How often the server has run a command, those of scripts included."""
    stats = await store.redis.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


async def test_an_idle_runtime_starts_its_own_jobs_by_two_scripts_in_one_round_trip(
    own_valkey: Valkey, namespace: str
) -> None:
    service = Service("demo")
    done = asyncio.Event()

    @service.task()
    async def work() -> None:
        done.set()

    async with Runtime([service], redis=own_valkey.url, namespace=namespace, durability="memory") as runtime:
        observer = runtime._live_store()
        await runtime.submit(work)  # loads the scripts
        await done.wait()
        await wait_until(lambda: len(runtime._pools[0].held) == 0)
        await idle(runtime)
        before = {name: await calls(observer, name) for name in ("evalsha", "rpush", "blpop")}
        for _ in range(5):
            done.clear()
            handle = await runtime.submit(work)
            await done.wait()
            await wait_until(lambda: len(runtime._pools[0].held) == 0)
        after = {name: await calls(observer, name) for name in before}
        assert after["evalsha"] - before["evalsha"] == 5 * 3, "submit, claim and settle"
        assert after["rpush"] == before["rpush"], "nobody else need look"
        assert after["blpop"] == before["blpop"]
        assert (await handle.status()).state is State.DONE


async def test_a_delayed_job_that_rode_in_sets_the_timer(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")
    started = asyncio.Event()

    @service.task()
    async def work() -> None:
        started.set()

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        observer = runtime._live_store()
        await load_all(observer)  # over a script that the server does not know, no claim rides
        await idle(runtime)
        rings = await calls(observer, "rpush")
        await runtime.submit(work, delay=0.05)
        assert await calls(observer, "rpush") == rings, "no bell says when it is due"
        async with asyncio.timeout(2):
            await started.wait()


async def test_what_the_ride_leaves_behind_wakes_others(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")
    running: list[int] = []
    gate = asyncio.Event()

    @service.task(concurrency=1)
    async def work(number: int) -> None:
        running.append(number)
        await gate.wait()

    async with (
        Runtime([service], redis=valkey.url, namespace=namespace) as near,
        Runtime([service], redis=valkey.url, namespace=namespace) as other,
    ):
        await load_all(near._live_store())  # over a script that the server does not know, no claim rides
        await idle(near)
        await idle(other)
        handles = await asyncio.gather(near.submit(work, 1), near.submit(work, 2))
        await wait_until(lambda: sorted(running) == [1, 2], 2)  # well before a pop ends by itself
        gate.set()
        for handle in handles:
            await handle.result(5)


async def test_a_ride_over_a_line_that_breaks_is_claimed_anew(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")

    @service.task()
    async def work(number: int) -> int:
        return number

    async with (
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False),
        Proxy(valkey.socket) as proxy,
        Runtime([service], redis=proxy.url, namespace=namespace) as far,
    ):
        assert await (await far.submit(work, 0)).result(5) == 0
        await idle(far)
        proxy.lose_reply(sha("queue/claim"))
        lost = await far.submit(work, 1)
        assert not lost.created, "the first sending took it, the second said so"
        # The claimer goes on by itself at once; what the lost answer leased waits for its lease.
        assert await (await far.submit(work, 2)).result(5) == 2
        assert (await lost.status()).state is State.RUNNING


async def test_a_refused_submit_and_a_refused_receipt_keep_no_claim_from_its_claimer(
    own_valkey: Valkey, namespace: str
) -> None:
    service = Service("demo")
    gate = asyncio.Event()
    started: list[int] = []

    @service.task(bound=1, concurrency=2)
    async def work(number: int) -> int:
        started.append(number)
        await gate.wait()
        return number

    async with Runtime([service], redis=own_valkey.url, namespace=namespace) as runtime:
        assert runtime.durability == "fsync"
        await idle(runtime)
        await runtime.redis.config_set("appendfsync", "everysec")
        with pytest.raises(StoreUnavailable, match="any more"):
            await runtime.submit(work, 1, id="mine")
        await wait_until(lambda: started == [1])
        await runtime.redis.config_set("appendfsync", "always")
        await idle(runtime)
        with pytest.raises(QueueFull):
            await runtime.submit(work, 2)
        gate.set()
        again = await runtime.submit(work, 1, id="mine")
        assert await again.result(5) == 1
        assert await (await runtime.submit(work, 3)).result(5) == 3
