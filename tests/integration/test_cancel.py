"""Cancelling a job, wherever it is, and whatever goes wrong on the way: it ends once, and everybody hears how."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from aioflow import (
    Handle,
    Job,
    JobCancelled,
    JobFailed,
    LeaseLost,
    NotFound,
    Retry,
    RetryLater,
    Runtime,
    Service,
    State,
)
from aioflow.engine import maintenance
from aioflow.engine.keys import Queue
from aioflow.engine.records import Claimed
from aioflow.engine.store import Store
from tests.integration.test_line import sha
from tests.proxy import Proxy
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until

SOON = Retry(attempts=5, base=0.0)
LONG = 3600.0


class Demo:
    """A service whose handlers wait until they are let go, and say how they were ended."""

    def __init__(self, *, lease: float = 15.0, concurrency: int = 100) -> None:
        self.service = Service("demo")
        self.gate = asyncio.Event()
        self.started: list[str] = []
        self.ended: dict[str, str] = {}

        @self.service.task(lease=lease, concurrency=concurrency, timeout=None, retry=SOON)
        async def work(how: str, job: Job) -> str:
            self.started.append(job.id)
            job.commit.hset("good", job.id, "1")
            job.commit.hset("bad", job.id, "1", on_failure=True)
            try:
                await self.gate.wait()
            except asyncio.CancelledError as error:
                self.ended[job.id] = str(error)
                match how:
                    case "swallow":
                        return how
                    case "raise":
                        raise ValueError(how) from error
                raise
            match how:
                case "fail":
                    raise ValueError(how)
                case "later":
                    raise RetryLater(0)
            return how

        self.work = work

    def queue(self, namespace: str) -> Queue:
        return Queue(namespace, "demo", "work")


@pytest.fixture
def demo() -> Demo:
    return Demo()


@pytest.fixture(params=["valkey", "memory:"])
def redis_url(request: pytest.FixtureRequest, valkey: Valkey) -> str:
    return valkey.url if request.param == "valkey" else "memory:"


@pytest.fixture
def no_maintenance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maintenance runs once and no more, so that it mends nothing."""
    monkeypatch.setattr(maintenance, "TURN_MS", int(1000 * LONG))


def deafen(proxy: Proxy) -> None:
    """Lose what is published to whoever subscribed through a proxy; its connection says nothing any more."""
    links = [link for link in proxy.links if b"SUBSCRIBE" in link.last]
    assert links
    for link in links:
        link.mute = True


async def is_cancelled(handle: Handle[Any], *, seconds: float = 5) -> JobCancelled:
    """Wait until a job is dead because it was cancelled."""
    with pytest.raises(JobCancelled) as cancelled:
        await handle.result(seconds)
    assert (cancelled.value.job_id, cancelled.value.error) == (handle.id, "JobCancelled")
    assert cancelled.value.message == "cancelled on request"
    assert (await handle.status()).state is State.DEAD
    return cancelled.value


async def nothing_left(runtime: Runtime, queue: Queue) -> None:
    """Assert that an emptied queue keeps nothing of its jobs but their records."""
    for part in ("scheduled", "ready", "running", "started", "open", "cancels"):
        assert await runtime.redis.zcard(queue.keys[part]) == 0, part
    assert await runtime.redis.hlen(queue.keys["claims"]) == 0
    assert await runtime.redis.hlen(queue.keys["waiters"]) == 0


# ---- in each state


async def test_a_job_that_waits_is_dead_at_once_and_never_runs(redis_url: str, namespace: str, demo: Demo) -> None:
    async with Runtime([demo.service], redis=redis_url, namespace=namespace) as runtime:
        await runtime.pause(demo.work)
        scheduled = await demo.work.submit("x", delay=1000, priority=9)
        ready = await demo.work.submit("x", priority=0)
        waiting = asyncio.create_task(ready.result(5))
        for handle in (scheduled, ready):
            assert await handle.cancel()
            assert await handle.cancel(), "a repeat answers as the first did"
            failed = await is_cancelled(handle)
            assert (failed.attempt, failed.worker) == (0, "")
            info = await handle.status()
            assert (info.attempt, info.started_ms, info.history) == (0, None, ())
            assert info.submitted_ms <= info.at_ms
        with pytest.raises(JobCancelled):
            await waiting
        await runtime.resume(demo.work)
        demo.gate.set()
        assert await (await demo.work.submit("y")).result(5) == "y"
        await nothing_left(runtime, demo.queue(namespace))
        assert (await runtime.totals(demo.work))["dead"] == 2
    assert scheduled.id not in demo.started
    assert ready.id not in demo.started


