"""I8: what a call costs the server does not depend on how much lies in its queue, also when all of it falls due."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aioflow.engine.keys import Queue
from aioflow.engine.records import NewJob, Settlement
from aioflow.engine.store import Store
from tests.chaos.faults.test_calls import CALLS, LONG
from tests.conftest import Clock
from tests.valkey import Valkey

YEAR = 365 * 86_400_000
MORE = 3
AT_ONCE = 1000
"""Jobs that one call of the upkeep takes at most."""
UPKEEP: dict[str, Callable[[Store, Queue], Awaitable[Any]]] = {
    "reap": lambda store, queue: store.reap(queue, most_crashes=3, longest_ms=YEAR),
    "promote": lambda store, queue: store.promote(queue),
    "claim": lambda store, queue: store.claim(queue, 1, LONG, "t.2"),
    "trim": lambda store, queue: store.trim(queue, keep_done_ms=LONG, keep_dead_ms=LONG),
}


async def fill(store: Store, queue: Queue, depth: int) -> None:
    """So many jobs in each state, beside one that is held and one that is ready."""

    async def submit(kind: str, due: str = "0") -> None:
        jobs = [NewJob(queue, f"{kind}{number}", b"\n1", 4, due) for number in range(depth)]
        for first in range(0, depth, AT_ONCE):
            await store.submit(jobs[first : first + AT_ONCE])

    async def claim(token: str) -> list[str]:
        return [job.id for job in (await store.claim(queue, AT_ONCE, LONG, token)).jobs]

    await store.submit([NewJob(queue, "held", b"\n1", 0, "0")])
    await store.claim(queue, 1, LONG, "t.1")
    for kind in ("done", "dead"):
        await submit(kind)
        while held := await claim(f"t.{kind}"):
            await store.settle(queue, [Settlement(job_id, f"t.{kind}", kind, b"1") for job_id in held])
    await submit("running")
    while await claim("t.running"):
        pass
    await submit("scheduled", f"+{LONG // 2}")
    await submit("ready")
    await store.submit([NewJob(queue, "ready", b"\n1", 4, "0")])


async def sizes(store: Store, queue: Queue) -> list[int]:
    """How many jobs are in each state but ready, to which others go."""
    return [await store.redis.zcard(queue.keys[state]) for state in ("scheduled", "running", "done", "dead")]


async def cost(store: Store, send: Callable[[], Awaitable[Any]]) -> int:
    """How many commands the server ran for a call, those of scripts included."""
    before = (await store.redis.info("stats"))["total_commands_processed"]
    await send()
    return int((await store.redis.info("stats"))["total_commands_processed"] - before)


@pytest.mark.timeout(60)
async def test_a_call_costs_as_much_in_a_long_queue_as_in_a_short_one(own_valkey: Valkey, namespace: str) -> None:
    costs: dict[int, dict[str, int]] = {}
    for depth in (1, 2000):
        costs[depth] = {}
        for call in CALLS:
            store, queue = Store(own_valkey.url, name="aioflow:test", clock=Clock()), Queue(namespace, "demo", "work")
            await fill(store, queue, depth)
            await call.send(store, queue)  # which loads the script
            await store.redis.flushdb()
            await fill(store, queue, depth)
            costs[depth][call.name] = await cost(store, lambda: call.send(store, queue))  # noqa: B023 - at once
            await store.redis.flushdb()
            await store.close()
    assert costs[1] == costs[2000]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", UPKEEP)
async def test_what_falls_due_all_at_once_is_taken_in_parts(own_valkey: Valkey, namespace: str, name: str) -> None:
    clock, costs = Clock(), []
    for depth in (2 * AT_ONCE, MORE * AT_ONCE):
        store, queue = Store(own_valkey.url, name="aioflow:test", clock=clock), Queue(namespace, "demo", "work")
        await UPKEEP[name](store, queue)
        await fill(store, queue, depth)
        clock.ms += YEAR
        store.clock.hear(clock.ms)
        before = await sizes(store, queue)
        costs.append(await cost(store, lambda: UPKEEP[name](store, queue)))  # noqa: B023 - at once
        moved = [abs(size - after) for size, after in zip(before, await sizes(store, queue), strict=True)]
        assert AT_ONCE - 1 <= max(moved) <= AT_ONCE + 1, moved  # a claim takes one of those that it promotes
        await store.redis.flushdb()
        await store.close()
    assert costs[0] == costs[1]
