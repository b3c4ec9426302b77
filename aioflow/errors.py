"""Every error that aioflow raises, grouped by what the caller can do about it.

Driver exceptions are mapped to these in `engine/store.py` and nowhere else. A message says the operation, what it
was about, what was expected and what to do next; the facts a program may want are attributes.
"""

from __future__ import annotations


class AioflowError(Exception):
    """Base of all errors of aioflow."""


class ConfigError(AioflowError):
    """A declaration or a setting is wrong: mend it and start again."""


class StoreUnavailable(AioflowError):
    """Redis is away, full or too slow to answer: try again later.

    `job_id` is the id of the job that was being submitted, where there was one: the job may or may not have been
    taken, and submitting the same id again is safe.
    """

    def __init__(self, message: str, *, job_id: str | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id


class QueueFull(AioflowError):
    """The queue holds as many unfinished jobs as it may: submit later."""

    def __init__(self, queue: str, *, bound: int, job_id: str) -> None:
        super().__init__(
            f"{queue} holds its bound of {bound} unfinished jobs; job {job_id} was not taken, submit it later"
        )
        self.queue = queue
        self.bound = bound
        self.job_id = job_id


class IdConflict(AioflowError):
    """The same job id was submitted before with another payload."""

    def __init__(self, queue: str, job_id: str) -> None:
        super().__init__(f"{queue} already has a job {job_id} with another payload; use another id or the same payload")
        self.queue = queue
        self.job_id = job_id


class NotFound(AioflowError):
    """No record of that job is kept: the id is unknown or its retention has ended."""

    def __init__(self, queue: str, job_id: str) -> None:
        super().__init__(f"{queue} keeps no record of a job {job_id}; it was never accepted or its retention has ended")
        self.queue = queue
        self.job_id = job_id


class JobFailed(AioflowError):
    """The job ended dead; the attributes say how its last attempt failed.

    `error` is the exception's type, `traceback` its text, `attempt` counts from 1, `worker` names the runtime that ran
    it; empty, and 0, where the job was not running.
    """

    def __init__(
        self, job_id: str, *, error: str, message: str, traceback: str = "", attempt: int = 0, worker: str = ""
    ) -> None:
        super().__init__(f"job {job_id} is dead: {error}: {message}")
        self.job_id = job_id
        self.error = error
        self.message = message
        self.traceback = traceback
        self.attempt = attempt
        self.worker = worker


class JobCancelled(JobFailed):
    """The job was cancelled on request."""


class LeaseLost(AioflowError):
    """The job may be another runtime's by now: stop, and write nothing."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"the lease of job {job_id} is lost; it may run elsewhere, and nothing of this attempt counts")
        self.job_id = job_id


class ResultTimeout(AioflowError):
    """The job did not finish in the time the caller was ready to wait; the job itself goes on."""

    def __init__(self, job_id: str, timeout: float) -> None:
        super().__init__(f"job {job_id} did not finish within {timeout:g} s; it goes on, ask again")
        self.job_id = job_id
        self.timeout = timeout


class CodecError(AioflowError):
    """A payload or a result does not fit its declared type."""


class ProtocolError(AioflowError):
    """A script answered what it should not: a bug in aioflow or foreign data under its keys."""


def plain(error: BaseException) -> Exception:
    """What a handler raised; what would end the loop or cannot be raised into a future becomes a RuntimeError."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    carried = RuntimeError(repr(error))
    carried.__cause__ = error
    return carried
