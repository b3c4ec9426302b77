"""Tiny asyncio services that talk to each other through Redis."""

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
