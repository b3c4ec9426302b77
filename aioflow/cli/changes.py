"""What `jobs retry` and `jobs cancel` do: to jobs by their ids, or to all that match the filters.

The latter walk the sets in batches, up to what was there when they began, so that jobs which come back meanwhile do
not keep them going for ever.
"""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from aioflow.cli.connect import Operator, Where, exit_codes, operate
from aioflow.cli.filters import FIRST_BATCH, Choice, Filter, Wanted, find, walk
from aioflow.cli.output import say, say_json, warn
from aioflow.errors import ConfigError
from aioflow.job import JobInfo, State, check_id
from aioflow.service import Task


@dataclass(slots=True)
class Change(ABC):
    """What is done to jobs, and what came of it."""

    verb: str
    counts: dict[str, int] = field(default_factory=dict)
    """By what became of the jobs."""

    @abstractmethod
    async def apply(self, operator: Operator, task: Task[Any, Any], batch: Sequence[JobInfo]) -> list[str]:
        """Do it to up to 1,000 jobs; per job what became of it, or "" with nothing done."""

    @abstractmethod
    def why_not(self, job: JobInfo) -> str:
        """Why nothing was done."""

    async def do(self, operator: Operator, task: Task[Any, Any], batch: Sequence[JobInfo]) -> list[str]:
        """As apply, and count."""
        answers = await self.apply(operator, task, batch)
        for answer in answers:
            if answer:
                self.counts[answer] += 1
        return answers


@dataclass(slots=True)
class Retry(Change):
    """Requeue dead jobs."""

    verb: str = "retry"
    counts: dict[str, int] = field(default_factory=lambda: {"retried": 0})

    async def apply(self, operator: Operator, task: Task[Any, Any], batch: Sequence[JobInfo]) -> list[str]:
        """Only by the death that was seen; a job that somebody else has requeued would answer as if it had been."""
        dead = [job for job in batch if job.state is State.DEAD]
        answers = await operator.requeue_many(task, dead)
        requeued = {job.id for job, answer in zip(dead, answers, strict=True) if answer}
        return ["retried" if job.id in requeued else "" for job in batch]

    def why_not(self, job: JobInfo) -> str:
        """It is not dead."""
        return f"it is {job.state.value}, not dead" if job.state is not State.DEAD else "it has left the dead meanwhile"


@dataclass(slots=True)
class Cancel(Change):
    """Cancel unfinished jobs."""

    verb: str = "cancel"
    counts: dict[str, int] = field(default_factory=lambda: {"cancelled": 0, "asked to stop": 0})

    async def apply(self, operator: Operator, task: Task[Any, Any], batch: Sequence[JobInfo]) -> list[str]:
        """Those that wait, at once."""
        answers = await operator.cancel_many(task, [job.id for job in batch])
        return [{2: "cancelled", 1: "asked to stop"}.get(answer, "") for answer in answers]

    def why_not(self, job: JobInfo) -> str:
        """It has finished."""
        return f"it is {job.state.value}" if job.state in {State.DONE, State.DEAD} else "it has finished meanwhile"


def change(
    where: Where, what: Change, ids: Sequence[str], choice: Choice, *, every: bool, yes: bool, as_json: bool
) -> None:
    """Check what was given, do it, and exit."""
    with exit_codes():
        if bool(ids) == every:
            raise ConfigError(f"name the jobs to {what.verb} by their ids, or give --all, with filters if need be")
        filters: dict[str, str | None] = {
            "--state": None if choice.wanted in {Wanted.OPEN, Wanted.DEAD} else choice.wanted
        }
        filters |= {"--older": choice.older, "--newer": choice.newer, "--error": choice.error}
        given = [name for name, value in filters.items() if value is not None]
        if ids and given:
            raise ConfigError(f"{', '.join(given)} cannot be given with ids: these are filters of --all")
        if isinstance(what, Cancel) and choice.wanted in {Wanted.DONE, Wanted.DEAD}:
            raise ConfigError(f"--state {choice.wanted.value}: only unfinished jobs can be cancelled")
        for job_id in ids:
            check_id(job_id)
        choice.filter()
        if every and not yes and not sys.stdin.isatty():
            raise ConfigError(f"nobody can be asked whether to {what.verb} all of them: give --yes")
    if every:
        operate(where, lambda operator: change_all(operator, what, choice, yes, as_json))
    operate(where, lambda operator: change_some(operator, what, list(dict.fromkeys(ids)), choice, as_json))


async def change_some(operator: Operator, what: Change, ids: Sequence[str], choice: Choice, as_json: bool) -> bool:
    """Jobs by their ids; False where it was not done to all of them."""
    tasks = operator.tasks(choice.names)
    refused: dict[str, str] = {}
    async with operator:
        found = await find(operator, tasks, ids)
        refused = {job_id: "there is no such job" for job_id in ids if job_id not in found}
        for task in tasks:
            mine = [job for held, job in found.values() if held is task]
            for first in range(0, len(mine), FIRST_BATCH):
                batch = mine[first : first + FIRST_BATCH]
                for job, answer in zip(batch, await what.do(operator, task, batch), strict=True):
                    if not answer:
                        refused[job.id] = what.why_not(job)
                    elif not as_json:
                        say(f"{job.id} {answer}")
    for job_id, why in refused.items():
        warn(f"cannot {what.verb} {job_id}: {why}")
    if as_json:
        say_json({**json_counts(what.counts), "refused": refused})
    return not refused


async def change_all(operator: Operator, what: Change, choice: Choice, yes: bool, as_json: bool) -> bool:
    """Jobs that match; False where somebody said no. What was done is said also where it breaks off."""
    tasks = operator.tasks(choice.names)
    async with operator:
        these = choice.filter(operator.now_ms(), ended=True)
        if not yes and not await confirmed(operator, what, these, tasks):
            return False
        try:
            for task in tasks:
                async with aclosing(walk(operator, task, these)) as batches:
                    async for batch in batches:
                        await what.do(operator, task, batch)
        finally:
            if as_json:
                say_json(json_counts(what.counts))
            else:
                say(", ".join(f"{count:,} {became}" for became, count in what.counts.items()))
    return True


async def confirmed(operator: Operator, what: Change, these: Filter, tasks: Sequence[Task[Any, Any]]) -> bool:
    """Ask whoever sits there."""
    count = sum(
        [
            await operator.jobs_count(task, these.part, since_ms=these.since_ms, until_ms=these.until_ms)
            for task in tasks
        ]
    )
    if not count:
        return True
    about = "up to " if these.error is not None or these.wanted is Wanted.SCHEDULED else ""
    names = ", ".join(task.full_name for task in tasks)
    question = f"{what.verb} {about}{count:,} {these.wanted.value} jobs of {names}? [y/N]"
    return (await answer_to(question)).strip().lower() in {"y", "yes"}


async def answer_to(question: str) -> str:
    """A line from the terminal; Ctrl-C is heard meanwhile."""
    print(question, end=" ", file=sys.stderr, flush=True)  # noqa: T201 - what the command says
    loop = asyncio.get_running_loop()
    typed = asyncio.Event()
    loop.add_reader(sys.stdin, typed.set)
    try:
        await typed.wait()
    finally:
        loop.remove_reader(sys.stdin)
    return sys.stdin.readline()


def json_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Names as programs like them."""
    return {became.replace(" ", "_"): count for became, count in counts.items()}
