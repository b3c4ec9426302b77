"""redis+cluster://: services on different nodes, receipts of each node, slots that move, nodes that die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions as driver

from aioflow import ConfigError, Handle, Job, JobCancelled, NotFound, Runtime, Service, State, StoreUnavailable
from aioflow.engine import cluster as engine
from aioflow.engine import receipts
from aioflow.engine.cluster_client import slot_of_command
from aioflow.engine.cluster_wire import redirected
from aioflow.engine.connect import check_url, shown
from aioflow.engine.keys import Queue
from aioflow.engine.records import NewJob
from aioflow.engine.store import Store
from aioflow.settings import load_settings
from aioflow.testing.draining import drain
from services.payments.api import service as payments
from tests.cluster import PASSWORD, Cluster, Node, free_ports
from tests.integration.scripts.state import new
from tests.receiver import SECRET
from tests.services.test_payments_api import served
from tests.serving import ROOT
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until


@dataclass
class Shop:
    """Services on the three nodes in turn; an order is emitted from `office` to `shop`, from there to `ledger`."""

    lease: float = 15.0
    booked: list[int] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.office, self.shop, self.ledger = Service("office"), Service("shop"), Service("ledger")
        self.made_by = self.shop.timeline("made_by")
        self.gate.set()

        @self.office.task(lease=self.lease)
        async def order(number: int, job: Job) -> int:
            job.commit.submit("shop.sell", number)
            return number

        @self.shop.task(lease=self.lease)
        async def sell(number: int, job: Job) -> int:
            job.commit.record(self.made_by["all"], str(number))
            job.commit.hincrby("sold", str(number), 1)
            job.commit.submit("ledger.book", number)
            await self.gate.wait()
            return number

        @self.ledger.task(lease=self.lease)
        async def book(number: int) -> int:
            self.booked.append(number)
            return -number

        self.order, self.sell, self.book = order, sell, book
        self.services = [self.office, self.shop, self.ledger]
        self.tasks = [order, sell, book]


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """One of the test's own, with a replica of each primary."""
    made = Cluster(replicas=True)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
async def store(cluster: Cluster) -> AsyncIterator[Store]:
    """A store on the cluster that all tests share."""
    made = Store(cluster.url, name="aioflow:test")
    yield made
    await made.close()


@pytest.fixture
def alone() -> Iterator[int]:
    """The port of a server without a cluster."""
    (port,) = free_ports(1)
    server = Valkey(arguments=("--port", str(port)))
    server.start()
    yield port
    server.close()


def slot_of(namespace: str, service: str) -> int:
    """Where a service lies."""
    return engine.slot_of(Queue(namespace, service, "any").keys["jobs"])


async def settled(handles: Sequence[Any], seconds: float = 20.0) -> list[Any]:
    """The results of submitted jobs."""
    assert all(isinstance(handle, Handle) for handle in handles), handles
    return await asyncio.gather(*(handle.result(seconds) for handle in handles))


# ---- services on several nodes


async def test_jobs_flow_over_services_on_three_nodes(cluster: Cluster, namespace: str, shop: Shop) -> None:
    async with Runtime(shop.services, redis=cluster.url, namespace=namespace) as runtime:
        assert runtime.durability == "fsync"
        assert await settled(await shop.order.submit_many(list(range(50)))) == list(range(50))
        await wait_until(lambda: sorted(shop.booked) == list(range(50)))
        page = await shop.made_by["all"].page(limit=1000)
        assert sorted(int(member) for member, _ in page.entries) == list(range(50))
        assert await shop.made_by["all"].count() == 50
        sold = await runtime.redis.hgetall(runtime.key(shop.shop, "sold"))
        assert sold == {str(number).encode(): b"1" for number in range(50)}
        for task in shop.tasks:
            overview = await runtime.overview(task)
            assert (overview.sizes.done, overview.sizes.open, overview.runtimes) == (50, 0, 1)
            assert len((await runtime.jobs_page(task, "done")).entries) == 50
        assert abs(runtime.now_ms() - time.time() * 1000) < 1000
        assert await runtime.ready() is None
        await runtime.admit()


