"""Leases kept from a thread: by loops that are blocked, by handlers in threads, and after the stop."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from aioflow import ConfigError, Handle, Job, Retry, RetryLater, Runtime, Service, State
from aioflow.engine import lease, scripts
from aioflow.engine.store import Store
from tests.integration.test_wait import idle
from tests.proxy import Proxy
from tests.serving import ROOT, Serve
from tests.valkey import Valkey
from tests.waiting import wait_until

LEASE = 0.6


async def test_no_token_is_used_twice(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")
    tokens: list[str] = []

    @service.task(concurrency=1)
    async def work(job: Job) -> None:
        tokens.append(job.lease.token)
        if job.attempt < 4:
            raise RetryLater(0)

    for _ in range(2):
        async with Runtime([service], redis=valkey.url, namespace=namespace):
            for _ in range(3):  # some are claimed along with their submit, others for the bell
                await (await work.submit()).result(5)
            for handle in [await work.submit() for _ in range(3)]:
                await handle.result(5)
    assert len(tokens) == len(set(tokens)) == 2 * 6 * 4


async def test_a_lease_begins_when_its_claim_is_sent_and_past_it_nothing_is_started(
    valkey: Valkey, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service("demo")
    left: list[tuple[int, float]] = []

    @service.task(lease=0.6)
    async def work(job: Job) -> int:
        (attempt,) = far._pools[0].running
        left.append((job.attempt, attempt.lease_until - time.monotonic()))
        return job.attempt

    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as near,
        Runtime([service], redis=proxy.url, namespace=namespace) as far,
    ):
        await idle(far)
        proxy.delay = 0.12  # each way
        assert await (await near.submit(work)).result(5) == 1
        assert left[0][1] < 0.6 - 2 * 0.12
        proxy.delay = 0.4
        handle = await near.submit(work)
        await wait_until(lambda: "a claim was answered after its lease; 1 jobs go back" in caplog.text)
        proxy.delay = 0.0
        await handle.result(10)
        info = await handle.status()
        assert (info.failures, info.attempt >= 2) == (0, True)
        assert len(left) == 2
        assert left[1][0] == info.attempt, "what came too late was not started"


async def test_submits_that_are_under_way_at_the_stop_are_answered(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")

    @service.task()
    async def work() -> None: ...

    async with Proxy(valkey.socket) as proxy:
        runtime = Runtime([service], redis=proxy.url, namespace=namespace, workers=False)
        await runtime.start()
        await runtime.submit(work)
        proxy.delay = 0.05
        before = len(proxy.links)
        submitting: list[asyncio.Task[Any]] = [asyncio.create_task(runtime.submit(work)) for _ in range(300)]
        submitting.append(asyncio.create_task(runtime.submit_many(work, [None] * 100)))
        await asyncio.sleep(0)
        await runtime.stop()
        assert len(proxy.links) <= before
        for answer in await asyncio.gather(*submitting):
            assert isinstance(answer, (Handle, list))


class Blocking:
    """A service whose handler blocks its event loop until it is let go, or for some seconds at most."""

    def __init__(self) -> None:
        self.service = Service("demo")
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.gate = threading.Event()
        self.seconds = 5.0

        @self.service.task(lease=LEASE, timeout=None)
        async def block(job: Job) -> int:
            self.starts.append(job.attempt)
            if len(self.starts) == 1:
                self.gate.wait(self.seconds)  # as a handler that calls a slow function
            self.ends.append(job.attempt)
            return job.attempt

        self.block = block


async def on_the_server(store: Store, namespace: str, job_id: str) -> tuple[str, int]:
    """A job's state and attempt, as Redis has it."""
    from aioflow.engine.keys import Queue

    (info,) = await store.inspect(Queue(namespace, "demo", "block"), [job_id])
    assert info is not None
    return info.state.value, info.attempt


