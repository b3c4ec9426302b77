"""Waiting without polling: the bell that wakes claimers, and the channel that brings results.

Maintenance rings a silent bell over a non-empty queue about once a second, and would hide a wake-up that was lost:
most tests here keep it from coming round.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from functools import partial

import pytest
from redis.asyncio import Redis as RawRedis

from aioflow import (
    ConfigError,
    Job,
    JobCancelled,
    JobFailed,
    NotFound,
    ProtocolError,
    Retry,
    Runtime,
    Service,
    State,
)
from aioflow.engine import claimer, maintenance
from aioflow.engine.keys import Queue
from aioflow.engine.records import NewJob
from aioflow.engine.store import Store
from aioflow.service import live_runtimes
from tests import acl
from tests.proxy import Proxy
from tests.valkey import Valkey
from tests.waiting import wait_until

LONG = 3600.0


@pytest.fixture
def no_maintenance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each queue is maintained once, when its runtime starts."""
    monkeypatch.setattr(maintenance, "TURN_MS", int(1000 * LONG))


class Demo:
    """A service whose handlers say that they run, and end when they are let go."""

    def __init__(self, concurrency: int = 1) -> None:
        self.service = Service("demo")
        self.running: list[str] = []
        self.gate = asyncio.Event()

        @self.service.task(concurrency=concurrency, lease=LONG)
        async def work(number: int, job: Job) -> int:
            self.running.append(job.id)
            await self.gate.wait()
            return number

        self.work = work


async def idle(runtime: Runtime) -> None:
    """Wait until every claimer of a runtime has claimed and blocks on its bell."""
    names = {f"aioflow:{runtime.id}"}

    async def blocked() -> bool:
        # "cmd" is the last command, ended or not; only the flag tells a pop that waits from one that took a token.
        clients = await runtime.redis.client_list()
        waiting = [client for client in clients if client["name"] in names and "b" in client["flags"]]
        return len(waiting) == len(runtime._claimers)

    await wait_until(blocked)


def claims_of(runtime: Runtime) -> int:
    """How many claims a runtime of one task has sent."""
    (claimer,) = runtime._claimers.values()
    return claimer._claims


def sorted_turns(runtimes: list[Runtime]) -> list[tuple[int, maintenance.Maintenance]]:
    """Each runtime's maintenance of its one queue, beside its place in the order of the runtimes' ids."""
    return [(rank, runtime._maintenance[0]) for rank, runtime in enumerate(sorted(runtimes, key=lambda one: one.id))]


async def commands_of(server: Valkey, seconds: float) -> tuple[list[str], float]:
    """The commands that clients send in a span, by name, and how long it was."""
    sent: list[str] = []
    async with RawRedis.from_url(server.admin_url, protocol=2) as watcher, watcher.monitor() as monitor:
        began = time.monotonic()
        await asyncio.sleep(seconds)  # the span that is measured
        took = time.monotonic() - began
        async with RawRedis.from_url(server.admin_url, protocol=2) as other:
            await other.execute_command("ECHO", "over")
        async for command in monitor.listen():
            if command["command"] == "ECHO over":
                break
            if command["client_type"] != "lua":  # what a script runs is no round trip
                sent.append(command["command"].partition(" ")[0])
    return [name for name in sent if name not in ("CLIENT", "HELLO")], took


# ---- no polling


async def test_an_idle_runtime_and_one_that_awaits_results_send_a_handful_of_commands_a_second(
    own_valkey: Valkey, namespace: str
) -> None:
    service = Service("demo")
    gate = asyncio.Event()

    @service.task(lease=0.5)
    async def work(number: int) -> int:
        return number

    @service.task(lease=LONG, concurrency=20)
    async def slow(number: int) -> int:
        await gate.wait()
        return number

    async with (
        Runtime([service], redis=own_valkey.url, namespace=namespace) as worker,
        Runtime([service], redis=own_valkey.url, namespace=namespace, workers=False) as submitter,
    ):
        handles = [await submitter.submit(slow, number) for number in range(10)]
        first = asyncio.create_task(handles[0].result(20))
        assert submitter._inbox is not None
        await wait_until(submitter._inbox.subscribed.is_set)
        results = asyncio.gather(*[handle.result(20) for handle in handles])
        await idle(worker)

        async def registered() -> bool:
            return int(await worker.redis.hlen(Queue(namespace, "demo", "slow").keys["waiters"])) == 10

        await wait_until(registered)
        sent, seconds = await commands_of(own_valkey, 2.0)
        gate.set()
        assert await results == list(range(10))
        assert await first == 0
        # Two queues: each maintained twice a second, a pop every 5 s.
        assert 0 < len(sent) / seconds <= 2 * 3, f"{sent} in {seconds:.1f} s"


