"""Orders that reach a runtime by its channel."""

from __future__ import annotations

from collections.abc import Sequence

from aioflow.engine.attempt import Stop
from aioflow.engine.pool import Pool


def cancel_running(pools: Sequence[Pool], message: bytes) -> None:
    """Cancel the handler of one attempt: the queue's running key, the job's id, its token. Raises ValueError."""
    running, job_id, token = message.decode().split("\n")
    for pool in pools:
        if pool.queue.keys["running"] == running:
            attempts = [held for held in pool.held if (held.job.id, held.job.token) == (job_id, token)]
            for attempt in attempts:
                attempt.cancel(Stop.CANCELLED)
            if not attempts:
                pool.expect(job_id, token)
