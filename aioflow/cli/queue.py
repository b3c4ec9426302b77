"""The commands `queue pause` and `queue resume`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from aioflow.cli.complete import complete_task
from aioflow.cli.connect import (
    EXIT_CODES,
    DataOption,
    JsonOption,
    NamespaceOption,
    Operator,
    RedisOption,
    ServiceOption,
    Where,
    exit_codes,
    operate,
)
from aioflow.cli.output import say, say_json
from aioflow.errors import ConfigError

queue = typer.Typer(help="Pause and resume the queues of tasks.", no_args_is_help=True)

TasksArgument = Annotated[
    list[str] | None, typer.Argument(help="The tasks", metavar="TASK", autocompletion=complete_task)
]
AllOption = Annotated[bool, typer.Option("--all", help="Every task of the services")]


@queue.command(epilog=EXIT_CODES)
def pause(
    tasks: TasksArgument = None,
    every: AllOption = False,
    as_json: JsonOption = False,
    redis: RedisOption = None,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    service: ServiceOption = None,
) -> None:
    """Let no runtime start jobs of these tasks; what runs goes on, and jobs are still accepted.

    A queue that is paused already stays so, which is no failure. With --json,
    one object a line.
    """
    switch(Where(redis, data, namespace, service), tasks or [], every, as_json, paused=True)


@queue.command(epilog=EXIT_CODES)
def resume(
    tasks: TasksArgument = None,
    every: AllOption = False,
    as_json: JsonOption = False,
    redis: RedisOption = None,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    service: ServiceOption = None,
) -> None:
    """Let the jobs of these tasks be started again.

    A queue that is not paused stays so, which is no failure. With --json, one
    object a line.
    """
    switch(Where(redis, data, namespace, service), tasks or [], every, as_json, paused=False)


def switch(where: Where, names: Sequence[str], every: bool, as_json: bool, *, paused: bool) -> None:
    """Pause or resume, and exit."""
    with exit_codes():
        if bool(names) == every:
            raise ConfigError("name the tasks, or give --all")
    operate(where, lambda operator: switch_all(operator, names, as_json, paused=paused))


async def switch_all(operator: Operator, names: Sequence[str], as_json: bool, *, paused: bool) -> bool:
    """One after the other; each is said as soon as it is so."""
    tasks = operator.tasks(names)
    async with operator:
        for task in tasks:
            changed = await (operator.pause(task) if paused else operator.resume(task))
            if as_json:
                say_json({"task": task.full_name, "paused": paused, "changed": changed})
            else:
                say(f"{task.full_name} {'' if changed else 'was already '}{'paused' if paused else 'running'}")
    return True