async def test_results_and_cancels_reach_whoever_waits_in_another_runtime(
    cluster: Cluster, namespace: str, shop: Shop
) -> None:
    shop.gate.clear()
    async with (
        Runtime(shop.services, redis=cluster.url, namespace=namespace) as worker,
        Runtime(shop.services, redis=cluster.url, namespace=namespace, workers=False) as far,
    ):
        sells = [await far.submit(shop.sell, number) for number in range(3)]
        book = await far.submit(shop.book, 7)
        assert await book.result(10) == -7
        await in_state(sells[0], State.RUNNING)
        assert await sells[0].cancel()
        with pytest.raises(JobCancelled):
            await sells[0].result(10)
        later = await far.submit(shop.order, 1, delay=100)
        assert await later.cancel()
        assert await far.requeue(shop.order, later.id)
        shop.gate.set()
        assert await settled([later, *sells[1:]]) == [1, 1, 2]
        with pytest.raises(NotFound):
            await far.handle(shop.book, "unknown").result(0)
        assert await far.pause(shop.book)
        assert await worker.resume(shop.book)


async def test_jobs_of_services_on_all_nodes_are_submitted_at_once(
    cluster: Cluster, namespace: str, shop: Shop
) -> None:
    async with Runtime(shop.services, redis=cluster.url, namespace=namespace, durability="fsync") as runtime:
        handles = await asyncio.gather(
            *(runtime.submit(task, number) for number in range(30) for task in (shop.sell, shop.book))
        )
        await settled(handles)
        many = await asyncio.gather(*(runtime.submit_many(task, range(40)) for task in shop.tasks))
        await settled([handle for some in many for handle in some])


async def test_a_drain_waits_for_what_is_emitted_from_node_to_node(
    cluster: Cluster, namespace: str, shop: Shop
) -> None:
    async with Runtime(shop.services, redis=cluster.url, namespace=namespace) as runtime:
        for _ in range(5):
            await shop.order.submit_many(list(range(20)))
            await drain(runtime, timeout=20)
            assert sorted(shop.booked) == list(range(20))
            shop.booked.clear()


async def test_payments_are_served_from_a_cluster(cluster: Cluster, namespace: str) -> None:
    settings = load_settings(redis=cluster.url, namespace=namespace)
    payment = {"payer_id": "alice", "recipient_id": "shop", "amount": 1250}
    async with (
        Runtime([payments], settings=settings) as runtime,
        served(runtime) as api,
        api.session.post(f"{api.url}/payments", json=payment, headers={"Prefer": "wait=10"}) as answer,
    ):
        assert answer.status == 200, await answer.text()
        await drain(runtime, timeout=20)
        async with api.session.get(f"{api.url}/payers/alice/payments") as listed:
            assert listed.status == 200, await listed.text()


async def test_the_command_line_takes_its_url(cluster: Cluster, namespace: str) -> None:
    async def run(*words: str) -> Any:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aioflow", *words, "--redis", cluster.url, "--json"),
            stdout=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
            env={**os.environ, "AIOFLOW_NAMESPACE": namespace, "AIOFLOW_DELIVERY_SECRETS": SECRET},
            cwd=ROOT,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, out
        return json.loads(out)

    payment = '{"payer_id": "alice", "recipient_id": "shop", "amount": 1250}'
    load = await run("load", "payments.charge", payment, "--jobs", "50")
    assert load["accepted"] == 50, load
    assert PASSWORD not in str(load)
    status = await run("status")
    assert "50" in str(status), status


# ---- receipts


async def test_a_node_that_does_not_fsync_gives_no_receipt_and_the_others_do(
    cluster: Cluster, namespace: str, shop: Shop
) -> None:
    lax = cluster.nodes[1]
    assert engine.slot_of(f"{{{shop.shop.name}.0}}") in range(5461, 10923)
    async with Runtime(shop.services, redis=cluster.url, namespace=namespace, durability="fsync", workers=False):
        await shop.sell.submit(1)
        lax.ask("CONFIG", "SET", "appendfsync", "everysec")
        try:
            told = await asyncio.gather(
                *(task.submit_many([1, 2]) for task in shop.tasks),
                *(shop.sell.submit(2), shop.book.submit(2)),
                return_exceptions=True,
            )
            orders, sells, books, sell, book = told
            assert all(isinstance(handle, Handle) for handle in [*orders, *books, book])  # type: ignore[misc]
            assert all(isinstance(error, StoreUnavailable) for error in [*sells, sell])  # type: ignore[misc]
            assert "does not fsync before it answers any more" in str(sell)
            with pytest.raises(ConfigError, match="appendfsync always"):
                async with Runtime(shop.services, redis=cluster.url, namespace=namespace, durability="fsync"):
                    pytest.fail("it was started")
        finally:
            lax.ask("CONFIG", "SET", "appendfsync", "always")
        assert isinstance(await shop.sell.submit(3), Handle)


