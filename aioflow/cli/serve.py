"""`python -m aioflow serve`: workers and HTTP ingress of some services in one process, until a signal.

What keeps it from starting is said in one line, with exit code 2. Numbers are taken as text: settings are checked as a
whole, in one place, wherever they come from.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import uvloop

from aioflow.cli.find import find_services
from aioflow.cli.logs import set_up_logs
from aioflow.engine.connect import shown
from aioflow.errors import AioflowError, ConfigError
from aioflow.ingress.app import make_app
from aioflow.ingress.server import Ingress
from aioflow.runtime import CANCEL_SECONDS, Runtime
from aioflow.service import Service
from aioflow.settings import Settings, load_settings

log = logging.getLogger(__name__)


def serve(
    services: Annotated[
        list[str] | None,
        typer.Argument(help="module:attribute; default: \\[tool.aioflow] services", metavar="SERVICE"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on")] = None,
    port: Annotated[str | None, typer.Option(help="Port to listen on; 0 takes a free one", metavar="NUMBER")] = None,
    redis: Annotated[
        str | None,
        typer.Option(help="redis://, rediss://, unix://, redis+sentinel://, redis+cluster://, embedded: or memory:"),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder of the embedded server's data")] = None,
    workers: Annotated[
        str | None, typer.Option(help="Concurrency of each task, instead of its own", metavar="NUMBER")
    ] = None,
    no_workers: Annotated[bool, typer.Option("--no-workers", help="Only accept jobs")] = False,
    no_ingress: Annotated[bool, typer.Option("--no-ingress", help="Only run jobs")] = False,
    grace: Annotated[
        str | None, typer.Option(help="Seconds that running handlers get when stopping", metavar="SECONDS")
    ] = None,
    allow_eviction: Annotated[
        bool, typer.Option("--allow-eviction", help="Start although the server may evict accepted jobs")
    ] = False,
    pid_file: Annotated[Path | None, typer.Option(help="File to write the process id to")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json")] = None,
) -> None:
    """Serve services: HTTP ingress and workers in one process, until SIGTERM or Ctrl-C."""
    try:
        settings = load_settings(
            host=host,
            port=port,
            redis=redis,
            data=data,
            workers=workers,
            grace=grace,
            log_format=log_format,
            allow_eviction=allow_eviction or None,
        )
        set_up_logs(settings.log_format)
        found = find_services(services or [])
        if no_workers and no_ingress:
            raise ConfigError("--no-workers and --no-ingress together leave nothing to do")
        listener = None if no_ingress else bind(settings)
        code = uvloop.run(Server(found, settings, listener, workers=not no_workers, pid_file=pid_file).run())
    except AioflowError as error:
        end(str(error))
    sys.exit(code)


def end(reason: str) -> NoReturn:
    """One line and exit code 2."""
    sys.exit(say(reason))


def say(reason: str) -> int:
    """One line; the exit code for it."""
    with suppress(OSError):  # nobody reads it
        print(f"aioflow: {reason}", file=sys.stderr, flush=True)  # noqa: T201 - what the command says
    return 2


def bind(settings: Settings) -> socket.socket:
    """The socket to listen on, not yet listening. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        raise cannot_listen(settings, error) from error
    return listener


def cannot_listen(settings: Settings, error: OSError | UnicodeError) -> ConfigError:
    """What to raise where the address is taken or is none."""
    reason = (isinstance(error, OSError) and error.strerror) or error
    return ConfigError(f"cannot listen on {settings.host}:{settings.port}: {reason}")


ECHO_SECONDS = 0.1
"""The same signal again so soon is an echo: `timeout` and shells signal a process and then its group."""


GARBAGE_THRESHOLD = 20_000
"""New objects that start a collection of garbage. Python's own, 700, has it walk through jobs that are about to end."""


def spare_collections() -> None:
    """Let the garbage collector leave alone what the start has made, and look more rarely.

    A job leaves no cycles. With Python's settings a fifth of a batch task's time went into collections that found
    nothing, and the event loop stood still for up to 0.1 s each.
    """
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)


