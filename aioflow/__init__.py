"""Tiny asyncio services that talk to each other through Redis.

A name is imported when it is first used: what only declares services, or only looks at a job, waits for no HTTP server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aioflow.errors import (
        AioflowError,
        CodecError,
        ConfigError,
        IdConflict,
        JobCancelled,
        JobFailed,
        LeaseLost,
        NotFound,
        ProtocolError,
        QueueFull,
        ResultTimeout,
        StoreUnavailable,
    )
    from aioflow.ingress.problems import Problem
    from aioflow.job import Batch, Failure, Handle, Job, JobInfo, State
    from aioflow.policy import Breaker, Discard, Retry, RetryLater
    from aioflow.runtime import Runtime
    from aioflow.service import Middleware, Service, Task
    from aioflow.timeline import Page, Timeline

__all__ = [
    "AioflowError",
    "Batch",
    "Breaker",
    "CodecError",
    "ConfigError",
    "Discard",
    "Failure",
    "Handle",
    "IdConflict",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobInfo",
    "LeaseLost",
    "Middleware",
    "NotFound",
    "Page",
    "Problem",
    "ProtocolError",
    "QueueFull",
    "ResultTimeout",
    "Retry",
    "RetryLater",
    "Runtime",
    "Service",
    "State",
    "StoreUnavailable",
    "Task",
    "Timeline",
]

_HOMES = {
    "errors": (
        "AioflowError",
        "CodecError",
        "ConfigError",
        "IdConflict",
        "JobCancelled",
        "JobFailed",
        "LeaseLost",
        "NotFound",
        "ProtocolError",
        "QueueFull",
        "ResultTimeout",
        "StoreUnavailable",
    ),
    "ingress.problems": ("Problem",),
    "job": (
        "Batch",
        "Failure",
        "Handle",
        "Job",
        "JobInfo",
        "State",
    ),
    "policy": (
        "Breaker",
        "Discard",
        "Retry",
        "RetryLater",
    ),
    "runtime": ("Runtime",),
    "service": (
        "Middleware",
        "Service",
        "Task",
    ),
    "timeline": (
        "Page",
        "Timeline",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return found


def __dir__() -> list[str]:
    return __all__
