"""The kit notices each bug that is planted into the Python side; of the scripts' bugs see `tests.chaos.mutations`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from aioflow import AioflowError, Runtime
from aioflow.engine.keys import Queue
from aioflow.engine.records import NewJob
from aioflow.engine.store import Store
from tests.chaos.faults.bugs import BUGS, Bug, plant
from tests.chaos.faults.lanes import World, nothing_leased, store_fault
from tests.chaos.faults.path import Walk
from tests.chaos.faults.store import Kind
from tests.chaos.faults.test_calls import CALLS, lose_a_reply, rigged
from tests.chaos.faults.test_late import be_a_zombie

pytestmark = pytest.mark.usefixtures("faulty")

LEASE = 0.8
"""Seconds: what is lost shows soon."""

Check = Callable[[World, str, pytest.LogCaptureFixture], Awaitable[None]]
"""A part of the kit, made small: it passes where there is no bug."""


async def receipts(world: World, namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    """No receipt comes from a server that has ceased to fsync."""
    queue, far = Queue(namespace, "demo", "work"), Store(world.valkey.url, name="far")
    await world.near.redis.config_set("appendfsync", "everysec")
    try:
        with suppress(AioflowError):
            await far.submit([NewJob(queue, "a", b"\n1", 4, "0")], "fsync")
            raise AssertionError("a receipt was given for what was not fsynced")
    finally:
        await world.near.redis.config_set("appendfsync", "always")
        await far.close()


async def lost_replies(world: World, namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each of the store's calls, as in the table."""
    for call in CALLS:
        if call.name in {"claim", "outbox", "forget"}:
            async with rigged(world.valkey, world.near, f"{namespace}.{call.name}") as rig:
                await lose_a_reply(rig, call)


def walk(*parts: str, fault: tuple[str, Kind] | None = None) -> Check:
    """One walk, struck at the first call of a method."""

    async def check(world: World, namespace: str, caplog: pytest.LogCaptureFixture) -> None:
        shop = world.shop(LEASE)
        async with Runtime(
            shop.services, redis=world.valkey.url, namespace=shop.namespace, grace=0.0, durability="memory"
        ) as runtime:
            walk = Walk(shop, runtime, 0)
            if fault is not None:
                store_fault(*fault)(walk, 1)
            await walk.go(parts)
            await walk.check()

    return check


async def stop(world: World, namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    """A runtime that stops gives back what it holds."""
    shop = world.shop()
    async with Runtime(shop.services, redis=world.valkey.url, namespace=shop.namespace, grace=0.0) as runtime:
        await Walk(shop, runtime, 0).leave_running()
    await nothing_leased(shop)


async def zombie(world: World, namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    """A runtime whose lease was lost says so."""
    await be_a_zombie(world, namespace)
    assert "its lease was lost; its outcome is dropped" in caplog.text


CHECKS: dict[str, Check] = {
    "receipts": receipts,
    "lost replies": lost_replies,
    "a walk": walk("again"),
    "a long walk": walk("long"),
    "relay LOST": walk("again", fault=("relay", Kind.LOST)),
    "relay UNANSWERED": walk("again", fault=("relay", Kind.UNANSWERED)),
    "submit LOST": walk("again", fault=("submit", Kind.LOST)),
    "settle LOST": walk("again", fault=("settle", Kind.LOST)),
    "expose UNANSWERED": walk("orphan", fault=("expose", Kind.UNANSWERED)),
    "a stop": stop,
    "a zombie": zombie,
}


@pytest.mark.parametrize("check", CHECKS)
async def test_a_check_passes_where_there_is_no_bug(
    durable_world: World, namespace: str, caplog: pytest.LogCaptureFixture, check: str
) -> None:
    await CHECKS[check](durable_world, namespace, caplog)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
async def test_a_planted_bug_is_noticed(
    durable_world: World, namespace: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, bug: Bug
) -> None:
    plant(bug, monkeypatch)
    try:
        await CHECKS[bug.caught_by](durable_world, namespace, caplog)
    except (AssertionError, AioflowError):
        return
    except ExceptionGroup as several:  # of a walk whose parts go side by side
        _, others = several.split((AssertionError, AioflowError))
        assert others is None, others
        return
    pytest.fail(f"nobody noticed {bug.name}")
