"""The main path on a real server and on fakeredis ("memory:"): both must answer and store the same."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aioflow.commit import Effect
from aioflow.engine.keys import Queue, data_key, runtime_channels
from aioflow.engine.records import Reaped, Settlement
from aioflow.engine.store import Store
from aioflow.errors import NotFound, ProtocolError
from aioflow.job import Failure
from aioflow.job import State as JobState
from tests.chaos.model import emitted_id
from tests.conftest import Clock
from tests.integration.scripts.state import (
    CANCELLED,
    NOW,
    STEP,
    dump,
    finished,
    history,
    keys,
    lease,
    listening,
    look,
    new,
    of_other,
    plant,
    ready,
    row,
    running,
    scheduled,
    start,
    submit,
)
from tests.valkey import Valkey

FAILURE = b'{"error": "E", "message": "m"}'


@pytest.fixture(params=["valkey", "memory"])
async def either(request: pytest.FixtureRequest, valkey: Valkey, clock: Clock) -> AsyncIterator[Store]:
    """A store of either kind, on the test's clock."""
    made = Store("memory:" if request.param == "memory" else valkey.url, name="aioflow:test", clock=clock)
    yield made
    await made.close()


async def test_a_job_from_its_submit_to_its_result(either: Store, queue: Queue, clock: Clock) -> None:
    jobs = [new(queue, "a", priority=1), new(queue, "b"), new(queue, "c", due="+20", priority=2), new(queue, "b")]
    assert await either.submit(jobs) == [1, 1, 1, 0]
    assert await either.submit([new(queue, "a", envelope="\n2")]) == [-1]
    totals = {"submitted": 3, "repeated": 2}
    late = scheduled("c", NOW + 20, row("-", 0, place=2 * STEP + NOW + 20))
    assert await look(either, queue) == keys(ready("a", STEP + NOW), ready("b"), late, totals=totals, bell=True)

    assert await either.wait_bell(queue, 1)
    claimed = await either.claim(queue, 10, 1000, "r.1")
    assert [(job.id, job.envelope, job.attempt) for job in claimed.jobs] == [("b", b"\n1", 1), ("a", b"\n1", 1)]
    assert claimed.wait_ms == 20
    leased = running("a", NOW + 1000, row("r.1", place=STEP + NOW)), running("b", NOW + 1000, row("r.1"))
    assert await look(either, queue) == keys(*leased, late, totals=totals)

    assert await either.await_result(queue, "a", "x:1:channel") is None
    assert await either.renew([(queue, 2000, [("a", "r.1"), ("b", "r.0")])]) == [[1, 0]]
    settlements = [
        Settlement("b", "r.1", "done", b'"fine"', effects=[Effect("hincrby", "h", ("f", str(2**52)))]),
        Settlement(
            "a", "r.1", "retry", FAILURE, delay_ms=30, failed=True, effects=[Effect("record", "t", ("", "m", "0"))]
        ),
        Settlement("x", "r.1", "done"),
    ]
    for _ in range(2):
        assert await either.settle(queue, settlements) == [1, 1, 0]
        assert await look(either, queue) == keys(
            finished("done", "b", NOW, row("r.1"), '"fine"'),
            scheduled("a", NOW + 30, row("retry/r.1", 1, 1, 0, STEP + NOW + 30)),
            late,
            {"d:h": {"f": str(2**52)}, "d:t": {"m": NOW}},
            waiters={"a": "x:1:channel"},
            history={"a": history((NOW, FAILURE.decode()))},
            totals={**totals, "done": 1, "retried": 1},
        )
    assert await either.await_result(queue, "b", "x:1:channel") == (JobState.DONE, b'"fine"')
    with pytest.raises(NotFound):
        await either.await_result(queue, "x", "x:1:channel")

    clock.ms += 30
    assert await either.promote(queue) == 2
    assert await lease(either, queue, "r.2") == ["a", "c"]
    assert await either.settle(queue, [Settlement("a", "r.2", "dead", FAILURE)]) == [1]
    assert await either.release(queue, [("c", "r.2")]) == [True]
    assert await either.requeue(queue, [("a", "r.2"), ("b", "r.1")]) == [True, False]
    state = await look(either, queue)
    assert state["ready"] == {"a": STEP + NOW + 30, "c": 2 * STEP + NOW + 20}
    (info,) = await either.inspect(queue, ["a"])
    assert info is not None
    assert (info.state, info.attempt, info.failures, info.token) == (JobState.READY, 2, 0, "r.2")
    assert info.history == (Failure("E", "m", at_ms=NOW), Failure("E", "m", at_ms=NOW + 30))

    assert await lease(either, queue, "r.3", lease_ms=5) == ["a", "c"]
    clock.ms += 5
    assert await either.reap(queue, most_crashes=3, longest_ms=1000) == Reaped(True, None, 2, 0)
    clock.ms += 5000
    assert await either.trim(queue, keep_done_ms=1000, keep_dead_ms=1000) == 1
    assert set((await look(either, queue))["jobs"]) == {"a", "c"}


