"""Admission: what Redis cannot hold is refused before it is sent, and a server that forgets is refused as a whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from aioflow import ConfigError, Runtime, Service, StoreUnavailable
from aioflow.settings import Settings, load_settings
from tests.serving import Serve
from tests.valkey import Valkey
from tests.waiting import wait_until


@pytest.fixture
def service() -> Service:
    service = Service("demo")

    @service.task()
    async def work(_text: str) -> None: ...

    service.post("/work", submits=work)
    return service


@pytest.fixture
def evicting() -> Iterator[Valkey]:
    server = Valkey(arguments=("--maxmemory-policy", "allkeys-lru"))
    server.start()
    yield server
    server.close()


async def test_a_server_that_may_evict_is_refused_unless_that_is_allowed(
    evicting: Valkey, namespace: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"maxmemory-policy is allkeys-lru; CONFIG SET maxmemory-policy noeviction"):
        async with Runtime([service], redis=evicting.url, namespace=namespace):
            raise AssertionError("it started")
    monkeypatch.setenv("AIOFLOW_ALLOW_EVICTION", "true")
    async with Runtime([service], redis=evicting.url, namespace=namespace) as runtime:
        await (await runtime.submit("demo.work", "x")).result(5)


async def test_serve_says_how_to_mend_it_and_may_be_told_to_start(evicting: Valkey, namespace: str) -> None:
    for options, started in (((), False), (("--allow-eviction",), True)):
        serve = Serve(
            "services.payments:service", "--port", "0", "--redis", evicting.url, *options,
            environment={"AIOFLOW_NAMESPACE": namespace},
        )  # fmt: skip
        try:
            if started:
                await serve.start()
                assert await serve.stop() == 0
            else:
                serve.spawn()
                assert serve.process is not None
                assert await asyncio.to_thread(serve.process.wait, 20) == 2
                assert "CONFIG SET maxmemory-policy noeviction" in serve.said
        finally:
            serve.close()


async def test_where_maxmemory_is_0_a_budget_stands_for_it(
    own_valkey: Valkey, namespace: str, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aioflow.engine.gauge")
    settings = load_settings(redis=own_valkey.url, namespace=namespace, memory_budget="16MiB", memory_watermark=0.5)
    assert settings.memory_budget == 16 << 20

    async def refuses() -> bool:
        try:
            await runtime.admit()
        except StoreUnavailable as error:
            return "full; nothing new is taken" in str(error)
        return False

    async with Runtime([service], settings=settings) as runtime:
        await runtime.admit()
        await runtime.redis.set("ballast", b"x" * (12 << 20))
        await wait_until(refuses)
        assert await refuses()
        # What is in-process is up to the program, and what runs goes on.
        await (await runtime.submit("demo.work", "x")).result(5)
        await runtime.redis.delete("ballast")

        async def takes() -> bool:
            return not await refuses()

        await wait_until(takes)
        await runtime.redis.config_set("maxmemory", 1 << 40)
        await runtime.redis.set("ballast", b"x" * (12 << 20))
        gauge = runtime._gauge
        assert gauge is not None
        gauge._asked_at = -1e9
        await runtime.admit()  # the server's own limit counts where it has one
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("redis is above the watermark of 50% (1"), said
    assert "new jobs had been refused" in said[1]


async def test_many_who_ask_at_once_are_one_question(valkey: Valkey, namespace: str, service: Service) -> None:
    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as runtime:
        before = (await runtime.redis.info("commandstats"))["cmdstat_info"]["calls"]
        await asyncio.gather(*[runtime.admit() for _ in range(500)])
        after = (await runtime.redis.info("commandstats"))["cmdstat_info"]["calls"]
        assert after - before <= 2, "one for all of them, and the one that counts them"


@pytest.mark.parametrize("wrong", ["0", "-1", "much", "1.5 parsecs"])
def test_a_budget_is_a_number_of_bytes(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOFLOW_MEMORY_BUDGET", wrong)
    with pytest.raises(ConfigError, match="AIOFLOW_MEMORY_BUDGET"):
        load_settings()


def test_there_is_no_budget_by_default() -> None:
    assert (Settings().memory_budget, Settings().allow_eviction) == (None, False)
