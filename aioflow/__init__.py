"""Tiny asyncio services that talk to each other through Redis."""

from aioflow.errors import (
    AioflowError,
    CodecError,
    ConfigError,
    IdConflict,
    JobFailed,
    NotFound,
    QueueFull,
    ResultTimeout,
    StoreUnavailable,
)
from aioflow.ingress.problems import Problem
from aioflow.job import Handle, Job, JobInfo, State
from aioflow.runtime import Runtime
from aioflow.service import Discard, Retry, RetryLater, Service, Task
from aioflow.timeline import Page, Timeline

__all__ = [
    "AioflowError",
    "CodecError",
    "ConfigError",
    "Discard",
    "Handle",
    "IdConflict",
    "Job",
    "JobFailed",
    "JobInfo",
    "NotFound",
    "Page",
    "Problem",
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
