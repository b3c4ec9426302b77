"""What the queue's scripts take and answer, as the store's callers see it; no I/O here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aioflow.commit import Effect
from aioflow.engine.keys import Queue

Durability = str
""" "memory", "fsync" or "replicated:N"."""
NO_EVICTION = "noeviction"
MOST_JOBS = 1000
"""Jobs of one call, as the scripts check it."""
EFFECT_COST = 50
"""Bytes that an effect counts for beside its own: a batch of many small ones must not hold the server for long."""
MOST_BYTES = 1 << 20
"""Payload of one call; a single larger job still goes."""

# Records of which there is one per job are not frozen: that alone costs 0.6 us each.


@dataclass(slots=True)
class NewJob:
    """A job to be submitted. `due`: "0" now, "+N" in N ms, "N" at UTC ms."""

    queue: Queue
    id: str
    envelope: bytes
    priority: int
    due: str


@dataclass(slots=True)
class Leased:
    """A claimed job. `failures` and `crashes` are of the attempts before this one."""

    id: str
    token: str
    envelope: bytes | None
    attempt: int
    failures: int
    crashes: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to a claim. `sent` is monotonic seconds: on the holder's clock the leases start there."""

    jobs: list[Leased]
    sent: float
    wait_ms: int | None
    """Until the next scheduled job is due; None: none is scheduled."""


@dataclass(slots=True)
class Ride:
    """A claim that travels with a submit, in one round trip, because its claimer waits for jobs anyway."""

    queue: Queue
    count: int
    lease_ms: int
    token: str
    most_crashes: int
    answer: asyncio.Future[Claimed | None]
    """None: there was no answer; claim by yourself."""

    def end(self, claimed: Claimed | None) -> None:
        """Give the answer, once."""
        if not self.answer.done():
            self.answer.set_result(claimed)


@dataclass(slots=True)
class Settlement:
    """How an attempt ended, as the settle script takes it."""

    id: str
    token: str
    kind: Literal["done", "retry", "dead"]
    result: bytes = b"null"
    delay_ms: int = 0
    failed: bool = False
    effects: Sequence[Effect] = ()

    @property
    def outcome(self) -> str:
        """One word for the script: for most jobs the kind says it all."""
        if self.kind == "done" and not self.effects:
            return "done"
        return f"{self.kind}:{self.delay_ms}:{int(self.failed)}:{len(self.effects)}"

    @property
    def size(self) -> int:
        """Bytes it adds to a batch, about."""
        if not self.effects:
            return len(self.result)
        effects = (EFFECT_COST + len(effect.name) + sum(map(len, effect.words)) for effect in self.effects)
        return len(self.result) + sum(effects)


@dataclass(frozen=True, slots=True)
class Reaped:
    """The answer to a reap. `judged`: whether leases were; not so where the server's time was not as expected."""

    judged: bool
    next_ms: int | None = None
    """Until the next lease expires; None: none is live."""
    jobs: int = 0
    dead: int = 0
    promoted: int = 0
    runners: int = 0
    rank: int | None = None
    """Of the caller among the runtimes that look after the queue; None: it is not noted."""
    outbox: int = 0


@dataclass(frozen=True, slots=True)
class Emitted:
    """A job that lies in an outbox. `due`: UTC ms, 0: at once."""

    sequence: str
    to: str
    envelope: bytes
    priority: int
    due: int


@dataclass(frozen=True, slots=True)
class Memory:
    """The server's memory in bytes: in use, and its maxmemory, 0 where it has none."""

    used: int = 0
    limit: int = 0
    policy: str = NO_EVICTION


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many jobs of a queue are in each state, and when the oldest unfinished one was submitted (UTC ms)."""

    scheduled: int
    ready: int
    running: int
    done: int
    dead: int
    open: int
    oldest_ms: int | None


@dataclass(frozen=True, slots=True)
class Overview:
    """A queue as a whole, at one moment of the server's clock."""

    now_ms: int
    sizes: Sizes
    totals: dict[str, int]
    """Counters that only grow."""
    paused: bool
    runtimes: int
    """How many run its jobs; one that was killed still counts for some 15 seconds."""
    outbox: int
    """Jobs for other queues that these have not taken yet."""
