"""A file in which handlers note when and where they begin and end, and what it says of them."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

JOURNAL = "TEST_JOURNAL"
"""The environment variable that names the file."""


@dataclass(frozen=True, order=True)
class Note:
    """A line of the journal: `runtime` and `process` are process ids."""

    at_ns: int
    runtime: int
    process: int
    what: str
    job_id: str


def note(what: str, job_id: str) -> None:
    """Write a line, in whole; the clock is that of all processes."""
    line = f"{time.monotonic_ns()} {os.getppid()} {os.getpid()} {what} {job_id}\n"
    journal = os.open(os.environ[JOURNAL], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(journal, line.encode())
    os.close(journal)


def notes_in(path: Path) -> list[Note]:
    """The journal, by time."""
    text = path.read_text() if path.exists() else ""
    lines = [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]
    return sorted(Note(int(at), int(runtime), int(process), what, job) for at, runtime, process, what, job in lines)


def most_at_once(notes: Iterable[Note]) -> dict[int, int]:
    """By runtime: how many of its processes were at work at a time, at most."""
    at_work: dict[int, set[int]] = {}
    most: Counter[int] = Counter()
    for noted in sorted(notes):
        busy = at_work.setdefault(noted.runtime, set())
        if noted.what == "begin":
            busy.add(noted.process)
        else:
            busy.discard(noted.process)
        most[noted.runtime] = max(most[noted.runtime], len(busy))
    return dict(most)
