"""The line to Redis: lost replies, silent servers, restarts, steps of the clock, cancellations."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from aioflow import Handle, Job, Runtime, Service, State, StoreUnavailable
from aioflow.commit import Effect
from aioflow.engine import connect, scripts, wire
from aioflow.engine.attempt import Stop
from aioflow.engine.keys import Queue, data_key
from aioflow.engine.maintenance import Maintenance
from aioflow.engine.records import Durability, Settlement
from aioflow.engine.relay import Relay
from aioflow.engine.store import Store
from aioflow.errors import AioflowError
from aioflow.policy import TaskOptions
from tests.conftest import Clock
from tests.integration.scripts.state import new
from tests.proxy import Proxy
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until


def sha(name: str) -> bytes:
    """What marks the calls of a script on the wire."""
    return scripts.load(name).sha.encode()


async def script_calls(observer: Store) -> int:
    """How many script calls the server has run; one that it does not know is none."""
    stats = (await observer.redis.info("commandstats")).get("cmdstat_evalsha", {})
    return int(stats.get("calls", 0)) - int(stats.get("failed_calls", 0))


async def load_all(store: Store) -> None:
    """Make the server know every script, so that a test's first call runs."""
    for name in ("submit", "claim", "settle", "renew", "release", "promote", "requeue", "inspect"):
        await store.redis.script_load(scripts.load(f"queue/{name}").source)


@asynccontextmanager
async def proxied(server: Valkey) -> AsyncIterator[tuple[Proxy, Store]]:
    """A store behind a proxy."""
    async with Proxy(server.socket) as proxy:
        store = Store(proxy.url, name="aioflow:proxied")
        try:
            yield proxy, store
        finally:
            proxy.flow()
            await store.close()


# ---- a reply that is lost after the write


async def test_a_claim_whose_reply_is_lost_is_not_sent_again(valkey: Valkey, queue: Queue, store: Store) -> None:
    await load_all(store)
    await store.submit([new(queue, "a"), new(queue, "b")])
    async with proxied(valkey) as (proxy, far):
        ran = await script_calls(store)
        proxy.lose_reply(sha("queue/claim"))
        with pytest.raises(StoreUnavailable):
            await far.claim(queue, 1, 60_000, "t.1")
        assert await script_calls(store) - ran == 1
    infos = await store.inspect(queue, ["a", "b"])
    assert [info.state if info else None for info in infos] == [State.RUNNING, State.READY]


@pytest.mark.parametrize("durability", ["memory", "fsync"])
async def test_a_submit_whose_reply_is_lost_is_sent_once_more(
    own_valkey: Valkey, queue: Queue, durability: Durability
) -> None:
    async with proxied(own_valkey) as (proxy, far):
        near = Store(own_valkey.url, name="observer")
        await load_all(near)
        ran = await script_calls(near)
        proxy.lose_reply(sha("queue/submit"))
        assert await far.submit([new(queue, "a")], durability) == [0], "the repeat hears that it is known"
        assert await script_calls(near) - ran == 2
        proxy.lose_reply(sha("queue/submit"), times=2)
        with pytest.raises(StoreUnavailable):
            await far.submit([new(queue, "b")], durability)
        assert await script_calls(near) - ran == 4, "one repeat, and no more"
        assert (await near.sizes(queue)).open == 2
        await near.close()


