"""Each call of the store over a line that breaks, counted on the server: how often it ran, and that all went on.

The table says what the scripts' headers promise: a call that may be repeated is sent once more over a broken line, any
other is an honest error; whatever the driver would repeat by itself shows as one run too many.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from aioflow.commit import Effect
from aioflow.engine.keys import PARTS, Queue, data_key
from aioflow.engine.records import Emitted, Leased, NewJob, Settlement
from aioflow.engine.store import Store
from aioflow.errors import StoreUnavailable
from tests.proxy import Proxy
from tests.valkey import Valkey
from tests.waiting import wait_until

LONG = 600_000
DONE = Settlement("held", "t.1", "done", effects=[Effect("hincrby", "sold", ("held", "1"))])
EMITTED = Emitted("17-0", "demo.work", b"\n1", 4, 0)


@dataclass(frozen=True)
class Call:
    """A call, and how often the server runs it at most when its reply is lost once."""

    name: str
    send: Callable[[Store, Queue], Awaitable[Any]]
    runs: int = 2
    command: str = "evalsha"
    first: Any = None
    """What it answers."""
    again: Any = None
    """What the repeat may answer instead."""


CALLS = [
    Call("submit", lambda store, queue: store.submit([NewJob(queue, "new", b"\n1", 4, "0")]), first=[1], again=[0]),
    Call(
        "submit fsync",
        lambda store, queue: store.submit([NewJob(queue, "new", b"\n1", 4, "0")], "fsync"),
        first=[1],
        again=[0],
    ),
    Call("claim", lambda store, queue: store.claim(queue, 1, LONG, "t.2"), runs=1),
    Call("expose", lambda store, queue: store.expose(queue, Leased("held", "t.1", b"", 1, 0, 0)), first=True),
    Call("settle", lambda store, queue: store.settle(queue, [DONE]), first=[1]),
    Call("renew", lambda store, queue: store.renew([(queue, LONG, [("held", "t.1")])]), first=[[1]]),
    Call("release", lambda store, queue: store.release(queue, [("held", "t.1")]), first=[True]),
    Call("promote", lambda store, queue: store.promote(queue), first=0),
    Call("reap", lambda store, queue: store.reap(queue, most_crashes=3, longest_ms=LONG)),
    Call("trim", lambda store, queue: store.trim(queue, keep_done_ms=LONG, keep_dead_ms=LONG), first=0),
    Call("cancel", lambda store, queue: store.cancel(queue, ["held"], "x:1:c:"), first=[1]),
    Call("await_result", lambda store, queue: store.await_result(queue, "held", "x:1:c:1")),
    Call("progress", lambda store, queue: store.progress(queue, [("held", "t.1", b"1")]), first=[True]),
    Call("relay", lambda store, queue: store.relay(queue, "demo.other", [EMITTED])),
    Call("outbox", lambda store, queue: store.outbox(queue, 9), runs=1, command="xrange", first=[]),
    Call("forget", lambda store, queue: store.forget(queue, ["17-0"]), runs=1, command="xdel"),
    Call("wait_bell", lambda store, queue: store.wait_bell(queue, 0.05), runs=1, command="blpop", first=True),
    Call("look", lambda store, queue: store.look(queue, "held"), runs=1, command="hget"),
]


@dataclass
class Rig:
    """A queue with a ready job and a held one; a store behind a proxy, and one that is not."""

    queue: Queue
    proxy: Proxy
    near: Store
    far: Store

    async def runs(self, command: str) -> int:
        """How often the server has run a command for anybody; a script that it does not know is no run."""
        found = (await self.near.redis.info("commandstats")).get(f"cmdstat_{command}", {})
        return int(found.get("calls", 0)) - int(found.get("failed_calls", 0))

    async def state(self) -> dict[str, Any]:
        """All that the queue and its service hold, without times."""
        sold = data_key(self.queue.namespace, "demo", "sold")
        found: dict[str, Any] = {"sold": await self.near.redis.hgetall(sold)}
        for part, key in self.queue.keys.items():
            match PARTS[part]:
                case "zset":
                    found[part] = await self.near.redis.zrange(key, 0, -1)
                case "hash":
                    found[part] = sorted(await self.near.redis.hkeys(key))
        found["totals"] = [name for name in found["totals"] if name != b"repeated"]
        return found

    async def goes_on(self) -> None:
        """Whatever came before, the next calls hear their own answers."""
        assert await self.far.submit([NewJob(self.queue, "next", b"\n1", 0, "0")]) == [1]
        claimed = await self.far.claim(self.queue, 1, LONG, "t.9")
        assert [leased.id for leased in claimed.jobs] == ["next"], claimed
        assert await self.far.settle(self.queue, [Settlement("next", "t.9", "done")]) == [1]


@pytest.fixture
async def near(durable_valkey: Valkey) -> AsyncIterator[Store]:
    """With every script loaded."""
    made = Store(durable_valkey.url, name="near")
    await made.begin([])
    yield made
    await made.close()


@asynccontextmanager
async def rigged(valkey: Valkey, near: Store, namespace: str) -> AsyncIterator[Rig]:
    """In a namespace of its own, and with no connection left at the end."""
    queue = Queue(namespace, "demo", "work")
    await near.submit([NewJob(queue, job_id, b"\n1", 4, "0") for job_id in ("held", "ready")])
    await near.claim(queue, 1, LONG, "t.1")
    async with Proxy(valkey.socket) as proxy:
        far = Store(proxy.url, name="far")
        try:
            await far.hear_server()
            yield Rig(queue, proxy, near, far)
        finally:
            proxy.flow()
            await far.close()
            await wait_until(lambda: not proxy.links)
    await wait_until(partial(nobody_is_called, "far", near))


async def nobody_is_called(name: str, near: Store) -> bool:
    """Whether the server knows no connection of this name."""
    return all(client["name"] != name for client in await near.redis.client_list())


@pytest.mark.parametrize("half", [False, True], ids=["cut", "half-closed"])
async def test_a_reply_that_is_lost_is_asked_for_again_where_the_header_allows_it(
    durable_valkey: Valkey, near: Store, namespace: str, half: bool
) -> None:
    for call in CALLS:
        async with rigged(durable_valkey, near, f"{namespace}.{call.name}") as plain:
            await call.send(plain.far, plain.queue)
            await plain.goes_on()
            expected = await plain.state()
        async with rigged(durable_valkey, near, f"{namespace}.{call.name}.lost") as rig:
            await lose_a_reply(rig, call, half=half)
            await rig.goes_on()
            assert await rig.state() == expected, f"{call.name}: not as if it had been made once"


async def lose_a_reply(rig: Rig, call: Call, *, half: bool = False) -> None:
    """Lose the reply once; the server's count, and the answer, must be what the table says."""
    before = await rig.runs(call.command)
    strike = rig.proxy.strike(1, reply=True, mark=call.command.upper().encode(), half=half)
    try:
        answer = await call.send(rig.far, rig.queue)
    except StoreUnavailable:
        assert call.runs == 1, f"{call.name} may be repeated, and was not"
    else:
        assert call.runs == 2, f"{call.name} was repeated, and may not be"
        assert call.first is None or answer in (call.first, call.again), f"{call.name}: {answer}"
    assert strike.happened
    ran = await rig.runs(call.command) - before
    assert ran == call.runs, f"the server ran {call.name} {ran} times"


