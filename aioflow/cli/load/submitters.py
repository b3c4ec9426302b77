"""Many concurrent submitters, in a closed or an open loop.

Closed: each submits as soon as its last submit was answered. Open: submit k is due k / rate seconds after the begin,
whatever the answers do, and its latency counts from then, also where no submitter was free in time: a slow server
cannot keep the slow answers out of the figures ("coordinated omission", Gil Tene, "How NOT to Measure Latency"). What
is due and not sent is only a number, so the backlog takes no memory.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter

from aioflow.cli.load.latency import Latency
from aioflow.cli.load.ledger import Ledger
from aioflow.cli.load.plan import Plan
from aioflow.errors import ConfigError
from aioflow.load import Failed, Refused, Target

REST_SECONDS = 0.1
"""How long a submitter of a closed loop rests after a submit that was not taken."""
NAP_SECONDS = 0.25
"""The longest sleep of a submitter, so that it hears of a stop."""
TICK_SECONDS = 0.001
"""The event loop's timers are no finer: rather this much early, and measured from there, than late."""


class Submitters:
    """Submits as planned, and notes what came of it."""

    def __init__(self, target: Target, plan: Plan, ledger: Ledger) -> None:
        self.sent = self.accepted = self.refused = 0
        self.failed: Counter[str] = Counter()
        self.latency = Latency(resolution_us=1)
        self.most_behind = 0
        self.stopped = False
        """Before the plan was carried out."""
        self.began = time.monotonic()
        self.ended: float | None = None
        self._target = target
        self._plan = plan
        self._ledger = ledger
        self._taken = 0

    def stop(self) -> None:
        """Submit nothing more; what was sent is still answered."""
        self.stopped = True

    async def run(self) -> None:
        """Submit until the plan is carried out or `stop` is called.

        The first submit goes alone. Raises ConfigError where it fails in a way that all others would.
        """
        self.began = time.monotonic()
        await self._submit(self._take() or self.began, first=True)
        many = min(self._plan.submitters, self._plan.total or math.inf)
        async with asyncio.TaskGroup() as group:
            for number in range(int(many)):
                group.create_task(self._run_one(), name=f"aioflow load submitter {number}")
        self.ended = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of submitting so far, or in all."""
        return (self.ended or time.monotonic()) - self.began

    @property
    def unsent(self) -> int:
        """How many submits of an open loop were due and were never sent."""
        plan = self._plan
        if plan.rate is None or plan.total is None:
            return 0
        due = min(plan.total, int(self.elapsed * plan.rate) + 1) if self.stopped else plan.total
        return max(0, due - self.sent)

    async def _run_one(self) -> None:
        while (due := self._take()) is not None:
            await self._sleep_until(due)
            if not self.stopped:
                await self._submit(due)

    async def _sleep_until(self, due: float) -> None:
        # An event would cost every submit a place in a line of all submitters; a nap is short enough.
        while (left := due - time.monotonic() - TICK_SECONDS) > 0 and not self.stopped:  # noqa: ASYNC110
            await asyncio.sleep(min(left, NAP_SECONDS))

    def _take(self) -> float | None:
        """When the next submit is due; None: there is none."""
        plan, now = self._plan, time.monotonic()
        if self._ledger.full:
            self.stop()
        late = plan.duration is not None and now >= self.began + plan.duration
        if self.stopped or late or (plan.total is not None and self._taken >= plan.total):
            return None
        due = now
        if plan.rate is not None:
            due = self.began + self._taken / plan.rate
            self.most_behind = max(self.most_behind, int((now - due) * plan.rate))
        self._taken += 1
        return due

    async def _submit(self, due: float, *, first: bool = False) -> None:
        began = min(due, time.monotonic())
        self.sent += 1
        try:
            job_id = await self._target.submit()
        except Refused:
            self.refused += 1
        except Failed as error:
            if first and error.hopeless:
                raise ConfigError(str(error)) from error
            self.failed[error.kind] += 1
        else:
            self.latency.record(time.monotonic() - began)
            self.accepted += 1
            self._ledger.add(job_id, began)
            return
        if self._plan.rate is None:
            await asyncio.sleep(REST_SECONDS)