async def test_a_stopped_replica_gives_no_receipt_for_the_jobs_of_its_node(
    own_cluster: Cluster, namespace: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "RECEIPT_MS", 300)
    async with Runtime(
        shop.services, redis=own_cluster.url, namespace=namespace, durability="replicated:1", workers=False
    ) as runtime:
        with pytest.raises(ConfigError, match="needs 2 replicas, the server has 1"):
            await shop.sell.submit(1, durability="replicated:2")
        own_cluster.nodes[4].server.signal(signal.SIGSTOP)
        told = await asyncio.gather(
            *(runtime.submit(task, 1) for task in shop.tasks),
            *(runtime.submit_many(task, [1]) for task in shop.tasks),
            return_exceptions=True,
        )
        own_cluster.nodes[4].server.signal(signal.SIGCONT)
        order, sell, book, (orders,), (sells,), (books,) = told
        assert all(isinstance(handle, Handle) for handle in (order, book, orders, books)), told
        assert all("0 of 1 replicas" in str(error) for error in (sell, sells)), told


async def test_writes_and_their_proof_are_sent_on_together_or_not_at_all() -> None:
    moved, write, proof = driver.MovedError("1 a:1"), "write", None
    keys = [write, write, proof, write]
    assert redirected([1, 1, 1, 1], keys, [0, 1, 2, 3]) == ([], None)
    assert redirected([moved, moved, 0, 1], keys, [0, 1, 2, 3]) == ([0, 1, 2], moved)
    assert redirected([1, 1, 1, moved], keys, [0, 1, 2, 3]) == ([3], moved)
    assert redirected([1, moved, 1, moved], [write] * 4, [0, 1, 2, 3]) == ([1, 3], moved)
    with pytest.raises(driver.ConnectionError, match="between writes and their proof"):
        redirected([1, moved, 1, 1], keys, [0, 1, 2, 3])


async def test_a_script_is_loaded_wherever_its_calls_are_sent_on_to() -> None:
    moved, load, call = driver.AskError("1 a:1"), None, "call"
    assert redirected([1, moved], [load, call], [0, 1]) == ([0, 1], moved)
    assert redirected([1, 1, moved], [load, call, call], [0, 1, 2]) == ([0, 2], moved)
    assert redirected([1, 1, 1], [load, call, call], [0, 1, 2]) == ([], None)


# ---- scripts, clocks, plain commands


async def test_a_node_that_takes_no_more_clients_is_away_for_whoever_is_not_let_in(
    cluster: Cluster, store: Store, namespace: str
) -> None:
    queue = Queue(namespace, "demo", "work")
    assert await store.submit([new(queue, "a")]) == [1]
    try:
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "maxclients", 1)
        told = await asyncio.gather(*(store.inspect(queue, ["a"]) for _ in range(10)), return_exceptions=True)
    finally:
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "maxclients", 10_000)
    assert {type(error) for error in told if isinstance(error, Exception)} == {StoreUnavailable}


async def test_a_node_that_knows_no_script_any_more_is_told_it(cluster: Cluster, namespace: str, shop: Shop) -> None:
    async with Runtime(shop.services, redis=cluster.url, namespace=namespace) as runtime:
        await settled([await runtime.submit(task, 1) for task in shop.tasks])
        for node in cluster.nodes[1:]:
            node.ask("SCRIPT", "FLUSH")
        await settled(await asyncio.gather(*(runtime.submit(task, 2) for task in shop.tasks)))


async def test_each_node_has_a_clock_of_its_own(store: Store, namespace: str) -> None:
    sell, book = Queue(namespace, "shop", "sell"), Queue(namespace, "ledger", "book")
    await store.begin([sell, book])
    assert store.part(sell) is not store.part(book)
    assert store.part(sell).part(book) is store.part(book)
    assert store.part(Queue(namespace, "shop", "other")) is store.part(sell)
    store.part(sell).clock.heard_ms += 60_000  # as of a node whose clock was a minute ahead, and is put right
    reaped = [await store.part(queue).reap(queue, most_crashes=3, longest_ms=1000) for queue in (sell, book)]
    assert [some.judged for some in reaped] == [False, True]
    assert store.part(sell).clock.stepped_at > store.part(book).clock.stepped_at
    again = await store.part(sell).reap(sell, most_crashes=3, longest_ms=1000)
    assert again.judged


