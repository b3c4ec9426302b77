"""TLS to the server: certificates and host names are checked, and what is wrong with them is said."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from aioflow import ConfigError, Runtime, Service, StoreUnavailable
from aioflow.engine import cluster, sentinel
from aioflow.engine.connect import check_url, shown
from aioflow.engine.keys import Queue
from aioflow.engine.store import Store
from tests.serving import Serve
from tests.tls import Authority, TlsRedis, needs_redis_server
from tests.waiting import wait_until

Starter = Callable[..., TlsRedis]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def started(tmp_path: Path, authority: Authority) -> Iterator[Starter]:
    """Starts servers, whose certificates are for localhost unless something else is said."""
    servers: list[TlsRedis] = []

    def start(*names: str, configuration: str | None = None, **options: Any) -> TlsRedis:
        servers.append(TlsRedis(tmp_path, authority, *(names or ("localhost",)), **options))
        servers[-1].start(configuration)
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def service() -> Service:
    made = Service("demo")

    @made.task()
    async def greet(name: str) -> str:
        return f"Hello, {name}!"

    return made


async def greeted(service: Service, url: str, namespace: str) -> None:
    """Have a job done."""
    async with Runtime([service], redis=url, namespace=namespace) as runtime:
        handle = await runtime.submit("demo.greet", "Ann")
        assert await handle.result(5) == "Hello, Ann!"


async def refused(service: Service, url: str, namespace: str) -> str:
    """Why no runtime starts there."""
    with pytest.raises(StoreUnavailable) as away:
        await Runtime([service], redis=url, namespace=namespace).start()
    return str(away.value)


def query(authority: Authority, **more: object) -> str:
    return urlencode({"ssl_ca_certs": authority.ca, **more})


@needs_redis_server
async def test_a_certificate_of_a_private_ca_is_verified(
    started: Starter, service: Service, namespace: str, authority: Authority
) -> None:
    server = started()
    await greeted(service, f"rediss://localhost:{server.port}?{query(authority)}", namespace)
    await greeted(
        service, f"rediss://127.0.0.1:{server.port}?{query(authority, ssl_check_hostname='false')}", namespace
    )
    await greeted(service, f"rediss://127.0.0.1:{server.port}?ssl_cert_reqs=none&ssl_check_hostname=false", namespace)


@needs_redis_server
async def test_another_ca_or_another_host_is_refused_with_what_to_change(
    started: Starter, service: Service, namespace: str, authority: Authority, tmp_path: Path
) -> None:
    port = started().port
    other = Authority(tmp_path, "other")
    for url in (f"rediss://localhost:{port}", f"rediss://localhost:{port}?{query(other)}"):
        said = await refused(service, url, namespace)
        assert "certificate is refused: " in said
        assert "ssl_ca_certs= in its URL names the file of the CA" in said
    said = await refused(service, f"rediss://127.0.0.1:{port}?{query(authority)}", namespace)
    assert "certificate is refused: " in said
    assert "connect by a name or an address that the certificate has" in said


@needs_redis_server
async def test_a_server_that_wants_a_certificate_of_its_clients(
    started: Starter, service: Service, namespace: str, authority: Authority
) -> None:
    server = started(clients="yes")
    certificate, key = authority.issue("client")
    place = f"rediss://localhost:{server.port}?{query(authority)}"
    await greeted(service, f"{place}&{urlencode({'ssl_certfile': certificate, 'ssl_keyfile': key})}", namespace)
    await refused(service, place, namespace)  # with an alert, or the connection is just reset


@needs_redis_server
async def test_the_end_does_not_wait_for_the_goodbye_of_a_server_that_stands_still(
    started: Starter, queue: Queue, authority: Authority
) -> None:
    server = started()
    store = Store(f"rediss://localhost:{server.port}?{query(authority)}", name="aioflow:test")
    await store.begin([queue])
    await asyncio.gather(*(store.inspect(queue, ["a"]) for _ in range(5)), *(store.sizes(queue) for _ in range(5)))
    with server.admin() as admin:
        assert len(admin.client_list()) > 5
        server.signal(signal.SIGSTOP)
        began = time.monotonic()
        try:
            await store.close()
            assert time.monotonic() - began < 4
        finally:
            server.signal(signal.SIGCONT)
        await wait_until(lambda: len(admin.client_list()) == 1)


async def test_a_port_without_tls_is_said(service: Service, namespace: str) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-ERR unknown command\r\n")
        writer.close()

    plain = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = plain.sockets[0].getsockname()[1]
    assert "no TLS with it (WRONG_VERSION_NUMBER); is that its tls-port" in await refused(
        service, f"rediss://localhost:{port}", namespace
    )
    plain.close()
    await plain.wait_closed()


@needs_redis_server
async def test_a_cluster_over_tls(started: Starter, service: Service, namespace: str, authority: Authority) -> None:
    server = started("localhost", "127.0.0.1", arguments=("--cluster-enabled", "yes", "--tls-cluster", "yes"))
    with server.admin() as admin:
        admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await wait_until(lambda: admin.cluster("INFO")["cluster_state"] == "ok")
    place = f"rediss+cluster://127.0.0.1:{server.port}"
    await greeted(service, f"{place}?{query(authority)}", namespace)
    assert "certificate is refused" in await refused(service, place, namespace)


@needs_redis_server
async def test_a_primary_that_sentinels_name_over_tls(
    started: Starter, service: Service, namespace: str, authority: Authority
) -> None:
    server = started("localhost", "127.0.0.1")
    watching = f"sentinel monitor main 127.0.0.1 {server.port} 1\n"
    watcher = started("localhost", configuration=watching)
    place = f"rediss+sentinel://localhost:{watcher.port}/main"
    await greeted(service, f"{place}?{query(authority)}", namespace)
    assert "over TLS: ssl_ca_certs= names the file" in await refused(service, place, namespace)


@needs_redis_server
async def test_serve_says_it_in_a_line_and_ends(started: Starter, tmp_path: Path) -> None:
    serve = Serve("services.payments:service", "--port", "0", "--redis", f"rediss://:s3cr3t@localhost:{started().port}")
    try:
        serve.spawn()
        assert serve.process is not None
        assert await asyncio.to_thread(serve.process.wait, 20) == 2
        assert "certificate is refused" in serve.said
        assert "Traceback" not in serve.said
        assert "s3cr3t" not in serve.said
    finally:
        serve.close()


# ---- URLs


def test_urls_of_tls_say_how() -> None:
    given = f"ssl_ca_certs={__file__}&ssl_check_hostname=False"
    options = {"ssl_ca_certs": __file__, "ssl_check_hostname": False}
    for url in (f"rediss+cluster://u:p@a,b?{given}", f"rediss+sentinel://u:p@a,b/main?{given}&sentinel_password=x"):
        check_url(url)
        assert ":***@" in shown(url)
    assert cluster.parse(f"rediss+cluster://a?{given}")[2] == options
    assert cluster.parse("rediss+cluster://a")[2] == {}, "all is checked"
    assert sentinel.parse(f"rediss+sentinel://a/main?{given}").tls == options
    assert sentinel.parse("redis+sentinel://a/main").tls is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+cluster://a?ssl_cert_reqs=none", "but for those of TLS behind rediss"),
        ("rediss+cluster://a?db=1", "cannot be read"),
        ("rediss+cluster://a?ssl_ca_certs=/nowhere", "ssl_ca_certs='/nowhere': use a file"),
        (f"rediss+cluster://a?ssl_keyfile={__file__}", "ssl_keyfile needs ssl_certfile"),
        ("redis+sentinel://a/main?ssl_cert_reqs=none", "cannot be read"),
        ("rediss+sentinel://a/main?ssl_cert_reqs=maybe", "ssl_cert_reqs='maybe': use none|optional|required"),
    ],
)
def test_other_urls_of_tls_are_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        check_url(url)
    assert said in str(wrong.value)
