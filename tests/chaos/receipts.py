"""What submitters were promised: a line for each receipt, written before anything else is done with it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REFUSED = "refused"
"""The kind of what was no receipt: an answer that nothing excuses, "name:status"."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """An accepted job. Times are monotonic seconds: of the receipt, of the first submit, and when it is due or 0."""

    kind: str
    name: str
    durability: str
    at: float = 0.0
    submitted: float = 0.0
    due: float = 0.0


def write(file: int, kind: str, name: str, durability: str, submitted: float = 0.0, due: float = 0.0) -> None:
    """Note a receipt that came just now; one write, which outlives the process."""
    os.write(file, f"{kind} {name} {durability} {time.monotonic():.6f} {submitted:.6f} {due:.6f}\n".encode())


def read(file: Path) -> Iterator[Receipt]:
    """All receipts that were noted."""
    if not file.exists():
        return
    with file.open() as lines:
        for line in lines:
            kind, name, durability, *times = line.split()
            yield Receipt(kind, name, durability, *map(float, times))