async def test_settle_renew_release_and_requeue_are_sent_once_more_and_answer_as_the_first_time(
    valkey: Valkey, queue: Queue, store: Store
) -> None:
    await load_all(store)
    await store.submit([new(queue, job_id) for job_id in ("done", "retry", "dead", "released")])
    await store.claim(queue, 4, 60_000, "t.1")
    count = [Effect("hincrby", "ran", ("times", "1"))]
    settlements = [
        Settlement("done", "t.1", "done", b"7", effects=count),
        Settlement("retry", "t.1", "retry", delay_ms=60_000, failed=True, effects=count),
        Settlement("dead", "t.1", "dead", b"{}", effects=count),
    ]
    calls: list[tuple[str, Callable[[Store], Awaitable[Any]], Any]] = [
        ("renew", lambda far: far.renew([(queue, 60_000, [("done", "t.1"), ("gone", "t.1")])]), [[1, 0]]),
        ("settle", lambda far: far.settle(queue, settlements), [1, 1, 1]),
        ("release", lambda far: far.release(queue, [("released", "t.1")]), [True]),
        ("requeue", lambda far: far.requeue(queue, [("dead", "t.1")]), [True]),
    ]
    async with proxied(valkey) as (proxy, far):
        for name, call, answer in calls:
            ran = await script_calls(store)
            answered = proxy.lose_reply(sha(f"queue/{name}"))
            assert await call(far) == answer, name
            assert answered.is_set(), name
            assert await script_calls(store) - ran == 2, name
            proxy.lose_reply(sha(f"queue/{name}"), times=2)
            with pytest.raises(StoreUnavailable):
                await call(far)
            assert await script_calls(store) - ran == 4, name
    ran_times = await store.redis.hget(data_key(queue.namespace, queue.service, "ran"), "times")
    assert ran_times == b"3", "effects land once"


async def test_jobs_run_once_while_replies_are_lost(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")

    @service.task(concurrency=20)
    async def work(number: int, job: Job) -> int:
        job.commit.hincrby("ran", job.id, 1)
        return number

    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as near,
        Runtime([service], redis=proxy.url, namespace=namespace) as far,
    ):
        handles: list[Handle[Any]] = []
        submits, settles = [], []
        for batch in range(10):
            submits.append(proxy.lose_reply(sha("queue/submit")))
            settles.append(proxy.lose_reply(sha("queue/settle")))
            numbers = range(20 * batch, 20 * batch + 20)
            handles += await asyncio.gather(*[far.submit(work, number) for number in numbers])
        for number, handle in enumerate(handles):
            assert await near.wait_result("demo.work", handle.id, 20) == number
        ran = await near.redis.hgetall(near.key(service, "ran"))
        assert ran == {handle.id.encode(): b"1" for handle in handles}
        assert all(lost.is_set() for lost in submits)
        assert any(lost.is_set() for lost in settles)  # one settle may have used up the losses of several batches


async def test_a_job_on_its_last_chance_does_not_die_of_an_answer_that_is_lost_before_its_start(
    valkey: Valkey, namespace: str, store: Store
) -> None:
    service, queue = Service("demo"), Queue(namespace, "demo", "work")

    @service.task(lease=1.0, most_crashes=2)
    async def work(job: Job) -> int:
        return job.attempt

    await store.submit([new(queue, "a")])
    await store.claim(queue, 1, 1, "dead.1", most_crashes=2)
    async with Proxy(valkey.socket) as proxy:
        # Lost twice: the store asks again by itself once.
        lost = proxy.lose_reply(sha("queue/expose"), times=2)
        async with Runtime([service], redis=proxy.url, namespace=namespace) as runtime:
            assert await runtime.wait_result("demo.work", "a", 10) == 2
        assert lost.is_set()