async def test_jobs_that_are_cancelled(either: Store, queue: Queue, clock: Clock) -> None:
    await submit(either, queue, "abcd")
    assert await lease(either, queue, "r.1", count=3) == ["a", "b", "c"]
    channels = runtime_channels(queue.namespace)
    async with listening(either, channels + "r", channels + "waits") as hear:
        assert await either.await_result(queue, "d", channels + "waits") is None
        for _ in range(2):
            assert await either.cancel(queue, ["d", "a", "b", "x", "a"], channels) == [2, 1, 1, -1, 1]
        told = f"cancel\n{queue.keys['running']}\n"
        heard = await hear(5)
        assert heard[:4] == sorted((channels + "r", f"{told}{job_id}\nr.1") for job_id in "aabb")
        assert heard[4][1].startswith(f"result\n{queue.keys['waiters']}\nd\ndead:cancel/{NOW}:0:0:0:{NOW}:")
    assert await either.renew([(queue, 1000, [("a", "r.1"), ("c", "r.1")])]) == [[2, 1]]
    for _ in range(2):
        assert await either.settle(queue, [Settlement("a", "r.1", "retry", FAILURE, failed=True)]) == [1]
        assert await either.release(queue, [("b", "r.1"), ("c", "r.1")]) == [True, True]
    assert await look(either, queue) == keys(
        finished("dead", "a", NOW, row("retry/r.1"), CANCELLED),
        finished("dead", "b", NOW, row("release/r.1"), CANCELLED),
        ready("c", claim=row("release/r.1")),
        finished("dead", "d", NOW, row(f"cancel/{NOW}", 0), CANCELLED, started=0),
        totals={"submitted": 4, "dead": 3, "released": 1},
        bell=True,
    )
    assert await lease(either, queue, "r.2", lease_ms=5) == ["c"]
    assert await either.cancel(queue, ["c"], channels) == [1]
    clock.ms += 5
    assert (await either.reap(queue, most_crashes=3, longest_ms=1000)).dead == 1
    assert (await look(either, queue))["results"]["c"].endswith(CANCELLED)


async def test_progress(either: Store, queue: Queue) -> None:
    await start(either, queue, "ab")
    notes = [("a", "r.1", b"1"), ("b", "r.0", b"2"), ("x", "r.1", b"3"), ("a", "r.1", b'{"of": 4}')]
    assert await either.progress(queue, notes) == [True, False, False, True]
    (info,) = await either.inspect(queue, ["a"])
    assert info is not None
    assert info.progress == b'{"of": 4}'
    assert (await look(either, queue))["progress"] == {"a": '{"of": 4}'}


async def test_jobs_that_handlers_submit(either: Store, queue: Queue, clock: Clock) -> None:
    await start(either, queue, "ab")
    child = Effect("submit", "other", ("x", "\n1", "4", "0"))
    emits = [Effect("emit", "shop.order", (f"\n{number}", "5", str(number))) for number in (0, 7)]
    settlements = [
        Settlement("a", "r.1", "done", effects=[child, Effect("submit", "other", ("y", "\n2", "4", "9")), *emits]),
        Settlement("b", "r.1", "done", effects=[child, Effect("submit", "other", ("x", "\n2", "4", "0"))]),
    ]
    refusal = "effect 2 (submit on other): job x exists with another payload"
    for _ in range(2):
        assert await either.settle(queue, settlements) == [1, refusal]
    place = 4 * STEP + NOW
    assert of_other(await look(either, queue)) == keys(
        ready("x", place),
        scheduled("y", NOW + 9, row("-", 0, place=place + 9), envelope="\n2"),
        totals={"submitted": 2},
        bell=True,
    )

    told = await either.reap(queue, most_crashes=3, longest_ms=1000, judge=False, runner="r")
    assert told == Reaped(False, runners=1, rank=0, outbox=2)
    emitted = await either.outbox(queue, 10)
    assert [(job.to, job.envelope, job.priority, job.due) for job in emitted] == [
        ("shop.order", b"\n0", 5, 0),
        ("shop.order", b"\n7", 5, NOW + 7),
    ]
    order = Queue(queue.namespace, "shop", "order")
    assert [await either.relay(order, queue.name, emitted) for _ in range(2)] == [2, 0]
    await either.forget(queue, [job.sequence for job in emitted])
    assert await either.outbox(queue, 10) == []
    first, second = (emitted_id("demo.work", job.sequence) for job in emitted)
    assert await lease(either, order, "r.2") == [first]
    clock.ms += 7
    assert await lease(either, order, "r.3") == [second]


