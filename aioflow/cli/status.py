"""The command `status`: the queues of the services, once or every second."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aioflow.cli.complete import complete_task
from aioflow.cli.connect import (
    DataOption,
    JsonOption,
    NamespaceOption,
    Operator,
    RedisOption,
    ServiceOption,
    Where,
    operate,
)
from aioflow.cli.output import console, one_line, say_json, span, visible, warn
from aioflow.engine.records import Overview
from aioflow.errors import StoreUnavailable
from aioflow.service import Task

PERIOD = 1.0
"""Seconds between two samples."""


def status(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(help="Only these tasks", metavar="TASK", autocompletion=complete_task),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Every second, until Ctrl-C")] = False,
    as_json: JsonOption = False,
    redis: RedisOption = None,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    service: ServiceOption = None,
) -> None:
    """Show the queues: how full, how old, how fast, and who runs their jobs.

    "oldest" is the age of the oldest unfinished job, "done/s" what was done
    between two looks a second apart, "runtimes" the live processes that run the
    task's jobs (one that was killed counts for some 15 s more). With --json,
    one object, with --watch one a line.
    """
    operate(Where(redis, data, namespace, service), lambda operator: show(operator, tasks or [], watch, as_json))


@dataclass(frozen=True, slots=True)
class Row:
    """A task's queue at the end of an interval. `done_per_s`: None where there is no interval yet."""

    task: Task[Any, Any]
    now: Overview
    done_per_s: float | None

    @property
    def oldest_s(self) -> float | None:
        """Age of the oldest unfinished job."""
        oldest_ms = self.now.sizes.oldest_ms
        return None if oldest_ms is None else max(0, self.now.now_ms - oldest_ms) / 1000

    @property
    def warning(self) -> str | None:
        """What somebody should do something about."""
        if self.now.sizes.open and not self.now.runtimes:
            return f"{self.task.full_name} has no live runtime, unfinished jobs: {self.now.sizes.open:,}"
        return None

    @property
    def remarks(self) -> list[str]:
        """What is not as usual."""
        held = self.now.outbox
        return [*(["paused"] if self.now.paused else []), *([f"{held:,} in the outbox"] if held else [])]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        sizes = self.now.sizes
        return {
            "task": self.task.full_name,
            "ready": sizes.ready,
            "running": sizes.running,
            "scheduled": sizes.scheduled,
            "done": sizes.done,
            "dead": sizes.dead,
            "open": sizes.open,
            "bound": self.task.options.bound,
            "oldest_ms": sizes.oldest_ms,
            "oldest_s": self.oldest_s,
            "done_per_s": None if self.done_per_s is None else round(self.done_per_s, 3),
            "paused": self.now.paused,
            "runtimes": self.now.runtimes,
            "outbox": self.now.outbox,
            "totals": self.now.totals,
            "warning": self.warning,
        }


Sample = list[Overview]


async def show(operator: Operator, names: Sequence[str], watch: bool, as_json: bool) -> bool:
    """Two samples, or as many as are wanted."""
    tasks = operator.tasks(names)
    async with operator:
        before = await sample(operator, tasks)
        if watch:
            # Ctrl-C is how a watch ends.
            with suppress(asyncio.CancelledError):
                await follow(operator, tasks, before, as_json)
        else:
            await asyncio.sleep(PERIOD)
            tell(rows_of(tasks, before, await sample(operator, tasks)), as_json)
    return True


async def follow(operator: Operator, tasks: Sequence[Task[Any, Any]], before: Sample, as_json: bool) -> None:
    """Show a sample every second until cancelled; a server that is away is waited for."""
    logging.getLogger("aioflow").setLevel(logging.ERROR)  # that it is away is said here
    rows, trouble = [Row(task, now, None) for task, now in zip(tasks, before, strict=True)], ""
    on_screen = sys.stdout.isatty() and not as_json
    with Live(screen_of(rows), console=console(), auto_refresh=False) if on_screen else nullcontext() as live:
        while True:
            await asyncio.sleep(PERIOD)
            try:
                now = await sample(operator, tasks)
            except StoreUnavailable as error:
                trouble = one_line(error)
            else:
                rows, before, trouble = rows_of(tasks, before, now), now, ""
            if live is not None:
                live.update(screen_of(rows, trouble), refresh=True)
            elif trouble:
                warn(trouble)
            else:
                tell(rows, as_json)


async def sample(operator: Operator, tasks: Sequence[Task[Any, Any]]) -> Sample:
    """Every queue, now."""
    return await asyncio.gather(*map(operator.overview, tasks))


def rows_of(tasks: Sequence[Task[Any, Any]], before: Sample, now: Sample) -> list[Row]:
    """The queues after an interval."""
    rows = []
    for task, earlier, later in zip(tasks, before, now, strict=True):
        grown = later.totals.get("done", 0) - earlier.totals.get("done", 0)
        seconds = (later.now_ms - earlier.now_ms) / 1000
        # A clock that was set back, or a server without its data, gives no rate.
        rows.append(Row(task, later, grown / seconds if seconds > 0 and grown >= 0 else None))
    return rows


def tell(rows: Sequence[Row], as_json: bool) -> None:
    """Print it."""
    if as_json:
        say_json({"now_ms": max((row.now.now_ms for row in rows), default=None), "tasks": [r.as_json() for r in rows]})
    else:
        console().print(screen_of(rows))


def screen_of(rows: Sequence[Row], trouble: str = "") -> RenderableType:
    """For people: a table, and under it what is wrong."""
    names = ("ready", "running", "scheduled", "done", "dead", "oldest", "done/s", "runtimes")
    table = Table("task", *names, "", box=None, pad_edge=False)
    for column in table.columns[1:-1]:
        column.justify = "right"
    for row in rows:
        sizes = row.now.sizes
        table.add_row(
            row.task.full_name,
            *(f"{size:,}" for size in (sizes.ready, sizes.running, sizes.scheduled, sizes.done)),
            Text(f"{sizes.dead:,}", "red" if sizes.dead else ""),
            "" if row.oldest_s is None else span(row.oldest_s),
            "" if row.done_per_s is None else f"{row.done_per_s:,.1f}",
            str(row.now.runtimes),
            Text(", ".join(row.remarks), "yellow"),
        )
    warnings = [f"warning: {row.warning}" for row in rows if row.warning]
    return Group(table, *(Text(visible(line), "yellow") for line in [*warnings, *([trouble] if trouble else [])]))
