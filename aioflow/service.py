"""What a user declares: services, tasks, retry policies, timelines and routes. No I/O happens here.

Declarations are checked as early as they can be: the shape of a handler when it is decorated, its annotations when a
runtime starts, because they may name what the module defines further down.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import typing
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Never, Protocol, TypeVar, Unpack, overload

from pydantic import PydanticUserError, TypeAdapter

from aioflow.contract import Contract, check_contract
from aioflow.errors import AioflowError, ConfigError
from aioflow.job import Batch, Handle, Job
from aioflow.policy import DEFAULT_PRIORITY, PAYLOAD_LIMIT, Breaker, Retry, TaskOptions
from aioflow.timeline import NAME, Timeline, TimelineStore, parse_keep

if TYPE_CHECKING:
    from aioflow.load import Generator  # its targets are HTTP clients, which are slow to import

P = TypeVar("P")
R = TypeVar("R")
T = TypeVar("T")

TASK_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
FULL_NAME = re.compile(rf"{TASK_NAME.pattern}\.{TASK_NAME.pattern}")
ONE_MODEL = (
    "a handler takes one payload, or none, and optionally a Job; put what it needs into one model:\n"
    "    class Payment(BaseModel): ...\n"
    "    @service.task()\n"
    "    async def charge(payment: Payment, job: Job) -> Receipt: ..."
)
ONE_BATCH = (
    "a batch handler takes the payloads and a Batch, awaits, and returns nothing:\n"
    "    @service.task(batch=500)\n"
    "    async def store(events: list[Event], batch: Batch) -> None: ..."
)


class RuntimeLike(Protocol):
    """What a declaration needs from a live runtime."""

    async def submit(
        self,
        task: Task[Any, Any],
        payload: Any = None,
        *,
        delay: float = 0.0,
        at: datetime | None = None,
        id: str | None = None,
        priority: int = DEFAULT_PRIORITY,
        durability: str | None = None,
    ) -> Handle[Any]: ...

    async def submit_many(
        self,
        task: Task[Any, Any],
        payloads: Sequence[Any],
        *,
        ids: Sequence[str] | None = None,
        delay: float = 0.0,
        at: datetime | None = None,
        priority: int = DEFAULT_PRIORITY,
        durability: str | None = None,
    ) -> list[Handle[Any] | AioflowError]: ...

    def call_sync(self, coroutine: Coroutine[Any, Any, T]) -> T: ...

    async def run_script(
        self, service: Service, path: Path, keys: Sequence[str] | None, args: Sequence[str | bytes | float]
    ) -> Any: ...

    def holds(self, service: Service) -> bool: ...

    def handle(self, task: Task[Any, Any] | str, job_id: str) -> Handle[Any]: ...

    def is_stopping(self) -> bool: ...

    def timelines(self) -> TimelineStore: ...


live_runtimes: list[RuntimeLike] = []
"""The runtimes that are started in this process; each adds and removes itself."""
running_in: ContextVar[RuntimeLike | None] = ContextVar("running_in", default=None)
"""The runtime that runs the calling handler, also in the tasks and threads that the handler starts."""


def find_runtime(service: Service, instead: str) -> RuntimeLike:
    """The runtime that runs the calling handler, else the only live one that holds the service."""
    if len(live_runtimes) == 1 and live_runtimes[0].holds(service):
        return live_runtimes[0]
    holding = [runtime for runtime in live_runtimes if runtime.holds(service)]
    if len(holding) > 1:
        holding = [runtime for runtime in holding if runtime is running_in.get()] or holding
    if len(holding) > 1:
        holding = [runtime for runtime in holding if not runtime.is_stopping()] or holding
    if len(holding) != 1:
        how_many = "no live runtime" if not holding else f"{len(holding)} live runtimes"
        raise ConfigError(f"{how_many} in this process holds the service {service.name}; call {instead}")
    return holding[0]


@dataclass(frozen=True, slots=True)
class Signature:
    """A handler's shape, with its annotations resolved."""

    payload: TypeAdapter[Any] | None
    result: TypeAdapter[Any]
    takes_job: bool
    job_first: bool
    is_async: bool

    def arguments(self, payload: Any, job: Job | Batch) -> tuple[Any, ...]:
        """What the handler is called with; of a batch, a list of payloads and the Batch."""
        if self.payload is None:
            return (job,) if self.takes_job else ()
        if not self.takes_job:
            return (payload,)
        return (job, payload) if self.job_first else (payload, job)


class Middleware(Protocol):
    """Goes around each call of a handler: `call` runs what is further in, and at last the handler.

    It returns the result, or another, and may raise as a handler may; what it raises is treated as the handler's.
    """

    async def __call__(self, job: Job, call: Callable[[], Awaitable[Any]], /) -> Any: ...


