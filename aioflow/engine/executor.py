"""Runs one attempt of one job and says how it ended: exactly one Outcome. It asks nothing of Redis."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from functools import partial
from typing import Any

from aioflow.commit import Commit, Effect, Encode
from aioflow.engine import codec
from aioflow.engine.attempt import Attempt, Stop
from aioflow.engine.batches import Batches
from aioflow.engine.processes import ProcessPool
from aioflow.engine.records import Leased, Settlement
from aioflow.errors import CodecError, plain
from aioflow.job import Failure, Job, Note
from aioflow.policy import Discard, Retry, RetryLater
from aioflow.service import Middleware, Signature, Task

log = logging.getLogger(__name__)


class Unsettled(Enum):
    """How an attempt ends that settles nothing."""

    RELEASED = auto()
    """The runtime stops: the job goes back to its place, uncounted."""
    ABANDONED = auto()
    """The lease is lost: nothing may be written."""


Outcome = Settlement | Unsettled


class Executor:
    """Runs attempts of one task. `middleware` goes around each call of the handler, the first outermost."""

    def __init__(
        self,
        task: Task[Any, Any],
        resources: Any,
        worker: str,
        encode: Encode,
        middleware: Sequence[Middleware] = (),
        concurrency: int = 1,
    ) -> None:
        self._task = task
        self._signature: Signature = task.signature
        self._resources = resources
        self._worker = worker
        self._encode = encode
        self._middleware = middleware
        least, _ = task.options.workers or (0, 0)
        self._processes = ProcessPool(task, least, task.options.idle_timeout) if task.options.cpu else None
        self._batches = Batches(task, task.options.batch, concurrency) if task.options.batch else None
        self.begin: Callable[[Attempt], None] = lambda _: None
        """Ends the waiting of an attempt; set by the pool."""

    async def run(self, attempt: Attempt, note: Note | None = None) -> Outcome:
        """Decode, call the handler, encode; every exception becomes an outcome."""
        leased = attempt.job
        if attempt.stop is not None:
            return self.stopped(attempt, asyncio.CancelledError())
        commit = Commit(self._task.service.name, self._encode)
        name = self._task.full_name
        job = Job(leased.id, leased.attempt, commit, self._resources, name, note, leased, attempt.why_end)
        try:
            payload = codec.decode_payload(self._signature.payload, leased.envelope)
        except CodecError as error:
            return _dead(leased, self._failure("CodecError", str(error), leased), [], failed=False)
        try:
            result = await self._around(attempt, payload, job)
        except RetryLater as again:
            return Settlement(leased.id, leased.token, "retry", delay_ms=_ms(again.seconds), effects=commit.effects)
        except Discard as discard:
            failure = self._failure(type(discard).__qualname__, str(discard.reason), leased)
            return _dead(leased, failure, commit.effects, failed=False)
        except asyncio.CancelledError as error:
            return self.stopped(attempt, error, job)
        except (KeyboardInterrupt, GeneratorExit):
            raise  # the loop is being torn down
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything; the retry policy decides
            return self._failed(leased, job, plain(error))
        if attempt.stop is Stop.TIMEOUT:
            return self._timed_out(leased, job)  # from a thread, or the cancellation was swallowed
        try:
            told = codec.encode_result(self._task, result)
        except CodecError as error:
            return _dead(leased, self._failure("CodecError", str(error), leased, error), commit.failure_effects)
        return Settlement(leased.id, leased.token, "done", told, effects=commit.effects)

    def _around(self, attempt: Attempt, payload: Any, job: Job) -> Awaitable[Any]:
        """The handler's call within its middleware."""
        if not self._middleware:
            return self._call(attempt, payload, job)
        call: Callable[[], Awaitable[Any]] = partial(self._call, attempt, payload, job)
        for middleware in reversed(self._middleware):
            call = partial(middleware, job, call)
        return call()

    def _call(self, attempt: Attempt, payload: Any, job: Job) -> Awaitable[Any]:
        if self._processes is not None:
            attempt.waiting = True
            return self._processes.run(payload, job, partial(self.begin, attempt))
        if self._batches is not None:
            return self._batches.run(attempt, payload, job, partial(self.begin, attempt))
        arguments = self._signature.arguments(payload, job)
        if self._signature.is_async:
            awaited: Awaitable[Any] = self._task.handler(*arguments)
            return awaited
        return run_in_thread(attempt, self._task.handler, *arguments)

    def open(self) -> None:
        """Start what is to be there before the first job."""
        if self._processes is not None:
            self._processes.open()

    def scale(self, concurrency: int) -> None:
        """At most so many attempts run at a time from now on."""
        if self._processes is not None:
            self._processes.scale(concurrency)
        if self._batches is not None:
            self._batches.scale(concurrency)

    def hurry(self) -> None:
        """No more jobs are claimed: what waits for others to join it starts."""
        if self._batches is not None:
            self._batches.hurry()

    def close(self) -> None:
        """End the processes, if there are any."""
        if self._processes is not None:
            self._processes.close()
        if self._batches is not None:
            self._batches.close()

    def stopped(self, attempt: Attempt, error: asyncio.CancelledError, job: Job | None = None) -> Outcome:
        """What comes of an attempt that was cancelled; `job`, if its handler had begun."""
        job = job or Job(attempt.job.id, attempt.job.attempt)
        match attempt.stop:
            case Stop.RUNTIME:
                return Unsettled.RELEASED
            case Stop.LEASE_LOST:
                return Unsettled.ABANDONED
            case Stop.TIMEOUT:
                return self._timed_out(attempt.job, job)
            case Stop.CANCELLED:
                failure = self._failure("JobCancelled", "cancelled on request", attempt.job)
                return _dead(attempt.job, failure, job.commit.failure_effects, failed=False)
            case None:
                # Nobody of ours cancelled it: something inside the handler did.
                return self._failed(attempt.job, job, RuntimeError(f"the handler was cancelled from inside: {error}"))

    def _timed_out(self, leased: Leased, job: Job) -> Outcome:
        return self._failed(leased, job, TimeoutError(f"no result within {self._task.options.timeout:g} s"))

    def _failed(self, leased: Leased, job: Job, error: Exception) -> Outcome:
        retry: Retry = self._task.options.retry
        delay = retry.delay(error, leased.failures)
        failure = self._failure(type(error).__qualname__, text_of(error), leased, error)
        where = f"{self._task.full_name} {leased.id} attempt {leased.attempt}"
        if delay is None:
            log.error("%s: dead after %s: %s", where, failure.error, failure.message, exc_info=error)
            return _dead(leased, failure, job.commit.failure_effects)
        log.warning("%s: %s: %s; again in %.1f s", where, failure.error, failure.message, delay)
        told, effects = codec.encode_failure(failure), job.commit.failure_effects
        return Settlement(leased.id, leased.token, "retry", told, _ms(delay), failed=True, effects=effects)

    def _failure(self, name: str, message: str, leased: Leased, error: Exception | None = None) -> Failure:
        text = "" if error is None else "".join(traceback.format_exception(error))
        return Failure(name, message, text, leased.attempt, self._worker)


