"""Whether the server is there, and what its clock shows; shared by everything that calls one store."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from dataclasses import dataclass, field

from aioflow.errors import ProtocolError, StoreUnavailable

log = logging.getLogger(__name__)

TOLERANCE_MS = 1000
"""How far the server's clock may be off what is expected; as in reap."""


@dataclass(slots=True)
class ServerClock:
    """The server's time as last heard, carried on by the monotonic clock."""

    heard_ms: int = 0
    heard_at: float = 0.0
    stepped_at: float = -math.inf
    """Monotonic time at which the server's clock was last found to be off."""

    def hear(self, now_ms: int, sent: float | None = None) -> None:
        """Take the time that a script answered, which was sent at that monotonic time (None: just now)."""
        now = time.monotonic()
        sent = now if sent is None else sent
        early, late = self.expected_ms(sent) - TOLERANCE_MS, self.expected_ms(now) + TOLERANCE_MS
        if self.heard_ms and not early <= now_ms <= late:
            off_ms = now_ms - self.expected_ms(now)
            log.warning("the clock of redis has stepped by about %+d ms; leases are judged again once it holds", off_ms)
            self.stepped_at = now
        elif self.heard_ms and now - sent > TOLERANCE_MS / 2000:
            return  # right, but too vague to go by
        self.heard_ms, self.heard_at = now_ms, now

    def expected_ms(self, at: float | None = None) -> int:
        """What the server's clock should show now, or at a monotonic time."""
        return self.heard_ms + int(((time.monotonic() if at is None else at) - self.heard_at) * 1000)

    def wait_ms(self, now_ms: int, due_ms: int) -> int | None:
        """How long it is to a due time from what the server answered as its time; None: waiting does not bring it."""
        return max(0, due_ms - now_ms)


@dataclass(slots=True)
class Line:
    """Whether the server is there; says each loss and each return once."""

    url: str
    lost_at: float | None = None
    refusing: bool = False
    failures: int = 0
    connected_at: float = field(default_factory=time.monotonic)
    """Monotonic time of the last broken connection, or of the first answer after the server was away or refusing."""
    quiet: bool = False
    """Whether another one of the same runtime does the saying."""
    heard: bool = False
    """Whether it ever answered: what was never there is not lost, and whoever connects hears of it."""

    @property
    def holds(self) -> bool:
        """Whether the server served when it was last heard of."""
        return self.lost_at is None and not self.refusing

    def broke(self) -> None:
        """A connection broke, and the call is made again over a new one: whatever was there may be another server."""
        self.connected_at = time.monotonic()

    def up(self, sent: float) -> None:
        """The server answered what was sent at that monotonic time; an answer from before the loss is no return."""
        self.heard = True
        if self.lost_at is not None and sent > self.lost_at:
            if not self.quiet:
                log.info("redis %s is back after %.1f s", self.url, time.monotonic() - self.lost_at)
            self.lost_at = None
            self.failures = 0
            self.connected_at = time.monotonic()

    def served(self, sent: float) -> None:
        """The server ran what was sent to it at that monotonic time."""
        self.up(sent)
        if self.refusing:
            self.refusing = False
            self.failures = 0
            self.connected_at = time.monotonic()  # it may have another clock, and the holders must reach it first
            log.info("redis %s serves again", self.url)

    def refused(self, error: BaseException) -> None:
        """The server is there and runs nothing now: a replica after a failover, or one that loads, or is blocked."""
        self.failures += 1
        if not self.refusing:
            self.refusing = True
            log.warning("redis %s does not serve: %s; trying again", self.url, error)

    def down(self, error: BaseException) -> None:
        self.failures += 1
        if self.lost_at is None:
            self.lost_at = time.monotonic()
            if self.heard and not self.quiet:
                log.warning("redis %s is away: %s; trying again", self.url, error)

    async def setback(self, error: StoreUnavailable | ProtocolError, what: str) -> None:
        """Wait before a loop tries again, jittered, so that a fleet does not come back as one."""
        if isinstance(error, StoreUnavailable):
            longest = min(2.0, 0.05 * 2 ** min(self.failures, 6))
        else:
            log.error("%s: %s; trying again", what, error)
            longest = 2.0
        await asyncio.sleep(random.uniform(longest / 4, longest))  # noqa: S311