async def test_a_fleet_takes_turns_in_looking_after_a_queue(
    own_valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claimer, "BLOCK_SECONDS", 0.5)  # six are as many for it as sixty are for five seconds
    service = Service("demo")

    @service.task()
    async def work(number: int) -> int:
        return number

    async with AsyncExitStack() as fleet:
        runtimes = [
            await fleet.enter_async_context(Runtime([service], redis=own_valkey.url, namespace=namespace))
            for _ in range(6)
        ]
        for runtime in runtimes:
            await idle(runtime)
        queue = Queue(namespace, "demo", "work")

        async def settled() -> bool:
            """Whether each has learnt that they are six."""
            return all(maintenance.turns == (6, rank) for rank, maintenance in sorted_turns(runtimes))

        await wait_until(settled)
        sent, seconds = await commands_of(own_valkey, 4.0)
        assert 0 < len(sent) / seconds <= 5, f"{sent} in {seconds:.1f} s"
        assert sent.count("EVALSHA") / seconds < 3, "six look after it no oftener than one"
        assert await runtimes[0].redis.zcard(queue.keys["runners"]) == 6
    async with Runtime([service], redis=own_valkey.url, namespace=namespace, workers=False) as left:
        assert await left.redis.zcard(queue.keys["runners"]) == 0, "who stops leaves its turns to the others"


async def test_a_claimer_claims_before_it_blocks(own_valkey: Valkey, namespace: str, no_maintenance: None) -> None:
    service = Service("demo")
    blocked: list[int] = []

    @service.task(concurrency=1)
    async def work() -> None:
        stats = await observer.redis.info("commandstats")
        blocked.append(stats.get("cmdstat_blpop", {}).get("calls", 0))

    async with Runtime([service], redis=own_valkey.url, namespace=namespace, workers=False) as observer:
        handle = await observer.submit(work)
        await observer.redis.delete(Queue(namespace, "demo", "work").keys["bell"])  # lost, whoever took it
        async with Runtime([service], redis=own_valkey.url, namespace=namespace):
            await handle.result(5)
    assert blocked == [0]


# ---- as many wake as there is work


async def test_as_many_runtimes_wake_as_there_is_work(valkey: Valkey, namespace: str, no_maintenance: None) -> None:
    demo = Demo()
    async with (
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as submitter,
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as first,
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as second,
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as third,
    ):
        runtimes = (first, second, third)
        for runtime in runtimes:
            await idle(runtime)
        claims = [claims_of(runtime) for runtime in runtimes]
        # One batch rings once; whoever claims and leaves a job behind rings again.
        handles = await asyncio.gather(*[submitter.submit(demo.work, number) for number in range(2)])
        await wait_until(lambda: len(demo.running) == 2)
        woken = [claims_of(runtime) - before for runtime, before in zip(runtimes, claims, strict=True)]
        assert sorted(woken) == [0, 1, 1], "one claim each, and the third slept on"
        handles += await asyncio.gather(*[submitter.submit(demo.work, number) for number in (2, 3)])
        await wait_until(lambda: len(demo.running) == 3)
        demo.gate.set()
        assert [await handle.result(5) for handle in handles] == [0, 1, 2, 3]


