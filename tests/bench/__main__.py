"""`python -m tests.bench [--rounds N] [--only NAME]`: each figure as median and spread, beside its bar.

With `--peers` the same work is done by aioflow and by what else a user would take, on one server (see `load.py`).
Full records, typed payloads, timeouts, retry policy and fenced settles stay on in all of it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from aioflow import Runtime, Service, Task
from aioflow.cli.serve import spare_collections
from tests.bench.environments import REQUIREMENTS, System, peer
from tests.bench.http import bare_server, offered, requests
from tests.bench.load import FULL, ITEMS, OURS, QUICK, Comparison, Sizes
from tests.bench.moderation import matches
from tests.bench.report import bars, machine, pace, table, table_of_bars, write
from tests.bench.server import Server
from tests.bench.tasks import Fields, Small, fields, noop, service, sized, starts
from tests.bench.tracking import tracked
from tests.serving import Serve
from tests.valkey import Valkey
from tests.waiting import wait_until

SUBMITTERS = 200
JOBS = 60_000
FSYNC_JOBS = 30_000
MEMORY_JOBS = 20_000
PROBES = 500
HTTP_SECONDS = 4.0
TRACK_SINGLE = 20_000
TRACK_ARRAYS = 100_000


async def submit_all(jobs: int) -> float:
    """Submits per second of many concurrent submitters; each has its payload at hand."""

    async def submitter(count: int) -> None:
        payload = Small(number=count)
        for _ in range(count):
            await noop.submit(payload)

    began = time.perf_counter()
    await asyncio.gather(*(submitter(jobs // SUBMITTERS) for _ in range(SUBMITTERS)))
    return jobs / (time.perf_counter() - began)


async def drain(url: str, of: Service = service, task: Task[Any, Any] = noop) -> float:
    """Jobs per second from the start of the workers until nothing is open."""
    runtime = Runtime([of], redis=url)

    async def empty() -> bool:
        return (await runtime.sizes(task)).open == 0

    async with Runtime([of], redis=url, workers=False) as looking:
        before = await looking.sizes(task)
    began = time.perf_counter()
    async with runtime:
        await wait_until(empty, 120)
        return before.open / (time.perf_counter() - began)


async def submits_and_drain(server: Valkey, jobs: int) -> tuple[float, float]:
    """Fill an empty server, then drain it."""
    async with Runtime([service], redis=server.url, workers=False) as runtime:
        await runtime.redis.flushall()
        submitted = await submit_all(jobs)
    return submitted, await drain(server.url)


async def idle_start(server: Valkey) -> float:
    """Median milliseconds from the call of submit to the first line of the handler, one job at a time."""
    async with Runtime([service], redis=server.url) as runtime:
        await runtime.redis.flushall()
        while not starts.empty():
            starts.get_nowait()
        took = []
        for number in range(PROBES):
            began = time.perf_counter()
            await noop.submit(Small(number=number))
            took.append(await starts.get() - began)
        return statistics.median(took) * 1000


async def idle_result(server: Valkey) -> float:
    """Median milliseconds from the call of submit to the result, one job at a time."""
    async with Runtime([service], redis=server.url) as runtime:
        await runtime.redis.flushall()
        took = []
        for number in range(PROBES):
            began = time.perf_counter()
            handle = await noop.submit(Small(number=number))
            await handle.result()
            took.append(time.perf_counter() - began)
        return statistics.median(took) * 1000


async def bytes_of_finished_jobs(server: Valkey) -> float:
    """used_memory of a finished job with four small fields, the engine's records only."""
    async with Runtime([sized], redis=server.url, workers=False) as runtime:
        await runtime.redis.flushall()
        empty = (await runtime.redis.info("memory"))["used_memory"]
        await asyncio.gather(*[fields.submit(Fields(number=number)) for number in range(MEMORY_JOBS)])
    await drain(server.url, sized, fields)
    async with Runtime([sized], redis=server.url, workers=False) as runtime:
        return float((await runtime.redis.info("memory"))["used_memory"] - empty) / MEMORY_JOBS