async def test_plain_commands_go_to_the_node_of_their_key(store: Store, namespace: str) -> None:
    keys = [f"{namespace}:{number}" for number in range(20)]
    async with store.redis.pipeline(transaction=False) as pipeline:
        pipeline.ping()
        for key in keys:
            pipeline.set(key, key)
        pipeline.time()
        answers = await pipeline.execute()
    assert answers[:-1] == [True] * 21
    assert [await store.redis.get(key) for key in keys] == [key.encode() for key in keys]
    async with store.redis.pipeline(transaction=True) as pipeline:
        pipeline.incr(f"{{{namespace}}}:a")
        pipeline.incr(f"{{{namespace}}}:a")
        pipeline.time()
        assert (await pipeline.execute())[:2] == [1, 2]
        for key in keys:
            pipeline.get(key)
        with pytest.raises(driver.RedisClusterException, match="one slot"):
            await pipeline.execute()
        with pytest.raises(driver.RedisClusterException, match="watches nothing"):
            await pipeline.watch(keys[0])
    assert await store.redis.eval("return redis.call('GET', KEYS[1])", 1, keys[0]) == keys[0].encode()
    script = store.redis.register_script("return redis.call('GET', KEYS[1]) .. ARGV[1]")
    assert [await script(keys=[key], args=["!"]) for key in keys] == [f"{key}!".encode() for key in keys]
    for refused in (store.redis.scan(), store.redis.dbsize(), store.redis.config_get("save"), store.redis.flushall()):
        with pytest.raises(driver.RedisClusterException, match="speaks of one node"):
            await refused
    with pytest.raises(driver.ClusterCrossSlotError):
        await store.redis.mget(keys)
    for key in keys:
        await store.redis.delete(key)


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "a"), "a"),
        (("get", b"a"), "a"),
        (("EVAL", "return 1", 2, "a", "b"), "a"),
        (("EVALSHA", "f", 0, "a"), None),
        (("XREAD", "COUNT", 1, "STREAMS", "a", 0), "a"),
        (("OBJECT", "ENCODING", "a"), "a"),
        (("MEMORY USAGE", "a"), "a"),
        (("ZUNION", 2, "a", "b"), "a"),
        (("BLMPOP", 1, 2, "a", "b", "LEFT"), "a"),
        (("INFO", "server"), None),
        (("CLUSTER SLOTS",), None),
    ],
)
def test_the_first_key_of_a_command_is_found(command: tuple[Any, ...], key: str | None) -> None:
    assert slot_of_command(command) == (None if key is None else engine.slot_of(key))


async def test_a_pipeline_of_the_store_is_of_one_slot(store: Store, namespace: str) -> None:
    queues = [Queue(namespace, "shop", "sell"), Queue(namespace, "ledger", "book")]
    with pytest.raises(Exception, match="a pipeline is of keys of one slot"):
        await store.submit([NewJob(queue, "a", b"\n1", 4, "0") for queue in queues])
    assert [await store.part(queue).inspect(queue, ["a"]) for queue in queues] == [[None], [None]]


# ---- slots that move


async def test_no_script_of_a_queue_runs_while_its_slot_is_on_its_way(
    cluster: Cluster, store: Store, namespace: str
) -> None:
    queue = Queue(namespace, "shop", "sell")
    slot, source, target = slot_of(namespace, "shop"), cluster.nodes[1], cluster.nodes[2]
    await store.begin([queue])
    part = store.part(queue)
    await part.submit([new(queue, "a")])
    claimed = await part.claim(queue, 1, 15_000, "r.1")
    cluster.begin_move(slot, source, target)
    try:
        for _ in range(2):
            # Its one key is there, so that a node would run this script; those of others would end halfway.
            with pytest.raises(StoreUnavailable, match="redis cannot serve now"):
                await part.expose(queue, claimed.jobs[0])
            with pytest.raises(StoreUnavailable, match="redis cannot serve now"):
                await part.submit([new(queue, "b")])
            # A key that is there or not, here or there, is read where it is.
            assert await part.redis.hget(queue.keys["jobs"], "a") == b"\n1"
            assert await part.redis.hget(queue.keys["results"], "a") is None
            async with part.redis.pipeline(transaction=False) as pipeline:
                pipeline.hlen(queue.keys["jobs"])
                pipeline.hlen(queue.keys["results"])
                assert await pipeline.execute() == [1, 0]
            with pytest.raises(StoreUnavailable):
                await part.overview(queue)
            assert await part.count(queue.keys["running"], 0, 2**42) == 1
            cluster.move_keys(slot, source, target)
    finally:
        cluster.move_keys(slot, source, target)
        cluster.end_move(slot, target)
    assert await part.expose(queue, claimed.jobs[0])
    assert await part.submit([new(queue, "a"), new(queue, "b")]) == [0, 1]
    assert (await part.sizes(queue)).open == 2
    cluster.begin_move(slot, target, source)
    cluster.move_keys(slot, target, source)
    cluster.end_move(slot, source)
    assert (await part.sizes(queue)).open == 2