async def test_a_running_job_is_cancelled_wherever_it_runs_within_a_second(
    valkey: Valkey, namespace: str, no_maintenance: None
) -> None:
    demo = Demo(lease=LONG)
    async with (
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as worker,
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as far,
    ):
        assert worker._inbox is not None
        await wait_until(worker._inbox.subscribed.is_set)
        handle = await far.submit(demo.work, "x")
        others = [await far.submit(demo.work, "x") for _ in range(3)]
        await wait_until(lambda: len(demo.started) == 4)
        began = time.monotonic()
        assert await handle.cancel()
        failed = await is_cancelled(handle)
        assert time.monotonic() - began < 1
        assert demo.ended == {handle.id: "cancelled"}, "no other is"
        assert (failed.attempt, failed.worker) == (1, worker.name)
        assert not await handle.cancel(), "it has finished"
        demo.gate.set()
        for other in others:
            assert await other.result(5) == "x"
        assert set(await worker.redis.hgetall(worker.key(demo.service, "bad"))) == {handle.id.encode()}
        assert handle.id.encode() not in await worker.redis.hgetall(worker.key(demo.service, "good"))
        await nothing_left(worker, demo.queue(namespace))


async def test_a_running_job_in_memory_is_cancelled(namespace: str, demo: Demo) -> None:
    async with Runtime([demo.service], redis="memory:", namespace=namespace) as runtime:
        handle = await demo.work.submit("x")
        await wait_until(lambda: handle.id in demo.started)
        assert await handle.cancel()
        await is_cancelled(handle)
        await nothing_left(runtime, demo.queue(namespace))


async def test_what_is_over_or_was_never_there_cannot_be_cancelled(redis_url: str, namespace: str, demo: Demo) -> None:
    demo.gate.set()

    @demo.service.task(retry=Retry(attempts=1))
    async def fail() -> None:
        raise ValueError

    async with Runtime([demo.service], redis=redis_url, namespace=namespace) as runtime:
        done = await demo.work.submit("x")
        assert await done.result(5) == "x"
        assert not await done.cancel()
        assert await done.result(5) == "x"
        dead = await fail.submit()
        with pytest.raises(JobFailed):
            await dead.result(5)
        assert not await dead.cancel()
        with pytest.raises(JobFailed) as failed:
            await dead.result(5)
        assert type(failed.value) is JobFailed
        with pytest.raises(NotFound) as unknown:
            await runtime.cancel("demo.work", "unknown")
        assert (unknown.value.queue, unknown.value.job_id) == ("demo.work", "unknown")
        assert await runtime.redis.zcard(demo.queue(namespace).keys["cancels"]) == 0


async def test_a_hundred_cancels_of_one_job_end_it_once(valkey: Valkey, namespace: str, demo: Demo) -> None:
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
        running = await demo.work.submit("x")
        await wait_until(lambda: running.id in demo.started)
        later = await demo.work.submit("x", delay=1000)
        answers = await asyncio.gather(*[handle.cancel() for _ in range(50) for handle in (running, later)])
        assert all(answers[1::2])
        assert answers[0]
        await is_cancelled(running)
        await is_cancelled(later)
        assert (await runtime.totals(demo.work))["dead"] == 2


async def test_a_lost_reply_to_a_cancel_is_asked_for_again(valkey: Valkey, namespace: str, demo: Demo) -> None:
    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([demo.service], redis=proxy.url, namespace=namespace, workers=False) as far,
    ):
        handle = await far.submit(demo.work, "x")
        assert await far.cancel(demo.work, (await far.submit(demo.work, "y")).id)  # the script is loaded
        proxy.lose_reply(sha("queue/cancel"))
        assert await handle.cancel()
        await is_cancelled(handle)


# ---- messages that are lost or come too early


