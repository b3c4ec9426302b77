"""Factors as it is, served by a process of its own: each computation notes in a file when and where it begins and ends.

A process of the pool imports the module of the task's handler, which is this one, and finds `compute` here.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aioflow import Job
from services.factors.compute import compute, service
from services.factors.models import Answer, Question

__all__ = ["compute", "service"]

JOURNAL = "TEST_FACTORS_JOURNAL"
computed = compute.handler


def noted(question: Question, job: Job) -> Answer:
    """As the service's own handler."""
    note("begin", job.id)
    try:
        answer: Answer = computed(question, job)
        return answer
    finally:
        note("end", job.id)


def note(what: str, job_id: str) -> None:
    """A line, in whole: the clock is that of all processes."""
    line = f"{time.monotonic_ns()} {os.getppid()} {os.getpid()} {what} {job_id}\n"
    journal = os.open(os.environ[JOURNAL], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(journal, line.encode())
    os.close(journal)


noted.__qualname__ = "compute"
compute.handler = noted


@dataclass(frozen=True, order=True)
class Note:
    """A line of the journal: `runtime` and `process` are process ids."""

    at_ns: int
    runtime: int
    process: int
    what: str
    job_id: str


def notes_in(path: Path) -> list[Note]:
    """The journal, by time."""
    text = path.read_text() if path.exists() else ""
    lines = [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]
    return sorted(Note(int(at), int(runtime), int(process), what, job) for at, runtime, process, what, job in lines)


def most_at_once(notes: Iterable[Note]) -> dict[int, int]:
    """By runtime: how many of its processes computed at a time, at most."""
    at_work: dict[int, set[int]] = {}
    most: Counter[int] = Counter()
    for noted_one in sorted(notes):
        busy = at_work.setdefault(noted_one.runtime, set())
        if noted_one.what == "begin":
            busy.add(noted_one.process)
        else:
            busy.discard(noted_one.process)
        most[noted_one.runtime] = max(most[noted_one.runtime], len(busy))
    return dict(most)
