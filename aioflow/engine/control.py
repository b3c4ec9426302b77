"""What others may tell a runtime: to cancel a handler, by its channel; to be quiet, to scale and to stop, by orders."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from aioflow.engine.attempt import Stop
from aioflow.engine.pool import Pool

log = logging.getLogger(__name__)


class Control:
    """Acts on the pools of one runtime; `stop` is called when it is to stop."""

    def __init__(self, pools: Sequence[Pool], stop: Callable[[], object]) -> None:
        self._pools = pools
        self.stop = stop
        self._state = "running"

    def cancel_running(self, message: bytes) -> None:
        """Cancel the handler of one attempt: the queue's running key, the job's id, its token. Raises ValueError."""
        running, job_id, token = message.decode().split("\n")
        for pool in self._pools:
            if pool.queue.keys["running"] == running:
                attempts = [held for held in pool.held if (held.job.id, held.job.token) == (job_id, token)]
                for attempt in attempts:
                    attempt.cancel(Stop.CANCELLED)
                if not attempts:
                    pool.expect(job_id, token)

    def about(self, started_ms: int) -> dict[str, Any]:
        """What the list of runtimes says of this one."""
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "state": self._state,
            "started_ms": started_ms,
            "tasks": {pool.queue.name: (len(pool.running), pool.concurrency) for pool in self._pools},
        }

    def obey(self, name: str, value: str) -> None:
        """Do what an order says; a value is what is wanted, a space, and what makes it another than before.

        Raises ValueError where it is no order, or not for this runtime.
        """
        wanted = value.partition(" ")[0]
        log.info("order: %s %s", name, wanted)
        word, _, task = name.partition(" ")
        match word:
            case "stop":
                self.stop()
            case "quiet":
                self.quiet()
            case "scale":
                (pool,) = [pool for pool in self._pools if pool.queue.name == task]
                pool.scale(int(wanted))
            case _:
                raise ValueError(f"{name!r} is no order")

    def quiet(self) -> None:
        """Start no more jobs."""
        if self._state == "running":
            self._state = "quiet"
        for pool in self._pools:
            pool.be_quiet()

    def stopping(self) -> None:
        """The stop has begun."""
        self._state = "stopping"
