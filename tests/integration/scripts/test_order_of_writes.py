"""A script checks before it writes: where a key of the queue is foreign, the call fails and nothing has changed.

A Lua error after the first write keeps what was written, so every key that a script names is replaced by one of
another type, one at a time, under a state in which the script would write as much as it can.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from aioflow.commit import Effect
from aioflow.engine import scripts
from aioflow.engine.keys import Queue
from aioflow.engine.records import Emitted, Leased, Settlement
from aioflow.engine.store import Store
from tests.integration.scripts.state import (
    NOW,
    State,
    finished,
    history,
    keys,
    look,
    new,
    plant,
    ready,
    refused,
    row,
    running,
    scheduled,
)

SET = Effect("set", "s", ("v",))
EMITS = [SET, Effect("submit", "work", ("x", "\n1", "4", "0")), Effect("emit", "shop.order", ("\n1", "4", "0"))]
FAILED = history((NOW, '{"error": "E", "message": "m"}'))


@dataclass(frozen=True)
class Writer:
    """A call that writes to every key of its script that it ever writes to."""

    before: State
    call: Callable[[Store, Queue], Awaitable[Any]]


WRITERS = {
    "submit": Writer(
        keys(ready("known"), totals={"submitted": 1}, bound=1000),
        lambda store, queue: store.submit([new(queue, "known"), new(queue, "a"), new(queue, "b", due="+5")]),
    ),
    "claim": Writer(
        keys(ready("a"), ready("b"), scheduled("c", NOW, row("-", 0))),
        lambda store, queue: store.claim(queue, 2, 1000, "r.1"),
    ),
    "settle": Writer(
        keys(
            running("a", NOW + 9, row("r.1")),
            running("b", NOW + 9, row("r.1")),
            running("c", NOW + 9, row("r.1")),
            finished("done", "d", NOW, row("r.0")),
            finished("dead", "e", NOW, row("r.0")),
            running("f", NOW + 9, row("r.1")),
            waiters={"a": "x:1:channel"},
            cancels={"f": NOW},
            history={"c": FAILED},
            totals={"done": 1},
        ),
        lambda store, queue: store.settle(
            queue,
            [
                Settlement("a", "r.1", "done", effects=EMITS),
                Settlement("b", "r.1", "dead", effects=[SET]),
                Settlement("c", "r.1", "retry", b"{}", failed=True, effects=[SET]),
                Settlement("f", "r.1", "retry", b"{}", failed=True, effects=[SET]),
            ],
        ),
    ),
    "renew": Writer(
        keys(running("a", NOW + 9, row("r.1")), cancels={"a": NOW}),
        lambda store, queue: store.renew([(queue, 1000, [("a", "r.1")])]),
    ),
    "expose": Writer(
        keys(running("a", NOW + 9, row("r.1", crashes=1002))),
        lambda store, queue: store.expose(queue, Leased("a", "r.1", b"\n1", 1, 0, 2)),
    ),
    "release": Writer(
        keys(
            running("a", NOW + 9, row("r.1")),
            running("b", NOW + 9, row("r.1")),
            cancels={"b": NOW},
            waiters={"b": "x:1:channel"},
        ),
        lambda store, queue: store.release(queue, [("a", "r.1"), ("b", "r.1")]),
    ),
    "promote": Writer(
        keys(ready("a"), scheduled("b", NOW, row("-", 0))),
        lambda store, queue: store.promote(queue),
    ),
    "reap": Writer(
        keys(
            running("a", NOW, row("r.1")),
            running("b", NOW, row("r.1", crashes=2)),
            running("c", NOW + 10**9, row("r.1")),
            running("d", NOW, row("r.1")),
            scheduled("e", NOW, row("-", 0)),
            waiters={"b": "x:1:channel"},
            cancels={"d": NOW},
            history={"a": FAILED},
            runners={"q": NOW - 10**6},
        ),
        lambda store, queue: store.reap(queue, most_crashes=3, longest_ms=1000, runner="r"),
    ),
    "trim": Writer(
        keys(
            finished("done", "a", 1, row("r.1")),
            finished("dead", "b", 1, row("r.1")),
            history={"a": FAILED},
            progress={"b": "1"},
        ),
        lambda store, queue: store.trim(queue, keep_done_ms=1000, keep_dead_ms=1000),
    ),
    "requeue": Writer(
        keys(finished("dead", "a", NOW, row("r.1")), ready("b")),
        lambda store, queue: store.requeue(queue, [("a", "r.1")]),
    ),
    "cancel": Writer(
        keys(
            ready("a"),
            scheduled("b", NOW + 9, row("-", 0)),
            running("c", NOW + 9, row("r.1")),
            waiters={"a": "x:1:channel"},
        ),
        lambda store, queue: store.cancel(queue, ["a", "b", "c"], "x:1:channel:"),
    ),
    "progress": Writer(
        keys(running("a", NOW + 9, row("r.1")), progress={"a": "1"}),
        lambda store, queue: store.progress(queue, [("a", "r.1", b"2")]),
    ),
    "pause": Writer(
        keys(ready("a"), paused=True),
        lambda store, queue: store.pause(queue, paused=False),
    ),
    "relay": Writer(
        {},
        lambda store, queue: store.relay(
            queue, "shop.order", [Emitted("1-0", "", b"\n1", 4, 0), Emitted("1-1", "", b"\n1", 4, NOW + 9)]
        ),
    ),
    "await": Writer(
        keys(ready("a"), waiters={"a": "other"}),
        lambda store, queue: store.await_result(queue, "a", "x:1:channel"),
    ),
}
READERS = {"inspect"}
FOREIGN = [
    pytest.param(name, part, id=f"{name} {part}") for name in WRITERS for part, _ in scripts.load(f"queue/{name}").keys
]


def test_every_writing_script_is_here() -> None:
    names = {path.stem for path in (scripts.script_root() / "queue").glob("*.lua")}
    assert set(WRITERS) | READERS == names


@pytest.mark.parametrize("name", WRITERS)
async def test_the_call_writes_where_all_keys_are_well(clocked: Store, queue: Queue, name: str) -> None:
    await plant(clocked, queue, WRITERS[name].before)
    clocked.clock.hear(NOW)
    await WRITERS[name].call(clocked, queue)
    assert await look(clocked, queue) != WRITERS[name].before


@pytest.mark.parametrize(("name", "part"), FOREIGN)
async def test_a_foreign_key_is_found_before_anything_is_written(
    clocked: Store, queue: Queue, name: str, part: str
) -> None:
    before = {**WRITERS[name].before, part: "foreign"}
    await plant(clocked, queue, before)
    clocked.clock.hear(NOW)
    async with refused(clocked, queue, "holds a string, not a"):
        await WRITERS[name].call(clocked, queue)


async def writes_of(store: Store, queue: Queue, call: Callable[[], Awaitable[Any]]) -> list[list[str]]:
    """The commands that the scripts of a call run on its namespace's keys, in order; others may use the server too."""
    async with store.redis.monitor() as monitor:
        await call()
        await store.redis.execute_command("ECHO", "over")
        commands: list[list[str]] = []
        async for seen in monitor.listen():
            if seen["command"] == "ECHO over":
                return commands
            words = seen["command"].split(" ")
            if seen["client_type"] == "lua" and words[1:] and words[1].startswith(f"{queue.namespace}:"):
                commands.append(words)
    raise AssertionError("the monitor ended")