async def test_a_full_pool_passes_the_bell_on(valkey: Valkey, namespace: str, no_maintenance: None) -> None:
    demo = Demo()
    async with (
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as submitter,
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as full,
    ):
        await idle(full)
        # Its timer fills the pool, so that its pop goes on and is the first to hear the next ring.
        first = await submitter.submit(demo.work, 0, delay=0.05)
        await wait_until(lambda: demo.running == [first.id])
        (claimer,), (pool,) = full._claimers.values(), full._pools
        await wait_until(lambda: claimer._pop is not None and not claimer._wake.is_set())
        assert pool.free == 0
        async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as other:
            await idle(other)
            second = await submitter.submit(demo.work, 1)
            await wait_until(lambda: demo.running == [first.id, second.id])
            assert len(other._pools[0].running) == 1
            demo.gate.set()
            assert [await handle.result(5) for handle in (first, second)] == [0, 1]


# ---- tokens that are lost


async def test_a_token_lost_with_a_connection_strands_no_job(
    valkey: Valkey, namespace: str, no_maintenance: None
) -> None:
    demo = Demo()
    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as submitter,
    ):
        popped = proxy.lose_reply(b"BLPOP")
        async with Runtime([demo.service], redis=proxy.url, namespace=namespace) as worker:
            await idle(worker)
            handle = await submitter.submit(demo.work, 0)
            await wait_until(lambda: demo.running == [handle.id], 1.2)
            assert popped.is_set()
            demo.gate.set()
            assert await handle.result(5) == 0


async def test_a_killed_connection_of_a_blocked_pop_is_made_anew(
    valkey: Valkey, namespace: str, no_maintenance: None
) -> None:
    demo = Demo()
    async with (
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as submitter,
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as worker,
    ):
        for number in range(3):
            await idle(worker)
            (popping,) = (
                client["id"]
                for client in await submitter.redis.client_list()
                if client["name"] == f"aioflow:{worker.id}" and "b" in client["flags"]
            )
            await submitter.redis.client_kill_filter(_id=popping)
            handle = await submitter.submit(demo.work, number)
            await wait_until(partial(demo.running.__contains__, handle.id), 1.2)
            demo.gate.set()
            assert await handle.result(5) == number


async def test_a_token_taken_by_a_runtime_that_dies_strands_no_job(valkey: Valkey, namespace: str) -> None:
    demo = Demo()
    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as submitter,
    ):
        dying = Runtime([demo.service], redis=proxy.url, namespace=namespace, grace=0.0)
        await dying.start()
        await idle(dying)  # its pop is the first in line
        async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as living:
            await idle(living)
            # What its pop is told does not arrive, and it cannot ask for anything any more.
            proxy.refusing = True
            (popping,) = (link for link in proxy.links if b"BLPOP" in link.last)
            popping.mute = True
            for link in proxy.links - {popping}:
                link.cut()
            handle = await submitter.submit(demo.work, 0)
            sent = time.monotonic()
            await wait_until(lambda: demo.running == [handle.id], 5)
            assert time.monotonic() - sent < 1.2 + 0.3  # maintenance comes round once a second; 0.3 s for the machine
            assert len(living._pools[0].running) == 1
            demo.gate.set()
            assert await handle.result(5) == 0
            await dying.stop()


async def test_a_token_taken_by_a_pop_that_a_stop_abandons_strands_no_job(
    valkey: Valkey, namespace: str, no_maintenance: None
) -> None:
    demo = Demo()
    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as submitter,
    ):
        leaving = Runtime([demo.service], redis=proxy.url, namespace=namespace)
        await leaving.start()
        await idle(leaving)
        async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as staying:
            await idle(staying)
            proxy.stall()
            handle = await submitter.submit(demo.work, 0)  # the token is on its way to the one that leaves

            async def taken() -> bool:
                return int(await submitter.redis.llen(Queue(namespace, "demo", "work").keys["bell"])) == 0

            await wait_until(taken)
            stopping = asyncio.create_task(leaving.stop())
            await wait_until(lambda: next(iter(leaving._claimers.values()))._pop is None)
            assert demo.running == []
            proxy.flow()
            await stopping
            await wait_until(lambda: demo.running == [handle.id], 1.2)
            assert len(staying._pools[0].running) == 1
            demo.gate.set()
            assert await handle.result(5) == 0


