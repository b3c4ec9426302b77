"""Keeps the leases of all running jobs of a runtime alive, and ends those that could not be kept.

It works in a thread with an event loop and a store of its own, so that a handler that blocks the runtime's loop does
not lose its lease; an in-memory server lives in one loop, and with it the keeper works there. On the holder's monotonic
clock a lease begins when its claim or renewal was sent. It is renewed after a third of its time, all that are due in
one round trip; where that fails until the end, the handler is cancelled, since the job may be another's by then. What
cannot be cancelled, a thread or an outcome that waits for its settle, is renewed further: after a long outage the
server may still hold the lease, and if it does not, it says so.

A loop that is blocked for a second is said, with the handler and its stack; after `MOST_BLOCKED` seconds nothing is
renewed any more, and the jobs go to others. The lease of a handler in a thread is kept until it has ended, also when
the runtime has stopped. Carries I2.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

from aioflow.engine.attempt import Attempt, Stop
from aioflow.engine.keys import Queue
from aioflow.engine.pool import Pool
from aioflow.engine.records import MOST_JOBS
from aioflow.engine.store import Store
from aioflow.errors import ProtocolError, StoreUnavailable

log = logging.getLogger(__name__)

LONGEST_TICK = 0.5
BLOCKED = 1.0
"""Seconds after which a blocked loop is said."""
MOST_BLOCKED = 60.0
"""Seconds after which the leases of a blocked loop are left to run out."""
MOST_FRAMES = 12
ABANDONED_MS = 3000
"""How long a job waits whose handler ends with its process: well above what is left of that."""
END_SECONDS = 2.0


class LeaseKeeper:
    """Renews and ends leases. `home` is the runtime's loop; what is not said to run there runs on the keeper's."""

    def __init__(self, pools: Sequence[Pool], connect: Callable[[], Store], *, in_thread: bool) -> None:
        self._pools = pools
        self._connect = connect
        shortest = min((pool.task.options.lease for pool in pools), default=15.0)
        # A lease that begins during a sleep is not due for renewal before a third of its time.
        self._tick = min(LONGEST_TICK, shortest / 6)
        self._patience = shortest / 3
        self._home = asyncio.get_running_loop()
        self._home_thread = threading.get_ident()
        self._in_thread = in_thread
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()  # on the home loop
        self._failure: BaseException | None = None
        self._finish = asyncio.Event()  # on the keeper's loop
        self._finishing = False
        self._abandoning = False
        self._asked_at: float | None = None
        """When the home loop was asked whether it runs; written by both, never at once."""
        self._said: set[str] = set()

    # ---- on the home loop

    async def run(self) -> None:
        """Keep leases until cancelled, or finished. Raises what ended the thread."""
        if not self._in_thread:
            await self._work()
            return
        self._thread = threading.Thread(target=self._run_thread, name="aioflow leases", daemon=True)
        self._thread.start()
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    async def finish(self, seconds: float) -> None:
        """Let go of all leases but those of handlers that run on; return once the others' connections are closed."""
        if self._thread is None or not self._thread.is_alive():
            return
        left = self._running_on()
        self._finishing = True  # before the look at the loop: a thread that only begins looks at this after making one
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._finish.set)
        if left:
            log.warning("%d handlers still run; their leases are kept until they end", len(left))
            return
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        except TimeoutError:
            log.warning("the thread that keeps the leases did not end within %g s", seconds)
        else:
            self._thread.join()  # all that it does after this is to return

    def abandon(self) -> None:
        """Give back the jobs of handlers that run on, directly before the process ends; waits for the thread's end.

        They count no crash, and may be claimed a moment later, when nothing of this process is left. The home loop runs
        nothing meanwhile, so that no handler can put that off.
        """
        self._abandoning = self._finishing = True
        if self._thread is not None and self._loop is not None and self._thread.is_alive():
            with suppress(RuntimeError):  # it has ended this moment
                self._loop.call_soon_threadsafe(self._finish.set)
            self._thread.join(END_SECONDS)
            if self._thread.is_alive():
                log.warning("redis does not answer: the jobs that still run are not given back; their leases run out")

    def _heard(self) -> None:
        self._asked_at = None

    # ---- in the thread

    def _run_thread(self) -> None:
        try:
            asyncio.run(self._work())
        except BaseException as error:  # noqa: BLE001 - raised again where the runtime hears it
            self._failure = error
        self._call_home(self._ended.set)

    def _call_home(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._home.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.debug("the runtime's loop is closed; nobody is left to hear of its leases")

    async def _work(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._finishing:
            self._finish.set()
        store = self._connect()
        try:
            async with asyncio.TaskGroup() as renewals:
                await self._keep(store, renewals)
            await self._keep_rest(store)
        finally:
            await store.close()

    async def _keep(self, store: Store, renewals: asyncio.TaskGroup) -> None:
        renewing: asyncio.Task[None] | None = None
        while not await self._rest(self._until_next()):
            now = time.monotonic()
            self._watch_home(now)
            held = self._held()
            for pool, attempt in held:
                if attempt.lease_until <= now and attempt.cancellable:
                    self._end(pool, attempt, "its lease could not be renewed")
            # What is due soon goes along, so that jobs which start one after another are renewed together from then on.
            due = [
                (pool, attempt)
                for pool, attempt in held
                if attempt.renew_at <= now + pool.task.options.lease / 6 and not attempt.lost
            ]
            if not any(attempt.renew_at <= now for _, attempt in due):
                continue
            # One renewal at a time; a server that is slow to answer must not hide that leases end meanwhile.
            if (renewing is None or renewing.done()) and not self._given_up(now):
                renewing = renewals.create_task(self._renew(store, due), name="aioflow renewal")

    async def _keep_rest(self, store: Store) -> None:
        """After the stop: keep the leases of handlers that run on; when one has ended, give its job back."""
        left = self._running_on()
        while left and not self._abandoning:
            self._finish.clear()
            await self._rest(self._tick)
            for pool, attempt in left:
                if not attempt.lost and not self._runs(attempt):
                    attempt.lost = True
                    await self._give_back(store, pool, [attempt])
            left = [(pool, attempt) for pool, attempt in left if not attempt.lost]
            due = [(pool, attempt) for pool, attempt in left if attempt.renew_at <= time.monotonic()]
            if due:
                await self._renew(store, due)
        if self._abandoning:
            for pool in self._pools:
                rest = [attempt for of_pool, attempt in left if of_pool is pool]
                for first in range(0, len(rest), MOST_JOBS):
                    await self._give_back(store, pool, rest[first : first + MOST_JOBS], after_ms=ABANDONED_MS)

    async def _give_back(self, store: Store, pool: Pool, attempts: list[Attempt], *, after_ms: int = 0) -> None:
        leases = [(attempt.job.id, attempt.job.token) for attempt in attempts]
        try:
            await store.part(pool.queue).release(pool.queue, leases, after_ms=after_ms)
        except (StoreUnavailable, ProtocolError) as error:
            log.warning("%s: %d jobs not given back: %s; their leases run out", pool.queue.name, len(leases), error)

    async def _rest(self, seconds: float) -> bool:
        """Whether it is time to finish."""
        try:
            async with asyncio.timeout(seconds):
                await self._finish.wait()
        except TimeoutError:
            return False
        return True

    def _held(self) -> list[tuple[Pool, Attempt]]:
        # A copy of a set is one step of the interpreter: the home loop cannot come between.
        return [(pool, attempt) for pool in self._pools for attempt in pool.held.copy() if not attempt.lost]

    def _running_on(self) -> list[tuple[Pool, Attempt]]:
        return [(pool, attempt) for pool, attempt in self._held() if self._runs(attempt)]

    def _runs(self, attempt: Attempt) -> bool:
        """Whether a handler still runs: in a thread, or as a task that takes its time over its cancellation."""
        if attempt.in_thread:
            return True
        return attempt.task is not None and not attempt.task.done() and not self._home.is_closed()

    def _until_next(self) -> float:
        now = time.monotonic()
        times = (time for _, attempt in self._held() for time in (attempt.renew_at, attempt.lease_until) if time > now)
        return max(0.01, min(self._tick, min(times, default=now + self._tick) - now))

    def _end(self, pool: Pool, attempt: Attempt, why: str) -> None:
        log.warning("%s %s: %s; cancelled", pool.queue.name, attempt.job.id, why)
        attempt.lost = True
        self._call_home(attempt.cancel, Stop.LEASE_LOST)

    async def _renew(self, store: Store, due: list[tuple[Pool, Attempt]]) -> None:
        of_part: dict[Store, list[tuple[Pool, Attempt]]] = {}
        for pool, attempt in due:
            of_part.setdefault(store.part(pool.queue), []).append((pool, attempt))
        await asyncio.gather(*(self._renew_some(part, some) for part, some in of_part.items()))

    async def _renew_some(self, store: Store, due: list[tuple[Pool, Attempt]]) -> None:
        of_queue: dict[Queue, tuple[Pool, list[Attempt]]] = {}
        for pool, attempt in due:
            of_queue.setdefault(pool.queue, (pool, []))[1].append(attempt)
        batches = [
            (pool, attempts[first : first + MOST_JOBS])
            for pool, attempts in of_queue.values()
            for first in range(0, len(attempts), MOST_JOBS)
        ]
        sent = time.monotonic()
        try:
            async with asyncio.timeout(self._patience):  # while there is time for another try
                answers = await store.renew(
                    [
                        (pool.queue, pool.lease_ms, [(attempt.job.id, attempt.job.token) for attempt in attempts])
                        for pool, attempts in batches
                    ]
                )
        except (StoreUnavailable, ProtocolError, TimeoutError):
            for pool, attempt in due:
                attempt.renew_at = sent + pool.task.options.lease / 12
            return
        for (pool, attempts), of_batch in zip(batches, answers, strict=True):
            lease = pool.task.options.lease
            for attempt, answer in zip(attempts, of_batch, strict=True):
                if answer:
                    attempt.lease_until, attempt.renew_at = sent + lease, sent + lease / 3
                    if answer == 2:
                        self._call_home(attempt.cancel, Stop.CANCELLED)
                elif attempt in pool.held and attempt.task is not None and not attempt.task.done():
                    attempt.lease_until = sent
                    self._end(pool, attempt, "its lease was taken away")

    # ---- watching the home loop

    def _watch_home(self, now: float) -> None:
        if self._asked_at is None:
            if self._said:
                log.warning("the event loop runs again")
                self._said.clear()
            self._asked_at = now
            self._call_home(self._heard)
        elif now - self._asked_at > BLOCKED and "blocked" not in self._said:
            self._said.add("blocked")
            log.warning("%s blocks the event loop; its stack:\n%s", self._who_runs(), self._stack())

    def _given_up(self, now: float) -> bool:
        if self._asked_at is None or now - self._asked_at <= MOST_BLOCKED:
            return False
        if "given up" not in self._said:
            self._said.add("given up")
            log.critical(
                "the event loop is blocked for %g s by %s: no lease is renewed any more, the jobs go to others",
                MOST_BLOCKED,
                self._who_runs(),
            )
        return True

    def _who_runs(self) -> str:
        task = asyncio.current_task(self._home)
        return "something that is no task" if task is None else task.get_name()

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._home_thread)  # noqa: SLF001 - the one way to look at another thread
        return "".join(traceback.format_stack(frame)[-MOST_FRAMES:]) if frame is not None else "(gone)"
