"""What a job is to those who submit it (Handle), who run it (Job) and who look at it (JobInfo); no I/O here."""

from __future__ import annotations

import os
import random
import secrets
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from aioflow.commit import Commit
from aioflow.errors import ConfigError

R = TypeVar("R")

LONGEST_ID = 200


class State(StrEnum):
    """Where a job is; each state is one sorted set of its queue."""

    SCHEDULED = "scheduled"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"


class IdSource:
    """Makes UUIDv7 ids (RFC 9562, 32 hex digits) that sort by the order in which this process made them.

    Within a millisecond the last 60 bits grow by a random step (RFC 9562, section 6.2, method 2), so that jobs of one
    submitter stay first in, first out and ids of different processes do not collide.
    """

    def __init__(self) -> None:
        self._ms = 0
        self._tail = 0
        self._head = ""  # of this millisecond: the time, the version, 12 random bits and the variant
        self._random = random.Random(secrets.randbits(128))  # noqa: S311 - uniqueness, not secrecy
        os.register_at_fork(after_in_child=self.__init__)  # type: ignore[misc]

    def next(self) -> str:
        """A new id, greater than every id this source gave before."""
        ms = time.time_ns() // 1_000_000
        if ms > self._ms:
            self._begin(ms)
        else:
            self._tail += 1 + self._random.getrandbits(32)
            if self._tail >> 60:
                self._begin(self._ms + 1)
        return f"{self._head}{self._tail:015x}"

    def _begin(self, ms: int) -> None:
        self._ms = ms
        self._head = f"{ms:012x}7{self._random.getrandbits(12):03x}{8 | self._random.getrandbits(2):x}"
        self._tail = self._random.getrandbits(59)


new_id = IdSource().next


def check_id(job_id: str) -> str:
    """Return the id, or raise ConfigError: 1 to 200 printable characters without spaces."""
    if not 1 <= len(job_id) <= LONGEST_ID or not job_id.isprintable() or " " in job_id:
        raise ConfigError(f"job id {job_id[:40]!r}: use 1 to {LONGEST_ID} printable characters without spaces")
    return job_id


@dataclass(slots=True)
class Job:
    """What a handler is given about the attempt it runs.

    `id` is the job's id; `attempt` counts starts from 1; `commit` collects what shall land with the acknowledgement;
    `resources` is what the service's lifespan yielded.
    """

    id: str
    attempt: int
    commit: Commit
    resources: Any = None


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


class HandleStore(Protocol):
    """What a Handle needs from the runtime that gave it."""

    async def wait_result(self, task_name: str, job_id: str, timeout: float | None) -> Any: ...

    async def inspect(self, task_name: str, job_id: str) -> JobInfo: ...


@dataclass(slots=True)
class Handle(Generic[R]):
    """An accepted job, as its submitter sees it. `created` is False where the same id had been accepted before."""

    id: str
    task_name: str
    created: bool
    _store: HandleStore

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
