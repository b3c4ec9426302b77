"""A service for tests that kill its process: jobs that end it, jobs that do not."""

from __future__ import annotations

import asyncio
import os
import signal

from pydantic import BaseModel

from aioflow import Job, Retry, Service

service = Service("demo")
started = service.timeline("started")
LEASE = 1.0


class Work(BaseModel):
    """What one job does."""

    seconds: float = 0.0
    kill: bool = False


@service.task(concurrency=10, lease=LEASE, retry=Retry(attempts=1))
async def work(payload: Work, job: Job) -> str:
    """Sleep, or end the process as a crash does."""
    if payload.kill:
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(payload.seconds)
    job.commit.hincrby("ran", job.id, 1)
    return job.id
