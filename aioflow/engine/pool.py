"""Runs the leased jobs of one task, a bounded number at a time, and settles them.

Owns every lease of its task in this process, from the claim until the settle has been answered. A slot is free again
when the handler has ended, while its settle is still under way; that line has a bound, at which claiming stops.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aioflow.commit import MOST_EFFECTS
from aioflow.engine import codec
from aioflow.engine.attempt import Attempt, Stop
from aioflow.engine.breaker import Circuit
from aioflow.engine.coalescer import Coalescer
from aioflow.engine.crew import Crew
from aioflow.engine.executor import Executor, Outcome, Unsettled
from aioflow.engine.keys import Queue
from aioflow.engine.notes import Notes
from aioflow.engine.records import MOST_JOBS, Claimed, Settlement
from aioflow.engine.store import Store
from aioflow.errors import ProtocolError, StoreUnavailable
from aioflow.job import Failure
from aioflow.service import Task

log = logging.getLogger(__name__)

MOST_UNSETTLED = 2000
"""Ended handlers whose settle is not answered; beyond it nothing is claimed, since Redis is the slower part."""


@dataclass(slots=True, eq=False)
class Settling:
    """What is settled, and who hears of it: a future and its callback would add 6 % to what a job costs."""

    pool: Pool
    attempt: Attempt
    settlement: Settlement

    def cancelled(self) -> bool:
        """Nobody takes it back."""
        return False

    def done(self) -> bool:
        """Whether it has been heard already: a batch that is split may be answered in part when the runtime ends."""
        return self.attempt not in self.pool.held

    def set_result(self, _: None) -> None:
        """It has been answered."""
        self.pool.let_go(self.attempt)

    def set_exception(self, error: Exception) -> None:
        """It has not."""
        self.pool.not_settled(self.attempt, self.settlement, error)


class Pool:
    """The running jobs of one task in this process."""

    def __init__(
        self,
        task: Task[Any, Any],
        queue: Queue,
        store: Store,
        executor: Executor,
        concurrency: int,
        alone: asyncio.Lock,
        emitted: Callable[[set[str]], None],
        circuit: Circuit | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.task = task
        self.queue = queue
        self.concurrency = concurrency
        self.lease_ms = int(task.options.lease * 1000)
        self.held: set[Attempt] = set()
        """Every lease that this process answers for. A job may be here twice: a thread outlives its lost lease."""
        self.changed: Callable[[], None] = lambda: None
        """Called when a slot becomes free; set by the claimer."""
        self.settles: Coalescer[Settling, None] = Coalescer(f"settle {queue.name}", self._flush)
        self._store = store
        self._alone = alone
        self.quiet = False
        """Whether it starts no more jobs, by an order."""
        self._circuit = circuit
        self._crew = crew
        if circuit is not None:
            circuit.changed = self._resumed
        self._emitted = emitted
        self._executor = executor
        executor.begin = self._begin
        self.notes = Notes(queue, store)
        self._running: dict[Attempt, float] = {}  # and when its handler started; oldest first
        self._cancelled_early: set[tuple[str, str]] = set()
        self._sweep: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Pool {self.queue.name} running={len(self._running)} held={len(self.held)} of {self.concurrency}>"

    @property
    def free(self) -> int:
        """How many more jobs may be claimed."""
        if len(self.settles) >= MOST_UNSETTLED or self.quiet:
            return 0
        most = MOST_JOBS if self._circuit is None else self._circuit.free
        return max(0, min(self.concurrency - len(self._running), most))

    @property
    def running(self) -> list[Attempt]:
        """The attempts whose handlers run."""
        return list(self._running)

    def expect(self, job_id: str, token: str) -> None:
        """Note a cancel of a lease that is not held here: it is over, or its claim's answer is still on the way."""
        if len(self._cancelled_early) < MOST_JOBS:
            self._cancelled_early.add((job_id, token))

    async def start(self, claimed: Claimed) -> None:
        """Start a handler for every claimed job; those that came too late go back. Raises StoreUnavailable."""
        lease_until = claimed.sent + self.task.options.lease
        if time.monotonic() >= lease_until and claimed.jobs:
            log.warning("%s: a claim was answered after its lease; %d jobs go back", self.queue.name, len(claimed.jobs))
            await self._store.release(self.queue, [(leased.id, leased.token) for leased in claimed.jobs])
            return
        renew_at = claimed.sent + self.task.options.lease / 3
        loop = asyncio.get_running_loop()
        attempts = [Attempt(leased, lease_until, renew_at) for leased in claimed.jobs]
        self._note_start(attempts)
        if self._circuit is not None:
            self._circuit.started([attempt for attempt in attempts if not self._on_last_chance(attempt)])
        if self._crew is not None:
            self._crew.begin(len(attempts))
        for attempt in attempts:
            self.held.add(attempt)
            attempt.task = loop.create_task(self._run(attempt), name=f"{self.queue.name} {attempt.job.id}")
            if self._cancelled_early and (attempt.job.id, attempt.job.token) in self._cancelled_early:
                attempt.cancel(Stop.CANCELLED)
        self._cancelled_early.clear()  # one claim is under way at a time

    def _note_start(self, attempts: list[Attempt]) -> None:
        now = time.monotonic()
        for attempt in attempts:
            self._running[attempt] = now
        if self._sweep is None and self.task.options.timeout is not None and attempts:
            self._sweep = asyncio.get_running_loop().call_later(self.task.options.timeout, self._cancel_late)

    async def _run(self, attempt: Attempt) -> None:
        """One attempt from its start until its outcome is on the way."""
        attempt.begun = True
        try:
            if self._on_last_chance(attempt):
                outcome = await self._run_alone(attempt)
            else:
                outcome = await self._executor.run(attempt, self.notes.put)
        except BaseException:
            # The loop is being torn down, or the executor is broken: the lease brings the job back.
            self.held.discard(attempt)
            raise
        finally:
            self._running.pop(attempt, None)
            if self._circuit is not None:
                self._circuit.ended(attempt)
            if self._crew is not None:
                self._crew.end()
            self.changed()
        if isinstance(outcome, Settlement):
            if self.notes.latest and len(outcome.effects) < MOST_EFFECTS:
                outcome.effects = [*outcome.effects, *self.notes.last(attempt.job)]
            self._settle(attempt, outcome)
        elif outcome is Unsettled.ABANDONED:
            self.held.discard(attempt)
        # else it was released, and stays held until the stop gives it back

    def _on_last_chance(self, attempt: Attempt) -> bool:
        return 0 < attempt.job.crashes >= self.task.options.most_crashes - 1

    def _begin(self, attempt: Attempt) -> None:
        """The handler of an attempt that waited starts now, and with it its time."""
        attempt.waiting = False
        if self._running.pop(attempt, None) is not None:
            self._note_start([attempt])

    def _settle(self, attempt: Attempt, settlement: Settlement) -> None:
        try:
            settling = Settling(self, attempt, settlement)
            self.settles.put_for(settling, settling, settlement.size)
        except (StoreUnavailable, TypeError) as error:
            self.not_settled(attempt, settlement, error)

    def not_settled(self, attempt: Attempt, settlement: Settlement, error: BaseException) -> None:
        if isinstance(error, (TypeError, ValueError)) and settlement.effects:
            # What the handler wants written cannot even be sent: that ends its job, and no other.
            log.error("%s %s: dead: its effects cannot be sent: %r", self.queue.name, attempt.job.id, error)
            failure = Failure("BadEffect", f"the effects cannot be sent: {error!r}", attempt=attempt.job.attempt)
            self._settle(attempt, Settlement(attempt.job.id, attempt.job.token, "dead", codec.encode_failure(failure)))
        else:
            log.warning("%s %s: not settled, %s; it runs again", self.queue.name, attempt.job.id, error)
            self.let_go(attempt)

    async def _run_alone(self, attempt: Attempt) -> Outcome:
        """Run a job on its last chance while no other such job runs in this process.

        A job that kills its process takes its neighbours with it, time after time; only one that was the sole suspect
        may end dead of it.
        """
        attempt.waiting = attempt.alone = True
        try:
            async with self._alone:
                if not await self._expose(attempt):
                    return Unsettled.ABANDONED
                self._begin(attempt)
                return await self._executor.run(attempt, self.notes.put)
        except ProtocolError as error:
            log.warning("%s %s: not started: %s", self.queue.name, attempt.job.id, error)
            return Unsettled.ABANDONED
        except asyncio.CancelledError as error:
            return self._executor.stopped(attempt, error)

    async def _expose(self, attempt: Attempt) -> bool:
        """Let a crash count from now on; False where the lease is lost. Asked until it is answered, or the lease ends.

        Whoever gave up after an answer that was lost would leave a job to die of a handler that was never started.
        """
        while True:
            try:
                return await self._store.expose(self.queue, attempt.job)
            except StoreUnavailable as error:
                await self._store.line.setback(error, f"start {self.queue.name} {attempt.job.id}")

    def _resumed(self) -> None:
        self.changed()

    def let_go(self, attempt: Attempt) -> None:
        """It has ended, or is another's."""
        self.held.discard(attempt)
        self.changed()

    def _cancel_late(self) -> None:
        """One sweep for all: the handlers in the order they started, so the first on time ends it."""
        self._sweep = None
        timeout = self.task.options.timeout
        if timeout is None:
            return
        now = time.monotonic()
        for attempt, started in self._running.items():
            if attempt.stop is not None or attempt.waiting:
                continue
            if started + timeout > now:
                self._sweep = asyncio.get_running_loop().call_later(started + timeout - now, self._cancel_late)
                return
            attempt.cancel(Stop.TIMEOUT)

    async def _flush(self, batch: list[Settling]) -> list[None]:
        """Settle a batch; while Redis is away, again and again, until it answers or the runtime's stop ends it.

        Also past the leases' end: whether a job has gone to another is for the server to say, by its token.
        """
        settlements = [settling.settlement for settling in batch]
        while True:
            try:
                answers = await self._store.settle(self.queue, settlements)
                break
            except StoreUnavailable as error:
                await self._store.line.setback(error, f"settle {self.queue.name}")
        effects = [effect for settlement in settlements for effect in settlement.effects]
        emits = {effect.name for effect in effects if effect.op == "emit"}
        emits |= {f"{self.queue.service}.{effect.name}" for effect in effects if effect.op == "submit"}
        if emits:
            self._emitted(emits)
        for settlement, answer in zip(settlements, answers, strict=True):
            if answer == 0:
                log.warning("%s %s: its lease was lost; its outcome is dropped", self.queue.name, settlement.id)
            elif answer != 1:
                log.error("%s %s: dead: %s", self.queue.name, settlement.id, answer)
        return [None] * len(batch)

    def scale(self, concurrency: int) -> None:
        """Run at most so many jobs at a time from now on; what runs is not disturbed."""
        self.concurrency = concurrency
        self._executor.scale(concurrency)
        log.info("%s: %d at a time", self.queue.name, concurrency)
        self.changed()

    def be_quiet(self) -> None:
        """Start no more jobs; what runs goes on."""
        self.quiet = True
        self._executor.hurry()
        self.changed()

    def close(self) -> None:
        """End the processes of its handlers, if there are any."""
        self._executor.close()
        if self._circuit is not None:
            self._circuit.close()
        if self._crew is not None:
            self._crew.close()

    def cancel_running(self) -> None:
        """Cancel every handler, because the runtime stops."""
        for attempt in self.running:
            attempt.cancel(Stop.RUNTIME)

    async def release_rest(self) -> None:
        """Give back the jobs whose handlers were stopped; what still runs in a thread keeps its lease."""
        if self._sweep is not None:
            self._sweep.cancel()
        rest = [attempt for attempt in self.held if attempt not in self._running]
        for first in range(0, len(rest), MOST_JOBS):
            leases = [(attempt.job.id, attempt.job.token) for attempt in rest[first : first + MOST_JOBS]]
            await self._store.release(self.queue, leases)
        self.held.difference_update(rest)
