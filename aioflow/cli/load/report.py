"""What a load test found: as one JSON object, or as tables and a chart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from aioflow.cli.load.accounts import Accounts
from aioflow.cli.load.latency import Latency
from aioflow.cli.load.plan import Plan
from aioflow.cli.load.submitters import Submitters

BAR = 24
"""Width of the chart's longest bar."""
NAMES = {"submit": "receipt", "start": "start", "end_to_end": "finish"}
"""What each latency ends with; all begin with the submit."""


@dataclass(slots=True)
class Report:
    """The end of a load test. `checked`: somebody could be asked for the jobs; `wrong` is empty where all is well."""

    task: str
    target: str
    plan: Plan
    submitters: Submitters
    accounts: Accounts
    checked: bool
    interrupted: bool
    totals: dict[str, int] | None = None
    """By how much the queue's counters grew."""
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """1: a job is missing, nobody could be asked, or nothing was accepted; 130: interrupted; else 0."""
        if self.wrong:
            return 1
        if self.interrupted:
            return 130
        return 0 if self.submitters.accepted and self.checked else 1

    @property
    def latencies(self) -> dict[str, Latency]:
        """By name."""
        return {
            "submit": self.submitters.latency,
            "start": self.accounts.start,
            "end_to_end": self.accounts.end_to_end,
        }

    @property
    def finished_per_second(self) -> float | None:
        """From the first submit to the last finish; None where no finish is known."""
        last, began = self.accounts.last_end, self.submitters.began
        if last is None or last <= began:
            return None
        return self.accounts.end_to_end.count / (last - began)

    def as_json(self) -> dict[str, Any]:
        """For programs; times are in the unit that a name ends with."""
        made, accounts, plan = self.submitters, self.accounts, self.plan
        finished = self.finished_per_second
        return {
            "task": self.task,
            "target": self.target,
            "loop": "closed" if plan.rate is None else "open",
            "submitters": plan.submitters,
            "rate": plan.rate,
            "interrupted": self.interrupted,
            "elapsed_s": round(made.elapsed, 6),
            "submits": made.sent,
            "accepted": made.accepted,
            "refused": made.refused,
            "failed": dict(made.failed),
            "backlog": None if plan.rate is None else {"most": made.most_behind, "unsent": made.unsent},
            "throughput": {
                "accepted_per_s": round(made.accepted / made.elapsed, 3),
                "finished_per_s": None if finished is None else round(finished, 3),
            },
            "latency_ms": {
                name: {"count": latency.count, "resolution": latency.resolution_us / 1000, **latency.summary_ms()}
                for name, latency in self.latencies.items()
            },
            "conservation": {
                "checked": self.checked,
                "holds": not self.wrong if self.checked else None,
                "accepted": made.accepted,
                "done": accounts.ended["done"],
                "dead": accounts.ended["dead"],
                "kept": accounts.ended["kept"],
                "queued": dict(accounts.queued),
                "missing": accounts.missing,
                "missing_ids": accounts.missing_ids,
                "unchecked": accounts.unchecked,
                "totals": self.totals,
                "wrong": self.wrong,
            },
            "notes": self.notes,
        }

    def show(self, console: Console) -> None:
        """For people."""
        console.print("\n".join(self._counts()), highlight=False, markup=False, soft_wrap=True)
        if self.submitters.latency.count:
            console.print(self._percentiles())
            console.print(self._chart("#" if "utf" not in console.encoding.lower() else "█"))
        console.print("\n".join(self._conservation()), highlight=False, markup=False, soft_wrap=True)

    def _counts(self) -> Iterable[str]:
        made, plan = self.submitters, self.plan
        loop = "closed loop" if plan.rate is None else f"open loop, {plan.rate:g} submits/s"
        yield f"{self.task}, {self.target}: {plan.submitters} submitters, {loop}{', interrupted' * self.interrupted}"
        failed = "".join(f", {count:,} failed ({kind})" for kind, count in sorted(made.failed.items()))
        yield (
            f"{made.sent:,} submits in {made.elapsed:.2f} s: {made.accepted:,} accepted "
            f"({made.accepted / made.elapsed:,.1f}/s), {made.refused:,} refused{failed}"
        )
        if plan.rate is not None and (made.most_behind or made.unsent):
            yield f"backlog: up to {made.most_behind:,} submits were due and not yet sent, {made.unsent:,} never were"
        if self.finished_per_second is not None:
            yield f"{self.accounts.end_to_end.count:,} finished ({self.finished_per_second:,.1f}/s)"

    def _percentiles(self) -> Table:
        table = Table("ms from submit to", "p50", "p90", "p99", "p99.9", "max", "resolution")
        for column in table.columns[1:]:
            column.justify = "right"
        for name, latency in self.latencies.items():
            values = latency.summary_ms().values()
            digits = 3 if latency.resolution_us < 1000 else 0
            cells = [f"{value:,.{digits}f}" for value in values] or ["-"] * 5
            table.add_row(NAMES[name], *cells, f"{latency.resolution_us / 1000:g} ms")
        return table

    def _chart(self, block: str) -> Table:
        shown = {NAMES[name]: latency for name, latency in self.latencies.items() if latency.count and name != "start"}
        counts = {name: latency.by_bound() for name, latency in shown.items()}
        bounds = sorted({bound for by_bound in counts.values() for bound in by_bound})
        table = Table("up to, ms", *(f"to {name}" for name in shown), box=None)
        for bound in bounds:
            cells = []
            for name, by_bound in counts.items():
                count, most = by_bound.get(bound, 0), max(by_bound.values())
                bar = block * max(1, round(BAR * count / most)) if count else ""
                cells.append(f"{bar} {count / shown[name].count:.1%}" if count else "")
            table.add_row(f"{bound / 1000:g}", *cells)
        return table

    def _conservation(self) -> Iterable[str]:
        accounts = self.accounts
        if self.checked:
            ended = ", ".join(f"{accounts.ended[name]:,} {name}" for name in ("done", "dead", "kept")[: self._kinds()])
            queued = ", ".join(f"{count:,} {state}" for state, count in sorted(accounts.queued.items())) or "none"
            verdict = "wrong" if self.wrong else "holds"
            yield (
                f"conservation {verdict}: {self.submitters.accepted:,} accepted = {ended}, still queued: {queued}, "
                f"{accounts.missing:,} missing, {accounts.unchecked:,} unchecked"
            )
        else:
            yield "conservation was not checked"
        yield from (f"wrong: {problem}" for problem in self.wrong)
        yield from (f"note: {note}" for note in self.notes)

    def _kinds(self) -> int:
        return 3 if self.accounts.ended["kept"] else 2
