"""Each request of a runtime to its server, the first, the second, and so on: cut off, or its reply lost.

The same walks as over a faulty store, with nothing of aioflow replaced: all connections of a runtime, those of its
lease keeper and of its channel included, go through a proxy that counts what they write. With AIOFLOW_FAULTS=all each
request is struck; else those of one lane, which is drawn.
"""

from __future__ import annotations

import random

import pytest

from aioflow import Runtime, StoreUnavailable
from tests.chaos.faults.conftest import ALL
from tests.chaos.faults.lanes import Arm, Struck, World, together, walk_all
from tests.chaos.faults.path import Walk
from tests.proxy import Proxy
from tests.waiting import wait_until

MOST_REQUESTS = 200


def wire_fault(proxy: Proxy, *, reply: bool) -> Arm:
    """Strikes the requests of a walk's runtime."""

    def arm(_: Walk, number: int) -> Struck:
        return proxy.strike(number, reply=reply)

    return arm


def chosen(lanes: int) -> list[int]:
    """Of so many lanes."""
    return list(range(lanes)) if ALL else [random.randrange(lanes)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("reply", [False, True], ids=["cut off", "reply lost"])
async def test_any_request_of_the_path_may_be_lost(world: World, reply: bool) -> None:
    lanes = 8

    async def walk(lane: int) -> None:
        async with Proxy(world.valkey.socket) as proxy:
            arm = wire_fault(proxy, reply=reply)
            await walk_all(world, arm, f"reply={reply}", url=proxy.url, lane=lane, lanes=lanes)

    await together(*(walk(lane) for lane in chosen(lanes)))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("reply", [False, True], ids=["cut off", "reply lost"])
async def test_any_request_of_a_start_may_be_lost(world: World, reply: bool) -> None:
    lanes = 4

    async def start(lane: int) -> None:
        for number in range(lane + 1, MOST_REQUESTS, lanes):
            if not await start_once(world, number, reply=reply):
                assert number > 1
                return
        raise AssertionError("a start has no end")

    await together(*(start(lane) for lane in chosen(lanes)))


async def start_once(world: World, number: int, *, reply: bool) -> bool:
    """Start with one request lost: it is an honest error that leaves nothing, or a runtime that works."""
    shop = world.shop()
    async with Proxy(world.valkey.socket) as proxy:
        strike = proxy.strike(number, reply=reply)
        runtime = Runtime(shop.services, redis=proxy.url, namespace=shop.namespace, grace=1.0)
        try:
            await runtime.start()
        except StoreUnavailable:
            assert strike.happened
        else:
            try:
                walk = Walk(shop, runtime, 0)
                await walk.go(["again"])
                await walk.check()
            finally:
                await runtime.stop()
        await world.left(runtime)
        await wait_until(lambda: not proxy.links)
        return strike.happened
