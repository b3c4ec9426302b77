"""A clock that tests move, in place of the server's: what is due, how old a record is, when a lease is over.

It stands still until it is moved, so nothing comes due by itself. Time limits of handlers, renewals of leases and waits
go by the monotonic clock and are not moved. A move takes no lease from a handler that runs: as after a step of a
server's clock, none is judged until the holders have renewed theirs. Of one Redis every runtime must have the same.
Keys that Redis itself expires, such as a timeline to which nothing was added for as long as it keeps, are not moved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import datetime

from aioflow.engine.line import ServerClock
from aioflow.errors import ConfigError

RENEWAL_SECONDS = 0.1
"""Beyond the renewal interval: for claims that were on their way when the clock was moved."""


class Clock(ServerClock):
    """A time of a test's own, in UTC milliseconds; it begins with that of this machine, or at `start`."""

    def __init__(self, start: datetime | None = None) -> None:
        if start is not None and start.tzinfo is None:
            raise ConfigError(f"Clock({start!r}): use a datetime with a zone")
        super().__init__(int((time.time() if start is None else start.timestamp()) * 1000))
        self._followers: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Clock {self.heard_ms} followers={len(self._followers)}>"

    def __call__(self) -> int:
        return self.heard_ms

    def advance(self, seconds: float) -> None:
        """Move it forward by so many seconds; jobs that are due by then start at once. May be called in any thread."""
        if not 0 <= seconds < math.inf:
            raise ConfigError(f"clock.advance({seconds!r}): a clock goes forward")
        self.stepped_at = time.monotonic() + RENEWAL_SECONDS  # first, so that no lease is judged by the new time
        self.heard_ms += round(seconds * 1000)
        for follower in self._followers.copy():
            follower()

    def follow(self, moved: Callable[[], None]) -> None:
        """Call `moved` after each move."""
        self._followers.append(moved)

    def unfollow(self, moved: Callable[[], None]) -> None:
        """Call it no more; nothing happens where it is not called."""
        if moved in self._followers:
            self._followers.remove(moved)

    def hear(self, now_ms: int, sent: float | None = None) -> None:
        """Nothing is to be learnt from a server that is told the time."""

    def expected_ms(self, at: float | None = None) -> int:  # noqa: ARG002 - it stands still
        """What it shows."""
        return self.heard_ms

    def wait_ms(self, now_ms: int, due_ms: int) -> int | None:  # noqa: ARG002 - nothing comes due by waiting
        """None: only a move brings it."""
        return None