async def test_a_handler_that_blocks_its_loop_keeps_its_lease_and_is_named(
    valkey: Valkey, namespace: str, store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = Blocking()
    monkeypatch.setattr(lease, "BLOCKED", 0.2)
    blocked = Runtime([demo.service], redis=valkey.url, namespace=namespace)
    with blocked:  # on a loop in a thread of its own
        async with Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as other:
            handle = await other.submit(demo.block)
            await wait_until(lambda: demo.starts == [1])
            async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as _:
                began = time.monotonic()
                await wait_until(lambda: "blocks the event loop" in caplog.text)
                # Another runtime judges leases all the while.
                await wait_until(lambda: time.monotonic() - began > 3 * LEASE)
                assert await on_the_server(store, namespace, handle.id) == ("running", 1)
                demo.gate.set()
                assert await handle.result(5) == 1
                await wait_until(lambda: "the event loop runs again" in caplog.text)
    assert demo.starts == demo.ends == [1]
    (said,) = [record.getMessage() for record in caplog.records if "blocks the event loop" in record.getMessage()]
    assert f"demo.block {handle.id} blocks the event loop" in said
    assert "self.gate.wait(self.seconds)" in said, "the stack shows where"


async def test_the_leases_of_all_that_run_are_renewed_in_one_call(
    valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service("demo")
    gate = asyncio.Event()
    calls: list[int] = []
    renew = lease.LeaseKeeper._renew

    async def counted(keeper: lease.LeaseKeeper, store: Store, due: list[Any]) -> None:
        calls.append(len(due))
        await renew(keeper, store, due)

    @service.task(lease=3.0)
    async def work() -> None:
        await gate.wait()

    monkeypatch.setattr(lease.LeaseKeeper, "_renew", counted)
    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handles = [await work.submit() for _ in range(40)]
        await wait_until(lambda: len(runtime._pools[0].held) == 40)
        held = list(runtime._pools[0].held)
        for number, attempt in enumerate(held):
            attempt.renew_at += number * 0.01  # as if they had started one after another
        calls.clear()
        ends = [attempt.lease_until for attempt in held]
        await wait_until(lambda: all(attempt.lease_until > end + 1.5 for attempt, end in zip(held, ends, strict=True)))
        assert set(calls) == {40}, "together at once, and from then on"
        assert len(calls) <= 3
        gate.set()
        for handle in handles:
            await handle.result(5)


async def test_a_loop_that_is_blocked_for_too_long_loses_its_leases_and_its_outcome_is_dropped(
    valkey: Valkey, namespace: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = Blocking()
    monkeypatch.setattr(lease, "MOST_BLOCKED", 0.3)
    with Runtime([demo.service], redis=valkey.url, namespace=namespace, grace=0.0):
        async with Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as other:
            handle = await other.submit(demo.block)
            await wait_until(lambda: demo.starts == [1])
            async with Runtime([demo.service], redis=valkey.url, namespace=namespace):
                assert await handle.result(10) == 2, "it went to another"
                assert "no lease is renewed any more" in caplog.text
                demo.gate.set()
                await wait_until(lambda: demo.ends == [2, 1])
                info = await handle.status()
                assert (info.state, info.attempt, info.crashes) == (State.DONE, 2, 1)


async def test_a_handler_in_a_thread_keeps_its_lease_after_the_stop_and_its_job_goes_back_when_it_ends(
    valkey: Valkey, namespace: str, store: Store
) -> None:
    service = Service("demo")
    gate = threading.Event()
    running: set[int] = set()
    together: list[int] = []
    starts: list[int] = []

    @service.task(lease=LEASE)
    def block(job: Job) -> int:
        starts.append(job.attempt)
        running.add(job.attempt)
        together.append(len(running))
        if job.attempt == 1:
            gate.wait(20)
        running.discard(job.attempt)
        return job.attempt

    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as observer:
        async with Runtime([service], redis=valkey.url, namespace=namespace, grace=0.0) as stopped:
            handle = await observer.submit(block)
            await wait_until(lambda: starts == [1])
        left = [task for task in asyncio.all_tasks() if handle.id in task.get_name()]
        assert stopped.is_stopping()
        async with Runtime([service], redis=valkey.url, namespace=namespace):
            began = time.monotonic()
            while time.monotonic() - began < 3 * LEASE:
                assert await on_the_server(store, namespace, handle.id) == ("running", 1)
                await asyncio.sleep(0.05)
            assert starts == [1]
            gate.set()
            assert await handle.result(10) == 2
            info = await handle.status()
            assert (info.failures, info.crashes) == (0, 0), "given back, not lost"
        await asyncio.wait(left)
    assert together == [1, 1], "never two at once"


async def test_a_handler_that_swallows_its_cancellation_keeps_its_lease_after_the_stop(
    valkey: Valkey, namespace: str, store: Store
) -> None:
    service = Service("demo")
    gate = asyncio.Event()
    running: list[int] = []
    together: list[int] = []

    @service.task(lease=LEASE)
    async def block(job: Job) -> int:
        running.append(job.attempt)
        together.append(len(running))
        while job.attempt == 1 and not gate.is_set():
            with suppress(asyncio.CancelledError):
                await gate.wait()
        running.remove(job.attempt)
        return job.attempt

    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as observer:
        async with Runtime([service], redis=valkey.url, namespace=namespace, grace=0.0):
            handle = await observer.submit(block)
            await wait_until(lambda: running == [1])
        async with Runtime([service], redis=valkey.url, namespace=namespace):
            began = time.monotonic()
            while time.monotonic() - began < 3 * LEASE:
                assert await on_the_server(store, namespace, handle.id) == ("running", 1)
                await asyncio.sleep(0.05)
            gate.set()
            assert await handle.result(10) == 2
            info = await handle.status()
            assert (info.failures, info.crashes) == (0, 0), "given back, not lost"
    assert together == [1, 1], "never two at once"


RUN_ON = {
    "swallows": """
import asyncio
from aioflow import Service

service = Service("demo")

@service.task(lease=30.0, timeout=None)
async def block() -> None:
    print("starts", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("swallowed", flush=True)
""",
    "thread, and a lifespan that fails": """
import time
from contextlib import asynccontextmanager
from aioflow import Service

@asynccontextmanager
async def resources(runtime):
    yield
    raise ValueError("at its end")

service = Service("demo", lifespan=resources)

@service.task(lease=30.0, timeout=None)
def block() -> None:
    print("starts", flush=True)
    time.sleep(600)
""",
    "thread": """
import time
from aioflow import Service

service = Service("demo")

@service.task(lease=30.0, timeout=None)
def block() -> None:
    print("starts", flush=True)
    time.sleep(600)
""",
}


@pytest.mark.parametrize("how", RUN_ON)
async def test_serve_ends_in_time_although_a_handler_runs_on_and_its_job_goes_back_uncounted(
    valkey: Valkey, namespace: str, tmp_path: Path, how: str
) -> None:
    (tmp_path / "runs_on.py").write_text(RUN_ON[how])
    serve = Serve(
        *("runs_on:service", "--redis", valkey.url, "--no-ingress", "--grace", "0.5"),
        environment={"AIOFLOW_NAMESPACE": namespace},
        cwd=tmp_path,
    )
    service = Service("demo")
    started: list[int] = []

    @service.task(lease=30.0)
    async def block(job: Job) -> None:
        started.append(job.attempt)

    try:
        await serve.start()
        async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as submitter:
            handle = await submitter.submit(block)
            await said_times(serve, "starts", 1)
            assert await serve.stop(seconds=0.5 + 2 + 1) == (1 if "fails" in how else 0)
            assert (serve.said.count("swallowed") >= 1) is (how == "swallows")
            async with Runtime([service], redis=valkey.url, namespace=namespace):
                await handle.result(10)
            assert started == [2]
            info = await handle.status()
            assert (info.failures, info.crashes) == (0, 0)
    finally:
        serve.close()


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_thread_is_waited_for_however_often_its_task_is_cancelled(
    valkey: Valkey, namespace: str, stopped: bool
) -> None:
    gate = threading.Event()
    running: set[int] = set()
    together: list[int] = []

    async def impatient(job: Job, call: Any) -> Any:
        async with asyncio.timeout(0.1 if job.attempt == 1 else None):
            return await call()

    service = Service("demo", middleware=[impatient])

    @service.task(timeout=0.2, lease=LEASE, retry=Retry(attempts=2, base=0.0))
    def block(job: Job) -> int:
        running.add(job.attempt)
        together.append(len(running))
        if job.attempt == 1:
            gate.wait(20)
        running.discard(job.attempt)
        return job.attempt

    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as observer:
        first = Runtime([service], redis=valkey.url, namespace=namespace, grace=0.0)
        await first.start()
        handle = await observer.submit(block)
        (pool,) = first._pools
        await wait_until(lambda: any(attempt.stop for attempt in pool.running))  # its time is over: cancelled twice
        if stopped:
            await first.stop()
        async with Runtime([service], redis=valkey.url, namespace=namespace):
            began = time.monotonic()
            await wait_until(lambda: time.monotonic() - began > 2 * LEASE)
            assert together == [1]
            gate.set()
            assert await handle.result(10) == 2
        await first.stop()
    assert together == [1, 1], "never two at once"


async def test_a_lifespan_that_fails_while_the_runtime_runs_stops_it(valkey: Valkey, namespace: str) -> None:
    fail = asyncio.Event()

    @asynccontextmanager
    async def lifespan(_: Runtime) -> AsyncIterator[None]:
        async def child() -> None:
            await fail.wait()
            raise OSError("the pool is gone")

        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            yield

    runtime = Runtime([Service("demo", lifespan=lifespan)], redis=valkey.url, namespace=namespace)
    await runtime.start()
    fail.set()
    await asyncio.wait_for(runtime.failed.wait(), 5)
    with pytest.raises(BaseExceptionGroup):
        await runtime.__aexit__(None, None, None)


@pytest.mark.parametrize("lifespan_waits", [True, False])
async def test_a_stop_during_the_start_leaves_nothing(valkey: Valkey, namespace: str, lifespan_waits: bool) -> None:
    entering = asyncio.Event()

    @asynccontextmanager
    async def lifespan(_: Runtime) -> AsyncIterator[None]:
        entering.set()
        await asyncio.sleep(60 if lifespan_waits else 0)
        yield

    service = Service("demo", lifespan=lifespan)

    @service.task()
    async def block() -> None: ...

    runtime = Runtime([service], redis=valkey.url, namespace=namespace)
    starting = asyncio.create_task(runtime.start())
    if lifespan_waits:
        await entering.wait()
    else:
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await runtime.stop()
    with pytest.raises(ConfigError, match="stopped while it started"):
        await starting
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("aioflow")] == []


async def test_a_keeper_that_fails_stops_the_runtime(
    valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: Store, calls: object) -> list[list[int]]:
        raise LookupError("a bug")

    monkeypatch.setattr(Store, "renew", broken)
    service = Service("demo")

    @service.task(lease=LEASE)
    async def wait() -> None:
        await asyncio.Event().wait()

    runtime = Runtime([service], redis=valkey.url, namespace=namespace, grace=0.1)
    await runtime.start()
    await runtime.submit(wait)
    await asyncio.wait_for(runtime.failed.wait(), 5)
    with pytest.raises(BaseExceptionGroup) as failed:
        await runtime.__aexit__(None, None, None)
    assert failed.group_contains(LookupError, match="a bug")


SCALED = """
import asyncio, os
from aioflow import Job, Service

service = Service("demo")

@service.task(concurrency=1, timeout=None)
async def block(number: int) -> None:
    print("starts", number, flush=True)
    await asyncio.Event().wait()
"""


async def said_times(serve: Serve, words: str, times: int) -> None:
    """Wait until a serve has said something so often."""
    await wait_until(lambda: serve.said.count(words) == times)


async def test_sigttin_and_sigttou_add_and_remove_workers(valkey: Valkey, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "scaled.py").write_text(SCALED)
    serve = Serve(
        *("scaled:service", "--redis", valkey.url, "--no-ingress", "--grace", "0"),
        environment={"AIOFLOW_NAMESPACE": namespace},
        cwd=tmp_path,
    )
    service = Service("demo")

    @service.task()
    async def block(number: int) -> None: ...

    try:
        await serve.start()
        assert serve.process is not None
        async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as submitter:
            handles = [await submitter.submit(block, number) for number in range(4)]
            for running in (1, 2, 3):
                await said_times(serve, "starts", running)
                serve.process.send_signal(signal.SIGTTIN)
            await wait_until(lambda: serve.said.count("starts") == 4)
            for said in (4, 5, 6, 7):
                serve.process.send_signal(signal.SIGTTOU)
                await said_times(serve, "at a time", said)
            assert re.findall(r"(\d) at a time", serve.said) == ["2", "3", "4", "3", "2", "1", "1"]
            await handles[0].cancel()
            await handles[1].cancel()
            fifth = await submitter.submit(block, 5)
            assert (await submitter.sizes(block)).ready == 1, "what runs is above the number still"
            assert (await fifth.status()).state is State.READY
        assert await serve.stop() == 0
    finally:
        serve.close()


KILLED = """
import asyncio, os, signal, sys
from aioflow import Runtime, Service
from aioflow.engine.claimer import Claimer

service = Service("demo")

@service.task()
async def block() -> int:
    raise SystemExit("never")

async def main() -> None:
    async with Runtime([service], redis=sys.argv[1], namespace=sys.argv[2]) as runtime:
        (claimer,) = runtime._claimers.values()
        while not (claimer._waiting and claimer._pop):
            await asyncio.sleep(0.01)

        async def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        claimer._claim = die
        print("waits", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_of_two_runtimes_one_dies_between_its_pop_and_its_claim_and_the_job_starts_on_the_other_at_once(
    valkey: Valkey, namespace: str
) -> None:
    service = Service("demo")
    started: list[float] = []

    @service.task()
    async def block() -> int:
        started.append(time.monotonic())
        return 1

    dying = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED, valkey.url, namespace), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert dying.stdout is not None
    assert await dying.stdout.readline() == b"waits\n"
    async with (
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as submitter,
        Runtime([service], redis=valkey.url, namespace=namespace) as other,
    ):
        await idle(other)
        handle = await submitter.submit(block)  # the pop that has waited longest takes the token
        assert await dying.wait() == -signal.SIGKILL
        died = time.monotonic()
        assert await handle.result(5) == 1
        assert started[0] - died < 1.5
    assert os.getpid() != dying.pid


async def test_outcomes_that_wait_behind_a_settle_are_written_before_the_rest_is_released(
    valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, go_on = Store.settle, asyncio.Event()

    async def held_up(self: Store, queue: Any, settlements: Any) -> list[int | str]:
        await go_on.wait()
        return await settle(self, queue, settlements)

    monkeypatch.setattr(Store, "settle", held_up)
    service = Service("demo")
    gates = [asyncio.Event(), asyncio.Event()]
    ended: list[int] = []

    @service.task()
    async def block(number: int) -> int:
        await gates[number].wait()
        ended.append(number)
        return number

    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as observer:
        runtime = Runtime([service], redis=valkey.url, namespace=namespace)
        await runtime.start()
        handles = [await observer.submit(block, number) for number in range(2)]
        (pool,) = runtime._pools
        await wait_until(lambda: len(pool.running) == 2)
        gates[0].set()
        await wait_until(lambda: pool.settles._in_flight == 1)
        gates[1].set()
        await wait_until(lambda: ended == [0, 1])
        stopping = asyncio.create_task(runtime.stop())
        await wait_until(lambda: all(task.done() for task in runtime._claiming))
        go_on.set()
        await stopping
        assert [(await handle.status()).state for handle in handles] == [State.DONE, State.DONE]


async def test_a_start_reads_every_script_and_leaves_holders_the_time_to_renew(valkey: Valkey, namespace: str) -> None:
    before = time.monotonic()
    async with Runtime([Service("demo")], redis=valkey.url, namespace=namespace) as runtime:
        names = [path.stem for path in (scripts.script_root() / "queue").glob("*.lua")]
        known = await runtime.redis.script_exists(*[scripts.load(f"queue/{name}").sha for name in names])
        assert all(known)
        assert scripts.load.cache_info().currsize >= len(names)
        assert runtime._live_store().line.connected_at >= before, "however long the server says that it is up"
