"""`python -m tests.chaos --minutes N [--seed S]`: everything is killed, and nothing may be lost or doubled.

Prints a report; with its seed the same schedule runs again. Exit code 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from tests.chaos.run import Run, new_seed


def main() -> None:
    """Run and report."""
    options = argparse.ArgumentParser(prog="python -m tests.chaos")
    options.add_argument("--minutes", type=float, default=5.0)
    options.add_argument("--seed", type=int, default=None)
    options.add_argument("--pace", type=float, default=0.1, help="seconds between two orders of one submitter, of 40")
    options.add_argument("--report", type=Path, default=None, help="a file for the report as JSON, with the schedule")
    chosen = options.parse_args()
    seed = new_seed() if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    report = asyncio.run(Run(seed, chosen.minutes, pace=chosen.pace).run())
    if chosen.report is not None:
        chosen.report.write_text(json.dumps(report.told(), indent=2) + "\n")
    print(report.summary())
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
