"""Claims jobs for one pool: always claim first, then block on the bell; no polling.

What to do next is decided synchronously from four facts (`_next_step`); the loop carries it out. The steps of the
loop and who may take over at each: before the claim nobody has lost anything; after it, the leases bring the jobs
back; a token taken from the bell and not followed by a claim is rung again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from enum import Enum, auto

from aioflow.engine.keys import Queue
from aioflow.engine.pool import Pool
from aioflow.engine.records import Claimed, Ride
from aioflow.engine.store import Store
from aioflow.errors import ConfigError, ProtocolError, StoreUnavailable

log = logging.getLogger(__name__)

BLOCK_SECONDS = 5.0
"""How long one blocking pop waits; ends it only to show that the line still lives."""
BLOCK_SECONDS_OF_A_FLEET = 0.5, 60.0
"""The same in a large fleet: so much for each of its runtimes, at most; together they send two pops a second."""
STALE_SECONDS = 3 * BLOCK_SECONDS
LONGEST_TIMER = 3600.0


class Step(Enum):
    """What the claimer does next."""

    CLAIM = auto()
    PASS_ON = auto()
    WAIT = auto()


class Claimer:
    """Keeps one pool supplied. `runners` says how many runtimes look after the queue."""

    def __init__(self, pool: Pool, store: Store, runtime_id: str, runners: Callable[[], int]) -> None:
        self._pool = pool
        self._store = store
        self._queue: Queue = pool.queue
        self._token_prefix = runtime_id
        self._runners = runners
        self._claims = 0
        self._blocks_for = 0.0  # the blocking pop that is under way
        self._look = True  # there may be jobs to claim
        self._bell_heard = False  # a token was taken, or a job is due, and nobody has looked since
        self._stopping = False
        self._waiting = False
        self._ride: Ride | None = None
        self._wake = asyncio.Event()
        self._pop: asyncio.Task[None] | None = None
        self._refused: ConfigError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._progress_at = time.monotonic()
        pool.changed = self._wake.set

    def __repr__(self) -> str:
        return f"<Claimer {self._queue.name} look={self._look} free={self._pool.free} claims={self._claims}>"

    @property
    def healthy(self) -> bool:
        """Whether it claimed or waited in order lately; a full pool is in order."""
        stale_after = max(STALE_SECONDS, 3 * self._blocks_for)
        return self._pool.free == 0 or time.monotonic() - self._progress_at < stale_after

    async def run(self) -> None:
        """Claim until stopped; returns once nothing of it is under way. Raises ConfigError where Redis forbids it."""
        try:
            while not self._stopping or self._ride is not None:
                if self._refused is not None:
                    raise self._refused
                match self._next_step():
                    case Step.CLAIM:
                        await self._claim()
                    case Step.PASS_ON:
                        await self._pass_on()
                    case Step.WAIT:
                        self._listen()
                        self._waiting = True
                        await self._wake.wait()
                        self._waiting = False
                        self._wake.clear()
        finally:
            await self._hang_up()
        await self._leave()

    def stop(self) -> None:
        """Claim no more; a claim in flight is completed."""
        self._stopping = True
        self._wake.set()

    def ride(self) -> Ride | None:
        """A claim to be sent along with a submit to this queue; None unless this claimer waits for jobs."""
        free = self._pool.free
        if not self._waiting or self._stopping or self._next_step() is not Step.WAIT or free == 0:
            return None
        future: asyncio.Future[Claimed | None] = asyncio.get_running_loop().create_future()
        most_crashes = self._pool.task.options.most_crashes
        self._ride = Ride(self._queue, free, self._pool.lease_ms, self._next_token(), most_crashes, future)
        self._wake.set()
        return self._ride

    def _next_token(self) -> str:
        self._claims += 1
        return f"{self._token_prefix}.{self._claims:x}"

    def _next_step(self) -> Step:
        if self._ride is not None:
            return Step.CLAIM
        if self._pool.free > 0:
            return Step.CLAIM if self._look or self._bell_heard else Step.WAIT
        return Step.PASS_ON if self._bell_heard else Step.WAIT

    async def _claim(self) -> None:
        ride, self._ride = self._ride, None
        asked = self._pool.free if ride is None else ride.count
        self._look = self._bell_heard = False
        try:
            if ride is None:
                claimed = await self._store.claim(
                    self._queue,
                    asked,
                    self._pool.lease_ms,
                    self._next_token(),
                    most_crashes=self._pool.task.options.most_crashes,
                )
            elif (carried := await ride.answer) is not None:
                claimed = carried
            else:
                self._look = True
                return
            self._progress_at = time.monotonic()
            self._look = len(claimed.jobs) == asked
            self._set_timer(claimed.wait_ms)
            await self._pool.start(claimed)
        except (StoreUnavailable, ProtocolError) as error:
            self._look = True
            await self._setback(error)

    async def _pass_on(self) -> None:
        """No slot is free, but there is work: put what is due in line and ring for somebody else."""
        self._bell_heard = False
        self._look = True
        try:
            await self._store.promote(self._queue)
        except (StoreUnavailable, ProtocolError) as error:
            await self._setback(error)

    async def _setback(self, error: StoreUnavailable | ProtocolError) -> None:
        if not self._stopping:
            await self._store.line.setback(error, f"claim {self._queue.name}")

    def _listen(self) -> None:
        if self._pop is None and self._pool.free > 0:
            self._pop = asyncio.create_task(self._hear_bell(), name=f"bell {self._queue.name}")

    async def _hear_bell(self) -> None:
        try:
            self._blocks_for = self._block_seconds()
            self._bell_heard = await self._store.wait_bell(self._queue, self._blocks_for)
            self._progress_at = time.monotonic()
        except (StoreUnavailable, ProtocolError) as error:
            await self._setback(error)
            self._look = True
        except ConfigError as error:
            self._refused = error
        finally:
            self._pop = None
            self._wake.set()

    def _block_seconds(self) -> float:
        each, longest = BLOCK_SECONDS_OF_A_FLEET
        return max(BLOCK_SECONDS, min(each * self._runners(), longest))

    def _set_timer(self, wait_ms: int | None) -> None:
        """A local timer for the next due job: timeouts of blocking pops on the server are late by 20-45 ms."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wait_ms is not None:
            delay = min(wait_ms / 1000 + 0.001, LONGEST_TIMER)  # the server's clock is cut to whole ms
            self._timer = asyncio.get_running_loop().call_later(delay, self._due)

    def _due(self) -> None:
        self._timer = None
        self._bell_heard = True
        self._wake.set()

    async def _hang_up(self) -> None:
        self._set_timer(None)
        if self._pop is not None:
            self._pop.cancel()
            await asyncio.wait([self._pop])

    async def _leave(self) -> None:
        # The abandoned pop, or a wake-up that no claim followed, may have taken the token.
        try:
            await self._store.promote(self._queue)
        except (StoreUnavailable, ProtocolError):
            log.info("%s: the bell was not rung at the stop; maintenance does it", self._queue.name)
