"""The commands `runtimes`, `stop`, `quiet` and `scale`: who runs jobs, and orders to them from any machine."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from aioflow.cli.complete import complete_task
from aioflow.cli.connect import (
    DataOption,
    JsonOption,
    NamespaceOption,
    Operator,
    RedisOption,
    Where,
    exit_codes,
    operate,
)
from aioflow.cli.output import cell, console, moment, say_json, span, warn
from aioflow.engine.fleet import Fleet, RuntimeInfo
from aioflow.errors import ConfigError, ResultTimeout

RuntimeOption = Annotated[
    list[str] | None, typer.Option("--runtime", help="Id of a runtime, may be repeated", metavar="ID")
]
AllOption = Annotated[bool, typer.Option("--all", help="Every runtime of the namespace")]
WaitOption = Annotated[
    float, typer.Option("--wait", help="Seconds to wait until they have obeyed", min=0, max=3600, metavar="SECONDS")
]
LOOK_SECONDS = 0.1
Orders = Mapping[str, tuple[str, str]]
"""By runtime: the name of the order, and what is wanted."""


def runtimes(
    as_json: JsonOption = False,
    redis: RedisOption = None,
    data: DataOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """List the runtimes that run jobs or serve: host, pid, load, last heartbeat.

    A runtime that was killed stays on the list for a minute. Heartbeats come
    every 10 seconds, in a fleet less often.
    """
    operate(Where(redis, data, namespace, None), lambda operator: show(operator, as_json), of_services=False)


def stop(
    runtime: RuntimeOption = None,
    every: AllOption = False,
    wait: WaitOption = 10.0,
    as_json: JsonOption = False,
    redis: RedisOption = None,
    data: DataOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Stop runtimes in order, as SIGTERM does: running jobs get the grace period.

    It is obeyed once the runtime says that it is stopping.
    """
    order(Where(redis, data, namespace, None), "stop", runtime or [], every, wait, as_json)