async def test_a_cancel_whose_message_is_lost_is_heard_at_the_next_renewal(valkey: Valkey, namespace: str) -> None:
    demo = Demo(lease=1.5)
    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([demo.service], redis=proxy.url, namespace=namespace) as worker,
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as near,
    ):
        handle = await near.submit(demo.work, "x")
        await wait_until(lambda: handle.id in demo.started)
        assert worker._inbox is not None
        await wait_until(worker._inbox.subscribed.is_set)
        deafen(proxy)
        assert await handle.cancel()
        await is_cancelled(handle, seconds=2)
        assert demo.ended[handle.id] == "cancelled"
        assert (await handle.status()).attempt == 1


async def test_a_cancel_that_overtakes_the_answer_of_the_claim_is_heard(
    valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch, no_maintenance: None
) -> None:
    demo = Demo(lease=LONG)
    claim = Store.claim
    claimed, go_on = asyncio.Event(), asyncio.Event()

    async def slow(store: Store, *arguments: Any, **options: Any) -> Claimed:
        answer = await claim(store, *arguments, **options)
        if answer.jobs:
            claimed.set()
            await go_on.wait()
        return answer

    monkeypatch.setattr(Store, "claim", slow)
    async with (
        Runtime([demo.service], redis=valkey.url, namespace=namespace) as worker,
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as far,
    ):
        assert worker._inbox is not None
        await wait_until(worker._inbox.subscribed.is_set)
        handle, other = await far.submit(demo.work, "x"), await far.submit(demo.work, "y")
        await claimed.wait()
        heard = asyncio.Event()
        hear = worker._inbox._hear

        def noting(message: bytes) -> None:
            hear(message)
            heard.set()

        monkeypatch.setattr(worker._inbox, "_hear", noting)
        assert await handle.cancel()
        await heard.wait()
        go_on.set()
        await is_cancelled(handle, seconds=2)
        assert handle.id not in demo.started
        demo.gate.set()
        assert await other.result(5) == "y"
        (pool,) = worker._pools
        assert not pool._cancelled_early


async def test_a_cancel_of_a_runtime_that_stops_ends_its_job(valkey: Valkey, namespace: str, demo: Demo) -> None:
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as near:
        async with (
            Proxy(valkey.socket) as proxy,
            Runtime([demo.service], redis=proxy.url, namespace=namespace, grace=0) as worker,
        ):
            handle = await near.submit(demo.work, "x")
            await wait_until(lambda: handle.id in demo.started)
            assert worker._inbox is not None
            await wait_until(worker._inbox.subscribed.is_set)
            deafen(proxy)
            assert await handle.cancel()
        # It was released, not settled, and is not given to anybody else.
        await is_cancelled(handle)
        await nothing_left(near, demo.queue(namespace))


async def test_a_cancelled_job_whose_worker_dies_is_reaped_as_cancelled(
    valkey: Valkey, namespace: str, store: Store
) -> None:
    demo = Demo(lease=0.5)
    queue = demo.queue(namespace)
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as near:
        handle = await near.submit(demo.work, "x")
        other = await near.submit(demo.work, "y")
        claimed = await store.claim(queue, 2, 300, "dead.1")  # by a process that is gone after it
        assert len(claimed.jobs) == 2
        assert await handle.cancel()
        assert (await handle.status()).state is State.RUNNING
        demo.gate.set()
        async with Runtime([demo.service], redis=valkey.url, namespace=namespace):
            await is_cancelled(handle)
            assert await other.result(5) == "y"
        info = await handle.status()
        assert (info.attempt, info.crashes) == (1, 1)
        await nothing_left(near, queue)
    assert demo.started == [other.id]


# ---- handlers that do something else


async def test_a_handler_that_swallows_its_cancel_is_done(valkey: Valkey, namespace: str, demo: Demo) -> None:
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
        handle = await demo.work.submit("swallow")
        await wait_until(lambda: handle.id in demo.started)
        assert await handle.cancel()
        assert await handle.result(5) == "swallow"
        assert demo.ended[handle.id] == "cancelled"
        assert (await handle.status()).state is State.DONE
        await nothing_left(runtime, demo.queue(namespace))


