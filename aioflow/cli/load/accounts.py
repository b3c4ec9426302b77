"""Where every accepted job is: accepted = done + dead + still queued, job by job, and beside the queue's own counters.

A job that is seen done or dead is accounted for and forgotten; one of which nothing is kept is missing. What is not
accounted for is looked at again, so at any time the ledger and these counts together are all that was accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from aioflow.cli.load.latency import Latency
from aioflow.cli.load.ledger import Ledger
from aioflow.load import Keeper, Seen

MOST_LISTED = 10
MILLISECOND_US = 1000
FINAL = ("done", "dead", "kept")


@dataclass(slots=True)
class Accounts:
    """The jobs of one ledger, as far as they have been looked at. Written by one task."""

    ledger: Ledger
    keeper: Keeper
    start: Latency = field(default_factory=lambda: Latency(MILLISECOND_US))
    end_to_end: Latency = field(default_factory=lambda: Latency(MILLISECOND_US))
    ended: Counter[str] = field(default_factory=Counter)
    queued: Counter[str] = field(default_factory=Counter)
    """The states of those that the last look left in the ledger."""
    missing: int = 0
    missing_ids: list[str] = field(default_factory=list)
    last_end: float | None = None

    @property
    def unchecked(self) -> int:
        """How many the last look did not come to."""
        return len(self.ledger) - self.queued.total()

    async def look(self, before: float | None = None) -> None:
        """Look at every job once, or at those in front whose submit began before a time. Raises StoreUnavailable."""
        self.queued.clear()
        await self.keeper.synchronize()
        left = len(self.ledger)
        while left:
            jobs = self.ledger.first(min(left, self.keeper.batch))
            if before is not None and jobs[0][1] >= before:
                return
            seen = await self.keeper.look([job_id for job_id, _ in jobs])
            kept = [job for job, found in zip(jobs, seen, strict=True) if self._stays(job, found)]
            self.ledger.move(len(jobs), kept)
            left -= len(jobs)

    def _stays(self, job: tuple[str, float], seen: Seen | None) -> bool:
        job_id, began = job
        if seen is None:
            self.missing += 1
            if len(self.missing_ids) < MOST_LISTED:
                self.missing_ids.append(job_id)
            return False
        if seen.state not in FINAL:
            self.queued[seen.state] += 1
            return True
        self.ended[seen.state] += 1
        if seen.started is not None:
            self.start.record(seen.started - began)
        if seen.ended is not None:
            self.end_to_end.record(seen.ended - began)
            self.last_end = max(seen.ended, self.last_end or seen.ended)
        return False


def compare_totals(grown: Mapping[str, int], accepted: int, ended: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """(what is wrong, what is to be noted): the counters may grow by more than ours, since others use the queue too."""
    repeated = grown.get("repeated", 0)
    taken = grown.get("submitted", 0) + repeated
    wrong = []
    if taken < accepted:
        wrong.append(f"the queue counts {taken} submits, and {accepted} were receipted")
    # Where an id was submitted twice, a job is looked at twice, and counted once by the queue.
    if not repeated:
        wrong += [
            f"the queue counts {grown.get(state, 0)} jobs that ended {state}, and {ended.get(state, 0)} are"
            for state in ("done", "dead")
            if grown.get(state, 0) < ended.get(state, 0)
        ]
    others = taken - accepted
    return wrong, [f"{others} more jobs were submitted to this queue meanwhile"] if others > 0 else []