async def test_no_script_of_a_service_runs_while_its_slot_is_on_its_way(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    # It builds a key of its own, which it would miss where that has moved before the one that it names.
    (tmp_path / "count.lua").write_text(
        "-- KEYS: a hash\n-- Repeat: no second effect\nlocal a = KEYS[1]\n"
        "return redis.call('HINCRBY', a, 'n', 1) + redis.call('HINCRBY', a .. ':more', 'n', 1)\n"
    )
    shop = Service("shop")
    count = shop.script(tmp_path / "count.lua")
    slot, source, target = slot_of(namespace, "shop"), cluster.nodes[1], cluster.nodes[2]
    async with Runtime([shop], redis=cluster.url, namespace=namespace, workers=False):
        assert await count() == 2
        cluster.begin_move(slot, source, target)
        try:
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match="redis cannot serve now"):
                    await count()
                cluster.move_keys(slot, source, target)
        finally:
            cluster.move_keys(slot, source, target)
            cluster.end_move(slot, target)
        assert await count() == 4
        cluster.begin_move(slot, target, source)
        cluster.move_keys(slot, target, source)
        cluster.end_move(slot, source)
        assert await count() == 6


async def test_a_script_without_keys_is_refused_in_a_cluster(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "one.lua").write_text("return 1\n")
    shop = Service("shop")
    one = shop.script(tmp_path / "one.lua")
    async with Runtime([shop], redis=cluster.url, namespace=namespace, workers=False):
        with pytest.raises(ConfigError, match="name its keys; in a cluster they say where it is to run"):
            await one()
        assert await one(["any"]) == 1