async def test_a_pop_that_redis_forbids_ends_the_runtime_rather_than_go_round(
    own_valkey: Valkey, namespace: str, no_maintenance: None
) -> None:
    demo = Demo()
    async with Runtime([demo.service], redis=own_valkey.url, namespace=namespace, workers=False) as admin:
        runtime = Runtime([demo.service], redis=own_valkey.url, namespace=namespace)
        await runtime.start()
        await idle(runtime)
        await admin.redis.execute_command("ACL", "SETUSER", acl.USER, "-blpop")
        await admin.submit(demo.work, 0)  # wakes it; its next pop is refused
        demo.gate.set()
        await asyncio.wait_for(runtime.failed.wait(), 5)
        refused = await admin.redis.info("commandstats")
        assert 1 <= refused["cmdstat_blpop"].get("rejected_calls", 0) <= 2
        assert await runtime.ready() == "the runtime is not running"
        with pytest.raises(ConfigError, match="refuses BLPOP"):
            await runtime.__aexit__(None, None, None)
        assert live_runtimes == [admin], "it has left by itself"


# ---- results


async def test_results_come_although_the_connection_that_brings_them_is_killed(valkey: Valkey, namespace: str) -> None:
    demo = Demo(concurrency=10)
    async with (
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as worker,
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as waiter,
    ):
        handles = [await waiter.submit(demo.work, number) for number in range(3)]
        results = [asyncio.create_task(handle.result(10)) for handle in handles]
        results.append(asyncio.create_task(handles[0].result(10)))  # two that wait for one job
        assert waiter._inbox is not None
        for _ in range(2):
            await wait_until(waiter._inbox.subscribed.is_set)
            assert await worker.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= 1
            await wait_until(lambda: not waiter._inbox.subscribed.is_set() if waiter._inbox else False)
        demo.gate.set()
        assert await asyncio.gather(*results) == [0, 1, 2, 0]


async def test_a_result_told_while_the_line_is_down_is_asked_for(valkey: Valkey, namespace: str) -> None:
    demo = Demo(concurrency=10)
    service = demo.service

    @service.task(retry=Retry(attempts=1))
    async def fails(number: int) -> None:
        await demo.gate.wait()
        raise LookupError(number)

    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([service], redis=valkey.url, namespace=namespace) as worker,
        Runtime([service], redis=proxy.url, namespace=namespace, workers=False) as waiter,
    ):
        handles = [await waiter.submit(demo.work, number) for number in range(3)]
        results = [asyncio.create_task(handle.result(10)) for handle in handles]
        failing = asyncio.create_task((await waiter.submit(fails, 1)).result(10))
        assert waiter._inbox is not None
        await wait_until(waiter._inbox.subscribed.is_set)

        async def registered() -> bool:
            tasks = {"work": 3, "fails": 1}
            waiting = [await worker.redis.hlen(Queue(namespace, "demo", task).keys["waiters"]) for task in tasks]
            return waiting == list(tasks.values())

        await wait_until(registered)
        proxy.refusing = True
        proxy.cut()
        demo.gate.set()
        for handle in handles:
            await wait_until(partial(worker_says_done, worker, demo, handle.id))
        assert not any(result.done() for result in results), "nobody could tell them"
        proxy.refusing = False
        assert await asyncio.gather(*results) == [0, 1, 2]
        with pytest.raises(JobFailed, match="LookupError: 1"):
            await failing


async def worker_says_done(worker: Runtime, demo: Demo, job_id: str) -> bool:
    return (await worker.inspect(demo.work, job_id)).state is State.DONE


