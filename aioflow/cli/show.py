"""How a job is shown: a row among others, all of it to people, or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aioflow.cli.output import cell, moment, span, value_of
from aioflow.engine import codec
from aioflow.job import Failure, JobInfo, State

COLOURS = {State.DONE: "green", State.DEAD: "red", State.RUNNING: "cyan", State.READY: "yellow"}
LONGEST_ERROR = 200


def final_failure(job: JobInfo) -> Failure | None:
    """How a dead job died."""
    return codec.decode_failure(job.result) if job.state is State.DEAD and job.result else None


def error_of(job: JobInfo) -> str | None:
    """What a dead job died of, else how the last failed attempt ended; None where it is done or none failed."""
    failure = final_failure(job)
    if failure is None and job.history and job.state is not State.DONE:
        failure = job.history[-1]
    return None if failure is None else f"{failure.error}: {failure.message}"


def summary_of(task: str, job: JobInfo) -> dict[str, Any]:
    """What lists say of a job in JSON; times are UTC ms, those that a state does not have are null."""
    state = job.state
    return {
        "id": job.id,
        "task": task,
        "state": state.value,
        "submitted_ms": job.submitted_ms or None,
        "due_ms": job.at_ms if state is State.SCHEDULED else None,
        "in_line_ms": job.at_ms if state is State.READY else None,
        "started_ms": job.started_ms or None,
        "lease_until_ms": job.at_ms if state is State.RUNNING else None,
        "ended_ms": job.at_ms if state in {State.DONE, State.DEAD} else None,
        "attempt": job.attempt,
        "failures": job.failures,
        "crashes": job.crashes,
        "error": error_of(job),
    }


def document_of(task: str, job: JobInfo) -> dict[str, Any]:
    """All that is kept of a job, in JSON."""
    final = final_failure(job)
    return {
        **summary_of(task, job),
        "payload": value_of(job.payload),
        "progress": value_of(job.progress),
        "result": value_of(job.result) if job.state is State.DONE else None,
        "failure": None if final is None else failure_document(final, job.at_ms),
        "history": [failure_document(failure, failure.at_ms) for failure in job.history],
    }


def failure_document(failure: Failure, at_ms: int | None) -> dict[str, Any]:
    """A failed attempt in JSON."""
    return {
        "attempt": failure.attempt,
        "at_ms": at_ms,
        "error": failure.error,
        "message": failure.message,
        "traceback": failure.traceback,
        "worker": failure.worker,
    }


def table_of(jobs: Sequence[tuple[str, JobInfo]], now_ms: int) -> Table:
    """Jobs, each with its task, as rows."""
    table = Table("id", "task", "state", "submitted", "since", "attempt", "error", box=None, pad_edge=False)
    for column in table.columns[:2]:
        column.overflow = "fold"  # whoever copies an id needs all of it
    table.columns[0].no_wrap = table.columns[2].no_wrap = True
    table.columns[5].justify = "right"
    table.columns[6].no_wrap = True
    for task, job in jobs:
        error = " ".join((error_of(job) or "").split())
        since = since_of(job)
        table.add_row(
            cell(job.id),
            task,
            Text(job.state.value, COLOURS.get(job.state, "")),
            ago(job.submitted_ms, now_ms),
            "" if since is None else ago(since, now_ms),
            str(job.attempt),
            cell(error[:LONGEST_ERROR]),
        )
    return table


def since_of(job: JobInfo) -> int | None:
    """Since when a job is in its state, or when it is due; UTC ms."""
    return job.started_ms if job.state is State.RUNNING else job.at_ms


def ago(at_ms: int, now_ms: int) -> str:
    """How long ago that was, or how far ahead it is."""
    if not at_ms:
        return ""
    return f"in {span((at_ms - now_ms) / 1000)}" if at_ms > now_ms else span((now_ms - at_ms) / 1000)


def sheet_of(task: str, job: JobInfo, now_ms: int) -> RenderableType:
    """All that is kept of a job."""
    facts = Table.grid(padding=(0, 2))

    def fact(name: str, told: str) -> None:
        if told:
            facts.add_row(Text(name, "bold"), cell(told))

    def time(name: str, at_ms: int | None) -> None:
        if at_ms:
            when = ago(at_ms, now_ms)
            fact(name, f"{moment(at_ms)} ({when if when.startswith('in ') else f'{when} ago'})")

    fact("id", job.id)
    fact("task", task)
    facts.add_row(Text("state", "bold"), Text(job.state.value, COLOURS.get(job.state, "")))
    time("submitted", job.submitted_ms)
    time("started", job.started_ms)
    match job.state:
        case State.SCHEDULED:
            time("due", job.at_ms)
        case State.READY:
            time("in line since", job.at_ms)
        case State.RUNNING:
            time("leased until", job.at_ms)
        case State.DONE | State.DEAD:
            time("ended", job.at_ms)
    fact("attempts", f"{job.attempt}{f', {job.crashes} crashed' if job.crashes else ''}")
    fact("payload", pretty(job.payload))
    fact("progress", pretty(job.progress))
    if job.state is State.DONE:
        fact("result", pretty(job.result))
    final = final_failure(job)
    failures = [*job.history, *([] if final is None else [replace(final, at_ms=job.at_ms)])]
    return Group(facts, *map(failure_sheet, failures))


def failure_sheet(failure: Failure) -> RenderableType:
    """A failed attempt with its traceback."""
    attempt = f"attempt {failure.attempt}" if failure.attempt else "while it did not run"
    facts = [attempt, moment(failure.at_ms), failure.worker]
    head = Text(f"\n{cell(', '.join(fact for fact in facts if fact))}", "bold")
    lines: list[Text] = [head, Text(str(cell(f"{failure.error}: {failure.message}")), "red")]
    if failure.traceback:
        lines.append(cell(failure.traceback.rstrip("\n")))
    return Group(*lines)


def pretty(encoded: bytes | None) -> str:
    """JSON on several lines where it is long."""
    if not encoded:
        return ""
    value = value_of(encoded)
    short = json.dumps(value, ensure_ascii=False)
    return short if len(short) <= 100 else json.dumps(value, ensure_ascii=False, indent=2)
