"""What handlers did, by their own account, against what is promised of leases, fences, delays and order."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.history import History
from tests.chaos.ledger import Attempt

MOST_SHOWN = 5
SLACK = 0.25
"""Seconds that a cancelled handler may take to end, on a busy machine."""
EARLY = 0.002
"""Seconds that a due time loses by being cut to a millisecond, at both ends."""
RECOVERED_IN = 1.0
"""Seconds beyond the lease."""


@dataclass
class Findings:
    """Broken promises: what was broken, and for which jobs."""

    broken: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    judged: Counter[str] = field(default_factory=Counter)
    """How often each promise was looked at; one that never was has shown nothing."""
    slowest_recovery: float = 0.0

    def say(self, what: str, names: Iterable[str]) -> int:
        """Note that this was broken for these; how many they are."""
        found = set(names)
        if found:
            self.broken[what] |= found
        return len(found)

    def lines(self) -> list[str]:
        """One for each kind."""
        return [f"{len(names)} {what}: {', '.join(sorted(names)[:MOST_SHOWN])}" for what, names in self.broken.items()]


class Judge:
    """Looks at the attempts of one job after the other. `leases` has the seconds of each task's lease."""

    def __init__(
        self, findings: Findings, history: History, leases: Mapping[str, float], recovering: Iterable[str]
    ) -> None:
        self._findings = findings
        self._history = history
        self._leases = leases
        self._recovering = set(recovering)

    def job(self, attempts: Sequence[Attempt]) -> None:
        """All that is promised of one job; its attempts come in the order of their starts."""
        self._findings.judged["attempts"] += len(attempts)
        if len(attempts) > 1:
            self._fences(attempts)
            self._leases_of(attempts)
            self._repeats(attempts)
        if attempts[0].task in self._recovering:
            self._recovery(attempts)

    def _fences(self, attempts: Sequence[Attempt]) -> None:
        """Each attempt has a number above that of the one before it, and a token of its own."""
        job = attempts[0].job
        if len({attempt.token for attempt in attempts}) < len(attempts):
            self._findings.say("jobs that ran twice under one token", [job])
        for before, after in pairwise(attempts):
            self._findings.judged["fences"] += 1
            lease = self._leases[after.task]
            if after.number <= before.number and not self._history.is_stopped(
                after.pid, after.began - lease, after.began
            ):
                self._findings.say("jobs whose fence went back", [job])

    def _leases_of(self, attempts: Sequence[Attempt]) -> None:
        """No attempt begins while another one's process keeps its lease.

        An attempt that a zombie begins after a later one has no lease; `_fences` judges whether its process was one.
        """
        live: list[Attempt] = []
        for attempt in attempts:
            if not live or attempt.number > live[-1].number:
                live.append(attempt)
        for before, after in pairwise(live):
            ended = self._history.end_of(before.pid, before.began, before.ended)
            self._findings.judged["leases"] += 1
            stopped = self._history.is_stopped(before.pid, before.began - self._leases[before.task], ended)
            if after.began < ended - SLACK and not stopped:
                self._findings.say("jobs with two live leases", [self._told(before, ended, after)])

    def _repeats(self, attempts: Sequence[Attempt]) -> None:
        """A handler that ended well is called again only where its acknowledgement may not have come through."""
        for before, after in pairwise(attempts):
            if before.ended is None or before.how != "done" or after.number <= before.number:
                continue
            self._findings.judged["repeats"] += 1
            history, lease = self._history, self._leases[before.task]
            if history.death(before.pid, before.ended) > after.began and not (
                history.is_server_away(before.ended, after.began)
                or history.is_stopped(before.pid, before.began - lease, after.began)
            ):
                self._findings.say("jobs that ran again after they had ended well", [before.job])

    def _told(self, before: Attempt, ended: float, after: Attempt) -> str:
        since = self._history.began
        first = f"attempt {before.number} in {before.pid} from {before.began - since:.2f} s to {ended - since:.2f} s"
        return f"{before.job} ({first}, attempt {after.number} in {after.pid} from {after.began - since:.2f} s)"

    def _recovery(self, attempts: Sequence[Attempt]) -> None:
        """What ran in a process that was killed starts again within its lease and a second."""
        for index, attempt in enumerate(attempts):
            killed = self._history.death(attempt.pid, attempt.began)
            if attempt.ended is not None or math.isinf(killed):
                continue
            limit = self._leases[attempt.task] + RECOVERED_IN
            if self._history.is_disturbed(killed, killed + limit, but=attempt.pid):
                continue
            if not self._history.has_survivor(killed, killed + limit, but=attempt.pid):
                continue
            self._findings.judged["recoveries"] += 1
            again = attempts[index + 1].began if index + 1 < len(attempts) else None
            if again is None:
                self._findings.say("jobs of a killed process that never started again", [attempt.job])
                continue
            self._findings.slowest_recovery = max(self._findings.slowest_recovery, again - killed)
            if again - killed > limit:
                since = killed - self._history.began
                late = f"{attempt.job} killed at {since:.1f} s, again after {again - killed:.2f} s"
                self._findings.say(f"jobs of a killed process that did not start again within {limit:g} s", [late])

    def delay(self, first: Attempt, submitted: float, due: float) -> None:
        """A job that was to wait did; a clock of the server's that was set meanwhile is another time."""
        if self._history.has_stepped(submitted, first.began):
            return
        self._findings.judged["delays"] += 1
        if first.began < due - EARLY:
            self._findings.say("jobs that started before they were due", [first.job])

    def order(self, line: Sequence[str], started: Sequence[str], slots: int) -> None:
        """Jobs started in the order of their line: at each start at most so many slots but its own are ahead of it.

        Several runtimes claim one after the other, and may start what they claimed the other way round.
        """
        places = {job: place for place, job in enumerate(line)}
        waiting = set(places)
        for job in started:
            self._findings.judged["order"] += 1
            waiting.discard(job)
            overtaken = [other for other in waiting if places[other] < places[job]]
            if len(overtaken) >= slots:
                self._findings.say("jobs that started out of order", [job])
        self._findings.say("jobs of a line that never started", waiting)