def _dead(leased: Leased, failure: Failure, effects: list[Effect], *, failed: bool = True) -> Settlement:
    """The job has no further attempt; `failed`: the last one counts as a failure."""
    told = codec.encode_failure(failure)
    return Settlement(leased.id, leased.token, "dead", told, failed=failed, effects=effects)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def text_of(error: Exception) -> str:
    """What an exception says; its class may have a bug of its own there."""
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - whatever a __str__ raises
        return f"its text cannot be had: {type(broken).__qualname__}"


async def run_in_thread(attempt: Attempt, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a daemon thread of its own, which the attempt names from then on.

    A thread cannot be cancelled: a cancellation is kept until the function has ended, and raised then unless the
    function returned, since a job whose outcome is known starts elsewhere. Only after the runtime's stop a
    cancellation, of the loop that closes, leaves the thread to itself. A daemon thread does not keep the process alive
    past its grace period, as those of concurrent.futures would; the caller bounds their number.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def tell(result: Any, error: BaseException | None) -> None:
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(plain(error))

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

    name = f"aioflow:{getattr(function, '__name__', 'handler')}"
    attempt.thread = threading.Thread(target=work, name=name, daemon=True)
    attempt.thread.start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        while not done.done():
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError:
                if attempt.left:
                    raise
        if done.exception() is None:
            return done.result()
        raise
