"""The command `submit`: one job, from a payload as JSON, to its receipt or its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from aioflow.cli.complete import complete_task
from aioflow.cli.connect import (
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
from aioflow.cli.given import check_payload, number_of, read_payload, span_ms, time_of
from aioflow.cli.output import say, say_json, value_of, warn
from aioflow.engine import codec
from aioflow.errors import JobFailed
from aioflow.policy import DEFAULT_PRIORITY
from aioflow.settings import check_durability


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be submitted, and how."""

    task: str
    body: bytes
    options: dict[str, Any]
    durability: str | None
    wait: float | None
    as_json: bool


def submit(
    task: Annotated[
        str,
        typer.Argument(
            help="service.task, of the services that `serve` finds", metavar="TASK", autocompletion=complete_task
        ),
    ],
    payload: Annotated[
        str, typer.Argument(help="The payload as JSON; - reads it from standard input", metavar="PAYLOAD")
    ] = "null",
    delay: Annotated[str | None, typer.Option(help="Not before so long: 30, 10m, 2h, 1d", metavar="SPAN")] = None,
    at: Annotated[
        str | None, typer.Option(help="Not before that time: 2030-01-31T09:00:00+01:00", metavar="TIME")
    ] = None,
    job_id: Annotated[
        str | None, typer.Option("--id", help="The job's id: repeating the call with it submits nothing twice")
    ] = None,
    priority: Annotated[str | None, typer.Option(help="0, first, to 9; default 4", metavar="NUMBER")] = None,
    durability: Annotated[
        str | None, typer.Option(help="What the receipt means: memory, fsync or replicated:N")
    ] = None,
    wait: Annotated[
        str | None, typer.Option(help="Wait so long for the result, and print it as well", metavar="SPAN")
    ] = None,
    as_json: JsonOption = False,
    redis: RedisOption = None,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    service: ServiceOption = None,
) -> None:
    """Submit a job and print its id once it is accepted.

    With --wait, the next line is the result as JSON; where the job fails, the
    reason goes to standard error and the exit code is 1; where it has not
    finished in time, 3: the job goes on. With --json, all is one object.

    Where Redis does not answer (exit code 3), the job may have been taken or
    not: the error names its id, and submitting again with that --id is safe.
    """
    with exit_codes():
        options: dict[str, Any] = {"job_id": job_id}
        if delay is not None:
            options["delay"] = span_ms(delay, "--delay") / 1000
        if at is not None:
            options["at"] = time_of(at, "--at")
        options["priority"] = DEFAULT_PRIORITY if priority is None else number_of(priority, "--priority", 0, 9)
        seconds = None if wait is None else span_ms(wait, "--wait") / 1000
        if durability is not None:
            check_durability(durability)
        order = Order(task, read_payload(payload), options, durability, seconds, as_json)
    operate(Where(redis, data, namespace, service), lambda operator: place(operator, order))


async def place(operator: Operator, order: Order) -> bool:
    """Submit the job, and wait for it where that is asked."""
    (task,) = operator.tasks([order.task])
    check_payload(task, order.body)
    async with operator:
        await operator.promise(order.durability)
        handle = await operator.submit_json(task, order.body, **order.options)
        told = {"id": handle.id, "task": task.full_name, "created": handle.created, "durability": operator.durability}
        if not order.as_json:
            say(handle.id)
        if not handle.created:
            warn(f"job {handle.id} had been accepted before; nothing new was submitted")
        try:
            if order.wait is not None:
                result = codec.encode_result(task, await handle.result(order.wait))
                told |= {"state": "done", "result": value_of(result)}
                if not order.as_json:
                    say(result.decode())
        except JobFailed as failure:
            told |= {
                "state": "dead",
                "error": failure.error,
                "message": failure.message,
                "traceback": failure.traceback,
                "attempt": failure.attempt,
            }
            raise
        finally:
            if order.as_json:
                say_json(told)
    return True
