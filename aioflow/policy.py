"""How jobs are run, tried again and kept: what a task declares, and how a handler may end its attempt. No I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from aioflow.errors import ConfigError

RETENTION_FLOOR = 600.0
"""Seconds: above every window in which a call may be repeated (I7)."""
DEFAULT_PRIORITY = 4
LONGEST_WAIT = 366 * 86_400.0
"""Seconds that a job may be put off."""
MOST_BATCH = 1000
PAYLOAD_LIMIT = 1 << 20
MOST_PAYLOAD_LIMIT = 8 << 20
"""Bytes of one payload or result: by default, and the most that a task may say."""


class RetryLater(Exception):
    """Raise it to run the job again after some seconds; that counts as no failure, and the effects land."""

    def __init__(self, seconds: float) -> None:
        if not 0 <= seconds <= LONGEST_WAIT:
            raise ConfigError(f"RetryLater({seconds!r}): use 0 seconds to 366 days")
        super().__init__(f"again in {seconds:g} s")
        self.seconds = seconds

    def __reduce__(self) -> tuple[type[RetryLater], tuple[float]]:
        return RetryLater, (self.seconds,)  # it comes back from processes


class Discard(Exception):
    """Raise it to end the job as dead, for this reason and without another attempt; the effects land."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed attempt is followed by another.

    `attempts` is how often the job may fail or time out before it is dead. The wait before the next attempt is drawn
    between 0 and min(longest, base * 2**failures) seconds (full jitter, AWS Architecture Blog, "Exponential Backoff
    And Jitter", 2015). `on` says which exceptions are retried, `never` which of those are not; a timeout is a
    TimeoutError. An exception with an attribute `retry_after`, in seconds, sets the least wait: what is drawn comes
    on top of it, so that not all who were told the same come back at once.
    """

    attempts: int = 5
    base: float = 1.0
    longest: float = 300.0
    on: tuple[type[Exception], ...] = (Exception,)
    never: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.base < 0 or not 0 <= self.longest <= LONGEST_WAIT:
            raise ConfigError(f"{self!r}: attempts is at least 1, base and longest are seconds, at most 366 days")

    def delay(self, error: Exception, failures: int) -> float | None:
        """Seconds until the attempt after this failure, where `failures` came before it; None: it was the last."""
        if failures + 1 >= self.attempts or not isinstance(error, self.on) or isinstance(error, self.never):
            return None
        drawn = random.uniform(0, min(self.longest, self.base * 2.0 ** min(failures, 64)))  # noqa: S311 - jitter
        return min(LONGEST_WAIT, least_wait(error) + drawn)


def least_wait(error: Exception) -> float:
    """The seconds that an exception asks for by its attribute `retry_after`; 0 where it has none that can be used."""
    try:
        asked = getattr(error, "retry_after", None)
    except Exception:  # noqa: BLE001 - whatever a property raises, the job has failed and is to be tried again
        return 0.0
    if isinstance(asked, bool) or not isinstance(asked, (int, float)) or not asked > 0:
        return 0.0
    return float(min(asked, LONGEST_WAIT))


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a task is paused because something that its handlers need, such as a database, is away.

    After `failures` attempts in a row that ended by one of the exceptions `on`, the runtime starts no more of its jobs;
    those that run and fail so, too, are put off without counting a failure, and what they wanted written is dropped.
    After `wait` seconds, about, one job is tried; where it fails so again, after twice that time, up to `longest`. Any
    other end of an attempt resumes the task. A time limit of the task itself says nothing about what is away: give
    calls to it a limit of their own.
    """

    on: tuple[type[Exception], ...]
    failures: int = 5
    wait: float = 1.0
    longest: float = 30.0

    def __post_init__(self) -> None:
        kinds = isinstance(self.on, tuple) and all(isinstance(k, type) and issubclass(k, Exception) for k in self.on)
        if not kinds or not self.on:
            raise ConfigError(f"{self!r}: on is a tuple of exceptions, such as (OSError,)")
        if self.failures < 1 or not 0 < self.wait <= self.longest <= LONGEST_WAIT:
            raise ConfigError(
                f"{self!r}: failures is at least 1, wait and longest are seconds, above 0, at most 366 days"
            )


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How a task's jobs are run and kept. Times are in seconds, sizes in bytes."""

    concurrency: int = 100
    timeout: float | None = 60.0
    retry: Retry = field(default_factory=Retry)
    lease: float = 15.0
    most_crashes: int = 3
    keep_done: float = 86_400.0
    keep_dead: float = 30 * 86_400.0
    bound: int | None = 1_000_000
    cpu: bool = False
    payload_limit: int = PAYLOAD_LIMIT
    breaker: Breaker | None = None
    batch: int | None = None
    linger: float = 0.05
    workers: tuple[int, int] | None = None
    idle_timeout: float = 60.0

    def __post_init__(self) -> None:
        problems = [
            (not 1 <= self.concurrency <= 10_000, f"concurrency={self.concurrency} is not 1 to 10,000"),
            (self.timeout is not None and self.timeout <= 0, f"timeout={self.timeout} is not above 0"),
            (not 0.5 <= self.lease <= 3600, f"lease={self.lease} is not 0.5 to 3,600 seconds"),
            (not 1 <= self.most_crashes <= 100, f"most_crashes={self.most_crashes} is not 1 to 100"),
            (
                min(self.keep_done, self.keep_dead) < RETENTION_FLOOR,
                f"keep_done={self.keep_done}, keep_dead={self.keep_dead}: at least {RETENTION_FLOOR:g} seconds",
            ),
            (self.bound is not None and self.bound < 1, f"bound={self.bound} is not at least 1"),
            (
                not 1 <= self.payload_limit <= MOST_PAYLOAD_LIMIT,
                f"payload_limit={self.payload_limit} is not 1 to {MOST_PAYLOAD_LIMIT:,} bytes",
            ),
            (
                self.batch is not None and not 1 <= self.batch <= MOST_BATCH,
                f"batch={self.batch} is not 1 to {MOST_BATCH}",
            ),
            (not 0 <= self.linger <= 60, f"linger={self.linger} is not 0 to 60 seconds"),
            (
                self.workers is not None and not 0 <= self.workers[0] <= self.workers[1],
                f"workers={self.workers} is no (min, max)",
            ),
            (not 0 < self.idle_timeout <= LONGEST_WAIT, f"idle_timeout={self.idle_timeout} is not above 0"),
            (self.batch is not None and self.cpu, "batch and cpu do not go together"),
        ]
        wrong = [message for is_wrong, message in problems if is_wrong]
        if wrong:
            raise ConfigError("task options: " + "; ".join(wrong))
