"""The commands `jobs list`, `show`, `retry` and `cancel`: their options, and the two that only look."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated

import typer

from aioflow.cli.changes import Cancel, Retry, change
from aioflow.cli.connect import (
    EXIT_CODES,
    DataOption,
    JsonOption,
    NamespaceOption,
    Operator,
    RedisOption,
    ServiceOption,
    TaskOption,
    Where,
    exit_codes,
    operate,
)
from aioflow.cli.filters import Choice, Wanted, find, walk
from aioflow.cli.given import number_of
from aioflow.cli.output import console, say_json, warn
from aioflow.cli.show import document_of, sheet_of, summary_of, table_of
from aioflow.errors import NotFound
from aioflow.job import JobInfo, check_id

MOST_LISTED = 100_000

jobs = typer.Typer(help="List, show, retry and cancel jobs.", no_args_is_help=True)

IdsArgument = Annotated[list[str] | None, typer.Argument(help="Ids of jobs", metavar="ID")]
StateOption = Annotated[Wanted | None, typer.Option("--state", help="default: open; with --error, dead")]
OlderOption = Annotated[
    str | None, typer.Option("--older", help="From before so long: 30, 10m, 2h, 1d", metavar="SPAN")
]
NewerOption = Annotated[str | None, typer.Option("--newer", help="From within so long", metavar="SPAN")]
ErrorOption = Annotated[
    str | None, typer.Option("--error", help="Dead jobs whose error or message contains this text", metavar="TEXT")
]
AllOption = Annotated[bool, typer.Option("--all", help="All jobs that match the filters, instead of ids")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")]


@jobs.command(name="list", epilog=EXIT_CODES)
def list_jobs(
    task: TaskOption = None,
    state: StateOption = None,
    older: OlderOption = None,
    newer: NewerOption = None,
    error: ErrorOption = None,
    limit: Annotated[str, typer.Option(help=f"At most so many, up to {MOST_LISTED:,}", metavar="NUMBER")] = "50",
    as_json: JsonOption = False,
    redis: RedisOption = None,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    service: ServiceOption = None,
) -> None:
    """List jobs, task by task, oldest first; ready ones in the order in which they will start.

    Ages count from the submission (open, scheduled), the place in the line
    (ready), the start (running) or the end (done, dead). With --json, one
    object a line, without payloads and results: `jobs show` has them.
    """
    with exit_codes():
        choice = Choice(task, state or (Wanted.OPEN if error is None else Wanted.DEAD), older, newer, error)
        choice.filter()
        most = number_of(limit, "--limit", 1, MOST_LISTED)
    operate(Where(redis, data, namespace, service), lambda operator: tell_jobs(operator, choice, most, as_json))


@jobs.command(epilog=EXIT_CODES)
def show(
    job_id: Annotated[str, typer.Argument(help="The job's id", metavar="ID")],
    task: TaskOption = None,
    as_json: JsonOption = False,
    redis: RedisOption = None,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    service: ServiceOption = None,
) -> None:
    """Show all that is kept of a job: payload, times, progress, result, and each failed attempt with its traceback."""
    with exit_codes():
        check_id(job_id)
    operate(Where(redis, data, namespace, service), lambda operator: tell_job(operator, job_id, task, as_json))


@jobs.command(epilog=EXIT_CODES)
def retry(
    ids: IdsArgument = None,
    every: AllOption = False,
    task: TaskOption = None,
    older: OlderOption = None,
    newer: NewerOption = None,
    error: ErrorOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
    redis: RedisOption = None,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    service: ServiceOption = None,
) -> None:
    """Give dead jobs a new life: those with these ids, or --all that match the filters.

    With --all the number of jobs is shown and confirmed; --yes does without,
    and is needed where nobody can be asked. Jobs that die again meanwhile are
    not retried twice. That no job matched is no failure.
    """
    choice = Choice(task, Wanted.DEAD, older, newer, error)
    change(Where(redis, data, namespace, service), Retry(), ids or [], choice, every=every, yes=yes, as_json=as_json)


@jobs.command(epilog=EXIT_CODES)
def cancel(
    ids: IdsArgument = None,
    every: AllOption = False,
    task: TaskOption = None,
    state: Annotated[
        Wanted | None, typer.Option("--state", help="open, scheduled, ready or running; default: open")
    ] = None,
    older: OlderOption = None,
    newer: NewerOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
    redis: RedisOption = None,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    service: ServiceOption = None,
) -> None:
    """Cancel unfinished jobs: those with these ids, or --all that match the filters.

    A job that waits is dead at once; of one that runs, the runtime is asked to
    cancel the handler, and it may still finish before that. With --all the
    number of jobs is shown and confirmed; --yes does without, and is needed
    where nobody can be asked. That no job matched is no failure.
    """
    choice = Choice(task, state or Wanted.OPEN, older, newer)
    change(Where(redis, data, namespace, service), Cancel(), ids or [], choice, every=every, yes=yes, as_json=as_json)


async def tell_jobs(operator: Operator, choice: Choice, most: int, as_json: bool) -> bool:
    """Print the jobs that match."""
    tasks = operator.tasks(choice.names)
    async with operator:
        these = choice.filter(operator.now_ms())
        rows: list[tuple[str, JobInfo]] = []
        shown = 0
        for task in tasks:
            if shown == most:
                break
            async with aclosing(walk(operator, task, these, most - shown)) as batches:
                async for batch in batches:
                    shown += len(batch)
                    for job in batch:
                        if as_json:
                            say_json(summary_of(task.full_name, job))
                        else:
                            rows.append((task.full_name, job))
        if not as_json:
            console().print(table_of(rows, operator.now_ms()))
    if shown == most:
        warn(f"these are the first {most:,} jobs; there may be more: raise --limit or narrow the filters")
    return True


async def tell_job(operator: Operator, job_id: str, task: str | None, as_json: bool) -> bool:
    """Print one job."""
    tasks = operator.tasks([] if task is None else [task])
    async with operator:
        found = (await find(operator, tasks, [job_id])).get(job_id)
        if found is None:
            raise NotFound(" or ".join(known.full_name for known in tasks), job_id)
        held, job = found
        if as_json:
            say_json(document_of(held.full_name, job))
        else:
            console().print(sheet_of(held.full_name, job, operator.now_ms()))
    return True
