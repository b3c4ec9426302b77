"""Runs one attempt of one job and says how it ended: exactly one Outcome. It knows no Redis."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any

from aioflow.commit import Commit, Effect
from aioflow.engine import codec
from aioflow.engine.records import Leased
from aioflow.errors import CodecError
from aioflow.job import Job
from aioflow.service import Discard, Retry, RetryLater, Signature, Task

log = logging.getLogger(__name__)


class Stop(Enum):
    """Why a running handler is being cancelled."""

    TIMEOUT = auto()
    LEASE_LOST = auto()
    RUNTIME = auto()


@dataclass(slots=True, eq=False)
class Attempt:
    """A leased job in this process, itself and no other of the same job. Times are monotonic seconds."""

    job: Leased
    lease_until: float
    """Written by the lease keeper."""
    renew_at: float
    """Written by the lease keeper."""
    task: asyncio.Task[None] | None = None
    stop: Stop | None = None
    """Written by whoever cancels the handler, before it does."""
    waiting: bool = False
    """On its last chance, and not started yet."""

    def cancel(self, why: Stop) -> None:
        """Cancel the handler, once; a lost lease overrules every other reason."""
        if self.task is None or self.stop is why:
            return
        if self.stop is None:
            self.task.cancel(why.name.lower())
        if self.stop is None or why is Stop.LEASE_LOST:
            self.stop = why


@dataclass(slots=True)
class Done:
    """The handler returned."""

    result: bytes
    effects: list[Effect]


@dataclass(slots=True)
class Again:
    """The job runs again after a while; `failed`: that counts as a failure."""

    delay: float
    failed: bool
    effects: list[Effect]


@dataclass(slots=True)
class Dead:
    """The job has no further attempt."""

    error: str
    message: str
    effects: list[Effect]


@dataclass(frozen=True, slots=True)
class Released:
    """The runtime stops: the job goes back to its place, uncounted."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The lease is lost: nothing may be written."""


Outcome = Done | Again | Dead | Released | Abandoned


class Executor:
    """Runs attempts of one task."""

    def __init__(self, task: Task[Any, Any], resources: Any) -> None:
        self._task = task
        self._signature: Signature = task.signature
        self._resources = resources
        handler = task.handler
        self._handler = handler if self._signature.is_async else partial(run_in_thread, handler)

    async def run(self, attempt: Attempt) -> Outcome:
        """Decode, call the handler, encode; every exception becomes an outcome."""
        leased = attempt.job
        job = Job(leased.id, leased.attempt, Commit(), self._resources)
        try:
            payload = codec.decode_payload(self._signature.payload, leased.envelope)
        except CodecError as error:
            return Dead("CodecError", str(error), [])
        try:
            result = await self._handler(*self._arguments(payload, job))
            if attempt.stop is Stop.TIMEOUT:
                return self._timed_out(leased, job)  # from a thread, or the cancellation was swallowed
            return Done(codec.encode_result(self._signature.result, result), job.commit.effects)
        except RetryLater as again:
            return Again(again.seconds, False, job.commit.effects)
        except Discard as discard:
            return Dead("Discard", str(discard.reason), job.commit.effects)
        except CodecError as error:
            return Dead("CodecError", str(error), job.commit.failure_effects)
        except asyncio.CancelledError as error:
            return self._stopped(attempt, job, error)
        except Exception as error:  # noqa: BLE001 - a handler may raise anything; the retry policy decides
            return self._failed(leased, job, error)

    def _stopped(self, attempt: Attempt, job: Job, error: asyncio.CancelledError) -> Outcome:
        match attempt.stop:
            case Stop.RUNTIME:
                return Released()
            case Stop.LEASE_LOST:
                return Abandoned()
            case Stop.TIMEOUT:
                return self._timed_out(attempt.job, job)
            case None:
                # Nobody of ours cancelled it: something inside the handler did.
                return self._failed(attempt.job, job, RuntimeError(f"the handler was cancelled from inside: {error}"))

    def _timed_out(self, leased: Leased, job: Job) -> Outcome:
        return self._failed(leased, job, TimeoutError(f"no result within {self._task.options.timeout:g} s"))

    def _failed(self, leased: Leased, job: Job, error: Exception) -> Outcome:
        retry: Retry = self._task.options.retry
        delay = retry.delay(error, leased.failures)
        name, message = type(error).__qualname__, str(error)
        where = f"{self._task.full_name} {leased.id} attempt {leased.attempt}"
        if delay is None:
            log.error("%s: dead after %s: %s", where, name, message, exc_info=error)
            return Dead(name, message, job.commit.failure_effects)
        log.warning("%s: %s: %s; again in %.1f s", where, name, message, delay)
        return Again(delay, True, job.commit.failure_effects)

    def _arguments(self, payload: Any, job: Job) -> tuple[Any, ...]:
        signature = self._signature
        if signature.payload is None:
            return (job,) if signature.takes_job else ()
        if not signature.takes_job:
            return (payload,)
        return (job, payload) if signature.job_first else (payload, job)


async def run_in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a daemon thread of its own.

    A thread cannot be cancelled: a first cancellation is kept until the function has ended, and raised then unless
    the function returned; a second one leaves the thread to itself. A daemon thread does not keep the process alive
    past its grace period, as those of concurrent.futures would; the caller bounds their number.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def tell(result: Any, error: BaseException | None) -> None:
        if error is None:
            done.set_result(result)
        else:
            # What would end the loop or cannot be raised into a future is said as a plain error.
            carried = isinstance(error, Exception) and not isinstance(error, StopIteration)
            done.set_exception(error if carried else RuntimeError(repr(error)))

    def work() -> None:
        result, failure = None, None
        try:
            result = context.run(function, *arguments)
        except BaseException as error:  # noqa: BLE001 - carried over to the awaiting task
            failure = error
        try:
            loop.call_soon_threadsafe(tell, result, failure)
        except RuntimeError:
            log.warning("%r ended after its runtime had; its job runs again elsewhere", function)

    threading.Thread(target=work, name=f"aioflow:{getattr(function, '__name__', 'handler')}", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait([done])
        if done.exception() is None:
            return done.result()
        raise
