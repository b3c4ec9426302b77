"""Attaches a command to a queue: the options that say which, the client that asks it, the exit codes at the end.

A command is no runtime: it enters no lifespan, runs no job, writes no declaration, starts no server and stops none.
Its connections do not bear a runtime's name, so that the embedded server's last runtime may stop it under them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, Self

import typer
import uvloop

from aioflow.cli.complete import complete_task
from aioflow.cli.find import find_services, find_task
from aioflow.cli.logs import set_up_logs
from aioflow.cli.output import one_line, warn
from aioflow.client import Client
from aioflow.embedded import EmbeddedServer
from aioflow.engine.inbox import Inbox
from aioflow.engine.keys import runtime_channels
from aioflow.engine.results import Results
from aioflow.engine.store import Store
from aioflow.engine.submitter import Submitter
from aioflow.errors import AioflowError, CodecError, ConfigError, ResultTimeout, StoreUnavailable
from aioflow.service import Service, Task
from aioflow.settings import Settings, load_settings

EXIT_CODES = (
    "Exit codes: 0 it is so; 1 it did not happen (no such job, not dead, refused, failed); 2 bad input or "
    "configuration; 3 no answer (Redis is away, or the wait is over): ask again; 130 Ctrl-C."
)

RedisOption = Annotated[
    str | None,
    typer.Option(
        "--redis",
        help="redis://, rediss://, unix://, redis+sentinel://, redis+cluster://, or embedded: where a server runs",
    ),
]
DataOption = Annotated[str | None, typer.Option("--data", help="Folder of the embedded server's data")]
NamespaceOption = Annotated[str | None, typer.Option("--namespace", help="What every Redis key begins with")]
ServiceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--service", help="module:attribute, may be repeated; default: \\[tool.aioflow] services", metavar="SERVICE"
    ),
]
TaskOption = Annotated[
    str | None,
    typer.Option("--task", help="Only this task; default: all of the services", autocompletion=complete_task),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON")]


@dataclass(frozen=True, slots=True)
class Where:
    """Which queues a command is about, as its options say it."""

    redis: str | None
    data: str | None
    namespace: str | None
    services: Sequence[str] | None


class Operator(Client):
    """The calls of a runtime, without a runtime's life."""

    def __init__(self, services: Sequence[Service], settings: Settings) -> None:
        super().__init__(services, settings)
        self._loops: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        url = await reachable(self.settings)
        self._store = store = Store(url, name="operator:aioflow", queues=len(self._queues) or 1)
        try:
            await store.begin([])
        except BaseException:
            await store.close()
            raise
        self._submitter = Submitter(store, {}, self._spawn)
        self._results = results = Results(store)
        self._inbox = inbox = Inbox(
            store,
            runtime_channels(self.namespace) + secrets.token_hex(6),
            {b"result": results.tell},
            lambda: results.register_all(inbox.channel),
            results.waiting,
        )
        self._spawn(inbox.run(), "channel")
        self._spawn(results.run(inbox.channel), "waits")
        return self

    async def __aexit__(self, *_: object) -> None:
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        if self._store is not None:
            await self._store.close()

    async def promise(self, durability: str | None) -> None:
        """Say what receipts are to mean, before the first submit. Raises ConfigError where it is not to be had."""
        if self._submitter is not None:
            self.durability = await self._submitter.choose(durability or self.settings.durability)

    def tasks(self, names: Sequence[str] = ()) -> list[Task[Any, Any]]:
        """The tasks of these names, or all, by name. Raises ConfigError."""
        services = list(self.services.values())
        if names:
            return [find_task(services, name) for name in dict.fromkeys(names)]
        found = [task for service in services for task in service.tasks.values()]
        return sorted(found, key=lambda task: task.full_name)

    def _spawn(self, loop: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(loop, name=f"aioflow {name}")
        self._loops.append(task)
        return task


async def reachable(settings: Settings) -> str:
    """The URL of Redis; of embedded: that of the server that runs. Raises ConfigError: a command starts none."""
    if settings.redis != "embedded:":
        return settings.redis
    server = EmbeddedServer(settings.data)
    await server.attach()
    return server.url


def operate(
    where: Where, act: Callable[[Operator], Coroutine[Any, Any, bool]], *, of_services: bool = True
) -> NoReturn:
    """Do what a command is for, and exit: 0 where `act` says True, 1 where it says False, else by what it raises.

    `act` enters the operator once what was given has been checked as far as it can be without Redis. Without
    `of_services` no service is loaded.
    """
    with exit_codes():
        settings = load_settings(redis=where.redis, data=where.data, namespace=where.namespace)
        set_up_logs(settings.log_format)
        logging.getLogger().setLevel(logging.WARNING)
        if settings.redis == "memory:":
            raise ConfigError("redis memory: is seen by its own process only; name a server that others use as well")
        operator = Operator(find_services(where.services or []) if of_services else [], settings)
        happened = uvloop.run(act(operator))
        sys.exit(0 if happened else 1)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn errors into one line and an exit code, as EXIT_CODES says."""
    try:
        yield
    except AioflowError as error:
        warn(one_line(error))
        match error:
            case ConfigError() | CodecError():
                code = 2
            case StoreUnavailable() | ResultTimeout():
                code = 3
            case _:
                code = 1
        sys.exit(code)
    except KeyboardInterrupt:
        with suppress(OSError):
            sys.stdout.flush()
        sys.exit(130)
