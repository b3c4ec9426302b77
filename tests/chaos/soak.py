"""`python -m tests.chaos.soak --minutes 20 [--rate R]`: hours in small: nothing may grow, and nothing may get slower.

A runtime on a server with `appendfsync always`, at half of the top rate, which is measured first, in open loop: jobs
come when they are due, whatever became of those before, and their latency counts from then. After the warm-up, a third
of the time, every figure has to stand still. Exit code 1 where one grows or the latency does.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvloop
from redis.asyncio import Redis

from aioflow import Runtime, Service, StoreUnavailable, policy
from tests.bench.report import machine
from tests.chaos.trend import Allowance, Trend, trend_of
from tests.valkey import Valkey

WARM_UP = 1 / 3
"""Of the time, and of the samples; retention ends within it."""
LEAST_SAMPLES = 12
"""A machine that is too busy to take them in time gets more time."""
TICK_SECONDS = 0.01
TOP_SECONDS = 10.0
TOP_SUBMITTERS = 200
MOST_UNDER_WAY = 20_000
"""Submits that are not answered; what is due beyond them is not sent, and that is a fault."""
SLOWER = (1.5, 2.0)
"""Latency at the end against that at the start: so many times, or so many ms more, whatever is more."""
MIB = 1 << 20

FIGURES: dict[str, tuple[str, Allowance]] = {
    "memory of the process": ("MiB", Allowance(0.03, 3.0)),
    "Redis' used_memory": ("MiB", Allowance(0.05, 2.0)),
    "Redis' resident memory": ("MiB", Allowance(0.08, 4.0)),
    "tasks": ("", Allowance(0.05, 2.0)),
    "connections": ("", Allowance(0.05, 2.0)),
    "file descriptors": ("", Allowance(0.05, 2.0)),
    "keys": ("", Allowance(0.0, 4.0)),
    "objects of Python": ("", Allowance(0.03, 2_000.0)),
    "open jobs": ("", Allowance(0.5, 500.0)),
}
"""What is sampled, and how much it may rise from the warm-up to the end."""


@dataclass
class Report:
    """What came of a soak."""

    machine: str
    minutes: float
    top: float | None
    rate: float
    done: int = 0
    unsent: int = 0
    failed: int = 0
    trends: list[Trend] = field(default_factory=list)
    latency_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    """p50 and p99 at the start, which is after the warm-up, and at the end."""
    samples: list[dict[str, float]] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """What is not as it should be."""
        found = [f"{trend.name} grows" for trend in self.trends if not trend.flat]
        for name, at in self.latency_ms.items():
            if at["end"] > max(at["start"] * SLOWER[0], at["start"] + SLOWER[1]):
                found.append(f"latency {name} grew from {at['start']:.2f} to {at['end']:.2f} ms")
        if self.unsent or self.failed:
            found.append(f"{self.unsent} jobs were not sent in time, {self.failed} submits failed")
        return found

    def told(self) -> dict[str, Any]:
        """As JSON."""
        trends = {trend.name: {**asdict(trend), "flat": trend.flat} for trend in self.trends}
        return {**asdict(self), "trends": trends, "wrong": self.wrong}

    def __str__(self) -> str:
        top = f", half of {self.top:,.0f}" if self.top is not None else ""
        lines = [self.machine, f"{self.minutes:g} minutes at {self.rate:,.0f} jobs/s{top}: {self.done:,} done"]
        lines += [str(trend) for trend in self.trends]
        for name, at in self.latency_ms.items():
            lines.append(f"latency {name:16} {at['start']:>14,.2f} {at['end']:>14,.2f} ms")
        return "\n".join([*lines, *(f"WRONG: {wrong}" for wrong in self.wrong or ["nothing"])]).replace(
            "WRONG: nothing", "all stands still"
        )


def percentile(values: list[float], share: float) -> float:
    """A percentile; 0 of none."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