class Task(Generic[P, R]):
    """A handler and how its jobs are run. Calling it calls the handler."""

    def __init__(self, service: Service, name: str, handler: Callable[..., Any], options: TaskOptions) -> None:
        if not TASK_NAME.fullmatch(name):
            raise ConfigError(f"task name {name!r}: use lower case letters, digits, '_' and '-', a letter first")
        parameters = list(inspect.signature(handler).parameters.values())
        usual = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
            raise ConfigError(f"task {service.name}.{name}: it yields; {ONE_MODEL}")
        if len(parameters) > 2 or any(parameter.kind not in usual for parameter in parameters):
            raise ConfigError(f"task {service.name}.{name}: {ONE_MODEL}")
        if any(parameter.annotation is inspect.Parameter.empty for parameter in parameters):
            raise ConfigError(f"task {service.name}.{name}: annotate its parameters; {ONE_MODEL}")
        if options.batch is not None and (not inspect.iscoroutinefunction(handler) or len(parameters) != 2):
            raise ConfigError(f"task {service.name}.{name}: {ONE_BATCH}")
        if options.cpu and (inspect.iscoroutinefunction(handler) or "<locals>" in handler.__qualname__):
            raise ConfigError(
                f"task {service.name}.{name}: cpu=True takes a plain function of a module, which a process can import"
            )
        self.service = service
        self.name = name
        self.full_name = f"{service.name}.{name}"
        self.handler = handler
        self.options = options
        self._signature: Signature | None = None

    def __repr__(self) -> str:
        return f"<Task {self.full_name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.handler(*args, **kwargs)

    @property
    def signature(self) -> Signature:
        """The handler's shape. Raises ConfigError where an annotation cannot be resolved or validated."""
        if self._signature is None:
            self._signature = self._resolve()
        return self._signature

    def _resolve(self) -> Signature:
        try:
            hints = typing.get_type_hints(self.handler, include_extras=True)
            if Batch in hints.values() or self.options.batch is not None:
                return self._resolve_batch(hints)
            names = list(inspect.signature(self.handler).parameters)
            jobs = [name for name in names if hints[name] is Job]
            payloads = [name for name in names if hints[name] is not Job]
            if len(jobs) > 1 or len(payloads) > 1:
                raise ConfigError(f"task {self.full_name}: {ONE_MODEL}")
            return Signature(
                payload=TypeAdapter(hints[payloads[0]]) if payloads else None,
                result=TypeAdapter(hints.get("return", Any)),
                takes_job=bool(jobs),
                job_first=bool(jobs) and names[0] == jobs[0],
                is_async=inspect.iscoroutinefunction(self.handler),
            )
        except (NameError, TypeError, PydanticUserError) as error:
            raise ConfigError(f"task {self.full_name}: its annotations cannot be used: {error}") from error

    def _resolve_batch(self, hints: dict[str, Any]) -> Signature:
        names = list(inspect.signature(self.handler).parameters)
        (payload,) = [hints[name] for name in names if hints[name] is not Batch] or [None]
        of = typing.get_args(payload)
        if self.options.batch is None or len(of) != 1 or typing.get_origin(payload) is not list:
            raise ConfigError(f"task {self.full_name}: {ONE_BATCH}")
        if hints.get("return", type(None)) is not type(None):
            raise ConfigError(f"task {self.full_name}: {ONE_BATCH}")
        return Signature(TypeAdapter(of[0]), TypeAdapter(None), True, hints[names[0]] is Batch, True)

    @overload
    async def submit(
        self: Task[None, R],
        payload: None = None,
        *,
        delay: float = ...,
        at: datetime | None = ...,
        id: str | None = ...,
        priority: int = ...,
        durability: str | None = ...,
    ) -> Handle[R]: ...

    @overload
    async def submit(
        self,
        payload: P,
        *,
        delay: float = ...,
        at: datetime | None = ...,
        id: str | None = ...,
        priority: int = ...,
        durability: str | None = ...,
    ) -> Handle[R]: ...

    def submit(
        self,
        payload: Any = None,
        *,
        delay: float = 0.0,
        at: datetime | None = None,
        id: str | None = None,
        priority: int = DEFAULT_PRIORITY,
        durability: str | None = None,
    ) -> Coroutine[Any, Any, Handle[R]]:
        """Submit a job and return when it is as durable as the runtime promises, or as `durability` says.

        `delay` is in seconds, `at` a datetime with a zone; `id` makes the call repeatable: the same id gives the same
        job while its record is kept; `priority` goes from 0, first, to 9; `durability` is "memory", "fsync" or
        "replicated:N". Raises CodecError, QueueFull, IdConflict, StoreUnavailable, and ConfigError where the server
        does not give that durability or it is unclear which runtime is meant. Cancelled before it was sent, the job is
        not submitted; later, it may be.
        """
        runtime = find_runtime(self.service, "runtime.submit(task, ...)")
        return runtime.submit(self, payload, delay=delay, at=at, id=id, priority=priority, durability=durability)

    async def submit_many(
        self,
        payloads: Sequence[P],
        *,
        ids: Sequence[str] | None = None,
        delay: float = 0.0,
        at: datetime | None = None,
        priority: int = DEFAULT_PRIORITY,
        durability: str | None = None,
    ) -> list[Handle[R] | AioflowError]:
        """Submit many jobs together; per payload, in order, its handle or the error that `submit` would raise for it.

        One that is refused holds up no other. `ids` are as many as the payloads; the other options hold for all.
        A ConfigError that all of them have, such as a wrong option, is raised.
        """
        return await self._runtime("submit_many").submit_many(
            self, payloads, ids=ids, delay=delay, at=at, priority=priority, durability=durability
        )

    @overload
    def submit_sync(
        self: Task[None, R],
        payload: None = None,
        *,
        delay: float = ...,
        at: datetime | None = ...,
        id: str | None = ...,
        priority: int = ...,
        durability: str | None = ...,
    ) -> Handle[R]: ...

    @overload
    def submit_sync(
        self,
        payload: P,
        *,
        delay: float = ...,
        at: datetime | None = ...,
        id: str | None = ...,
        priority: int = ...,
        durability: str | None = ...,
    ) -> Handle[R]: ...

    def submit_sync(self, payload: Any = None, **options: Any) -> Handle[R]:
        """As `submit`, for threads and synchronous programs, which start a runtime by `with Runtime(...)`.

        Blocks the calling thread; in the runtime's own thread it is a ConfigError.
        """
        runtime = self._runtime("submit_sync")
        return runtime.call_sync(runtime.submit(self, payload, **options))

    def handle(self, id: str) -> Handle[R]:
        """The handle of a job that was submitted elsewhere or before, by its id; nothing is asked of Redis yet.

        `created` is False. Raises ConfigError where it is unclear which runtime is meant.
        """
        return self._runtime("handle").handle(self, id)

    def _runtime(self, call: str) -> RuntimeLike:
        return find_runtime(self.service, f"runtime.{call}(task, ...)")


