"""Walks the core path once for the first call that a fault may strike, for the second, and on, until there is none.

Several runtimes walk side by side, each a lane of its own with every so-manieth call: a walk is mostly waiting.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from aioflow import AioflowError, Runtime
from aioflow.engine.store import Store
from tests.chaos.faults.path import LEASE, TASKS, Shop, Walk
from tests.chaos.faults.store import Fault, FaultyStore, Kind
from tests.valkey import Valkey
from tests.waiting import wait_until

T = TypeVar("T")

MOST_CALLS = 200
"""A path of so many calls has no end."""
KEPT_BY = {"claim", "submit", "settle", "release", "expose"}
"""Calls without whose answer a runtime that stops cannot know all of its leases, or give them back."""

STOPPED = {
    "renew": ("long", "endless"),
    "release": ("endless",),
    "expose": ("orphan", "again"),
    "reap": ("orphan", "again"),
    "promote": ("again",),
}
"""The parts of a walk in which a runtime is stopped, where they are others than of most."""


class Struck(Protocol):
    """A fault that was armed."""

    @property
    def happened(self) -> bool: ...


Arm = Callable[[Walk, int], Struck]
"""Arms the fault for the call of that number from now on."""


@dataclass
class World:
    """The server, and a store to it that no fault reaches."""

    valkey: Valkey
    near: Store

    @classmethod
    @asynccontextmanager
    async def on(cls, valkey: Valkey) -> AsyncIterator[World]:
        """One on a server."""
        world = cls(valkey, Store(valkey.url, name="near"))
        try:
            yield world
        finally:
            FaultyStore.faults.clear()
            await world.near.close()

    def shop(self, lease: float = LEASE) -> Shop:
        """The services of a lane, in a namespace of its own."""
        return Shop(self.near, f"t{secrets.token_hex(6)}", lease)

    async def connections(self, runtime: Runtime) -> int:
        """How many the server knows of a runtime."""
        return sum(client["name"] == f"aioflow:{runtime.id}" for client in await self.near.redis.client_list())

    async def left(self, runtime: Runtime) -> None:
        """Wait until a runtime that has stopped has no connection left."""

        async def none() -> bool:
            return await self.connections(runtime) == 0

        await wait_until(none)


async def together(*lanes: Coroutine[Any, Any, object], at_once: int = 12) -> None:
    """Run lanes side by side; the first that fails ends them all, and is raised.

    So few at once, or they keep the loop from one another for as long as a lease.
    """
    places = asyncio.Semaphore(at_once)

    async def run(lane: Coroutine[Any, Any, object]) -> None:
        async with places:
            await lane

    tasks = [asyncio.create_task(run(lane), name="lane") for lane in lanes]
    try:
        for task in asyncio.as_completed(tasks):
            await task
    finally:
        for left in tasks:
            left.cancel()
        await asyncio.wait(tasks)
        for lane in lanes:
            lane.close()  # those that were never begun


def store_fault(method: str, kind: Kind) -> Arm:
    """Strikes the calls of one method of a walk's runtime."""

    def arm(walk: Walk, number: int) -> Struck:
        cancels = kind in {Kind.CANCELLED_BEFORE, Kind.CANCELLED_AFTER}
        over = walk.has_cancelled if cancels else lambda: True
        fault = FaultyStore.faults[f"aioflow:{walk.runtime.id}"] = Fault(method, number, kind, walk.cancel_asking, over)
        return fault

    return arm


async def walk_all(world: World, arm: Arm, what: str, *, url: str = "", lane: int = 0, lanes: int = 1) -> None:
    """One runtime walks again and again, struck at one call after the other; `lane` of `lanes` takes its share."""
    shop = world.shop()
    url_or_own = url or world.valkey.url
    async with Runtime(shop.services, redis=url_or_own, namespace=shop.namespace, grace=1.0) as runtime:
        for walks, number in enumerate(range(lane + 1, MOST_CALLS, lanes)):
            if not await noted(f"{what}, number {number}", walk_once(shop, runtime, arm, walks, number)):
                assert number > 1, f"the path has no such call: {what}"
                break
        else:
            raise AssertionError(f"{what}: the path has no end")
    await world.left(runtime)


