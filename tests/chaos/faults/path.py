"""The core path, walked once per fault: jobs that are submitted, run, put off, cancelled, reaped and emitted.

What is known at the end is read from the server: how often each handler was started, what its effects have counted,
the queues' own counters, and every key of theirs. A walk ends right only if each job that got a receipt ended as it
had to, was started once per attempt that was meant, and left nothing behind.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

import pytest

from aioflow import Handle, Job, JobCancelled, RetryLater, Runtime, Service, StoreUnavailable
from aioflow.engine.keys import Queue, data_key
from aioflow.engine.records import NewJob, Ride
from aioflow.engine.store import Store
from tests.waiting import wait_until

T = TypeVar("T")

LEASE = 3.0
"""Seconds; long enough that a busy machine ends none by itself."""
PATIENCE = 15.0
"""Seconds for whatever a walk waits for."""
MOST_TRIES = 4
"""A caller asks this often; one fault costs it two tries at most."""
TASKS = {"sell": "shop", "pack": "shop", "book": "ledger"}
SOLD = {"sell": (1, 1, 0), "pack": (1, 1, 0), "book": (1, 1, 0)}
ENDS = {
    "long": SOLD,
    "again": SOLD,
    "next": SOLD,
    "orphan": {"pack": (1, 1, 0)},
    "later": {"pack": (1, 0, 1)},
    "endless": {"sell": (1, 0, 1)},
}
"""What each part of a walk adds to the queues' counters: submitted, done, dead."""
ALL = ("orphan", "long", "again", "later", "endless", "next")
GONE = ("scheduled", "ready", "running", "started", "open", "claims", "waiters", "cancels")
"""Parts of a queue that are empty when nothing is to be done."""


class Shop:
    """Two services whose handlers count on the server what they do. `near` is a store that no fault reaches."""

    def __init__(self, near: Store, namespace: str, lease: float = LEASE) -> None:
        self.near = near
        self.namespace = namespace
        self.queues = {task: Queue(namespace, service, task) for task, service in TASKS.items()}
        self.services = shop, ledger = Service("shop"), Service("ledger")
        self.runtime: Runtime | None = None
        self.begun: set[str] = set()
        self.put_off: set[str] = set()
        self.walked: set[str] = set()
        """The ids of the jobs that were submitted."""

        @ledger.task(lease=lease)
        async def book(name: str, job: Job) -> None:
            job.commit.hincrby("booked", name, 1)

        @shop.task(lease=lease, most_crashes=2)
        async def pack(name: str, job: Job) -> None:
            await self._note_start(job)
            job.commit.hincrby("packed", name, 1)

        @shop.task(lease=lease)
        async def sell(name: str, job: Job) -> str:
            await self._note_start(job)
            if name.startswith("again") and name not in self.put_off:
                self.put_off.add(name)
                job.commit.hincrby("put off", name, 1)
                raise RetryLater(0)
            if name.startswith("long"):
                await self._renewed(job)
            if name.startswith("endless"):
                await asyncio.Event().wait()
            job.commit.hincrby("sold", name, 1)
            job.commit.submit("ledger.book", name)
            job.commit.submit("shop.pack", name)
            return name

        self.sell, self.pack, self.book = sell, pack, book

    def of(self, *parts: str) -> dict[str, int]:
        """The jobs of these parts of walks, each once."""
        return {job_id: 1 for job_id in self.walked if job_id.partition("-")[0] in parts}

    async def counted(self, name: str, service: str = "shop") -> dict[str, int]:
        """What the effects, or the starts of handlers, have counted on the server."""
        found: Any = await self.near.redis.hgetall(data_key(self.namespace, service, name))
        return {field.decode(): int(number) for field, number in found.items()}

    async def _note_start(self, job: Job) -> None:
        key = data_key(self.namespace, "shop", "started")
        await self.near.redis.hincrby(key, f"{job.id} {job.lease.token}", 1)
        self.begun.add(job.id)

    async def _renewed(self, job: Job) -> None:
        """Work until the lease has been renewed."""
        assert self.runtime is not None
        (attempt,) = [held for pool in self.runtime._pools for held in pool.held if held.job is job.lease]
        first = attempt.lease_until
        await wait_until(lambda: attempt.lease_until > first, PATIENCE)