async def test_a_handler_that_fails_instead_is_not_tried_again(valkey: Valkey, namespace: str, demo: Demo) -> None:
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
        handle = await demo.work.submit("raise")
        await wait_until(lambda: handle.id in demo.started)
        assert await handle.cancel()
        await is_cancelled(handle)
        assert demo.started == [handle.id]
        assert set(await runtime.redis.hgetall(runtime.key(demo.service, "bad"))) == {handle.id.encode()}
        await nothing_left(runtime, demo.queue(namespace))


@pytest.mark.parametrize(("how", "landed"), [("fail", "bad"), ("later", "good")])
async def test_a_job_that_would_run_again_is_cancelled_instead(
    valkey: Valkey, namespace: str, how: str, landed: str
) -> None:
    demo = Demo(lease=LONG)  # so that no renewal says it either
    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([demo.service], redis=proxy.url, namespace=namespace) as worker,
        Runtime([demo.service], redis=valkey.url, namespace=namespace, workers=False) as near,
    ):
        handle = await near.submit(demo.work, how)
        await wait_until(lambda: handle.id in demo.started)
        assert worker._inbox is not None
        await wait_until(worker._inbox.subscribed.is_set)
        deafen(proxy)
        assert await handle.cancel()
        demo.gate.set()
        await is_cancelled(handle)
        assert demo.started == [handle.id]
        for name in ("good", "bad"):
            found = await near.redis.hgetall(near.key(demo.service, name))
            assert set(found) == ({handle.id.encode()} if name == landed else set()), name
        await nothing_left(near, demo.queue(namespace))


@pytest.mark.parametrize("ending", ["returns", "raises"])
async def test_a_handler_in_a_thread_is_waited_for(valkey: Valkey, namespace: str, ending: str) -> None:
    service = Service("demo")
    began, end = threading.Event(), threading.Event()

    @service.task(retry=SOON, lease=0.6)
    def work(job: Job) -> str:
        began.set()
        end.wait(10)
        if ending == "raises":
            raise ValueError(ending)
        return ending

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        handle = await runtime.submit(work)
        await wait_until(began.is_set)
        assert await handle.cancel()
        attempt = next(iter(runtime._pools[0].held))
        await wait_until(lambda: attempt.stop is not None)
        assert (await handle.status()).state is State.RUNNING
        end.set()
        if ending == "raises":
            await is_cancelled(handle)
        else:
            assert await handle.result(5) == "returns"
        assert (await handle.status()).attempt == 1


@pytest.mark.parametrize("why", ["cancel", "timeout", "stop", "lease"])
async def test_a_handler_in_a_thread_that_checks_ends_soon(
    valkey: Valkey, namespace: str, store: Store, why: str
) -> None:
    service = Service("demo")
    heard: list[BaseException] = []
    began = threading.Event()

    @service.task(retry=Retry(attempts=1), lease=0.6, timeout=0.3 if why == "timeout" else None)
    def work(job: Job) -> None:
        began.set()
        while True:
            try:
                job.check()
            except BaseException as error:
                heard.append(error)
                raise
            time.sleep(0.005)

    queue = Queue(namespace, "demo", "work")
    async with Runtime([service], redis=valkey.url, namespace=namespace, grace=0.1) as runtime:
        handle = await runtime.submit(work)
        await wait_until(began.is_set)
        if why == "cancel":
            assert await handle.cancel()
            await is_cancelled(handle)
        elif why == "timeout":
            with pytest.raises(JobFailed, match="no result within"):
                await handle.result(5)
        elif why == "lease":
            await runtime.pause(work)
            assert await store.release(queue, [(handle.id, (await handle.status()).token)]) == [True]
            await wait_until(lambda: heard)
            await in_state(handle, State.READY)
    kinds = {"cancel": asyncio.CancelledError, "timeout": TimeoutError, "stop": asyncio.CancelledError}
    assert [type(error) for error in heard] == [kinds.get(why, LeaseLost)]
    if why == "stop":
        (info,) = await store.inspect(queue, [handle.id])
        assert info is not None
        assert (info.state, info.failures, info.crashes) == (State.READY, 0, 0), "back in its place"


async def test_a_plain_call_checks_nothing() -> None:
    Job("x", 1).check()


