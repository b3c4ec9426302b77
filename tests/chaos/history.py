"""What a run did to its processes, and when; the judge excuses by it what a promise does not cover.

Times are monotonic seconds, which all processes of a machine share.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SERVER, CLOCK, LINE, FREEZE, BLOCK, END = "server", "clock", "line", "freeze", "block", "end"
BLOCKED_LONG = 0.3
"""Seconds; a recovery has one to spare, beside the lease."""
AFTERMATH = 3.0
"""Seconds in which runtimes come back to a server that was away: the longest backoff, and a third of a lease."""


@dataclass(slots=True)
class Span:
    """Something was wrong from `began` until `ended`; with `pid`, in one process only."""

    kind: str
    began: float
    ended: float = math.inf
    pid: int | None = None

    def meets(self, since: float, until: float) -> bool:
        """Whether it has a moment in common with that time."""
        return self.began <= until and self.ended >= since


@dataclass
class History:
    """All of it."""

    spans: list[Span] = field(default_factory=list)
    deaths: dict[int, list[float]] = field(default_factory=dict)
    """By pid, when its processes were killed: in a long run the kernel gives a pid again."""
    starts: list[tuple[int, float]] = field(default_factory=list)
    """(pid, when) of each runtime that began to work."""
    began: float = field(default_factory=time.monotonic)
    """When the schedule did."""

    def begin(self, kind: str, pid: int | None = None) -> Span:
        """Something goes wrong from now on."""
        self.spans.append(Span(kind, time.monotonic(), pid=pid))
        return self.spans[-1]

    @contextmanager
    def during(self, kind: str, pid: int | None = None) -> Iterator[None]:
        """Something is wrong for as long as this takes."""
        span = self.begin(kind, pid)
        try:
            yield
        finally:
            span.ended = time.monotonic()

    def died(self, pid: int) -> None:
        """A process is dead; it may be said again, a little later."""
        self.deaths.setdefault(pid, []).append(time.monotonic())

    def death(self, pid: int, since: float) -> float:
        """When the process that had this pid then was killed; infinite where it was not."""
        return min((at for at in self.deaths.get(pid, ()) if at >= since), default=math.inf)

    def end_of(self, pid: int, began: float, ended: float | None) -> float:
        """When something of a process ended, by its own account or with it; else it is taken to be a moment long."""
        if ended is not None:
            return ended
        death = self.death(pid, began)
        return began if math.isinf(death) else death

    def has_survivor(self, since: float, until: float, *, but: int) -> bool:
        """Whether another runtime worked all that time: not told to end, its loop not blocked for long."""
        return any(
            pid != but
            and start < since
            and self.death(pid, start) > until
            and not any(span.began < until for span in self.spans if span.kind == END and span.pid == pid)
            and self.blocked_for(pid, since, until) < BLOCKED_LONG
            for pid, start in self.starts
        )

    def blocked_for(self, pid: int, since: float, until: float) -> float:
        """Seconds of that time in which handlers blocked a process' loop."""
        own = [span for span in self.spans if span.kind == BLOCK and span.pid == pid and span.meets(since, until)]
        return sum(min(span.ended, until) - max(span.began, since) for span in own)

    def is_disturbed(self, since: float, until: float, *, but: int) -> bool:
        """Whether anything but the death of that one process went wrong in that time, or shortly before."""
        if any(since <= at <= until for pid, deaths in self.deaths.items() if pid != but for at in deaths):
            return True
        return self.is_server_away(since, until) or any(
            span.meets(since, until) for span in self.spans if span.kind in (FREEZE, END) and span.pid != but
        )

    def is_server_away(self, since: float, until: float) -> bool:
        """Whether runtimes may have been without the server then, or with one whose clock had stepped."""
        return any(span.meets(since - AFTERMATH, until) for span in self.spans if span.kind in (SERVER, CLOCK, LINE))

    def is_stopped(self, pid: int, since: float, until: float) -> bool:
        """Whether that process could not keep its leases, or could not end its handlers, in some of that time."""
        own = [span.kind for span in self.spans if span.pid == pid and span.meets(since, until)]
        return FREEZE in own or (BLOCK in own and self.is_server_away(since, until))

    def has_stepped(self, since: float, until: float) -> bool:
        """Whether the server's clock was set in that time."""
        return any(span.kind == CLOCK and span.meets(since, until) for span in self.spans)
