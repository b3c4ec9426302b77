"""Receipts of durability "replicated:N": given when so many replicas have the job, and else not."""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from aioflow import ConfigError, Runtime, Service, StoreUnavailable
from aioflow.engine import receipts
from aioflow.engine.store import Store
from tests.valkey import Valkey
from tests.waiting import wait_until


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture
def primary() -> Iterator[tuple[Valkey, int]]:
    """A server that replicas can follow, and its port."""
    port = free_port()
    server = Valkey(arguments=("--port", str(port), "--repl-diskless-sync-delay", "0"))
    server.start()
    yield server, port
    server.close()


@pytest.fixture
async def replica(primary: tuple[Valkey, int]) -> AsyncIterator[Valkey]:
    """A replica of it, in step."""
    server = Valkey(arguments=("--replicaof", "127.0.0.1", str(primary[1])))
    server.start()
    follower = Store(server.url, name="observer")

    async def in_step() -> bool:
        return (await follower.redis.info("replication")).get("master_link_status") == "up"

    await wait_until(in_step)
    await follower.close()
    yield server
    server.close()


@pytest.fixture
def service() -> Service:
    made = Service("demo")

    @made.task()
    async def work(number: int) -> int:
        return number

    return made


async def test_a_receipt_waits_for_the_replica_and_a_stopped_one_gives_none(
    primary: tuple[Valkey, int],
    replica: Valkey,
    namespace: str,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(receipts, "RECEIPT_MS", 300)
    work = service.tasks["work"]
    async with Runtime(
        [service], redis=primary[0].url, namespace=namespace, workers=False, durability="replicated:1"
    ) as runtime:
        assert (await runtime.submit(work, 1, id="one")).created
        follower = Store(replica.url, name="observer")
        keys = await follower.redis.keys(f"{namespace}:*:jobs")
        assert len(keys) == 1
        assert await follower.redis.hexists(keys[0], "one"), "the replica has what was receipted"
        replica.signal(signal.SIGSTOP)
        with pytest.raises(StoreUnavailable, match="0 of 1 replicas had it within 300 ms") as refused:
            await runtime.submit(work, 2, id="two")
        assert refused.value.job_id == "two"
        # Known by now, and still on one server only: the repeat writes too, so that WAIT speaks for it.
        with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
            await runtime.submit(work, 2, id="two")
        with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
            await runtime.submit(work, 1, id="one")
        assert (await runtime.submit(work, 3, id="three", durability="memory")).created, "nothing else waits"
        replica.signal(signal.SIGCONT)
        assert not (await runtime.submit(work, 2, id="two")).created
        await follower.close()


async def test_more_replicas_than_there_are_is_a_config_error(
    primary: tuple[Valkey, int], replica: Valkey, namespace: str, service: Service
) -> None:
    url = primary[0].url
    with pytest.raises(ConfigError, match=r'"replicated:2" needs 2 replicas, the server has 1; let more follow it'):
        await Runtime([service], redis=url, namespace=namespace, durability="replicated:2").start()
    with pytest.raises(ConfigError, match="has 0"):
        await Runtime([service], redis="memory:", namespace=namespace, durability="replicated:1").start()
    async with Runtime([service], redis=url, namespace=namespace, workers=False) as runtime:
        with pytest.raises(ConfigError, match="has 1"):
            await runtime.submit("demo.work", 1, durability="replicated:2")
        assert (await runtime.submit("demo.work", 1, durability="replicated:1")).created


@pytest.mark.parametrize("durability", ["", "disk", "replicated", "replicated:0", "replicated:-1", "replicated:1.5"])
async def test_a_durability_that_is_none(namespace: str, service: Service, durability: str) -> None:
    with pytest.raises(ConfigError, match="use memory, fsync, or replicated:N"):
        Runtime([service], redis="memory:", namespace=namespace, durability=durability)
    async with Runtime([service], redis="memory:", namespace=namespace, workers=False) as runtime:
        with pytest.raises(ConfigError, match="use memory, fsync, or replicated:N"):
            await runtime.submit("demo.work", 1, durability=durability)
