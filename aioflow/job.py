"""What a job is to those who submit it (Handle), who run it (Job) and who look at it (JobInfo); no I/O here."""

from __future__ import annotations

import logging
import os
import random
import re
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

import orjson

from aioflow.commit import Commit
from aioflow.errors import CodecError, ConfigError

R = TypeVar("R")
T = TypeVar("T")

LONGEST_ID = 200
MOST_PROGRESS = 10_000
EMITTED_ID = re.compile(r"[a-z][a-z0-9_-]*\.[a-z][a-z0-9_-]*-\d+-\d+")
"""Source queue and sequence, as lua/queue/relay.lua makes it."""


class State(StrEnum):
    """Where a job is; each state is one sorted set of its queue."""

    SCHEDULED = "scheduled"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"


VARIANT = 0b10
"""The first two bits of a UUID's second half, by RFC 9562."""


class IdSource:
    """Makes UUIDv7 ids (RFC 9562, 32 hex digits) that sort by the order in which this process made them.

    Within a millisecond the last 62 bits grow by a random step (RFC 9562, section 6.2, method 2), so that jobs of one
    submitter stay first in, first out and ids of different processes do not collide.
    """

    def __init__(self) -> None:
        self._ms = 0
        self._tail = 0
        self._head = ""  # of this millisecond: the time, the version and 12 random bits
        self._bits = random.Random(secrets.randbits(128)).getrandbits  # noqa: S311 - uniqueness, not secrecy
        os.register_at_fork(after_in_child=self.__init__)  # type: ignore[misc]

    def next(self) -> str:
        """A new id, greater than every id this source gave before."""
        ms = time.time_ns() // 1_000_000
        if ms > self._ms:
            self._begin(ms)
        else:
            self._tail += 1 + self._bits(32)
            if self._tail >> 62 != VARIANT:
                self._begin(self._ms + 1)
        return self._head + self._tail.to_bytes(8, "big").hex()  # an f-string takes 100 ns longer

    def _begin(self, ms: int) -> None:
        self._ms = ms
        self._head = f"{ms:012x}7{self._bits(12):03x}"
        self._tail = VARIANT << 62 | self._bits(61)  # far from the end


new_id = IdSource().next


def check_id(job_id: str) -> str:
    """Return the id, or raise ConfigError: 1 to 200 printable characters without spaces."""
    if not isinstance(job_id, str):
        raise ConfigError(f"job id {job_id!r}: it is a text")
    if not 1 <= len(job_id) <= LONGEST_ID or not job_id.isprintable() or " " in job_id:
        raise ConfigError(f"job id {job_id[:40]!r}: use 1 to {LONGEST_ID} printable characters without spaces")
    return job_id


def check_new_id(job_id: str) -> str:
    """As `check_id`, for an id that somebody has chosen: it is none of an emit's."""
    if EMITTED_ID.fullmatch(check_id(job_id)):
        raise ConfigError(f"job id {job_id[:40]!r}: ids of this form are given to jobs that handlers emit")
    return job_id


Note = Callable[[Any, bytes], None]


@dataclass(slots=True)
class Job:
    """What a handler is given about the attempt it runs.

    `id` is the job's id; `attempt` counts starts from 1; `commit` collects what shall land with the acknowledgement;
    `resources` is what the service's lifespan yielded; `task` is "service.task".
    """

    id: str
    attempt: int
    commit: Commit = field(default_factory=Commit)
    resources: Any = None
    task: str = ""
    note: Note | None = field(default=None, repr=False)
    """Takes what `progress` is told, with `lease`; set by the runtime."""
    lease: Any = field(default=None, repr=False)
    why_end: Callable[[], BaseException | None] | None = field(default=None, repr=False)
    """Says what `check` raises; set by the runtime."""

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines carry the task, the job's id and the attempt."""
        return JobLog(logging.getLogger(f"aioflow.job.{self.task}"), {"job_id": self.id, "attempt": self.attempt})

    def progress(self, value: Any) -> None:
        """Say how far the job is: any value that JSON can carry, up to 10,000 bytes; the last one counts.

        `handle.status()` shows it. It is written soon, without waiting, and dropped where the lease is lost. May be
        called from a handler in a thread. Raises CodecError.
        """
        try:
            told = orjson.dumps(value)
        except TypeError as error:
            raise CodecError(f"progress of {self.id}: {value!r} does not fit into JSON: {error}") from error
        if len(told) > MOST_PROGRESS:
            raise CodecError(f"progress of {self.id}: {len(told)} bytes, at most {MOST_PROGRESS} are kept")
        self.noted(told)

    def check(self) -> None:
        """Raise where this attempt is to end. For handlers in threads, which nobody can cancel: call it now and then.

        Raises LeaseLost where the job may be another runtime's by now, TimeoutError past the task's time limit, and
        asyncio.CancelledError where the job is cancelled or the runtime stops: then it goes back to its place.
        """
        error = None if self.why_end is None else self.why_end()
        if error is not None:
            raise error

    def noted(self, told: bytes) -> None:
        """Take a note that has been checked."""
        if self.note is not None:
            self.note(self.lease, told)