async def payments(server: Valkey, *options: str) -> float:
    """Requests per second of POST /payments."""
    serve = Serve("services.payments:service", "--redis", server.url, "--port", "0", *options)
    await serve.start()
    try:
        return (await requests(serve.url, HTTP_SECONDS))[0]
    finally:
        await serve.stop()
        serve.close()


async def bare() -> float:
    """Requests per second of a bare aiohttp handler that parses the JSON and answers 202."""
    async with bare_server() as url:
        return (await requests(url, HTTP_SECONDS))[0]


AT_PACE_US = 5.3
"""What `asyncio.timeout` costs where the machine is as fast as that on which the bars were set: 4.8, and a tenth."""


class Figures:
    """What was measured, by name; the values of a part are kept once it is known how fast the machine was meanwhile."""

    def __init__(self) -> None:
        self.rounds: dict[str, list[float]] = {}
        self.at_pace: dict[str, list[float]] = {}
        self._part: list[tuple[str, float]] = []

    def add(self, name: str, value: float) -> None:
        """Take one round's value."""
        self._part.append((name, value))

    def keep(self, timeout_us: float) -> None:
        """Keep those of a part."""
        for name, value in self._part:
            self.rounds.setdefault(name, []).append(value)
            if timeout_us <= AT_PACE_US:
                self.at_pace.setdefault(name, []).append(value)
        self._part.clear()

    def line(self, name: str, unit: str, bar: str) -> str:
        """Median, spread and bar of a figure."""
        values = self.rounds.get(name)
        if not values:
            return f"{name:52} not measured"
        low, middle, high = min(values), statistics.median(values), max(values)
        quick = self.at_pace.get(name)
        at_pace = f"; in {len(quick)} rounds at the pace of the bars {statistics.median(quick):,.2f}" if quick else ""
        return f"{name:52} {middle:>12,.2f} {unit:10} ({low:,.2f} to {high:,.2f})  bar: {bar}{at_pace}"


LINES = [
    ("submits, 200 submitters", "jobs/s", "80,000"),
    ("drain, 100 workers", "jobs/s", "25,000"),
    ("submit to handler start, idle, p50", "ms", "below 0.60"),
    ("submit to result, idle, p50", "ms", "below 1.20"),
    ("submits, appendfsync always", "jobs/s", "-"),
    ("drain, appendfsync always", "jobs/s", "12,000"),
    ("Redis memory of a finished job, four fields", "bytes", "at most 500"),
    ("POST /payments, no workers", "requests/s", "-"),
    ("bare aiohttp", "requests/s", "-"),
    ("POST /payments as a share of bare aiohttp", "%", "60"),
    ("POST /payments, with workers", "requests/s", "-"),
    ("`aioflow load` can offer, times that", "", "2"),
    ("POST /track, single: accepted", "events/s", "4,000"),
    ("POST /track, single: in the table", "events/s", "4,000"),
    ("POST /track, single: CPU of both processes", "us/event", "-"),
    ("POST /track, arrays: accepted", "events/s", "15,000"),
    ("POST /track, arrays: in the table", "events/s", "15,000"),
    ("POST /track, arrays: CPU of both processes", "us/event", "-"),
    ("moderator asks, 100,000 items wait, in Redis, p50", "ms", "-"),
    ("moderator asks, 100,000 items wait, in Redis, p99", "ms", "below 1.00"),
    ("item comes, 500 moderators wait, in Redis, p50", "ms", "-"),
    ("item comes, 500 moderators wait, in Redis, p99", "ms", "below 1.00"),
    ("a decision and the next item, in Redis, p50", "ms", "-"),
    ("a decision and the next item, in Redis, p99", "ms", "-"),
    ("a call that matches nothing, in Redis, p99", "ms", "-"),
]


