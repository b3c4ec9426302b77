"""A leased job in this process, from its claim until its settle: the one record that travels through the loop."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from enum import Enum, auto

from aioflow.engine.records import Leased
from aioflow.errors import LeaseLost


class Stop(Enum):
    """Why a running handler is being cancelled."""

    TIMEOUT = auto()
    LEASE_LOST = auto()
    RUNTIME = auto()
    CANCELLED = auto()


@dataclass(slots=True, eq=False)
class Attempt:
    """A leased job in this process, itself and no other of the same job. Times are monotonic seconds."""

    job: Leased
    lease_until: float
    """Written by the lease keeper."""
    renew_at: float
    """Written by the lease keeper, and by the runtime when a test has moved its clock."""
    task: asyncio.Task[None] | None = None
    thread: threading.Thread | None = None
    """Where its handler runs, if that is a thread: it cannot be cancelled."""
    stop: Stop | None = None
    """Written by whoever cancels the handler, before it does."""
    left: bool = False
    """Written at the end of the stop: its handler runs on in a thread, and nobody waits for it."""
    lost: bool = False
    """Written by the lease keeper: the lease is over, or its end is being seen to."""
    waiting: bool = False
    """Its handler has not started yet: on its last chance, or while its process comes up. Its time does not run."""

    alone: bool = False
    """No other job of its task is claimed while it waits to start: it is tried by a breaker, or on its last chance."""
    begun: bool = False
    """Whether its task has taken its first step; a task that is cancelled before it runs nothing, not even cleanup."""

    @property
    def in_thread(self) -> bool:
        """Whether its handler runs in a thread now."""
        return self.thread is not None and self.thread.is_alive()

    @property
    def cancellable(self) -> bool:
        """Whether there is a handler to cancel: one that has not ended and is no thread."""
        return self.task is not None and not self.task.done() and not self.in_thread

    def why_end(self) -> BaseException | None:
        """What its handler may raise because it is being cancelled, in whatever thread; None: it goes on."""
        match self.stop:
            case None:
                return None
            case Stop.LEASE_LOST:
                return LeaseLost(self.job.id)
            case Stop.TIMEOUT:
                return TimeoutError("the time limit of the task is over")
            case Stop.CANCELLED | Stop.RUNTIME:
                return asyncio.CancelledError(self.stop.name.lower())

    def cancel(self, why: Stop) -> None:
        """Cancel the handler, once for each reason; a lost lease overrules every other."""
        if self.task is None or self.stop is why:
            return
        # A handler that takes its time over a first cancellation hears of a stop and of a lost lease all the same.
        if self.begun and (self.stop is None or why in (Stop.RUNTIME, Stop.LEASE_LOST)):
            self.task.cancel(why.name.lower())
        if self.stop is None or why is Stop.LEASE_LOST:
            self.stop = why