class Server:
    """One process' runtime and ingress, from the start to the exit code."""

    def __init__(
        self,
        services: list[Service],
        settings: Settings,
        listener: socket.socket | None,
        *,
        workers: bool,
        pid_file: Path | None,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._pid_file = pid_file
        self._runtime = Runtime(services, settings=settings, workers=(settings.workers or True) if workers else False)
        self._runtime.ends_with_process = True
        self._stop = asyncio.Event()
        self._runtime.when_ordered_to_stop(self._stop.set)
        self._signals: dict[int, float] = {}
        self._others: set[asyncio.Task[Any]] = set()

    async def run(self) -> int:
        """Serve until a signal (0) or until a part of the runtime fails (1)."""
        loop = asyncio.get_running_loop()
        self._others = asyncio.all_tasks()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self._signalled, number)
        for number, by in ((signal.SIGTTIN, 1), (signal.SIGTTOU, -1)):
            loop.add_signal_handler(number, self._runtime.scale, by)
        runtime = self._runtime
        failure: BaseException | None = None
        try:
            if not await self._started(runtime):
                return 0
            with self._named_in_pid_file():
                ingress = await self._open_ingress()
                spare_collections()
                print(self._greeting(), flush=True)  # noqa: T201 - what the command says
                await self._until_stop(runtime)
                if ingress is not None:
                    await self._close(ingress)
        except BaseException as error:
            failure = error
            raise
        finally:
            await self._stop_runtime(runtime, failure)
            if self._listener is not None:
                self._listener.close()
        return 1 if runtime.failed.is_set() else 0

    async def _stop_runtime(self, runtime: Runtime, failure: BaseException | None) -> None:
        try:
            await runtime.stop()
        except BaseException as error:
            failure = failure or error
            raise
        finally:
            left = await self._left_over()
            if runtime.leaves_handlers or runtime.running_on() or left:
                # asyncio would wait for them before the process ends.
                log.warning(
                    "%d handlers took no notice of the stop; they end with the process, as does %s",
                    runtime.running_on(),
                    ", ".join(left) or "nothing else",
                )
                code = 1 if runtime.failed.is_set() or failure is not None else 0
                if isinstance(failure, AioflowError):
                    code = say(str(failure))
                elif failure is not None:
                    log.error("serve failed", exc_info=failure)
                runtime.end_process(code)

    async def _left_over(self) -> list[str]:
        """The tasks that others have left, such as a service's own, and that take no notice of their end."""
        handlers = self._runtime.handler_tasks()
        left = asyncio.all_tasks() - self._others - handlers
        for task in left:
            task.cancel()
        if left:
            _, left = await asyncio.wait(left, timeout=CANCEL_SECONDS)
        return sorted(task.get_name() for task in left)

    async def _started(self, runtime: Runtime) -> bool:
        """Start the runtime; False where a signal came before it had started."""
        starting, stop = asyncio.create_task(runtime.start()), asyncio.create_task(self._stop.wait())
        await asyncio.wait([starting, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if starting.done():
            starting.result()
            return True
        starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled():
            starting.exception()  # the stop raises it again
        return False

    def _signalled(self, number: int) -> None:
        if (before := self._signals.get(number)) and time.monotonic() - before < ECHO_SECONDS:
            return
        self._signals[number] = time.monotonic()
        if self._stop.is_set():
            log.warning("second signal: ending at once; the leases bring running jobs back")
            os._exit(1)
        log.info("%s: stopping, running handlers get %g s", signal.Signals(number).name, self._settings.grace)
        self._stop.set()

    async def _until_stop(self, runtime: Runtime) -> None:
        ends = [asyncio.create_task(event.wait()) for event in (self._stop, runtime.failed)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end_of in ends:
            end_of.cancel()

    async def _close(self, ingress: Ingress) -> None:
        """The last answers; handlers go on meanwhile, so what they take is no longer left of the grace period."""
        runtime, begun = self._runtime, time.monotonic()
        runtime.stop_waiting()
        await ingress.close()
        left = max(0.0, self._settings.grace - (time.monotonic() - begun))
        runtime.settings = self._settings.model_copy(update={"grace": round(left, 1)})

    async def _open_ingress(self) -> Ingress | None:
        if self._listener is None:
            return None
        ingress = Ingress(make_app(self._runtime))
        try:
            await ingress.open(self._listener)
        except OSError as error:
            # Two processes can bind a port on which neither listens yet; the second to listen hears of it here.
            raise cannot_listen(self._settings, error) from error
        return ingress

    @contextmanager
    def _named_in_pid_file(self) -> Iterator[None]:
        """The pid file exists while jobs are accepted; one that another process has written over is left alone."""
        if self._pid_file is None:
            yield
            return
        mine = f"{os.getpid()}\n"
        try:
            self._pid_file.write_text(mine)
        except OSError as error:
            raise ConfigError(f"cannot write the pid file {self._pid_file}: {error.strerror or error}") from error
        try:
            yield
        finally:
            with suppress(OSError):
                if self._pid_file.read_text() == mine:
                    self._pid_file.unlink()

    def _greeting(self) -> str:
        if self._listener is None:
            where = "without ingress"
        else:
            host, port = self._listener.getsockname()[:2]
            where = f"on http://{f'[{host}]' if ':' in host else host}:{port}"
        names = ", ".join(sorted(self._runtime.services))
        redis = shown(self._settings.redis)
        if redis == "embedded:":
            redis = f"embedded: (data in {self._settings.data.resolve()})"
        return f"aioflow serves {names} {where}, redis {redis}, receipts mean {self._runtime.durability}"
