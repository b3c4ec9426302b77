"""Runs one attempt of a task as a runtime's workers do, without Redis, and shows what comes of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, overload

import orjson
from pydantic import TypeAdapter

from aioflow import commit
from aioflow.engine import codec
from aioflow.engine.attempt import Attempt, Stop
from aioflow.engine.executor import Executor, Outcome
from aioflow.engine.records import Leased, Settlement
from aioflow.errors import ConfigError
from aioflow.job import Failure, check_id, new_id
from aioflow.policy import DEFAULT_PRIORITY
from aioflow.service import Middleware, Task

P = TypeVar("P")
R = TypeVar("R")

CALLS = {"zrem": "remove"}
"""Operations that `job.commit` calls otherwise."""


@dataclass(frozen=True, slots=True)
class Effect:
    """A write that lands with the outcome: a method of `job.commit`, the name of the key, the other arguments."""

    op: str
    name: str
    args: tuple[str | bytes | int, ...] = ()

    def __repr__(self) -> str:
        return f"{self.op}({', '.join(map(repr, (self.name, *self.args)))})"


@dataclass(frozen=True, slots=True)
class Emit:
    """A job that is submitted with the outcome; `task` is "service.task", `delay` is in seconds.

    The payload is of the task's type where the task is of the same service or was given itself; else plain JSON.
    """

    task: str
    payload: Any = None
    delay: float = 0.0
    priority: int = DEFAULT_PRIORITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran(Generic[R]):
    """What came of an attempt. Effects and emits are those that land by its outcome, in order."""

    task: str
    id: str
    attempt: int
    outcome: Literal["done", "retry", "dead"]
    value: R | None = None
    """Its result as a submitter gets it; None unless done."""
    delay: float | None = None
    """Seconds until the next attempt, to the millisecond; None unless it is retried."""
    failure: Failure | None = None
    """What the record of the job says; None where it failed in no way."""
    exception: Exception | None = None
    """Why it failed, as it was raised; None after RetryLater and Discard."""
    effects: tuple[Effect, ...] = ()
    emits: tuple[Emit, ...] = ()
    progress: tuple[Any, ...] = ()
    """All that it said of its progress."""

    @property
    def result(self) -> R:
        """As `value`; an AssertionError with what happened instead, unless done."""
        if self.outcome != "done":
            told = "RetryLater" if self.failure is None else f"{self.failure.error}: {self.failure.message}"
            raise AssertionError(f"{self.task} has no result: {self.outcome} after {told}") from self.exception
        return self.value  # type: ignore[return-value]  # which may be a None of its own


@overload
async def run_handler(
    task: Task[None, R],
    payload: None = None,
    *,
    resources: Any = ...,
    attempt: int = ...,
    id: str | None = ...,
    middleware: Sequence[Middleware] = ...,
) -> Ran[R]: ...


@overload
async def run_handler(
    task: Task[P, R],
    payload: P,
    *,
    resources: Any = ...,
    attempt: int = ...,
    id: str | None = ...,
    middleware: Sequence[Middleware] = ...,
) -> Ran[R]: ...


async def run_handler(
    task: Task[Any, Any],
    payload: Any = None,
    *,
    resources: Any = None,
    attempt: int = 1,
    id: str | None = None,
    middleware: Sequence[Middleware] = (),
) -> Ran[Any]:
    """Run a task's handler once for a payload, as a worker does, and return what comes of it.

    The payload and the result go over the wire's JSON; time limit, threads, processes, retry policy and the service's
    middleware are the real ones, `middleware` is what the runtime adds. `resources` is what the handler finds in
    `job.resources`; the service's lifespan is not entered. All attempts before this one count as failed. A handler that
    fails does not raise here. Raises CodecError, as submit does, where the payload does not fit, and ConfigError.
    """
    if attempt < 1:
        raise ConfigError(f"run_handler {task.full_name}: attempt={attempt!r} is at least 1")
    envelope = codec.encode_payload(task, payload)
    job_id = new_id() if id is None else check_id(id)
    leased = Leased(job_id, "test.1", envelope, attempt, attempt - 1, 0)
    run = _Run(task, resources, (*middleware, *task.service.middleware))
    return run.ran(leased, await run.outcome(leased))


class _Executor(Executor):
    """Keeps the failure and the exception of which the outcome tells."""

    failure: Failure | None = None
    exception: Exception | None = None

    def _failure(self, name: str, message: str, leased: Leased, error: Exception | None = None) -> Failure:
        self.failure, self.exception = super()._failure(name, message, leased, error), error
        return self.failure


class _Run:
    """One run of a handler."""

    def __init__(self, task: Task[Any, Any], resources: Any, middleware: Sequence[Middleware]) -> None:
        self._task = task
        self._known = {known.full_name: known for known in task.service.tasks.values()}
        self._encode = codec.encode_emit(self._known.get)
        self._notes: list[bytes] = []
        self._executor = _Executor(task, resources, "test", self._encode_emit, middleware)

    async def outcome(self, leased: Leased) -> Outcome:
        """What the executor makes of it, within the task's time limit."""
        attempt = Attempt(leased, math.inf, math.inf)
        timer: list[asyncio.TimerHandle] = []

        def begin() -> None:
            attempt.waiting = False
            if self._task.options.timeout is not None and not running.done():
                loop = asyncio.get_running_loop()
                timer.append(loop.call_later(self._task.options.timeout, attempt.cancel, Stop.TIMEOUT))

        async def run() -> Outcome:
            attempt.begun = True
            if not self._task.options.cpu and self._task.options.batch is None:
                begin()
            return await self._executor.run(attempt, lambda _, told: self._notes.append(told))

        self._executor.begin = lambda _: begin()  # called once a process is there
        running = asyncio.create_task(run(), name=f"{self._task.full_name} {leased.id}")
        attempt.task = running  # type: ignore[assignment]  # a pool's returns nothing
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            attempt.cancel(Stop.RUNTIME)
            await asyncio.wait([running])
            raise
        finally:
            for handle in timer:
                handle.cancel()
            self._executor.close()
        return running.result()

    def ran(self, leased: Leased, outcome: Outcome) -> Ran[Any]:
        """The outcome as a test sees it."""
        if not isinstance(outcome, Settlement):
            raise AssertionError(  # noqa: TRY004 - it is a bug, not an argument
                f"{self._task.full_name}: nobody stopped it, and yet it ended as {outcome}"
            )
        landed, done = outcome.effects, outcome.kind == "done"
        return Ran(
            task=self._task.full_name,
            id=leased.id,
            attempt=leased.attempt,
            outcome=outcome.kind,
            value=codec.decode_result(self._task.signature.result, outcome.result) if done else None,
            delay=outcome.delay_ms / 1000 if outcome.kind == "retry" else None,
            failure=self._executor.failure,
            exception=self._executor.exception,
            effects=tuple(_effect(effect) for effect in landed if effect.op not in {"submit", "emit"}),
            emits=tuple(self._emit(effect) for effect in landed if effect.op in {"submit", "emit"}),
            progress=tuple(orjson.loads(note) for note in self._notes),
        )

    def _encode_emit(self, task: Any, payload: Any) -> tuple[str, str, bytes]:
        if isinstance(task, Task):
            self._known[task.full_name] = task
        return self._encode(task, payload)

    def _emit(self, effect: commit.Effect) -> Emit:
        name, words = effect.name, effect.words
        if effect.op == "submit":
            name, words = f"{self._task.service.name}.{name}", words[1:]
        envelope, priority, delay_ms = words
        known = self._known.get(name)
        adapter: TypeAdapter[Any] | None = TypeAdapter(Any) if known is None else known.signature.payload
        payload = codec.decode_payload(adapter, envelope if isinstance(envelope, bytes) else envelope.encode())
        return Emit(name, payload, int(delay_ms) / 1000, int(priority))


def _effect(effect: commit.Effect) -> Effect:
    op, args = effect.op, effect.words
    if op == "record":
        at_ms, member, _ = effect.words
        return Effect(op, effect.name, (member, int(at_ms)) if at_ms else (member,))
    if op == "hincrby":
        field, amount = effect.words
        return Effect(op, effect.name, (field, int(amount)))
    return Effect(CALLS.get(op, op), effect.name, args)
