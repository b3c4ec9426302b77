"""The workers of a pool that come and go: one for each job that runs at a time, and those that have become idle."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

log = logging.getLogger(__name__)


class Crew:
    """Counts workers, at least `least`; one that was idle for `idle_seconds` signs off."""

    def __init__(self, name: str, least: int, idle_seconds: float) -> None:
        self._name = name
        self._least = least
        self._idle_seconds = idle_seconds
        self.alive = least
        self._idle: deque[float] = deque([time.monotonic()] * least)  # since when; the longest idle first
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Crew {self._name} alive={self.alive} idle={len(self._idle)}>"

    def begin(self, jobs: int) -> None:
        """So many jobs begin; the worker that was idle for the shortest time takes the next."""
        for _ in range(jobs):
            if self._idle:
                self._idle.pop()
            else:
                self.alive += 1
                log.debug("%s: a worker comes, %d are there", self._name, self.alive)

    def end(self) -> None:
        """A job has ended."""
        self._idle.append(time.monotonic())
        if self._timer is None and self.alive > self._least:
            self._timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._sign_off)

    def close(self) -> None:
        """The runtime stops."""
        if self._timer is not None:
            self._timer.cancel()

    def _sign_off(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self._idle and self.alive > self._least and self._idle[0] + self._idle_seconds <= now:
            self._idle.popleft()
            self.alive -= 1
            log.debug("%s: a worker signs off, idle for %g s; %d are there", self._name, self._idle_seconds, self.alive)
        if self._idle and self.alive > self._least:
            seconds = self._idle[0] + self._idle_seconds - now
            self._timer = asyncio.get_running_loop().call_later(seconds, self._sign_off)