async def test_a_result_comes_although_the_line_went_silent(
    valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-open connection: the peer is gone and nothing ever says so."""
    monkeypatch.setattr("aioflow.engine.inbox.SILENCE_SECONDS", 0.2)
    demo = Demo(concurrency=10)
    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as worker,
        Runtime([demo.service], redis=proxy.url, namespace=namespace, workers=False) as waiter,
    ):
        handle = await waiter.submit(demo.work, 7)
        result = asyncio.create_task(handle.result(10))
        assert waiter._inbox is not None
        await wait_until(waiter._inbox.subscribed.is_set)
        await wait_until(lambda: handle.id in demo.running)
        (link,) = (link for link in proxy.links if b"SUBSCRIBE" in link.last or b"PING" in link.last)
        link.mute = True
        demo.gate.set()
        await wait_until(lambda: worker_says_done(worker, demo, handle.id))
        assert await result == 7


async def test_results_come_although_a_server_takes_a_connection_and_does_not_answer_on_it(
    valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that stands still while another takes its place: its kernel goes on to accept."""
    monkeypatch.setattr("aioflow.engine.inbox.SILENCE_SECONDS", 0.2)
    monkeypatch.setattr("aioflow.engine.connect.ROUND_TRIP_SECONDS", 0.5)
    demo = Demo()
    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([demo.service], redis=valkey.url, namespace=namespace),
        Runtime([demo.service], redis=proxy.url, namespace=namespace, workers=False) as waiter,
    ):
        handle = await waiter.submit(demo.work, 7)
        result = asyncio.create_task(handle.result(20))
        assert waiter._inbox is not None
        assert waiter._store is not None
        await wait_until(waiter._inbox.subscribed.is_set)
        before = set(proxy.links)
        proxy.stall()
        waiter._store._clients._breaks.count += 1  # as any call notes that the server is silent
        for link in await wait_until(lambda: proxy.links - before):  # the channel's, made anew for its next PING
            link.mute = True
        proxy.flow()
        demo.gate.set()
        assert await result == 7


async def test_a_wait_whose_row_cannot_be_read_is_told_and_keeps_no_other_from_being_registered(
    valkey: Valkey, namespace: str, store: Store
) -> None:
    demo, queue = Demo(), Queue(namespace, "demo", "work")
    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as worker,
        Runtime([demo.service], redis=proxy.url, namespace=namespace, workers=False) as waiter,
    ):
        handles = [await waiter.submit(demo.work, number, delay=LONG) for number in range(2)]
        unreadable, other = (asyncio.create_task(handle.result(20)) for handle in handles)

        async def registered() -> bool:
            return int(await worker.redis.hlen(queue.keys["waiters"])) == 2

        await wait_until(registered)
        await worker.redis.delete(queue.keys["waiters"])
        await worker.redis.hset(queue.keys["results"], handles[0].id, "of nobody")
        proxy.cut()
        with pytest.raises(ProtocolError):
            await unreadable
        await worker.redis.hdel(queue.keys["results"], handles[0].id)
        await wait_until(lambda: worker.redis.hexists(queue.keys["waiters"], handles[1].id))
        assert not other.done()
        await handles[1].cancel()
        with pytest.raises(JobCancelled):
            await other


async def test_results_come_although_the_server_has_forgotten_who_waits(
    valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a failover of the jobs' node, when the channel's connection is to another one and lives."""
    monkeypatch.setattr("aioflow.engine.results.RENEW_SECONDS", 0.2)
    monkeypatch.setattr("aioflow.engine.results.RENEWED", 2)
    demo = Demo(concurrency=10)
    queue = Queue(namespace, "demo", "work")
    async with (
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as worker,
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as waiter,
    ):
        waiting = [asyncio.create_task((await waiter.submit(demo.work, number)).result()) for number in range(5)]
        lost = await waiter.submit(demo.work, 5, delay=LONG)
        waiting_in_vain = asyncio.create_task(lost.result())

        async def registered() -> bool:
            return int(await worker.redis.hlen(queue.keys["waiters"])) == 6

        await wait_until(registered)
        await worker.redis.delete(queue.keys["waiters"])
        await wait_until(registered)
        for part in ("scheduled", "open"):
            await worker.redis.zrem(queue.keys[part], lost.id)
        await worker.redis.hdel(queue.keys["jobs"], lost.id)
        with pytest.raises(NotFound):
            await asyncio.wait_for(waiting_in_vain, 5)
        await worker.redis.delete(queue.keys["waiters"])
        demo.gate.set()
        assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [0, 1, 2, 3, 4]


async def test_a_dead_job_is_told_as_well(valkey: Valkey, namespace: str, store: Store) -> None:
    demo = Demo()
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
        await idle(runtime)
        await store.submit([NewJob(Queue(namespace, "demo", "work"), "bad", b"\n{", 4, "+100")])
        with pytest.raises(JobFailed, match="CodecError"):
            await runtime.wait_result("demo.work", "bad", 5)