@pytest.mark.parametrize("name", WRITERS)
async def test_a_job_is_in_its_new_set_before_it_leaves_the_old_one(clocked: Store, queue: Queue, name: str) -> None:
    """I1, should the server die between two writes that its replica or AOF takes singly: twice beats never."""
    await plant(clocked, queue, WRITERS[name].before)
    clocked.clock.hear(NOW)
    commands = await writes_of(clocked, queue, lambda: WRITERS[name].call(clocked, queue))
    added: dict[str, int] = {}
    recorded: dict[str, int] = {}
    states = {queue.keys[part] for part in ("ready", "scheduled", "running", "done", "dead")}
    for at, (command, key, *words) in enumerate(commands):
        if command == "ZADD" and key in states:
            added |= {job: at for job in words[1::2] if job not in added}
        elif command == "HSET" and key == queue.keys["jobs"]:
            recorded |= dict.fromkeys(words[::2], at)
    moved = 0
    for at, (command, key, *jobs) in enumerate(commands):
        if command == "ZREM" and key in states:
            for job in jobs:
                if job in added:
                    moved += 1
                    assert added[job] < at, f"{job} left {key} before it was elsewhere"
    assert moved > 0 or name not in {"claim", "settle", "release", "promote", "reap", "requeue", "cancel"}
    for job, at in recorded.items():
        assert job not in added or at < added[job], f"{job} stands in a set before its record"
    assert recorded or name not in {"submit", "relay"}