@dataclass(slots=True)
class Batch:
    """What the handler of a batch task is given about its jobs: a Job for each payload, in the same order."""

    jobs: list[Job]
    failures: dict[int, Exception] = field(default_factory=dict)
    """By position: the jobs that `fail` has named."""

    @property
    def resources(self) -> Any:
        """What the service's lifespan yielded."""
        return self.jobs[0].resources

    def fail(self, position: int, error: Exception) -> None:
        """Let one job fail, as if a handler of its own had raised this; the others are not touched.

        The task's Retry policy, RetryLater and Discard hold for it. Where the handler raises, all of its jobs fail by
        what it raises. Raises IndexError where there is no such job, and TypeError.
        """
        if not isinstance(error, Exception):
            raise TypeError(f"batch.fail takes an exception, not {error!r}")
        if not 0 <= position < len(self.jobs):
            raise IndexError(f"the batch has no job {position}, only {len(self.jobs)}")
        self.failures[position] = error


class JobLog(logging.LoggerAdapter[logging.Logger]):
    """Names the job before each message; the JSON log has its id and attempt as fields."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """As the logger's."""
        if not self.isEnabledFor(level):
            return
        extra = self.extra or {}
        name = f"{extra.get('job_id')} attempt {extra.get('attempt')}: "
        if args:
            name = name.replace("%", "%%")  # an id may hold what would be a placeholder
        kwargs["extra"] = {**extra, **(kwargs.get("extra") or {})}
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the line that logs is the caller's
        named = name + str(msg)
        self.logger.log(level, named, *args, **kwargs)


@dataclass(frozen=True, slots=True)
class Failure:
    """How one attempt of a job failed. `error` is the exception's type, `worker` the runtime that ran it."""

    error: str
    message: str
    traceback: str = ""
    attempt: int = 0
    worker: str = ""
    at_ms: int | None = None
    """UTC milliseconds; None where the job ended by it: then it is the job's end."""


@dataclass(frozen=True, slots=True)
class JobInfo:
    """What is known of a job at one moment. Times are the server's UTC milliseconds."""

    id: str
    state: State
    at_ms: int
    """Scheduled: when it is due; ready: its place's time; running: its lease's deadline; done, dead: when it ended."""
    submitted_ms: int
    started_ms: int | None
    attempt: int
    failures: int
    crashes: int
    token: str
    payload: bytes
    result: bytes | None
    """Done: the result as JSON; dead: {"error": ..., "message": ...} as JSON."""
    history: tuple[Failure, ...] = ()
    """The failed attempts that were followed by another, the last ten at most."""
    progress: bytes | None = None
    """What the handler last said of its progress, as JSON."""


class HandleStore(Protocol):
    """What a Handle needs from the runtime that gave it."""

    async def wait_result(self, task_name: str, job_id: str, timeout: float | None) -> Any: ...

    async def inspect(self, task_name: str, job_id: str) -> JobInfo: ...

    async def cancel(self, task_name: str, job_id: str) -> bool: ...

    def call_sync(self, coroutine: Coroutine[Any, Any, T]) -> T: ...


@dataclass(slots=True)
class Handle(Generic[R]):
    """An accepted job, as its submitter sees it. `created` is False where the same id had been accepted before."""

    id: str
    task_name: str
    created: bool
    _store: HandleStore = field(repr=False)

    async def result(self, timeout: float | None = None) -> R:
        """Wait until the job has finished and return what its handler returned.

        `timeout` is in seconds; None waits as long as it takes. Raises ResultTimeout, JobFailed where the job is
        dead, NotFound where its record is gone. Cancelling the wait does not touch the job. May be repeated.
        """
        result: R = await self._store.wait_result(self.task_name, self.id, timeout)
        return result

    async def status(self) -> JobInfo:
        """What is known of the job now. Raises NotFound once its retention has ended, StoreUnavailable."""
        return await self._store.inspect(self.task_name, self.id)

    async def cancel(self) -> bool:
        """Cancel the job; False where it had finished otherwise already. Raises NotFound, StoreUnavailable.

        A job that waits is dead at once; a running one has its handler cancelled, wherever it runs, within a second
        as a rule, and may still finish before it hears. May be repeated.
        """
        return await self._store.cancel(self.task_name, self.id)

    def result_sync(self, timeout: float | None = None) -> R:
        """As `result`, for threads and synchronous programs; not for the runtime's own thread."""
        return self._store.call_sync(self.result(timeout))