@pytest.mark.parametrize("way", ["key by key", "as a whole"])
async def test_a_slot_moves_under_load_and_nothing_is_lost_or_doubled(
    cluster: Cluster, namespace: str, shop: Shop, way: str
) -> None:
    slot, (_, source, target) = slot_of(namespace, "shop"), cluster.nodes
    stopping, refused = False, 0

    async def submit(runtime: Runtime, first: int) -> list[Handle[int]]:
        nonlocal refused
        handles: list[Handle[int]] = []
        while not stopping:
            number = first + len(handles)
            try:
                handles.append(await runtime.submit(shop.sell, number, id=f"n{number}"))
            except StoreUnavailable:
                refused += 1
                await asyncio.sleep(0.005)
        return handles

    async def move(here: Node, there: Node) -> None:
        before = refused
        if way == "as a whole":
            if "valkey_version" not in here.admin.info("server"):
                pytest.skip("Valkey 9 and newer move a slot as a whole")
            await asyncio.to_thread(here.ask, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", there.id)
            await wait_until(lambda: there.owns(slot))
            return
        await asyncio.to_thread(cluster.begin_move, slot, here, there)
        for key in here.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            so_far = refused
            await asyncio.to_thread(cluster.move_key, here, there, key)
            while refused == so_far:  # noqa: ASYNC110 - by submits, which have nothing to wait for
                await asyncio.sleep(0.005)
        await asyncio.to_thread(cluster.move_keys, slot, here, there)
        await asyncio.to_thread(cluster.end_move, slot, there)
        assert refused > before

    async with Runtime(shop.services, redis=cluster.url, namespace=namespace) as runtime:
        async with asyncio.TaskGroup() as group:
            submitters = [group.create_task(submit(runtime, 100_000 * number)) for number in range(4)]
            for here, there in ((source, target), (target, source)):
                sold = await runtime.redis.hlen(runtime.key(shop.shop, "sold"))

                async def goes_on(more_than: int = sold) -> bool:
                    return await runtime.redis.hlen(runtime.key(shop.shop, "sold")) > more_than + 100

                await wait_until(goes_on)
                await move(here, there)
                await wait_until(goes_on)
            stopping = True
        handles = [handle for submitter in submitters for handle in submitter.result()]
        await settled(handles)
        times_sold = await runtime.redis.hgetall(runtime.key(shop.shop, "sold"))
        assert set(times_sold.values()) == {b"1"}
        assert len(times_sold) == len(handles)
        await wait_until(lambda: len(shop.booked) >= len(handles))
        assert sorted(shop.booked) == sorted(int(number) for number in times_sold)


# ---- nodes that die


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_failover_loses_no_job_that_the_replica_had(
    own_cluster: Cluster, namespace: str, ending: signal.Signals
) -> None:
    shop = Shop(lease=6.0)
    shop.gate.clear()
    primary, replica = own_cluster.nodes[1], own_cluster.nodes[4]
    async with (
        Runtime(shop.services, redis=own_cluster.url, namespace=namespace, durability="memory") as runtime,
        asyncio.TaskGroup() as waiting,
    ):
        handles = [await shop.sell.submit(number, durability="replicated:1") for number in range(120)]
        results = [waiting.create_task(handle.result(40)) for handle in handles]
        await wait_until(lambda: len(runtime._pools[1].running) == 100)
        primary.server.signal(ending)
        while not await asyncio.to_thread(replica.leads):
            # The channel that tells results may be one of the node that is frozen: that is known after twice 5 s.
            assert await (await shop.book.submit(1)).result(20) == -1
        store = runtime._store
        assert store is not None
        elsewhere = store.part(runtime._queues[shop.book]).line
        assert (elsewhere.failures, elsewhere.lost_at) == (0, None), "what lies on other nodes noticed nothing"
        shop.gate.set()
        assert [await result for result in results] == list(range(120))
        sold = await runtime.redis.hgetall(runtime.key(shop.shop, "sold"))
        assert sold == {str(number).encode(): b"1" for number in range(120)}
        assert await (await shop.sell.submit(-1)).result(10) == -1


async def test_whoever_waits_hears_of_results_when_the_node_it_listens_to_dies(
    own_cluster: Cluster, namespace: str, shop: Shop
) -> None:
    shop.gate.clear()
    async with Runtime(shop.services, redis=own_cluster.url, namespace=namespace) as runtime:
        handle = await shop.sell.submit(1)
        result = asyncio.create_task(handle.result(20))
        await in_state(handle, State.RUNNING)
        channel = f"{namespace}:1:runtime:{runtime.id}"

        def listens_at() -> Node | None:
            return next((node for node in own_cluster.nodes if channel in node.admin.pubsub_channels()), None)

        node = await wait_until(listens_at)
        assert node is not None
        if node is own_cluster.nodes[1]:
            own_cluster.nodes[4].ask("CLUSTER", "FAILOVER")
            await wait_until(own_cluster.nodes[4].leads)
        node.server.kill()
        own_cluster.nodes.remove(node)
        node.close()
        shop.gate.set()
        assert await result == 1


# ---- URLs


@pytest.mark.parametrize(
    ("url", "seeds", "login"),
    [
        ("redis+cluster://a", [("a", 6379)], {}),
        ("redis+cluster://a:1,[::1]:2,c/", [("a", 1), ("::1", 2), ("c", 6379)], {}),
        ("redis+cluster://u:p%40ss%2Cword%2F@a/0", [("a", 6379)], {"username": "u", "password": PASSWORD}),
    ],
)
def test_a_url_says_where_nodes_are(url: str, seeds: list[tuple[str, int]], login: dict[str, str]) -> None:
    check_url(url)
    assert engine.parse(url) == (seeds, login, None)
    assert "%40" not in shown(url)


@pytest.mark.parametrize(
    "end",
    ["", "a:x", "a,", "a,,b", "a/1", "a/0/", "a?db=0", "a#1", "[::1", "a:99999", "a:0", "x/y@a", "x#y@a"],
)
def test_another_url_is_refused_and_shows_no_password(end: str) -> None:
    with pytest.raises(ConfigError, match=r"redis\+cluster://user:password@host:6379") as error:
        check_url(f"redis+cluster://:secret@{end}")
    assert "secret" not in str(error.value)


async def test_a_server_that_is_no_cluster_and_a_wrong_password_are_said(
    cluster: Cluster, alone: int, namespace: str, shop: Shop
) -> None:
    with pytest.raises(ConfigError, match=r"is no node of a cluster; use redis://"):
        async with Runtime(shop.services, redis=f"redis+cluster://127.0.0.1:{alone}", namespace=namespace):
            pytest.fail("it was started")
    port = cluster.nodes[0].port
    with pytest.raises(StoreUnavailable, match=r"no node of the cluster says who owns which slot .*password"):
        async with Runtime(shop.services, redis=f"redis+cluster://:wrong@127.0.0.1:{port}", namespace=namespace):
            pytest.fail("it was started")
