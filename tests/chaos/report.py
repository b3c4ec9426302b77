"""What a run did and found, as JSON and in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

LONG = 5.0
"""Minutes within which each promise has been put to the test."""
SHOWN = ("attempts", "order", "fences", "leases", "delays", "recoveries", "repeats")


@dataclass
class Report:
    """`accepted` counts receipts that submitters hold, by kind; `emitted` the jobs that handlers emitted, apart."""

    seed: int
    minutes: float
    pace: float
    accepted: Counter[str] = field(default_factory=Counter)
    emitted: int = 0
    process_kills: int = 0
    memory_kills: int = 0
    server_kills: int = 0
    replies_lost: int = 0
    died_of_kills: int = 0
    """Payments whose process was killed under them as often as it may be: dead, as they should."""
    faults: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    doubled: int = 0
    judged: Counter[str] = field(default_factory=Counter)
    slowest_recovery_seconds: float = 0.0
    stalls: int = 0
    """How often a runtime was frozen, or got no processor, for a third of a second."""
    wrong: list[str] = field(default_factory=list)
    evidence: str = ""
    """The folder of all logs and ledgers, where something was wrong."""
    schedule: list[str] = field(default_factory=list)

    @property
    def again(self) -> str:
        """The command that draws the same schedule again."""
        return f"python -m tests.chaos --minutes {self.minutes:g} --seed {self.seed} --pace {self.pace:g}"

    def nothing_shown(self) -> list[str]:
        """What a run has to have had, or its silence shows nothing."""
        looked_at = ("attempts", "order") if self.minutes < LONG else SHOWN
        missing = [f"no {kind} was accepted" for kind in ("order", "payment", "wait") if not self.accepted[kind]]
        missing += [f"no {what} were looked at" for what in looked_at if not self.judged[what]]
        return missing if self.process_kills else [*missing, "no process was killed"]

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"again": self.again, "accepted_in_all": self.accepted.total(), **vars(self)}

    def summary(self) -> str:
        """For people."""
        accepted = ", ".join(f"{count:,} {kind}" for kind, count in self.accepted.most_common())
        faults = ", ".join(f"{count} {name}" for name, count in self.faults.most_common())
        judged = ", ".join(f"{count:,} {what}" for what, count in self.judged.most_common())
        lines = [
            f"again:     {self.again}",
            f"accepted:  {self.accepted.total():,} jobs for which a submitter holds a receipt ({accepted})",
            f"emitted:   {self.emitted:,} more jobs, by the handlers of these",
            f"killed:    {self.process_kills} processes, {self.memory_kills} of them for their memory",
            f"           {self.server_kills} times the server; {self.replies_lost} replies were lost",
            f"           {self.died_of_kills} payments are dead of that, as they should",
            f"faults:    {faults}",
            *(f"left out:  {name}: {why}" for name, why in self.left_out.items()),
            f"looked at: {judged}; slowest recovery {self.slowest_recovery_seconds:.2f} s",
            f"           {self.stalls} times a runtime was frozen, or got no processor, for 0.3 s or more",
            f"result:    {self.lost} lost, {self.doubled} doubled, {len(self.wrong)} promises broken",
            *(f"WRONG:     {wrong}" for wrong in self.wrong),
            *([f"evidence:  {self.evidence}"] if self.evidence else []),
        ]
        return "\n".join(lines)