async def test_a_request_that_is_cut_off_is_sent_again_where_the_header_allows_it(
    durable_valkey: Valkey, near: Store, namespace: str
) -> None:
    for call in CALLS:
        async with rigged(durable_valkey, near, f"{namespace}.{call.name}") as rig:
            before = await rig.runs(call.command)
            strike = rig.proxy.strike(1, reply=False, mark=call.command.upper().encode())
            try:
                answer = await call.send(rig.far, rig.queue)
                assert call.first is None or answer == call.first
            except StoreUnavailable:
                assert call.runs == 1, f"{call.name} may be repeated, and was not"
            assert strike.happened
            ran = await rig.runs(call.command) - before
            assert ran == call.runs - 1, f"the server ran {call.name} {ran} times"
            await rig.goes_on()


async def test_what_was_half_closed_while_it_was_idle_is_not_used_again(
    durable_valkey: Valkey, near: Store, namespace: str
) -> None:
    async with rigged(durable_valkey, near, namespace) as rig:
        await rig.goes_on()
        assert len(rig.proxy.links) == 2, "that of the driver's commands, and that of the scripts"
        rig.proxy.half_close()
        await wait_until(lambda: len(rig.proxy.links) == 1)  # the driver looks when it takes it
        for call in CALLS:
            if call.name in {"outbox", "forget", "claim"}:  # which are never sent again
                before = await rig.runs(call.command)
                await call.send(rig.far, rig.queue)
                assert await rig.runs(call.command) == before + 1, call.name


@pytest.mark.parametrize("answered", [False, True], ids=["before the server has it", "before its answer is here"])
async def test_a_call_that_is_cancelled_ends_at_once_and_leaves_its_answer_to_nobody(
    durable_valkey: Valkey, near: Store, namespace: str, answered: bool
) -> None:
    for call in CALLS:
        async with rigged(durable_valkey, near, f"{namespace}.{call.name}") as rig:
            await cancel_in(rig, call, answered=answered)
            await rig.goes_on()


async def cancel_in(rig: Rig, call: Call, *, answered: bool) -> None:
    """Cancel the caller while its request, or the answer, is on the way."""
    before = await rig.runs(call.command)
    held = rig.proxy.hold(call.command.upper().encode(), reply=answered)
    calling = asyncio.ensure_future(call.send(rig.far, rig.queue))
    async with asyncio.timeout(5):
        await held.wait()
    calling.cancel()
    done, _ = await asyncio.wait([calling], timeout=2)
    assert done, f"{call.name}: who is cancelled does not wait for the answer"
    assert calling.cancelled()
    if answered:
        assert await rig.runs(call.command) - before == 1, call.name
    rig.proxy.flow()