async def test_a_job_that_fails_because_another_was_cancelled_has_failed(valkey: Valkey, namespace: str) -> None:
    demo = Demo()
    waits = asyncio.Event()

    @demo.service.task(retry=Retry(attempts=1))
    async def parent() -> str:
        child = await demo.work.submit("x", id="child", delay=1000)
        waits.set()
        return await child.result(5)

    async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
        handle = await parent.submit()
        await waits.wait()
        assert await runtime.cancel(demo.work, "child")
        with pytest.raises(JobFailed, match="job child is dead") as failed:
            await handle.result(5)
        assert type(failed.value) is JobFailed, "nobody cancelled this one"
        assert failed.value.error == "JobCancelled"


async def test_a_handler_may_cancel_its_own_job(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")

    @service.task(retry=SOON)
    async def work(job: Job) -> None:
        runtime = live.pop()
        assert await runtime.cancel("demo.work", job.id)
        await asyncio.Event().wait()

    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        live = [runtime]
        await is_cancelled(await work.submit())


# ---- afterwards


async def test_a_cancelled_job_is_requeued_with_its_history(valkey: Valkey, namespace: str, demo: Demo) -> None:
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
        waiting = await demo.work.submit("x", delay=1000)
        running = await demo.work.submit("y")
        await wait_until(lambda: demo.started == [running.id])
        for handle in (waiting, running):
            assert await handle.cancel()
            await is_cancelled(handle)
        demo.gate.set()
        for handle, result, attempt in ((waiting, "x", 1), (running, "y", 2)):
            assert await runtime.requeue(demo.work, handle.id)
            assert not await runtime.requeue(demo.work, handle.id) or (await handle.status()).state is State.DONE
            assert await handle.result(5) == result
            info = await handle.status()
            assert info.attempt == attempt
            assert [failure.error for failure in info.history] == ["JobCancelled"]
        await nothing_left(runtime, demo.queue(namespace))


async def test_a_requeued_job_can_be_cancelled_again(valkey: Valkey, namespace: str, demo: Demo) -> None:
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
        await runtime.pause(demo.work)
        handle = await demo.work.submit("x")
        for life in range(12):
            assert await handle.cancel()
            await is_cancelled(handle)
            assert len((await handle.status()).history) == min(life, 10)
            assert await runtime.requeue(demo.work, handle.id)
            assert (await handle.status()).state is State.READY
        demo.gate.set()
        await runtime.resume(demo.work)
        assert await handle.result(5) == "x"


# ---- many at once


@pytest.fixture
def chance() -> random.Random:
    return random.Random(11)


async def test_of_many_that_are_cancelled_at_any_moment_each_ends_once_and_as_it_was_told(
    valkey: Valkey, namespace: str, chance: random.Random
) -> None:
    service = Service("demo")
    finished: list[str] = []

    @service.task(concurrency=20, retry=SOON, lease=1.0)
    async def work(milliseconds: int, job: Job) -> str:
        job.commit.hset("good", job.id, "1")
        await asyncio.sleep(milliseconds / 1000)
        if milliseconds % 3 == 0 and job.attempt == 1:
            raise ValueError
        finished.append(job.id)
        return job.id

    queue = Queue(namespace, "demo", "work")
    async with (
        Runtime([service], redis=valkey.url, namespace=namespace),
        Runtime([service], redis=valkey.url, namespace=namespace),
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as near,
    ):
        said: dict[str, bool] = {}
        outcomes: dict[str, str] = {}

        async def one(number: int) -> None:
            handle = await near.submit(work, chance.randrange(10), delay=chance.choice([0, 0, 0.01]))
            result = asyncio.create_task(handle.result(15))
            await asyncio.sleep(chance.uniform(0, 0.05))
            said[handle.id] = await handle.cancel()
            try:
                assert await result == handle.id
                outcomes[handle.id] = "done"
            except JobCancelled:
                outcomes[handle.id] = "cancelled"
            with suppress(NotFound):
                await handle.cancel()

        await asyncio.gather(*map(one, range(400)))
        for job_id, outcome in outcomes.items():
            assert said[job_id] or outcome == "done", "False says that it had finished"
        assert set(outcomes.values()) == {"done", "cancelled"}
        landed: Any = await near.redis.hgetall(near.key(service, "good"))
        good = {job_id.decode() for job_id in landed}
        assert good == {job_id for job_id, outcome in outcomes.items() if outcome == "done"}
        totals = await near.totals(work)
        assert totals["done"] + totals["dead"] == 400
        await nothing_left(near, queue)