async def test_a_bad_effect(either: Store, queue: Queue) -> None:
    await plant(either, queue, {"d:s": "text", "d:h": {"f": str(2**53 - 1)}})
    await start(either, queue, "abc")
    settlements = [
        Settlement("a", "r.1", "done", effects=[Effect("set", "s", ("new",)), Effect("hset", "s", ("f", "v"))]),
        Settlement("b", "r.1", "done", effects=[Effect("hincrby", "h", ("f", "2"))]),
        Settlement("c", "r.1", "done", effects=[Effect("hincrby", "h", ("f", "1")), Effect("set", "s", ("c",))]),
    ]
    assert await either.settle(queue, settlements) == [
        "effect 2 (hset on s): the key holds a string, not a hash",
        "effect 1 (hincrby on h): not a whole number within 2^53: 9007199254740991 + 2",
        1,
    ]
    state = await look(either, queue)
    assert (state["d:s"], state["d:h"]) == ("c", {"f": str(2**53)})
    assert set(state["dead"]) == {"a", "b"}


async def test_places_are_exact(either: Store, queue: Queue, clock: Clock) -> None:
    clock.ms = 2**42 - 10
    await either.submit([new(queue, f"j{priority}", priority=priority) for priority in range(9, -1, -1)])
    assert (await look(either, queue))["ready"] == {f"j{n}": n * STEP + clock.ms for n in range(10)}
    assert await lease(either, queue, "r.1", lease_ms=5) == [f"j{priority}" for priority in range(10)]
    await either.release(queue, [(f"j{priority}", "r.1") for priority in range(10)])
    assert (await look(either, queue))["ready"] == {f"j{n}": n * STEP + clock.ms for n in range(10)}


async def test_a_timeline(either: Store, queue: Queue) -> None:
    await plant(either, queue, {"d:t": {"a": 1, "b": 2, "c": 2, "d": 3}})
    key = data_key(queue.namespace, queue.service, "t")
    assert await either.page(key, 0, 3, 2, None) == [("a", 1), ("b", 2)]
    assert await either.page(key, 0, 3, 2, (2, "b")) == [("c", 2)]
    assert await either.page(key, 0, 4, 9, (2, "bb")) == [("b", 2), ("c", 2), ("d", 3)]
    assert await either.count(key, 2, 3) == 2


async def test_a_paused_queue_and_a_full_one(either: Store, queue: Queue) -> None:
    await either.configure(queue, 1)
    assert await either.submit([new(queue, "a"), new(queue, "b")]) == [1, -2]
    assert [await either.pause(queue, paused=True) for _ in range(2)] == [True, False]
    assert await lease(either, queue, "r.1") == []
    assert [await either.pause(queue, paused=False) for _ in range(2)] == [True, False]
    assert await either.wait_bell(queue, 1)
    assert await lease(either, queue, "r.2") == ["a"]
    await look(either, queue)


async def test_what_a_script_refuses(either: Store, queue: Queue) -> None:
    with pytest.raises(ProtocolError, match="submit takes 1 to 1000 jobs"):
        await either.submit([new(queue, f"j{number}") for number in range(1001)])
    await plant(either, queue, {"running": "foreign"})
    with pytest.raises(ProtocolError, match="holds a string, not a"):
        await either.claim(queue, 1, 1000, "r.1")
    assert await dump(either, queue) == {"running": "foreign"}