async def test_a_slow_line_changes_nothing(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")
    gate = asyncio.Event()

    @service.task(lease=0.5, concurrency=20)
    async def work(number: int) -> int:
        await gate.wait()
        return number

    async with Proxy(valkey.socket) as proxy:
        proxy.delay = 0.01
        async with Runtime([service], redis=proxy.url, namespace=namespace) as runtime:
            handles = await asyncio.gather(*[work.submit(number) for number in range(20)])
            for handle in handles:
                await in_state(handle, State.RUNNING)
                began = (await handle.status()).at_ms
                await wait_until(partial(renewed_beyond, runtime, work, handle.id, began))
            gate.set()
            assert await asyncio.gather(*[handle.result(10) for handle in handles]) == list(range(20))
            assert {(await handle.status()).attempt for handle in handles} == {1}


# ---- a server that is silent


async def test_every_round_trip_has_a_deadline(valkey: Valkey, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (connect, wire):
        monkeypatch.setattr(module, "ROUND_TRIP_SECONDS", 0.3)
    async with proxied(valkey) as (proxy, far):
        await far.submit([new(queue, "a")])  # connections are there already
        await far.ping()
        proxy.stall()
        calls: list[Awaitable[Any]] = [
            far.submit([new(queue, "b")]),
            far.submit([new(queue, "c")], "fsync"),
            far.claim(queue, 1, 1000, "t.1"),
            far.settle(queue, [Settlement("a", "t.1", "done")]),
            far.renew([(queue, 1000, [("a", "t.1")])]),
            far.promote(queue),
            far.ping(),
            far.memory(),
            far.sizes(queue),
            far.count(queue.keys["open"], 0, 1),
            far.page(queue.keys["open"], 0, 1, 1, None),
            # More than there are connections: waiting for one counts.
            *[far.inspect(queue, ["a"]) for _ in range(50)],
        ]
        began = time.monotonic()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - began < 0.3 + 1.0
        assert {type(answer) for answer in answers} == {StoreUnavailable}
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await far.wait_bell(queue, 0.1)
        assert 2.0 < time.monotonic() - began < 3.0, "the block time and 2 s"
        proxy.flow()
        assert await far.submit([new(queue, "d")]) == [1]


async def test_a_server_that_lets_nobody_else_in_costs_none_of_the_connections_that_it_has(
    own_valkey: Valkey, queue: Queue
) -> None:
    async with proxied(own_valkey) as (proxy, far), Redis.from_url(own_valkey.admin_url) as admin:
        await asyncio.gather(*(far.inspect(queue, ["a"]) for _ in range(3)), *(far.totals(queue) for _ in range(3)))
        before = set(proxy.links)
        await admin.config_set("maxclients", len(before) + 1)
        for _ in range(2):  # the second time each of them is taken again
            told = await asyncio.gather(
                *(far.inspect(queue, ["a"]) for _ in range(12)),
                *(far.totals(queue) for _ in range(16)),
                return_exceptions=True,
            )
            assert [error for error in told if isinstance(error, StoreUnavailable)]
        assert before <= proxy.links


@pytest.mark.parametrize("first", ["a script", "a plain command"])
async def test_a_peer_that_has_vanished_costs_one_deadline_and_not_one_for_each_connection(
    valkey: Valkey, queue: Queue, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    for module in (connect, wire):
        monkeypatch.setattr(module, "ROUND_TRIP_SECONDS", 0.3)
    async with proxied(valkey) as (proxy, far):
        await far.submit([new(queue, "a")])
        await asyncio.gather(*(far.inspect(queue, ["a"]) for _ in range(8)), *(far.totals(queue) for _ in range(8)))
        before = set(proxy.links)
        assert len(before) > 8
        for link in before:
            link.mute = True
        with pytest.raises(StoreUnavailable, match=r"no answer|Timeout"):
            await (far.promote(queue) if first == "a script" else far.totals(queue))
        assert await far.submit([new(queue, "b")]) == [1]
        assert await far.totals(queue) == {"submitted": 2}


async def test_a_lease_that_a_silent_server_does_not_renew_ends_its_handler_on_time(
    valkey: Valkey, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service("demo")
    started = asyncio.Event()
    ended: list[float] = []

    @service.task(lease=0.9)
    async def work(job: Job) -> None:
        job.commit.hset("good", str(job.attempt), "1")
        job.commit.hset("bad", str(job.attempt), "1", on_failure=True)
        if job.attempt == 1:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(time.monotonic())

    @service.task(lease=30.0)
    async def other() -> None:
        await asyncio.Event().wait()

    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as near,
    ):
        async with Runtime([service], redis=proxy.url, namespace=namespace, grace=0.0):
            beside = await near.submit(other)
            handle = await near.submit(work)
            await started.wait()
            proxy.stall()
            stalled = time.monotonic()
            await wait_until(lambda: ended, 5)
            # The last renewal was sent before; the round trip's deadline of 5 s must not stand in the way.
            assert ended[0] - stalled < 0.9 + 0.2
            assert "its lease could not be renewed; cancelled" in caplog.text
            proxy.flow()
            await handle_done(near, handle)
            assert (await beside.status()).attempt == 1
        assert (await handle.status()).attempt == 2
        assert await near.redis.hgetall(near.key(service, "good")) == {b"2": b"1"}
        assert await near.redis.hgetall(near.key(service, "bad")) == {}, "nothing is written under a lost lease"


async def handle_done(near: Runtime, handle: Handle[Any]) -> None:
    await near.wait_result(handle.task_name, handle.id, 10)


@pytest.mark.parametrize("comes_back", [False, True], ids=["silent", "late"])
async def test_a_stop_under_a_silent_server_tells_whoever_waits_and_ends_on_time(
    valkey: Valkey, namespace: str, comes_back: bool
) -> None:
    started: list[int] = []

    @asynccontextmanager
    async def lifespan(_: Runtime) -> AsyncIterator[None]:
        yield
        if comes_back:
            proxy.flow()  # what was held back arrives while the runtime closes
            await wait_until(submitting.done)

    service = Service("demo", lifespan=lifespan)

    @service.task(concurrency=10)
    async def work(number: int) -> None:
        started.append(number)

    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as near,
    ):
        runtime = Runtime([service], redis=proxy.url, namespace=namespace, grace=0.0)
        await runtime.start()
        await (await runtime.submit(work, 0)).result(5)
        proxy.stall()
        submitting = asyncio.create_task(runtime.submit(work, 1, id="mine"))
        await near.submit(work, 2)  # rings; the runtime's claim goes nowhere
        began = time.monotonic()
        await runtime.stop()
        assert time.monotonic() - began < 0.0 + 4
        if comes_back:
            assert (await submitting).created
        else:
            with pytest.raises(StoreUnavailable, match="stopped") as away:
                await submitting
            assert away.value.job_id == "mine"
        assert started == [0], "no handler starts in a runtime that has ended its handlers"


# ---- a server that forgets its scripts, its connections, or everything but its file


async def test_scripts_that_were_flushed_are_loaded_again(own_valkey: Valkey, queue: Queue) -> None:
    store = Store(own_valkey.url, name="aioflow:test")
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.submit([new(queue, "a")], "fsync"),
        lambda: store.claim(queue, 1, 60_000, "t.1"),
        lambda: store.renew([(queue, 60_000, [("a", "t.1")])]),
        lambda: store.settle(queue, [Settlement("a", "t.1", "dead", b"{}")]),
        lambda: store.requeue(queue, [("a", "t.1")]),
        lambda: store.promote(queue),
        lambda: store.inspect(queue, ["a"]),
        lambda: store.page(queue.keys["open"], 0, 2**42, 10, None),
    ]
    for call in calls:
        await store.redis.script_flush()
        await call()
    assert (await store.sizes(queue)).ready == 1
    await store.close()


async def test_a_script_that_is_unknown_again_loses_no_outcome(store: Store, queue: Queue) -> None:
    forgotten = replace(scripts.load("queue/settle"), sha="0" * 40)
    with pytest.raises(StoreUnavailable, match="No matching script"):
        await store.run_script(forgotten, [queue.keys["jobs"]], [])


async def test_a_runtime_under_load_survives_script_flush(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")

    @service.task(concurrency=10)
    async def work(number: int, job: Job) -> int:
        job.commit.hincrby("ran", job.id, 1)
        return number

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handles: list[Handle[int]] = []
        for batch in range(10):
            handles += await asyncio.gather(*[work.submit(20 * batch + number) for number in range(20)])
            await runtime.redis.script_flush()
        assert await asyncio.gather(*[handle.result(10) for handle in handles]) == list(range(200))
        assert {(await handle.status()).attempt for handle in handles} == {1}


async def test_a_server_that_came_back_between_two_calls_is_not_noticed(own_valkey: Valkey, queue: Queue) -> None:
    store = Store(own_valkey.url, name="aioflow:test")
    # Several idle connections, all of which the restart breaks.
    await asyncio.gather(*[store.submit([new(queue, f"first-{number}")]) for number in range(8)])
    connected_at = store.line.connected_at
    own_valkey.kill()
    own_valkey.start()
    assert await store.submit([new(queue, "second")]) == [1], "neither a dead connection nor a forgotten script"
    assert await store.submit([new(queue, "third")], "fsync") == [1]
    assert store.line.connected_at > connected_at, "leases are not judged at once"
    assert (await store.sizes(queue)).open == 10
    await store.close()


async def test_a_server_without_memory_is_away_for_submits_only(own_valkey: Valkey, namespace: str) -> None:
    service = Service("demo")
    gate = asyncio.Event()

    @service.task()
    async def work(number: int, job: Job) -> int:
        job.commit.hset("ran", job.id, "1")
        await gate.wait()
        return number

    async with Runtime([service], redis=own_valkey.url, namespace=namespace) as runtime:
        handle = await work.submit(1)
        delayed = await work.submit(2, delay=0.2)
        await in_state(handle, State.RUNNING)
        await runtime.redis.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailable, match="maxmemory") as away:
            await work.submit(3, id="mine")
        assert away.value.job_id == "mine"
        gate.set()
        await in_state(handle, State.DONE)
        await in_state(delayed, State.DONE)
        await runtime.redis.config_set("maxmemory", 0)
        assert await (await work.submit(3, id="mine")).result(5) == 3


async def test_a_restart_is_said_once_and_running_handlers_are_settled_after_it(
    own_valkey: Valkey, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aioflow.engine.line")
    service = Service("demo")
    gate = asyncio.Event()
    ended: list[str] = []

    @service.task()
    async def work(number: int, job: Job) -> int:
        job.commit.hincrby("ran", job.id, 1)
        await gate.wait()
        ended.append(job.id)
        return number

    async with Runtime([service], redis=own_valkey.url, namespace=namespace) as runtime:
        handles = [await work.submit(number) for number in range(3)]
        for handle in handles:
            await in_state(handle, State.RUNNING)
        results = [asyncio.create_task(handle.result(20)) for handle in handles]
        own_valkey.kill()
        for attempt in range(3):
            with pytest.raises(StoreUnavailable) as away:
                await work.submit(9, id=f"while-away-{attempt}")
            assert away.value.job_id == f"while-away-{attempt}"
        assert "redis does not answer" in (await runtime.ready() or "")
        gate.set()
        await wait_until(lambda: len(ended) == 3)
        await wait_until(lambda: runtime._live_store().line.failures > 5)  # several have tried again meanwhile
        own_valkey.start()
        assert await asyncio.gather(*results) == [0, 1, 2]
        assert await (await work.submit(4)).result(5) == 4
        assert await runtime.ready() is None
        for handle in handles:
            info = await handle.status()
            assert (info.attempt, info.crashes) == (1, 0)
            assert await runtime.redis.hget(runtime.key(service, "ran"), handle.id) == b"1"
    said = [record.getMessage() for record in caplog.records if record.name == "aioflow.engine.line"]
    assert [("is away" in line, "is back" in line) for line in said] == [(True, False), (False, True)], said


async def test_an_outage_longer_than_the_lease_cancels_handlers_and_loses_no_outcome(
    own_valkey: Valkey, namespace: str
) -> None:
    service = Service("demo")
    gate, thread_gate = asyncio.Event(), threading.Event()
    cancelled: list[str] = []

    @service.task(lease=0.8)
    async def work(ends: bool, job: Job) -> int:
        job.commit.hset("ran", f"{job.id} {job.attempt}", "1")
        if job.attempt == 1:
            try:
                await (gate if ends else asyncio.Event()).wait()
            except asyncio.CancelledError:
                cancelled.append(job.id)
                raise
        return job.attempt

    @service.task(lease=0.8)
    def thread(job: Job) -> int:
        job.commit.hset("ran", f"{job.id} {job.attempt}", "1")
        assert thread_gate.wait(10)
        return job.attempt

    async with Runtime([service], redis=own_valkey.url, namespace=namespace) as runtime:
        handles = [await work.submit(True), await thread.submit(), await work.submit(False)]
        for handle in handles:
            await in_state(handle, State.RUNNING)
        own_valkey.kill()
        gate.set()
        held = [attempt for pool in runtime._pools for attempt in pool.held]
        await wait_until(lambda: cancelled == [handles[2].id])
        await wait_until(lambda: all(attempt.lease_until < time.monotonic() for attempt in held))
        own_valkey.start()
        # The server still holds the leases of the first two: the outcome that waited is written, the thread goes on.
        assert await handles[0].result(10) == 1
        assert await handles[2].result(10) == 2
        thread_gate.set()
        assert await handles[1].result(10) == 1
        ran = await runtime.redis.hgetall(runtime.key(service, "ran"))
        assert set(ran) == {f"{handle.id} {n}".encode() for handle, n in zip(handles, (1, 1, 2), strict=True)}


async def test_after_a_reconnect_no_lease_is_judged_for_one_renewal_interval(valkey: Valkey, queue: Queue) -> None:
    async with proxied(valkey) as (proxy, far):
        maintenance = Maintenance(queue, TaskOptions(lease=1.2), far, Relay(queue, far), "r")
        far.line.connected_at = -math.inf  # connected long ago

        async def reaped() -> bool:
            await maintenance._once()
            return (await far.sizes(queue)).running == 0

        async def expired() -> bool:
            (info,) = await far.inspect(queue, ["a"])
            return info is not None and info.at_ms < time.time() * 1000

        await far.submit([new(queue, "a")])
        await far.claim(queue, 1, 50, "dead.1")  # its holder never comes back
        await wait_until(expired)
        assert await reaped(), "at once, while the line holds"
        for refuses in (False, True):
            await far.claim(queue, 1, 50, "dead.2")
            await wait_until(expired)
            proxy.refusing = refuses
            proxy.cut()
            if refuses:
                with pytest.raises(StoreUnavailable):
                    await maintenance._once()
                proxy.refusing = False
                far.line.connected_at = -math.inf  # and the pause before the next try was a long one
            # Its holders may have been cut off as well: let them renew before their leases are judged.
            began = time.monotonic()
            await wait_until(reaped)
            assert 0.4 <= time.monotonic() - began < 1.4


async def test_a_renewal_that_hangs_is_tried_again_over_another_connection(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")

    @service.task(lease=2.7)
    async def work(job: Job) -> int:
        await hung.wait()
        before = (await near.inspect(work, job.id)).at_ms
        await wait_until(lambda: renewed_beyond(near, work, job.id, before + 1200))
        return job.attempt

    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as near,
        Runtime([service], redis=proxy.url, namespace=namespace),
    ):
        await load_all(near._live_store())
        hung = proxy.lose_reply(sha("queue/renew"), cut=False)
        handle = await near.submit(work)
        assert await handle.result(15) == 1


async def renewed_beyond(near: Runtime, task: Any, job_id: str, at_ms: int) -> bool:
    return (await near.inspect(task, job_id)).at_ms > at_ms


async def test_after_a_step_of_the_servers_clock_no_lease_is_judged_for_one_renewal_interval(
    clocked: Store, clock: Clock, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = TaskOptions(lease=0.9)
    queues = [Queue(namespace, "demo", name) for name in ("one", "two")]
    maintained = [Maintenance(queue, options, clocked, Relay(queue, clocked), "r") for queue in queues]
    for queue in queues:
        await clocked.submit([new(queue, "a")])
        await clocked.claim(queue, 1, 900, "t.1")
    clocked.line.connected_at = -math.inf  # connected long ago

    async def running() -> list[int]:
        return [(await clocked.sizes(queue)).running for queue in queues]

    async def once() -> None:
        for one in maintained:
            await one._once()

    await once()
    assert await running() == [1, 1], "both leases live"
    clock.ms += 3_600_000
    stepped = time.monotonic()
    await once()
    await once()
    assert await running() == [1, 1], "their holders had no time to renew"
    assert "the clock of redis has stepped" in caplog.text

    async def reaped() -> bool:
        await once()
        return await running() == [0, 0]

    await wait_until(reaped)
    assert time.monotonic() - stepped >= 0.3


async def test_an_attempt_that_outlives_its_lease_leaves_the_next_one_alone(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")
    began = [threading.Event() for _ in range(3)]
    end = [threading.Event() for _ in range(3)]

    @service.task(lease=0.6, concurrency=2)
    def work(job: Job) -> int:
        began[job.attempt - 1].set()
        end[job.attempt - 1].wait(10)
        return job.attempt

    async def taken_away() -> bool:
        reaped = await near._live_store().reap(runtime._pools[0].queue, most_crashes=3, longest_ms=600)
        return reaped.jobs == 1

    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as near,
        Runtime([service], redis=proxy.url, namespace=namespace) as runtime,
    ):
        try:
            handle = await near.submit(work)
            await wait_until(began[0].is_set)
            (first,) = runtime._pools[0].running
            proxy.refusing = True
            proxy.cut()
            await wait_until(taken_away)
            proxy.refusing = False
            await wait_until(began[1].is_set)  # the same job, in the same process
            await wait_until(lambda: first.stop is Stop.LEASE_LOST)
            assert runtime._pools[0].free == 0
            end[0].set()
            assert first.task is not None
            await asyncio.wait([first.task])
            assert runtime._pools[0].free == 1
            before = await handle.status()

            async def renewed_twice() -> bool:
                return (await handle.status()).at_ms > before.at_ms + 700

            await wait_until(renewed_twice)
            end[1].set()
            assert await near.wait_result("demo.work", handle.id, 5) == 2
            assert (await handle.status()).attempt == 2
        finally:
            for event in end:
                event.set()


# ---- the end


async def test_a_store_that_closes_tells_whoever_calls_and_leaves_no_connection(
    valkey: Valkey, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    async with Proxy(valkey.socket) as proxy:
        store = Store(proxy.url, name="aioflow:closes")
        await store.inspect(queue, ["a"])
        before = len(proxy.links)
        proxy.stall()
        calls = [asyncio.create_task(store.inspect(queue, ["a"])) for _ in range(3)]
        await wait_until(lambda: len(proxy.links) == before + 2)
        calls += [asyncio.create_task(store.inspect(queue, ["a"]))]
        await asyncio.sleep(0)  # the first waits for its answer, others for the handshake, the last for its connection
        await store.close()
        await store.close()
        proxy.flow()
        for answer in await asyncio.gather(*calls, store.inspect(queue, ["a"]), return_exceptions=True):
            assert isinstance(answer, StoreUnavailable), answer
        await wait_until(lambda: not proxy.links)
    assert caplog.text == ""


# ---- cancellation


async def test_no_cancellation_of_a_store_call_is_lost(own_valkey: Valkey, queue: Queue) -> None:
    """On Python 3.11 asyncio.wait_for loses one that comes in the moment its future is done."""
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    admin = Store(own_valkey.url, name="observer")
    claims = 0

    async def once(store: Store) -> None:
        nonlocal claims
        claims += 1
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: store.submit([new(queue, "a")], "fsync"),
            lambda: store.claim(queue, 1, 1000, f"t.{claims}"),
            lambda: store.promote(queue),
            store.ping,
            store.memory,
            lambda: store.wait_bell(queue, 0.01),
        ]
        await dice.choice(calls)()

    async def forever(store: Store) -> None:
        while True:  # as the loops of a runtime are: a cancellation that is lost is a loop that goes on
            try:
                await once(store)
            except AioflowError:
                await asyncio.sleep(0)

    for turn in range(250):
        if turn % 3 == 0:
            await admin.redis.script_flush()
        store = Store(own_valkey.url, name="aioflow:test")  # every call needs a fresh connection
        task = asyncio.create_task(forever(store))
        for _ in range(dice.randrange(60)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=2)
        lost = not task.done()
        if lost:
            task.cancel()
            await asyncio.wait([task], timeout=2)
        await store.close()
        assert not lost, f"a cancellation was lost (seed {seed}, turn {turn})"
        assert task.cancelled()
    await admin.close()


async def test_a_stop_in_the_middle_of_a_split_batch_says_nothing_wrong_of_what_was_settled(
    valkey: Valkey, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service("demo")
    gate = asyncio.Event()

    @service.task()
    async def work(number: int) -> int:
        await gate.wait()
        return number

    claims = Queue(namespace, "demo", "work").keys["claims"]
    async with (
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as near,
        Proxy(valkey.socket) as proxy,
    ):
        async with Runtime([service], redis=proxy.url, namespace=namespace, grace=0.1) as far:
            await load_all(near._live_store())
            ended, _ = [await near.submit(work, number, id=name) for number, name in enumerate(("ended", "foreign"))]
            await wait_until(lambda: len(far._pools[0].running) == 2)
            row: Any = await near.redis.hget(claims, "foreign")
            await near.redis.hset(claims, "foreign", row.partition(b":")[0] + b":nonsense")
            held = proxy.hold(b"$1\r\n1\r\n$7\r\nforeign", reply=False)  # alone, once the batch has been refused
            gate.set()
            await held.wait()
        assert (await ended.status()).state is State.DONE
        assert "foreign: not settled" in caplog.text
        assert "ended: not settled" not in caplog.text
