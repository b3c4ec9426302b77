"""Which jobs a command is about: by state, age and error; and the walk over them, batch by batch."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from aioflow.cli.given import span_ms
from aioflow.cli.show import error_of
from aioflow.client import Client, Part
from aioflow.engine.records import MOST_JOBS
from aioflow.errors import ConfigError
from aioflow.job import JobInfo, State
from aioflow.service import Task
from aioflow.timeline import LARGEST_MS

FIRST_BATCH = 100
"""Also of ids that are given: the records come with their payloads."""
BATCH_BYTES = 4 << 20
"""About what one look reads: jobs come with their payloads and results."""


class Wanted(StrEnum):
    """What `--state` takes: a state, or all unfinished jobs."""

    OPEN = "open"
    SCHEDULED = "scheduled"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"


PARTS: dict[Wanted, Part] = {
    Wanted.OPEN: "open",
    Wanted.SCHEDULED: "scheduled",
    Wanted.READY: "ready",
    Wanted.RUNNING: "started",
    Wanted.DONE: "done",
    Wanted.DEAD: "dead",
}


@dataclass(frozen=True, slots=True)
class Filter:
    """Jobs of one state, or open, whose time lies in since <= time < until, in UTC ms; dead ones also by their error.

    The time is the submission (open, scheduled), the place in the line (ready), the start (running) or the end. All
    scheduled jobs are had without an age only: then they come in the order in which they are due.
    """

    wanted: Wanted
    since_ms: int = 0
    until_ms: int = LARGEST_MS
    error: str | None = None

    @property
    def part(self) -> Part:
        """The set that is walked."""
        by_age = self.since_ms > 0 or self.until_ms < LARGEST_MS
        return "open" if self.wanted is Wanted.SCHEDULED and by_age else PARTS[self.wanted]

    def matches(self, job: JobInfo) -> bool:
        """Whether a job is still one of these: between two looks it may have moved."""
        if self.wanted is Wanted.OPEN:
            return job.state not in {State.DONE, State.DEAD}
        return job.state.value == self.wanted.value and (self.error is None or self._says_it(job))

    def _says_it(self, job: JobInfo) -> bool:
        error = error_of(job)
        return self.error is not None and error is not None and self.error.casefold() in error.casefold()


@dataclass(frozen=True, slots=True)
class Choice:
    """The filters, as they are given."""

    task: str | None
    wanted: Wanted
    older: str | None
    newer: str | None
    error: str | None = None

    def filter(self, now_ms: int | None = None, *, ended: bool = False) -> Filter:
        """The filter at that moment of the server's clock; None: only to see what is wrong. Raises ConfigError."""
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        return make_filter(self.wanted, self.older, self.newer, self.error, now_ms, ended=ended)

    @property
    def names(self) -> list[str]:
        """The task that it is about; none: all."""
        return [] if self.task is None else [self.task]


def make_filter(
    wanted: Wanted, older: str | None, newer: str | None, error: str | None, now_ms: int, *, ended: bool = False
) -> Filter:
    """The filter that options ask for. `ended`: only jobs from before now, so that a walk that moves them has an end.

    Raises ConfigError.
    """
    if error is not None and wanted is not Wanted.DEAD:
        raise ConfigError(f"--error looks at dead jobs, and --state says {wanted.value}")
    until_ms = now_ms + 1 if ended else LARGEST_MS
    if older is not None:
        until_ms = max(0, now_ms - span_ms(older, "--older"))
    since_ms = 0 if newer is None else max(0, now_ms - span_ms(newer, "--newer"))
    if newer is not None and since_ms >= until_ms:
        raise ConfigError(f"no job is older than {older} and newer than {newer}")
    return Filter(wanted, since_ms, until_ms, error)


async def walk(
    client: Client, task: Task[Any, Any], these: Filter, most: int | None = None
) -> AsyncGenerator[list[JobInfo], None]:
    """The task's jobs that match, oldest first, up to 1,000 at a time; `most` is how many are needed at all."""
    cursor, size = None, FIRST_BATCH if most is None else min(FIRST_BATCH, most)
    while True:
        page = await client.jobs_page(
            task, these.part, since_ms=these.since_ms, until_ms=these.until_ms, limit=size, cursor=cursor
        )
        seen = await client.inspect_many(task, [job_id for job_id, _ in page.entries])
        found = [job for job in seen if job is not None and these.matches(job)][:most]
        yield found
        if most is not None:
            most -= len(found)
        if page.cursor is None or most == 0:
            return
        cursor = page.cursor
        size = next_size(size, seen)


def next_size(size: int, seen: list[JobInfo | None]) -> int:
    """How many jobs to look at next, by how large these were."""
    read = sum(len(job.payload) + len(job.result or b"") for job in seen if job is not None)
    return max(1, min(MOST_JOBS, size * BATCH_BYTES // (read + 1)))


async def find(
    client: Client, tasks: Sequence[Task[Any, Any]], ids: Sequence[str]
) -> dict[str, tuple[Task[Any, Any], JobInfo]]:
    """Where jobs are. Raises ConfigError where two tasks have a job of the same id."""
    found: dict[str, tuple[Task[Any, Any], JobInfo]] = {}
    for task in tasks:
        for first in range(0, len(ids), FIRST_BATCH):
            for job in await client.inspect_many(task, ids[first : first + FIRST_BATCH]):
                if job is None:
                    continue
                if job.id in found:
                    names = f"{found[job.id][0].full_name} and {task.full_name}"
                    raise ConfigError(f"{names} both have a job {job.id}: say which by --task")
                found[job.id] = (task, job)
    return found