async def noted(what: str, walk: Awaitable[bool]) -> bool:
    """As the walk; an error says where it was."""
    try:
        return await walk
    except BaseException as error:
        error.add_note(f"struck: {what}")
        raise


async def walk_once(shop: Shop, runtime: Runtime, arm: Arm, walks: int, number: int) -> bool:
    """Whether the fault came."""
    walk = Walk(shop, runtime, walks)
    struck = arm(walk, number)
    await walk.go()
    await walk.check()
    return struck.happened


async def stop_all(world: World, method: str, kind: Kind, *, lane: int = 0, lanes: int = 1) -> None:
    """Runtimes that are stopped in one call of the method after the other; heirs go on with what they leave."""
    for number in range(lane + 1, MOST_CALLS, lanes):
        if not await stop_once(world, method, kind, number):
            assert number > 1, f"the path has no call of {method}"
            return
    raise AssertionError("the path has no end")


async def stop_once(world: World, method: str, kind: Kind, number: int) -> bool:
    """Whether the fault came."""
    parts = STOPPED.get(method, ("again", "endless"))
    shop = world.shop()
    runtime = Runtime(shop.services, redis=world.valkey.url, namespace=shop.namespace, grace=0.0)
    async with runtime:
        walk = Walk(shop, runtime, 0)
        fault = Fault(method, number, kind, runtime._begin_stop, lambda: runtime._store is None)
        FaultyStore.faults[f"aioflow:{runtime.id}"] = fault
        going = asyncio.create_task(walk.leave_running() if method == "release" else walk.go(parts), name="walk")
        await wait_until(lambda: going.done() or runtime.is_stopping(), 20)
        stopped_by_fault = runtime.is_stopping()
        await runtime.stop()
        going.cancel()
        await asyncio.wait([going])
        error = None if going.cancelled() else going.exception()
        if error is not None:
            assert stopped_by_fault, error
            honest(error)
        if method not in KEPT_BY:
            await nothing_leased(shop)
    await world.left(runtime)
    async with Runtime(shop.services, redis=world.valkey.url, namespace=shop.namespace) as heir:
        walk = Walk(shop, heir, 0)
        await walk.go([part for part in parts if part != "orphan"])
        await noted(repr(fault), walk.check(restarted=True))
    return fault.happened


async def fail_a_stop(world: World, method: str, kind: Kind) -> None:
    """A runtime that stops while a handler runs, and whose call of the method comes to nothing; its heir goes on."""
    shop = world.shop()
    async with Runtime(shop.services, redis=world.valkey.url, namespace=shop.namespace, grace=0.0) as runtime:
        handle = await Walk(shop, runtime, 0).leave_running()
        fault = FaultyStore.faults[f"aioflow:{runtime.id}"] = Fault(method, 1, kind)
    assert fault.happened, method
    await world.left(runtime)
    async with Runtime(shop.services, redis=world.valkey.url, namespace=shop.namespace) as heir:
        walk = Walk(shop, heir, 0)
        await heir.handle(shop.sell, handle.id).cancel()
        await noted(repr(fault), walk.check(restarted=True))


async def nothing_leased(shop: Shop) -> None:
    """A runtime that stopped in order has given back what it held."""
    for task in TASKS:
        running: Any = await shop.near.redis.zrange(shop.queues[task].keys["running"], 0, -1)
        assert not [job for job in running if not job.startswith(b"orphan")], f"{task}: left leased"


def honest(error: BaseException) -> None:
    """Let pass what a runtime says that stops, and nothing else."""
    errors = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
    for one in errors:
        if not isinstance(one, (AioflowError, asyncio.CancelledError)):
            raise one