class Walk:
    """One walk of a runtime, as somebody goes it who repeats what was not answered, with the same id."""

    def __init__(self, shop: Shop, runtime: Runtime, number: int) -> None:
        self.shop = shop
        self.runtime = runtime
        self.number = number
        self.asking: set[asyncio.Task[Any]] = set()
        """What somebody waits for now, and may be cancelled in."""
        self._cancelled: set[asyncio.Task[Any]] | None = None
        self.unanswered: list[BaseException] = []
        shop.runtime = runtime

    def name(self, what: str) -> str:
        return f"{what}-{self.number}"

    def cancel_asking(self) -> None:
        """Cancel whoever waits."""
        self._cancelled = set(self.asking)
        for task in self._cancelled:
            task.cancel("by a test")

    def has_cancelled(self) -> bool:
        """Whether those who waited have been cancelled, and have heard of it."""
        return self._cancelled is not None and all(task.done() for task in self._cancelled)

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """What a call answers, at last: it is made again after an honest error, and when its caller was cancelled."""

        async def made() -> T:
            return await call()

        for _ in range(MOST_TRIES):
            task = asyncio.create_task(made(), name="somebody who asks")
            self.asking.add(task)
            try:
                await asyncio.wait([task], timeout=PATIENCE)
                assert task.done(), f"no answer and no error within {PATIENCE:g} s: {call}"
                if not task.cancelled() and not isinstance(task.exception(), StoreUnavailable):
                    return task.result()
                self.unanswered.append(asyncio.CancelledError() if task.cancelled() else task.exception() or KeyError())
                if self.runtime.is_stopping():
                    raise self.unanswered[-1]  # all that a try would hear, until the walk is given up
            finally:
                self.asking.discard(task)
                task.cancel()
        raise AssertionError(f"one fault, and {MOST_TRIES} tries came to nothing: {self.unanswered}")

    async def submit(self, task: Any, what: str, **options: Any) -> Handle[Any]:
        """Submit under an id of this walk's until there is a receipt."""
        name = self.name(what)
        handle = await self.ask(lambda: self.runtime.submit(task, name, id=name, **options))
        self.shop.walked.add(name)
        return handle

    async def orphan(self) -> None:
        """Leave a job to be reaped, whose holder died; it is on its last chance then."""
        queue, name = self.shop.queues["pack"], self.name("orphan")
        # Claimed in one breath with its submit, before the runtime could.
        claim = Ride(queue, 1, 1, f"dead.{self.number}", 2, asyncio.get_running_loop().create_future())
        await self.shop.near.submit([NewJob(queue, name, b'\n"%s"' % name.encode(), 0, "0")], rides=[claim])
        claimed = await claim.answer
        assert claimed is not None
        assert [job.id for job in claimed.jobs] == [name]
        self.shop.walked.add(name)

    async def go(self, parts: Collection[str] = ALL) -> None:
        """Walk so many parts of it: side by side, and on to the next job."""
        ways = {"orphan": self.rescue, "later": self.put_off, "endless": self.cancel_running}
        if "orphan" in parts:
            await self.orphan()
        async with asyncio.TaskGroup() as walking:
            for part in set(parts) - {"next"}:
                walking.create_task(ways[part]() if part in ways else self.run(part), name="walk")
        if "next" in parts:
            await self.run("next")

    async def run(self, what: str) -> None:
        """One that is submitted and awaited."""
        handle = await self.submit(self.shop.sell, what)
        assert await self.ask(lambda: handle.result(PATIENCE)) == self.name(what)

    async def rescue(self) -> None:
        """One that its holder left."""
        handle = self.runtime.handle(self.shop.pack, self.name("orphan"))
        await self.ask(lambda: handle.result(PATIENCE))

    async def put_off(self) -> None:
        """One that is cancelled before its time."""
        handle = await self.submit(self.shop.pack, "later", delay=3600)
        await self.ask(handle.cancel)  # a repeat may hear that it is over already
        with pytest.raises(JobCancelled):
            await self.ask(lambda: handle.result(PATIENCE))

    async def leave_running(self) -> Handle[Any]:
        """One that does not end."""
        handle = await self.submit(self.shop.sell, "endless")
        await wait_until(lambda: handle.id in self.shop.begun, PATIENCE)
        return handle

    async def cancel_running(self) -> None:
        """One that is cancelled while it runs."""
        handle = await self.leave_running()
        await self.ask(handle.cancel)  # a repeat may hear that it is over already
        with pytest.raises(JobCancelled):
            await self.ask(lambda: handle.result(PATIENCE))

    # ---- what must hold then

    async def check(self, *, restarted: bool = False) -> bool:
        """All that there is after this walk. `restarted`: what ran at a stop was started anew, and nothing else."""
        await wait_until(self.all_ended, PATIENCE)
        await self.check_ends()
        await self.check_effects(restarted=restarted)
        self.check_starts(await self.shop.counted("started"), restarted=restarted)
        await wait_until(self.nothing_held, PATIENCE)
        return True

    async def all_ended(self) -> bool:
        for queue in self.shop.queues.values():
            look = self.shop.near.redis.pipeline(transaction=False)
            look.exists(queue.keys["open"])
            look.xlen(queue.keys["outbox"])
            if any(await look.execute()):
                return False
        return True

    async def check_ends(self) -> None:
        """I1, and the counters: no job was made twice, none ended twice, no lease or wish was left."""
        parts = Counter(job_id.partition("-")[0] for job_id in self.shop.walked)
        for task, queue in self.shop.queues.items():
            meant = [0, 0, 0]
            for part, times in parts.items():
                adds = ENDS[part].get(task, (0, 0, 0))
                meant = [total + times * each for total, each in zip(meant, adds, strict=True)]
            look = self.shop.near.redis.pipeline(transaction=True)
            look.hmget(queue.keys["totals"], "submitted", "done", "dead")
            look.exists(*[queue.keys[part] for part in GONE])
            look.xlen(queue.keys["outbox"])
            for part in ("done", "dead"):
                look.zrange(queue.keys[part], 0, -1)
            for part in ("jobs", "results"):
                look.hkeys(queue.keys[part])
            totals, left, outbox, done, dead, jobs, results = await look.execute()
            assert [int(number or 0) for number in totals] == meant, f"{task}: {totals}, meant {meant}"
            assert left == outbox == 0, f"{task}: something is left of {GONE}, or in the outbox"
            assert sorted([*done, *dead]) == sorted(jobs) == sorted(results), task

    async def check_effects(self, *, restarted: bool) -> None:
        """Each effect once, of each job that is done and of no other."""
        sold, put_off = self.shop.of("long", "again", "next"), await self.shop.counted("put off")
        if put_off or not restarted:  # one whose first attempt was stopped is not put off
            same("put off", put_off, self.shop.of("again"))
        same("sold", await self.shop.counted("sold"), sold)
        same("packed", await self.shop.counted("packed"), sold | self.shop.of("orphan"))
        same("booked", await self.shop.counted("booked", "ledger"), sold)

    def check_starts(self, started: dict[str, int], *, restarted: bool) -> None:
        """Every handler was started once per lease, and a job once more only where it was put off, or stopped."""
        assert set(started.values()) == {1}, f"two starts under one token: {started}"
        starts = Counter(line.partition(" ")[0] for line in started)
        for job_id, count in starts.items():
            meant = 2 if job_id.startswith("again") else 1
            assert count == meant or (restarted and count <= meant + 1), f"{job_id} was started {count} times"

    def nothing_held(self) -> bool:
        """Whether the runtime itself answers for nothing any more."""
        results = self.runtime._results
        return not any(pool.held or len(pool.settles) for pool in self.runtime._pools) and (
            results is None or not results.waiting()
        )


def same(name: str, counted: dict[str, int], meant: dict[str, int]) -> None:
    """Compare what effects have counted with what was meant."""
    wrong = {key: (counted.get(key), meant.get(key)) for key in counted.keys() | meant.keys()}
    wrong = {key: pair for key, pair in wrong.items() if pair[0] != pair[1]}
    assert not wrong, f"{name}, counted and meant: {wrong}"