class Soak:
    """One soak. `leak` is called for each job, by tests of this tool."""

    def __init__(
        self, minutes: float, rate: float | None = None, *, every: float = 5.0, leak: Callable[[], object] | None = None
    ) -> None:
        self.minutes = minutes
        self._rate = rate
        self._every = every
        self._leak = leak
        self._took: list[float] = []  # seconds, of jobs that ended since the last sample
        self._done = self._failed = self._unsent = 0
        self._under_way: set[asyncio.Task[None]] = set()
        self._service = self._declared(max(1.0, min(600.0, minutes * 60 * WARM_UP / 2)))

    def _declared(self, keep: float) -> Service:
        floor, policy.RETENTION_FLOOR = policy.RETENTION_FLOOR, min(policy.RETENTION_FLOOR, keep)
        service = Service("soak")
        try:

            @service.task(concurrency=100, keep_done=keep, keep_dead=keep)
            async def work(due: float) -> float:
                if self._leak is not None:
                    self._leak()
                self._took.append(time.monotonic() - due)
                self._done += 1
                return due
        finally:
            policy.RETENTION_FLOOR = floor
        self._work = work
        return service

    async def run(self) -> Report:
        """Measure, soak, and judge."""
        server = Valkey(fsync=True)
        server.start()
        try:
            # What is sampled over the tests' own connection is no part of what is measured.
            async with Redis.from_url(server.admin_url, protocol=2) as admin:
                top = None if self._rate is not None else await self._top(server)
                rate = self._rate if self._rate is not None else (top or 0.0) / 2
                report = Report(machine(), self.minutes, top, rate)
                await admin.flushall()
                async with Runtime([self._service], redis=server.url) as runtime:
                    await self._soak(runtime, admin, report)
        finally:
            server.close()
        self._judge(report)
        return report

    async def _top(self, server: Valkey) -> float:
        """Jobs per second of many submitters who each wait for the result."""
        ends = time.monotonic() + TOP_SECONDS

        async def submitter() -> None:
            while time.monotonic() < ends:
                await (await self._work.submit(time.monotonic())).result(30)

        async with Runtime([self._service], redis=server.url):
            began, before = time.monotonic(), self._done
            await asyncio.gather(*(submitter() for _ in range(TOP_SUBMITTERS)))
            return (self._done - before) / (time.monotonic() - began)

    # ---- the load

    async def _soak(self, runtime: Runtime, admin: Redis, report: Report) -> None:
        self._took.clear()
        self._done = 0
        began = time.monotonic()
        feeding = asyncio.create_task(self._feed(report.rate, began), name="soak feed")
        try:
            while time.monotonic() < began + self.minutes * 60 or len(report.samples) < LEAST_SAMPLES:
                await asyncio.sleep(self._every)
                report.samples.append(await self._sample(runtime, admin, time.monotonic() - began))
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])
            if self._under_way:
                await asyncio.wait(self._under_way)
        report.done, report.unsent, report.failed = self._done, self._unsent, self._failed

    async def _feed(self, rate: float, began: float) -> None:
        sent = 0
        while True:
            wanted = (time.monotonic() - began) * rate
            while sent < wanted:
                due, sent = began + sent / rate, sent + 1
                if len(self._under_way) >= MOST_UNDER_WAY:
                    self._unsent += 1
                    continue
                submit = asyncio.create_task(self._submit(due), name="soak submit")
                self._under_way.add(submit)
                submit.add_done_callback(self._under_way.discard)
            await asyncio.sleep(TICK_SECONDS)

    async def _submit(self, due: float) -> None:
        try:
            await self._work.submit(due)
        except StoreUnavailable:
            self._failed += 1

    # ---- what is looked at

    async def _sample(self, runtime: Runtime, admin: Redis, at: float) -> dict[str, float]:
        """All figures of now; of latencies those since the last sample."""
        took, self._took = self._took, []
        process = psutil.Process()
        memory, clients = await admin.info("memory"), await admin.info("clients")
        names = [task.get_name() for task in asyncio.all_tasks()]
        # A handler's task is named by its job: those that run come and go with the load.
        lasting = [name for name in names if not name.startswith(("soak", "soak."))]
        gc.collect()
        return {
            "at": at,
            "memory of the process": process.memory_info().rss / MIB,
            "Redis' used_memory": memory["used_memory"] / MIB,
            "Redis' resident memory": (memory["used_memory_rss"]) / MIB,
            "tasks": len(lasting),
            "connections": clients["connected_clients"],
            "file descriptors": process.num_fds(),
            "keys": await admin.dbsize(),
            "objects of Python": len(gc.get_objects()),
            "open jobs": (await runtime.sizes(self._work)).open,
            "p50": percentile(took, 0.5) * 1000,
            "p99": percentile(took, 0.99) * 1000,
        }

    def _judge(self, report: Report) -> None:
        warm = report.samples[int(len(report.samples) * WARM_UP) :]
        times = [sample["at"] for sample in warm]
        for name, (unit, allowance) in FIGURES.items():
            report.trends.append(trend_of(name, unit, times, [sample[name] for sample in warm], allowance))
        part = max(1, len(warm) // 5)
        for name in ("p50", "p99"):
            found = [sample[name] for sample in warm]
            report.latency_ms[name] = {
                "start": statistics.median(found[:part]), "end": statistics.median(found[-part:])
            }  # fmt: skip


def main() -> None:
    """Soak and report."""
    options = argparse.ArgumentParser(prog="python -m tests.chaos.soak")
    options.add_argument("--minutes", type=float, default=20.0)
    options.add_argument("--rate", type=float, default=None, help="jobs per second; else half of the top rate")
    options.add_argument("--every", type=float, default=5.0, help="seconds between two samples")
    options.add_argument("--report", type=Path, default=None, help="a file for the report as JSON, with all samples")
    chosen = options.parse_args()
    report = uvloop.run(Soak(chosen.minutes, chosen.rate, every=chosen.every).run())
    if chosen.report is not None:
        chosen.report.write_text(json.dumps(report.told(), indent=2))
    print(report)
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