def quiet(
    runtime: RuntimeOption = None,
    every: AllOption = False,
    wait: WaitOption = 10.0,
    as_json: JsonOption = False,
    redis: RedisOption = None,
    data: DataOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Let runtimes start no more jobs until they are stopped; what runs goes on.

    Their ingress goes on as well. There is no way back but a restart.
    """
    order(Where(redis, data, namespace, None), "quiet", runtime or [], every, wait, as_json)


def scale(
    task: Annotated[str, typer.Argument(help='"service.task"', autocompletion=complete_task)],
    number: Annotated[int, typer.Argument(help="Jobs at a time", min=0, max=10_000)],
    total: Annotated[bool, typer.Option("--total", help="Shared out over all runtimes of the task, not for each")] = (
        False
    ),
    runtime: RuntimeOption = None,
    wait: WaitOption = 10.0,
    as_json: JsonOption = False,
    redis: RedisOption = None,
    data: DataOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Let each runtime of a task run at most so many of its jobs at a time.

    What runs is not disturbed. A runtime that starts later has the cap that
    its task declares.
    """

    async def act(operator: Operator) -> bool:
        async with operator:
            fleet, live = await found(operator)
            chosen = [info for info in choose(live, runtime or [], every=not runtime) if task in info.tasks]
            if not chosen:
                warn(f"no runtime on the list runs {task}")
                return False
            shares = shares_of(number, len(chosen)) if total else [number] * len(chosen)
            orders = {info.id: (f"scale {task}", str(share)) for info, share in zip(chosen, shares, strict=True)}
            return await give(fleet, orders, wait, as_json)

    operate(Where(redis, data, namespace, None), act, of_services=False)


def order(where: Where, name: str, ids: Sequence[str], every: bool, wait: float, as_json: bool) -> None:
    """Give the same order to some runtimes or to all, and exit."""
    with exit_codes():
        if bool(ids) == every:
            raise ConfigError("name the runtimes by --runtime ID, or give --all")

    async def act(operator: Operator) -> bool:
        async with operator:
            fleet, live = await found(operator)
            chosen = choose(live, ids, every=every)
            if not chosen:
                warn("there is no runtime on the list")
            return bool(chosen) and await give(fleet, {info.id: (name, "1") for info in chosen}, wait, as_json)

    operate(where, act, of_services=False)


async def found(operator: Operator) -> tuple[Fleet, list[RuntimeInfo]]:
    """The list of runtimes."""
    fleet = operator.fleet()
    _, live = await fleet.list()
    return fleet, live


def choose(live: Sequence[RuntimeInfo], ids: Sequence[str], *, every: bool) -> list[RuntimeInfo]:
    """The runtimes of these ids, or all. Raises ConfigError where one is not on the list."""
    if every:
        return list(live)
    if unknown := set(ids) - {info.id for info in live}:
        raise ConfigError(f"not on the list of runtimes: {', '.join(sorted(unknown))}")
    return [info for info in live if info.id in ids]


def shares_of(total: int, runtimes: int) -> list[int]:
    """A number shared out as evenly as can be."""
    return [total // runtimes + (position < total % runtimes) for position in range(runtimes)]


async def give(fleet: Fleet, orders: Orders, wait: float, as_json: bool) -> bool:
    """Leave the orders and wait until all are obeyed; one runtime that has gone meanwhile has been stopped."""
    mark = secrets.token_hex(4)  # the same order given twice is two
    for runtime_id, (name, wanted) in orders.items():
        await fleet.order(runtime_id, name, f"{wanted} {mark}")
    ends = time.monotonic() + wait
    while True:
        _, live = await fleet.list()
        known = {info.id: info for info in live}
        obeyed = {runtime_id: has_obeyed(known.get(runtime_id), *asked) for runtime_id, asked in orders.items()}
        if all(obeyed.values()) or time.monotonic() >= ends:
            break
        await asyncio.sleep(LOOK_SECONDS)
    for runtime_id, (name, wanted) in orders.items():
        if as_json:
            told: dict[str, Any] = {"runtime": runtime_id, "order": name, "obeyed": obeyed[runtime_id]}
            say_json(told | ({"wanted": int(wanted)} if name.startswith("scale ") else {}))
        else:
            what = f"{name} {wanted}" if name.startswith("scale ") else name
            console().print(cell(f"{runtime_id} {what}{'' if obeyed[runtime_id] else ': not heard of yet'}"))
    if not all(obeyed.values()):
        late = [runtime_id for runtime_id in orders if not obeyed[runtime_id]]
        raise ResultTimeout(f"orders to {', '.join(late)}", wait)
    return True


def has_obeyed(info: RuntimeInfo | None, name: str, wanted: str) -> bool:
    """Whether a runtime says that an order is carried out."""
    if info is None or info.state == "stopping":
        return True
    checks: dict[str, Callable[[], bool]] = {"stop": lambda: False, "quiet": lambda: info.state == "quiet"}
    word, _, task = name.partition(" ")
    return checks.get(word, lambda: info.tasks.get(task, (0, -1))[1] == int(wanted))()


async def show(operator: Operator, as_json: bool) -> bool:
    """Print the list."""
    async with operator:
        now_ms, live = await operator.fleet().list()
    if as_json:
        say_json({"now_ms": now_ms, "runtimes": [as_document(info, now_ms) for info in live]})
        return True
    table = Table("runtime", "host", "pid", "state", "up", "load", "heartbeat", "tasks", box=None, pad_edge=False)
    for info in sorted(live, key=lambda info: (info.host, info.pid)):
        running, most = info.load
        table.add_row(
            cell(info.id),
            cell(info.host),
            str(info.pid),
            info.state,
            span((now_ms - info.started_ms) / 1000),
            f"{running}/{most}",
            f"{span((now_ms - info.beat_ms) / 1000)} ago",
            cell(", ".join(f"{task} {now}/{most}" for task, (now, most) in sorted(info.tasks.items()))),
        )
    console().print(table)
    return True


def as_document(info: RuntimeInfo, now_ms: int) -> dict[str, Any]:
    """For programs."""
    running, most = info.load
    return {
        "id": info.id,
        "host": info.host,
        "pid": info.pid,
        "state": info.state,
        "started_ms": info.started_ms,
        "started_at": moment(info.started_ms),
        "beat_ms": info.beat_ms,
        "silent_s": max(0, now_ms - info.beat_ms) / 1000,
        "running": running,
        "concurrency": most,
        "tasks": {task: {"running": now, "concurrency": cap} for task, (now, cap) in sorted(info.tasks.items())},
    }
