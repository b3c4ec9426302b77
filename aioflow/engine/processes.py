"""Processes for handlers that are CPU-heavy: a capped number, each of which runs one job at a time.

A process is started when a job needs one, is kept for the next job, and is killed with its job: by the time limit, a
cancel or a stop. Whoever waits for a call hears of its end only when the process is dead, so a job that is given back
does not run twice at once. A process whose parent dies ends itself. What a handler notes of its progress and what is
logged in its process travels over the pipe before the answer, each message with a letter for its kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import multiprocessing
import os
import pickle
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from queue import SimpleQueue
from typing import Any

from aioflow.commit import Commit, Effect
from aioflow.engine.codec import encode_emit
from aioflow.errors import plain
from aioflow.job import Job
from aioflow.service import Task

log = logging.getLogger(__name__)

CONTEXT = multiprocessing.get_context("spawn")
"""A fork of a process with threads and an event loop may hang in any lock that one of them held."""


MOST_CALLS = 10_000
"""As many as a task's concurrency may be; each has a thread while it lasts."""
START_SECONDS = 60.0
"""How long a process may take to start and to import its handler."""
ANSWER, NOTE, LOG = b"a", b"n", b"l"


@dataclass(frozen=True, slots=True)
class Call:
    """What a process is told to do: the handler is found by the names of its module and its function."""

    module: str
    function: str
    payload: Any
    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call."""

    result: Any = None
    error: Exception | None = None
    traceback: str = ""
    effects: list[Effect] = field(default_factory=list)
    failure_effects: list[Effect] = field(default_factory=list)


class RemoteTraceback(Exception):
    """The traceback of an exception that came from a process; its text is shown as the cause."""


class ProcessDied(Exception):
    """The process of a handler died, by a signal or an exit of its own."""


class Worker:
    """One process and the pipe to it; used by one thread at a time."""

    def __init__(self) -> None:
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=answer_calls, args=(theirs,), name="aioflow cpu worker", daemon=True)
        self.process.start()
        theirs.close()
        self.started = False
        """Whether it has imported its handler; written by the thread that uses it."""

    def call(self, message: bytes, note: Callable[[bytes], None], seconds: float | None = None) -> bytes:
        """Send a call and wait for its answer, `seconds` at most. Raises ProcessDied."""
        ends = None if seconds is None else time.monotonic() + seconds
        try:
            self.connection.send_bytes(message)
            while True:
                told = self._receive(ends)
                if told.startswith(NOTE):
                    note(told.removeprefix(NOTE))
                elif told.startswith(LOG):
                    log_again(told.removeprefix(LOG))
                else:
                    return told.removeprefix(ANSWER)
        except (EOFError, OSError) as error:
            self.end()
            raise ProcessDied(f"the process of the handler died, exit code {self.process.exitcode}") from error
        except BaseException:
            self.end()  # or it would run on beside the job's next attempt
            raise

    def _receive(self, ends: float | None) -> bytes:
        if not self.connection.poll(None if ends is None else max(0.0, ends - time.monotonic())):
            raise ProcessDied("the process of the handler did not come up in time")
        return self.connection.recv_bytes()

    def end(self) -> None:
        """Kill the process and wait for its end."""
        self.process.kill()
        self.process.join()
        self.connection.close()


class Busy:
    """The worker of one call, which may be killed at any moment of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._killed = False

    def begin(self, worker: Worker) -> None:
        """Name the worker; a call that was killed before it had one gets a dead one."""
        with self._lock:
            self._worker = worker
            if self._killed:
                worker.process.kill()

    def end(self) -> bool:
        """The call is answered; whether its worker lives on."""
        with self._lock:
            self._worker = None
            return not self._killed

    def kill(self) -> None:
        """Kill the worker, if the call has one yet; it will get none that lives."""
        with self._lock:
            self._killed = True
            if self._worker is not None:
                self._worker.process.kill()


