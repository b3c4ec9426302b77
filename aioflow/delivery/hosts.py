"""How many deliveries go to one host at a time, so that a slow receiver cannot hold up the others. No I/O.

A job whose host has its number is put off, not held: it leaves its slot to others and gets a new place. How long it
stays away grows with the crowd: each one that is put off reserves the next moment at which, by the pace of the host so
far, a turn will be free. A host is forgotten once nothing is under way to it and no such moment lies ahead.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

LEAST_WAIT = 0.1
LONGEST_WAIT = 120.0
"""Seconds: what a host that has come back may have to wait for, and what bounds how often a crowd knocks."""
FIRST_GUESS = 0.05
"""Seconds that a host of which nothing is known takes to answer."""
WEIGHT = 0.2
"""Of the latest answer in the mean of a host."""


@dataclass(slots=True)
class _Host:
    started: dict[object, float] = field(default_factory=dict)
    """When the deliveries under way were started; oldest first."""
    mean: float = FIRST_GUESS
    next_turn: float = 0.0


class Hosts:
    """The hosts to which deliveries are under way, or wait for their turn, in this process."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._hosts: dict[str, _Host] = {}
        self._sweep_at = 64

    def __repr__(self) -> str:
        return f"<Hosts {self.statistics()} at most {self._most} each>"

    def statistics(self) -> dict[str, int]:
        """Deliveries under way, by host."""
        return {name: len(host.started) for name, host in self._hosts.items()}

    def enter(self, name: str, turn: object) -> float:
        """0, and `turn` has begun and must `leave`; or the seconds, with jitter, after which to ask again."""
        now = self._clock()
        host = self._hosts.get(name)
        if host is None:
            self._sweep(now)
            host = self._hosts[name] = _Host()
        if len(host.started) < self._most:
            host.started[turn] = now
            return 0.0
        oldest = now - next(iter(host.started.values()))
        pace = max(host.mean, oldest) / self._most
        host.next_turn = min(max(host.next_turn, now) + pace, now + LONGEST_WAIT)
        return max(LEAST_WAIT, host.next_turn - now) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter

    def leave(self, name: str, turn: object) -> None:
        """The delivery has ended, however it did."""
        host, now = self._hosts[name], self._clock()
        host.mean += WEIGHT * (now - host.started.pop(turn) - host.mean)
        if self._idle(host, now):
            del self._hosts[name]

    def _sweep(self, now: float) -> None:
        """Forget what idles, each time their number has doubled: a constant cost for each that comes."""
        if len(self._hosts) < self._sweep_at:
            return
        self._hosts = {name: host for name, host in self._hosts.items() if not self._idle(host, now)}
        self._sweep_at = 64 + 2 * len(self._hosts)

    def _idle(self, host: _Host, now: float) -> bool:
        return not host.started and host.next_turn <= now