async def measure(rounds: int, only: str) -> Figures:
    """All rounds, alternating."""
    figures = Figures()
    plain, safe = Valkey(), Valkey(fsync=True)

    async def memory() -> None:
        submitted, drained = await submits_and_drain(plain, JOBS)
        figures.add("submits, 200 submitters", submitted)
        figures.add("drain, 100 workers", drained)

    async def latency() -> None:
        figures.add("submit to handler start, idle, p50", await idle_start(plain))
        figures.add("submit to result, idle, p50", await idle_result(plain))

    async def size() -> None:
        figures.add("Redis memory of a finished job, four fields", await bytes_of_finished_jobs(plain))

    async def fsync() -> None:
        submitted, drained = await submits_and_drain(safe, FSYNC_JOBS)
        figures.add("submits, appendfsync always", submitted)
        figures.add("drain, appendfsync always", drained)

    async def http() -> None:
        ours, beside = await payments(plain, "--no-workers"), await bare()
        figures.add("POST /payments, no workers", ours)
        figures.add("bare aiohttp", beside)
        figures.add("POST /payments as a share of bare aiohttp", 100 * ours / beside)
        figures.add("POST /payments, with workers", served := await payments(plain))
        figures.add("`aioflow load` can offer, times that", await offered() / served)

    async def tracking() -> None:
        for kind, events, of_post in (("single", TRACK_SINGLE, 1), ("arrays", TRACK_ARRAYS, 500)):
            found = await tracked(safe, events, of_post)
            figures.add(f"POST /track, {kind}: accepted", found.accepted)
            figures.add(f"POST /track, {kind}: in the table", found.stored)
            figures.add(f"POST /track, {kind}: CPU of both processes", found.cpu_us)

    async def moderation() -> None:
        asked, came, followed, nothing = await matches(plain)
        for name, (middle, last) in (
            ("moderator asks, 100,000 items wait, in Redis", asked),
            ("item comes, 500 moderators wait, in Redis", came),
            ("a decision and the next item, in Redis", followed),
        ):
            figures.add(f"{name}, p50", middle)
            figures.add(f"{name}, p99", last)
        figures.add("a call that matches nothing, in Redis, p99", nothing[1])

    parts: dict[str, Callable[[], Awaitable[None]]] = {
        "memory": memory,
        "latency": latency,
        "size": size,
        "fsync": fsync,
        "http": http,
        "tracking": tracking,
        "moderation": moderation,
    }
    try:
        plain.start()
        safe.start()
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            for name, part in parts.items():
                if only in ("", name):
                    before = await pace()
                    await part()
                    after = await pace()
                    figures.keep((before["timeout_us"] + after["timeout_us"]) / 2)
    finally:
        plain.close()
        safe.close()
    return figures


async def compare(rounds: int, sizes: Sizes, folder: Path, only: str, *, peers: bool) -> None:
    """aioflow beside its peers, on one server; the tables are printed, and written into the folder."""
    others = [await peer(name) for name in REQUIREMENTS] if peers else []
    comparison = Comparison([System(OURS), *others], sizes, Server(), Server(fsync=True))
    results, paces = comparison.results, []
    try:
        comparison.plain.valkey.start()
        comparison.safe.valkey.start()
        settings = await comparison.plain.settings()
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            paces.append(await pace())
            await comparison.round(only)
            write(folder, results, {"server": settings, "pace": paces, "rounds": number + 1})
    finally:
        comparison.plain.valkey.close()
        comparison.safe.valkey.close()
    print(table(results), table_of_bars(bars(results)), machine(), paces, sep="\n\n")


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(prog="python -m tests.bench")
    options.add_argument("--rounds", type=int, default=3)
    parts = ["memory", "latency", "size", "fsync", "http", "tracking", "moderation"]
    options.add_argument("--only", choices=[*parts, *ITEMS], default="")
    options.add_argument("--peers", action="store_true", help="beside arq, SAQ, streaq, taskiq, docket and BullMQ")
    options.add_argument("--quick", action="store_true", help="one round of few jobs")
    options.add_argument("--load", action="store_true", help="the items of --peers, of aioflow only")
    options.add_argument("--out", type=Path, default=Path("bench"), help="folder of bench.json and bench.png")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.rounds = 1
    if chosen.peers or chosen.load:
        uvloop.run(compare(chosen.rounds, QUICK if chosen.quick else FULL, chosen.out, chosen.only, peers=chosen.peers))
        return
    spare_collections()  # as `serve` does in its process
    figures = uvloop.run(measure(chosen.rounds, chosen.only))
    print(machine())
    for name, unit, bar in LINES:
        print(figures.line(name, unit, bar))


if __name__ == "__main__":
    main()
