"""The circuit breaker of one task in this process: while what its handlers need is away, its jobs wait.

It is the outermost middleware around the task's handlers, and its pool asks it how many jobs may start. Closed, it
counts failures in a row. Open, nothing starts. After the wait one job is let through as a probe: where that succeeds,
or fails otherwise, the breaker is closed again; else the wait doubles. Its state is this process' own, so a process
that dies leaves no queue paused.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aioflow.engine.attempt import Attempt
from aioflow.engine.records import MOST_JOBS
from aioflow.job import Job
from aioflow.policy import Breaker, Discard, RetryLater

log = logging.getLogger(__name__)


class Circuit:
    """Its state, changed on the runtime's loop alone. `changed` is called when more jobs may start."""

    def __init__(self, policy: Breaker, name: str) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._policy = policy
        self._name = name
        self._failures = 0  # in a row, while it is closed
        self._trips = 0  # since it was closed; 0: it is
        self._turn = 0  # grows by every trip and every recovery: what began before tells nothing of now
        self._wait = 0.0
        self._opened_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._probe: Attempt | None = None

    def __repr__(self) -> str:
        return f"<Circuit {self._name} trips={self._trips} failures={self._failures}>"

    @property
    def free(self) -> int:
        """How many jobs it lets start now."""
        if not self._trips:
            return MOST_JOBS
        return 1 if self._timer is None and self._probe is None else 0

    def started(self, attempts: Sequence[Attempt]) -> None:
        """These attempts start; where one was let through, the first of them is the probe."""
        if self._trips and self._timer is None and attempts:
            self._probe = attempts[0]
            self._probe.alone = True

    def ended(self, attempt: Attempt) -> None:
        """An attempt has ended, in whatever way."""
        if attempt is self._probe:
            self._probe = None

    async def __call__(self, job: Job, call: Callable[[], Awaitable[Any]]) -> Any:
        """Run the handler; put its job off where it fails by what is away."""
        turn = self._turn
        try:
            result = await call()
        except Exception as error:
            if not self._says_away(error):
                self._worked(turn)  # what it needs has answered, whatever else went wrong
                raise
            wait = self._failed(turn, error)
            if wait is None:
                raise
            job.commit.effects.clear()
            raise RetryLater(wait) from error
        self._worked(turn)
        return result

    def close(self) -> None:
        """The runtime stops."""
        if self._timer is not None:
            self._timer.cancel()

    def _says_away(self, error: Exception) -> bool:
        if isinstance(error, (RetryLater, Discard)):
            return False
        if isinstance(error, ExceptionGroup):
            return error.subgroup(self._policy.on) is not None
        return isinstance(error, self._policy.on)

    def _failed(self, turn: int, error: Exception) -> float | None:
        """Seconds by which the job is put off; None: it has failed as any other."""
        if turn == self._turn and self._timer is None:  # while it waits there is nothing new to learn
            self._failures += 1
            if not self._trips and self._failures < self._policy.failures:
                return None
            self._open(error)
        return self._wait

    def _open(self, error: Exception) -> None:
        if not self._trips:
            self._opened_at = time.monotonic()
        # Jittered, so that the runtimes of a fleet do not come back as one.
        longest = min(self._policy.longest, self._policy.wait * 2.0 ** min(self._trips, 64))
        self._wait = random.uniform(longest / 2, longest)  # noqa: S311
        self._trips += 1
        self._turn += 1
        self._probe = None  # it began before
        log.log(
            logging.WARNING if self._trips == 1 else logging.INFO,
            "%s is paused here: %s: %s; one job is tried in %.1f s",
            self._name,
            type(error).__qualname__,
            error,
            self._wait,
        )
        self._timer = asyncio.get_running_loop().call_later(self._wait, self._try)

    def _try(self) -> None:
        self._timer = None
        self.changed()

    def _worked(self, turn: int) -> None:
        if turn != self._turn:
            return
        self._failures = 0
        if self._trips:
            log.info("%s goes on after %.1f s", self._name, time.monotonic() - self._opened_at)
            self._trips = 0
            self._turn += 1
            self.close()
            self._timer = None
            self.changed()
