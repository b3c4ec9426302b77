"""Channels of services: what is published on them is heard, also in a cluster, and anew after the line was down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aioflow import ConfigError, Runtime, Service
from aioflow.engine.caller import MOST_CHANNELS
from aioflow.engine.fleet import Fleet
from tests.cluster import Cluster
from tests.proxy import Proxy
from tests.valkey import Valkey
from tests.waiting import wait_until


class Ear:
    """A service that listens on a channel of its own; `connected` counts its subscriptions."""

    def __init__(self, name: str, channel: str = "news") -> None:
        self.heard: list[bytes] = []
        self.connected = 0
        self.closing: asyncio.Event | None = None
        self.channel = channel
        self.service = Service(name, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, runtime: Runtime) -> AsyncIterator[None]:
        async def connected() -> None:
            self.connected += 1

        self.closing = runtime.closing
        listening = asyncio.create_task(
            runtime.listen(self.service, self.channel, {b"said": self.heard.append}, connected)
        )
        try:
            yield
        finally:
            listening.cancel()
            await asyncio.wait([listening])


async def say(runtime: Runtime, ear: Ear, message: str) -> None:
    """Publish as a script of the service would."""
    await runtime.redis.publish(runtime.key(ear.service, ear.channel), message)


async def ready(*ears: Ear) -> None:
    """Wait until each has subscribed."""
    await wait_until(lambda: all(ear.connected for ear in ears))


@pytest.mark.parametrize("url", ["valkey", "memory:", "cluster"])
async def test_each_channel_hears_what_is_its_own(
    request: pytest.FixtureRequest, valkey: Valkey, namespace: str, url: str
) -> None:
    if url != "memory:":
        server: Valkey | Cluster = valkey if url == "valkey" else request.getfixturevalue("cluster")
        url = server.url
    ears = [Ear(f"ear{number}") for number in range(5)]
    async with Runtime([ear.service for ear in ears], redis=url, namespace=namespace) as runtime:
        await ready(*ears)
        for number, ear in enumerate(ears):
            await say(runtime, ear, f"said\nto {number}\nand more")
        await wait_until(lambda: all(ear.heard for ear in ears))
        assert [ear.heard for ear in ears] == [[b"to %d\nand more" % number] for number in range(5)]


async def test_a_message_that_is_none_of_the_services_is_said_and_passed_over(
    valkey: Valkey, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    ear = Ear("ear")
    async with Runtime([ear.service], redis=valkey.url, namespace=namespace, workers=False) as runtime:
        await ready(ear)
        await say(runtime, ear, "what is this")
        await say(runtime, ear, "said\nhello")
        await wait_until(lambda: ear.heard)
    assert ear.heard == [b"hello"]
    assert "none of ours" in caplog.text


async def test_after_the_line_was_down_it_is_connected_anew_and_says_so(valkey: Valkey, namespace: str) -> None:
    ear = Ear("ear")
    async with Proxy(valkey.socket) as proxy, Runtime([ear.service], redis=proxy.url, namespace=namespace) as runtime:
        await ready(ear)
        proxy.cut()
        await wait_until(lambda: ear.connected == 2)
        await say(runtime, ear, "said\nhello")
        await wait_until(lambda: ear.heard)


async def test_orders_reach_a_runtime_whose_services_listen(valkey: Valkey, namespace: str) -> None:
    ears = [Ear(f"ear{number}") for number in range(MOST_CHANNELS - 1)]

    @ears[0].service.task()
    async def work() -> None:
        return None

    services = [ear.service for ear in ears]
    async with Runtime(services, redis=valkey.url, namespace=namespace) as runtime:
        await ready(*ears)
        stopped = asyncio.Event()
        runtime.when_ordered_to_stop(stopped.set)
        store: Any = runtime._store
        fleet = Fleet(store, namespace)
        await wait_until(lambda: fleet.order(runtime.id, "stop", "now 1"))
        async with asyncio.timeout(5):
            await stopped.wait()


async def test_one_channel_too_many_is_refused(valkey: Valkey, namespace: str) -> None:
    ears = [Ear(f"ear{number}") for number in range(MOST_CHANNELS - 1)]
    async with Runtime([ear.service for ear in ears], redis=valkey.url, namespace=namespace) as runtime:
        await ready(*ears)

        async def connected() -> None:
            raise AssertionError("it is never connected")

        with pytest.raises(ConfigError, match="at most 15 channels"):
            await runtime.listen(ears[0].service, "more", {}, connected)


async def test_the_closing_is_said_once_nothing_new_is_taken(valkey: Valkey, namespace: str) -> None:
    ear = Ear("ear")
    runtime = Runtime([ear.service], redis=valkey.url, namespace=namespace)
    async with runtime:
        assert ear.closing is not None
        assert not ear.closing.is_set()
        runtime.stop_waiting()
        assert ear.closing.is_set()
    again = Runtime([ear.service], redis=valkey.url, namespace=namespace)
    async with again:
        assert not again.closing.is_set()
    assert again.closing.is_set()