class ProcessPool:
    """As many processes as there are calls at a time, which the pool of the task bounds.

    One that was idle for `idle_seconds` is ended, while there are more than `least`.
    """

    def __init__(self, task: Task[Any, Any], least: int, idle_seconds: float) -> None:
        self._task = task
        self._least = least
        self._idle_seconds = idle_seconds
        self._threads = ThreadPoolExecutor(MOST_CALLS, thread_name_prefix="aioflow cpu call")
        self._lock = threading.Lock()
        self._idle: list[tuple[float, Worker]] = []  # since when, the longest first; like what follows, under the lock
        self._alive = 0
        self._most = MOST_CALLS
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<ProcessPool {self._task.full_name} alive={self._alive} idle={len(self._idle)}>"

    async def run(self, payload: Any, job: Job, begin: Callable[[], None]) -> Any:
        """Call the task's handler in a process; its effects go to the job. Cancelled, it kills the process first.

        `begin` is called when there is a process that has imported the handler.
        """
        handler = self._task.handler
        message = pickle.dumps(Call(handler.__module__, handler.__qualname__, payload, job.id, job.attempt))
        busy = Busy()
        loop = asyncio.get_running_loop()
        told = partial(loop.call_soon_threadsafe, begin)
        mark = mark_of(job.id, job.attempt)

        def note(noted: bytes) -> None:
            if noted.startswith(mark):  # else of a thread that an earlier call has left behind
                job.noted(noted.removeprefix(mark))

        call = self._threads.submit(self._call, busy, message, told, note)
        calling = asyncio.wrap_future(call)
        try:
            answer: Answer = pickle.loads(await asyncio.shield(calling))  # noqa: S301 - from our own process
        except asyncio.CancelledError:
            busy.kill()
            # Where no thread has taken it up yet, it is over; else its process is killed, which takes a moment.
            while not call.cancel() and not calling.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([calling])
            if calling.done() and not calling.cancelled():
                calling.exception()  # it says that the process died, as it should
            raise
        finally:
            self._watch_idle()
        job.commit.effects.extend(answer.effects)
        job.commit.failure_effects.extend(answer.failure_effects)
        if answer.error is not None:
            raise answer.error from (RemoteTraceback(answer.traceback) if answer.traceback else None)
        return answer.result

    def open(self) -> None:
        """Start as many processes as there shall be at least."""
        for _ in range(self._least):
            self._threads.submit(self._start_one)

    def scale(self, most: int) -> None:
        """At most so many calls are made at a time from now on: idle processes beyond that are ended."""
        with self._lock:
            self._most = most
        self._end_soon(lambda _: self._alive > most)

    def close(self) -> None:
        """End the idle processes; those that are busy end with their calls."""
        with self._lock:
            self._closed = True
        for worker in self._taken(lambda _: True):
            worker.end()
        if self._timer is not None:
            self._timer.cancel()
        self._threads.shutdown(wait=False)

    # ---- in threads

    def _call(self, busy: Busy, message: bytes, begin: Callable[[], object], note: Callable[[bytes], None]) -> bytes:
        worker, kept = self._take() or self._add(), False
        try:
            busy.begin(worker)
            if not worker.started:
                self._start(worker)
            begin()
            answer = worker.call(message, note)
            kept = busy.end()
            return answer
        finally:
            self._put(worker, kept=kept)

    def _start_one(self) -> None:
        worker = self._add()
        started = False
        try:
            self._start(worker)
            started = True
        except ProcessDied as error:
            log.warning("%s: a worker process did not start: %s", self._task.full_name, error)
        finally:
            self._put(worker, kept=started)

    def _add(self) -> Worker:
        worker = Worker()
        with self._lock:
            self._alive += 1
            alive = self._alive
        log.debug("%s: a worker process comes, %d are there", self._task.full_name, alive)
        return worker

    def _start(self, worker: Worker) -> None:
        worker.call(pickle.dumps((self._task.handler.__module__, log_levels())), lambda _: None, START_SECONDS)
        worker.started = True

    def _take(self) -> Worker | None:
        """An idle worker that lives; one may have been killed meanwhile."""
        while True:
            with self._lock:
                _, worker = self._idle.pop() if self._idle else (0.0, None)
            if worker is None or worker.process.is_alive():
                return worker
            self._put(worker, kept=False)

    def _put(self, worker: Worker, *, kept: bool) -> None:
        """A worker has nothing to do; one that is not kept is ended."""
        with self._lock:
            kept = kept and not self._closed and self._alive <= self._most
            if kept:
                self._idle.append((time.monotonic(), worker))
            else:
                self._alive -= 1
        if not kept:
            worker.end()

    # ---- those that are idle

    def _watch_idle(self) -> None:
        """Look at them again when the first of them may be idle for too long; on the loop."""
        with self._lock:
            first = self._idle[0][0] if self._idle and self._alive > self._least and not self._closed else None
        if first is not None and self._timer is None:
            seconds = max(0.0, first + self._idle_seconds - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(seconds, self._sign_off)

    def _sign_off(self) -> None:
        self._timer = None
        since = time.monotonic() - self._idle_seconds
        self._end_soon(lambda idle_since: self._alive > self._least and idle_since <= since)
        self._watch_idle()

    def _end_soon(self, ends: Callable[[float], bool]) -> None:
        for worker in self._taken(ends):
            self._threads.submit(worker.end)

    def _taken(self, ends: Callable[[float], bool]) -> list[Worker]:
        """Idle processes that are to be ended, the longest idle first, while `ends` says so of the time since when."""
        taken = []
        with self._lock:
            while self._idle and ends(self._idle[0][0]):
                taken.append(self._idle.pop(0)[1])
                self._alive -= 1
                log.debug("%s: a worker process signs off, %d are there", self._task.full_name, self._alive)
        return taken


def mark_of(job_id: str, attempt: int) -> bytes:
    """Whose note it is."""
    return f"{job_id} {attempt}\n".encode()


def log_again(packed_record: bytes) -> None:
    """Log in this process what was logged in a handler's."""
    try:
        record: logging.LogRecord = pickle.loads(packed_record)  # noqa: S301 - from our own process
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except Exception as error:  # noqa: BLE001 - a class may do anything when it is unpickled, and a filter as well
        log.warning("what a handler has logged in its process cannot be logged here: %r", error)


def log_levels() -> dict[str, int]:
    """The levels that loggers of this process have been given; "" is the root's."""
    loggers = {"": logging.getLogger(), **logging.getLogger().manager.loggerDict}
    return {
        name: logger.level
        for name, logger in loggers.items()
        if isinstance(logger, logging.Logger) and (logger.level or not name)
    }


# ---- in the process


class ToParent(QueueHandler):
    """Sends what is logged to the parent, which logs it as its own."""

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        super().__init__(SimpleQueue())  # which stays empty
        self._tell = tell

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a record that `prepare` has made fit for it; without its extras where these cannot be packed."""
        try:
            packed_record = pickle.dumps(record)
        except Exception:  # noqa: BLE001 - a class may do anything when it is pickled
            usual = logging.makeLogRecord({}).__dict__.keys()
            record = logging.makeLogRecord({name: record.__dict__[name] for name in usual})
            packed_record = pickle.dumps(record)
        self._tell(LOG + packed_record)


def answer_calls(connection: Connection) -> None:
    """Answer calls until the parent closes the pipe or dies."""
    os.setsid()  # Ctrl-C and signals to the group are the parent's to handle: it drains
    threading.Thread(target=end_with_parent, name="aioflow watch of the parent", daemon=True).start()
    lock = threading.Lock()  # threads of a handler may log

    def tell(message: bytes) -> None:
        with lock:
            connection.send_bytes(message)

    with contextlib.suppress(EOFError):
        module, levels = pickle.loads(connection.recv_bytes())  # noqa: S301 - from the parent
        logging.getLogger().addHandler(ToParent(tell))
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        with contextlib.suppress(Exception):  # the call says what is wrong with it
            importlib.import_module(module)
        tell(ANSWER)
        while True:
            answer = answer_call(pickle.loads(connection.recv_bytes()), tell)  # noqa: S301 - from the parent
            tell(ANSWER + packed(answer))


def end_with_parent() -> None:
    """End this process when its parent dies: its job is another's by then."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def answer_call(call: Call, tell: Callable[[bytes], None]) -> Answer:
    """Call the handler; `tell` sends to the parent."""
    try:
        task: Any = importlib.import_module(call.module)
        for name in call.function.split("."):
            task = getattr(task, name)
    except Exception as error:  # noqa: BLE001 - a module may raise anything when it is imported
        return Answer(error=error, traceback=traceback.format_exc())
    if not isinstance(task, Task):
        return Answer(error=TypeError(f"{call.module}.{call.function} is no task in a process of its own"))
    tasks = {known.full_name: known for known in task.service.tasks.values()}
    commit = Commit(task.service.name, encode_emit(tasks.get))
    mark = NOTE + mark_of(call.job_id, call.attempt)
    job = Job(call.job_id, call.attempt, commit, None, task.full_name, lambda _, told: tell(mark + told))
    try:
        result = task.handler(*task.signature.arguments(call.payload, job))
    except BaseException as error:  # noqa: BLE001 - carried over to the parent
        return Answer(None, plain(error), traceback.format_exc(), commit.effects, commit.failure_effects)
    return Answer(result, None, "", commit.effects, commit.failure_effects)


def packed(answer: Answer) -> bytes:
    """An answer as bytes; what cannot be carried over is said as a plain error."""
    try:
        message = pickle.dumps(answer)
        pickle.loads(message)  # noqa: S301 - some exceptions can be packed and not unpacked
    except Exception as error:  # noqa: BLE001 - a class may do anything when it is pickled
        what = repr(answer.error) if answer.error is not None else f"its result cannot be carried over: {error!r}"
        return pickle.dumps(Answer(None, RuntimeError(what), answer.traceback, [], answer.failure_effects))
    return message