class TaskDecorator(Protocol):
    """`@service.task(...)`: keeps the payload's and the result's types."""

    @overload
    def __call__(self, handler: Callable[[list[P], Batch], Awaitable[None]], /) -> Task[P, None]: ...
    @overload
    def __call__(self, handler: Callable[[Batch, list[P]], Awaitable[None]], /) -> Task[P, None]: ...
    @overload
    def __call__(self, handler: Callable[[Job], Awaitable[R]], /) -> Task[None, R]: ...
    @overload
    def __call__(self, handler: Callable[[], Awaitable[R]], /) -> Task[None, R]: ...
    @overload
    def __call__(self, handler: Callable[[P, Job], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, handler: Callable[[Job, P], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, handler: Callable[[P], Awaitable[R]], /) -> Task[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, handler: Callable[[Job], R], /) -> Task[None, R]: ...
    @overload
    def __call__(self, handler: Callable[[], R], /) -> Task[None, R]: ...
    @overload
    def __call__(self, handler: Callable[[P, Job], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, handler: Callable[[Job, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, handler: Callable[[P], R], /) -> Task[P, R]: ...


@dataclass(frozen=True, slots=True)
class Route:
    """One HTTP route: what answers it, or which task its body is submitted to."""

    method: str
    path: str
    handler: Callable[..., Awaitable[Any]] | None
    submits: Task[Any, Any] | None
    location: str | None
    """Path of an accepted job, with {id}; for the Location header."""
    before: Callable[..., Awaitable[Any]] | None = None
    """Makes the payload of a request; without, its JSON body is."""
    contract: Contract = field(default_factory=Contract)


@dataclass(frozen=True, slots=True)
class ServiceScript:
    """A user's Lua script; see `Service.script`."""

    service: Service
    path: Path

    async def __call__(self, keys: Sequence[str] | None = None, args: Sequence[str | bytes | float] = ()) -> Any:
        """Run it and return its answer, bytes undecoded. Raises StoreUnavailable, and ProtocolError where it fails.

        Without `keys`, those are meant that a header line `-- KEYS: name type, name type` has.
        """
        runtime = find_runtime(self.service, "it inside `async with Runtime(...)`, or use one runtime")
        return await runtime.run_script(self.service, self.path, keys, args)


RouteHandler = TypeVar("RouteHandler", bound=Callable[..., Awaitable[Any]])
Before = Callable[..., Awaitable[Any]]
Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]


class Service:
    """A named group of tasks, timelines and routes that share one shard of keys.

    `lifespan`, an async context manager that is given the runtime, is entered before the workers and the ingress
    start; what it yields is `job.resources`. `middleware` goes around each handler of the service, the first outermost.
    """

    def __init__(self, name: str, *, lifespan: Lifespan | None = None, middleware: Sequence[Middleware] = ()) -> None:
        if not TASK_NAME.fullmatch(name):
            raise ConfigError(f"service name {name!r}: use lower case letters, digits, '_' and '-', a letter first")
        self.name = name
        self.lifespan = lifespan
        self.middleware = tuple(middleware)
        self.tasks: dict[str, Task[Any, Any]] = {}
        self.routes: list[Route] = []
        self.generator: Generator | None = None

    def __repr__(self) -> str:
        return f"<Service {self.name} tasks={sorted(self.tasks)}>"

    def task(
        self,
        *misused: Never,
        name: str | None = None,
        concurrency: int | None = None,
        timeout: float | None = 60.0,
        retry: Retry | None = None,
        lease: float = 15.0,
        most_crashes: int = 3,
        keep_done: float = 86_400.0,
        keep_dead: float = 30 * 86_400.0,
        bound: int | None = 1_000_000,
        cpu: bool = False,
        payload_limit: int = PAYLOAD_LIMIT,
        breaker: Breaker | None = None,
        batch: int | None = None,
        linger: float = 0.05,
        workers: tuple[int, int] | None = None,
        idle_timeout: float = 60.0,
    ) -> TaskDecorator:
        """Declare a handler. All times are in seconds.

        `concurrency` is how many of its jobs one runtime runs at a time (100; with `cpu`, one a core); `timeout` ends
        an attempt; `lease` is how long a job stays with a runtime that has died; a job whose lease expires
        `most_crashes` times is dead; `keep_done` and `keep_dead` say how long the records of finished jobs are kept (at
        least 600); `bound` is how many unfinished jobs the queue takes (None: any number). `cpu` runs a plain function
        in processes of its own, `concurrency` of them, where the timeout kills the one that runs over;
        `job.resources` is None there. `payload_limit` is how many bytes of JSON a
        payload may have, and a result. `breaker` pauses the task while what it needs is away. `batch` makes it a batch
        task, whose handler gets up to so many payloads in one call, as a list, and a Batch: when so many wait, or
        `linger` seconds after the first has come; `concurrency` counts jobs all the same. `workers`, (min, max), says
        instead of `concurrency` that workers come as work does, and sign off after `idle_timeout` without any; the idle
        processes of a `cpu` task end so in any case. Raises ConfigError.
        """
        if misused:
            raise ConfigError(
                f"service {self.name}: write @service.task(...), with parentheses, its options by name; {ONE_MODEL}"
            )
        if workers is not None:
            if concurrency is not None:
                raise ConfigError(f"service {self.name}: a task has concurrency= or workers=(min, max), not both")
            _, concurrency = workers
        if concurrency is None:
            concurrency = os.cpu_count() or 1 if cpu else batch or 100
        options = TaskOptions(
            concurrency,
            timeout,
            retry or Retry(),
            lease,
            most_crashes,
            keep_done,
            keep_dead,
            bound,
            cpu,
            payload_limit,
            breaker,
            batch,
            linger,
            workers,
            idle_timeout,
        )

        def declare(handler: Callable[..., Any]) -> Task[Any, Any]:
            declared: Task[Any, Any] = Task(self, name or handler.__name__, handler, options)
            if declared.name in self.tasks:
                raise ConfigError(f"service {self.name} already has a task {declared.name}")
            self.tasks[declared.name] = declared
            return declared

        return typing.cast("TaskDecorator", declare)

    def timeline(self, name: str, *, keep: str | None = None) -> Timeline:
        """Declare a family of sorted sets by time; `keep`, such as "90d", is how long entries are kept."""
        if not NAME.fullmatch(name):
            raise ConfigError(f"timeline name {name!r}: use letters, digits, '_', '.' and '-', a letter first")
        return Timeline(self, name, parse_keep(keep))

    def script(self, path: str | Path) -> ServiceScript:
        """A Lua script of the service's own, in a file named relative to the calling module's.

        Awaiting `script(keys, args)` runs it; keys are named as effects name them, below the service's own prefix. A
        header line `-- Repeat: same answer` (or `no second effect`) lets it be sent again after a lost reply; includes
        (`--@include name`) lie in the folder `include` beside it, or are aioflow's own `clock` and `number`. Raises
        ConfigError where there is no such file.
        """
        module = sys._getframe(1).f_globals.get("__file__", "")  # noqa: SLF001 - as logging finds its caller
        found = (Path(module).parent / path).resolve()
        if not found.is_file():
            raise ConfigError(f"service {self.name}: there is no script {found}")
        return ServiceScript(self, found)

    def store(self) -> TimelineStore:
        """Where this service's timelines are read."""
        return find_runtime(self, "it inside `async with Runtime(...)`, or use one runtime").timelines()

    def load(self, generator: Generator) -> Generator:
        """Declare what `aioflow load SERVICE` submits: an async context manager that takes `aioflow.load.LoadOptions`.

        It yields an `aioflow.load.Load`. Used as a decorator, above `@asynccontextmanager`.
        """
        self.generator = generator
        return generator

    @overload
    def get(self, path: str, **contract: Unpack[Contract]) -> Callable[[RouteHandler], RouteHandler]: ...
    @overload
    def get(
        self,
        path: str,
        *,
        submits: Task[Any, Any],
        before: Before,
        location: str | None = None,
        **contract: Unpack[Contract],
    ) -> None: ...

    def get(
        self,
        path: str,
        *,
        submits: Task[Any, Any] | None = None,
        before: Before | None = None,
        location: str | None = None,
        **contract: Unpack[Contract],
    ) -> Callable[[RouteHandler], RouteHandler] | None:
        """Declare a route: the function takes (request, runtime) and returns what becomes JSON, or a response.

        With `submits` it is no decorator: `before` makes the task's payload of the request; see `post`. `query`,
        `headers`, `body`, `answers`, `problems` and `bearer` describe it in /openapi.json; see `Contract`.
        """
        if submits is None:
            return self._route("GET", path, contract)
        if before is None:
            raise ConfigError(f"service {self.name}, route GET {path}: say by before= what the payload is")
        self._submits("GET", path, submits, location, before, contract)
        return None

    @overload
    def post(self, path: str, **contract: Unpack[Contract]) -> Callable[[RouteHandler], RouteHandler]: ...
    @overload
    def post(
        self,
        path: str,
        *,
        submits: Task[Any, Any],
        before: Before | None = None,
        location: str | None = None,
        **contract: Unpack[Contract],
    ) -> None: ...

    def post(
        self,
        path: str,
        *,
        submits: Task[Any, Any] | None = None,
        before: Before | None = None,
        location: str | None = None,
        **contract: Unpack[Contract],
    ) -> Callable[[RouteHandler], RouteHandler] | None:
        """Declare a route: `submits` takes the JSON body as the task's payload and answers 202 with the job's id.

        `before`, a function that takes (request, runtime), makes the payload instead; what it raises is answered as
        what a route raises, and nothing is submitted. `location` is the path of an accepted job, with {id}. Without
        `submits` it is used as a decorator, as `get` is, and described as there.
        """
        if submits is None:
            return self._route("POST", path, contract)
        self._submits("POST", path, submits, location, before, contract)
        return None

    def put(self, path: str, **contract: Unpack[Contract]) -> Callable[[RouteHandler], RouteHandler]:
        """Declare a route, as `get` does."""
        return self._route("PUT", path, contract)

    def patch(self, path: str, **contract: Unpack[Contract]) -> Callable[[RouteHandler], RouteHandler]:
        """Declare a route, as `get` does."""
        return self._route("PATCH", path, contract)

    def delete(self, path: str, **contract: Unpack[Contract]) -> Callable[[RouteHandler], RouteHandler]:
        """Declare a route, as `get` does; None that it returns becomes a 204, without a body."""
        return self._route("DELETE", path, contract)

    def _submits(
        self,
        method: str,
        path: str,
        task: Task[Any, Any],
        location: str | None,
        before: Before | None,
        contract: Contract,
    ) -> None:
        checked = check_contract(f"service {self.name}, route {method} {path}", contract)
        self.routes.append(Route(method, path, None, task, location, before, checked))

    def _route(self, method: str, path: str, contract: Contract) -> Callable[[RouteHandler], RouteHandler]:
        checked = check_contract(f"service {self.name}, route {method} {path}", contract)

        def declare(handler: RouteHandler) -> RouteHandler:
            self.routes.append(Route(method, path, handler, None, None, None, checked))
            return handler

        return declare
