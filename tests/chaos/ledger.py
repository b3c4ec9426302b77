"""What handlers did, by their own account: a line at the start and at the end of each attempt.

A line is one `write` to a file that all processes append to, so it outlives a SIGKILL that comes directly after it.
Times are those of the monotonic clock, which all processes of a machine share. The lines of one job are all in one of
`PARTS` files, so that a long run is read a part at a time.
"""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from aioflow import Job

FOLDER = "CHAOS_LEDGER"
"""The environment variable that names the folder."""
PARTS = 16
BLOCKS, STALLS, STARTS = "blocks", "stalls", "starts"
WATCHED = 0.05
STALLED = 0.3
"""Seconds that a thread sleeps, and for which more it must not have run to be a stall."""


@dataclass(slots=True)
class Attempt:
    """One attempt. `ended` is None where its process ended first; `how` is "done" or the exception's type."""

    task: str
    job: str
    number: int
    token: str
    pid: int
    began: float
    ended: float | None = None
    how: str = ""


@cache
def _opened(name: str) -> int:
    return os.open(Path(os.environ[FOLDER], name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def part_of(job_id: str) -> str:
    """The name of the file that has the lines of a job."""
    return f"{zlib.crc32(job_id.encode()) % PARTS:02}"


@cache
def watch() -> None:
    """Note that this process works, and when it does not run, frozen or for want of a processor; once in each."""
    os.write(_opened(STARTS), f"S {time.monotonic():.6f} {os.getpid()}\n".encode())
    threading.Thread(target=_watch, name="chaos watch", daemon=True).start()


def _watch() -> None:
    before = time.monotonic()
    while True:
        time.sleep(WATCHED)
        now = time.monotonic()
        if now - before > WATCHED + STALLED:
            line = f"S {before:.6f} {os.getpid()}\nE {now:.6f} {os.getpid()}\n"
            os.write(_opened(STALLS), line.encode())
        before = now


async def noted(job: Job, call: Callable[[], Awaitable[Any]]) -> Any:
    """Middleware: note the start and the end."""
    watch()
    file, about = _opened(part_of(job.id)), f"{os.getpid()} {job.task} {job.id} {job.attempt}"
    os.write(file, f"S {time.monotonic():.6f} {about} {job.lease.token}\n".encode())
    how = "done"
    try:
        return await call()
    except BaseException as error:
        how = type(error).__name__
        raise
    finally:
        os.write(file, f"E {time.monotonic():.6f} {about} {how}\n".encode())


@contextmanager
def blocked() -> Iterator[None]:
    """Note that the process' loop is held up meanwhile."""
    os.write(_opened(BLOCKS), f"S {time.monotonic():.6f} {os.getpid()}\n".encode())
    yield
    os.write(_opened(BLOCKS), f"E {time.monotonic():.6f} {os.getpid()}\n".encode())


def read(folder: Path, part: int) -> dict[tuple[str, str], list[Attempt]]:
    """The attempts of each job, (task, id), of one part, in the order of their starts."""
    found: dict[tuple[str, str], list[Attempt]] = {}
    file = folder / f"{part:02}"
    if not file.exists():
        return found
    with file.open() as lines:
        for line in lines:
            kind, at, pid, task, job, number, word = line.split()
            attempts = found.setdefault((task, job), [])
            if kind == "S":
                attempts.append(Attempt(task, job, int(number), word, int(pid), float(at)))
                continue
            for attempt in reversed(attempts):
                if (attempt.pid, attempt.number) == (int(pid), int(number)) and attempt.ended is None:
                    attempt.ended, attempt.how = float(at), word
                    break
    for attempts in found.values():
        attempts.sort(key=lambda attempt: attempt.began)
    return found


def read_spans(folder: Path, name: str) -> list[tuple[int, float, float | None]]:
    """(pid, from, until or None) of each time that a handler held up its loop, or did not run; or works."""
    spans: list[tuple[int, float, float | None]] = []
    begun: dict[int, float] = {}
    file = folder / name
    for line in file.read_text().splitlines() if file.exists() else []:
        kind, at, pid = line.split()
        if kind == "S":
            begun[int(pid)] = float(at)
        else:
            spans.append((int(pid), begun.pop(int(pid)), float(at)))
    return spans + [(pid, since, None) for pid, since in begun.items()]
