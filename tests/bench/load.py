"""The same work for aioflow and its peers: one server, one machine, one system after the other, item by item.

What each item is: `peers/harness.py`. A round does every item with every system before it goes on to the next item, so
that what is compared was measured within a minute or two.
"""

from __future__ import annotations

import asyncio
import random
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.bench.bare_loop import bare_rate
from tests.bench.delay import delayed
from tests.bench.environments import ItemFailed, System
from tests.bench.growth import grown
from tests.bench.http import bare_server, requests
from tests.bench.server import Server, free_port
from tests.bench.start import imported, served
from tests.serving import Serve
from tests.waiting import wait_until

SUBMITTERS = 200
OPEN_LOOP_SECONDS = 5.0
TURNS = {"idle": 5, "http": 3}
"""How often a round does what one turn shows too vaguely: how quick a machine is to wake up changes by the second."""
HTTP_SECONDS = 4.0
OURS, BARE = "aioflow", "bare"
SUBMITS, DRAIN = "submits/s, 200 submitters", "drain, jobs/s, 100 workers"
WIDE, BARE_LOOP = "drain, jobs/s, 1,000 workers", "a bare loop of claim and settle, jobs/s, 1,000 at once"
HTTP, BARE_HTTP, FSYNC = "POST /payments, requests/s", "bare aiohttp, requests/s", "drain, jobs/s, appendfsync always"
"""What the bars refer to."""
ITEMS = ("rates", "narrow", "wide", "idle", "open_loop", "waiting", "large", "fsync", "far", "http", "start", "growth")
"""In the order in which a round does them."""


@dataclass(frozen=True)
class Sizes:
    """How much of each; a peer gets as many jobs as it does in about as much time."""

    ours: int
    peers: int
    probes: int
    deepest: int
    """Jobs that wait at most, where it is measured how the drain depends on that."""

    def jobs(self, system: System) -> int:
        """A multiple of the number of submitters."""
        return self.ours if system.name == OURS else self.peers


FULL = Sizes(100_000, 4_000, 500, 1_000_000)
QUICK = Sizes(20_000, 1_000, 100, 100_000)


@dataclass
class Results:
    """One value per round, by item and system; what a system could not do is a word."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def add(self, item: str, system: System, value: float) -> None:
        """Take one round's value."""
        self.values.setdefault(item, {}).setdefault(system.name, []).append(value)


@dataclass
class Comparison:
    """Does the items, and keeps what was found."""

    systems: Sequence[System]
    sizes: Sizes
    plain: Server
    safe: Server
    results: Results = field(default_factory=Results)

    async def round(self, only: str) -> None:
        """Every item with every system, or only that of a name."""
        for name in ITEMS:
            if only in ("", name):
                for _ in range(TURNS.get(name, 1)):
                    await self.item(getattr(self, name))

    async def item(self, item: Callable[[System], Awaitable[None]]) -> None:
        """One item with every system, in an order of its own."""
        for system in random.sample(self.systems, len(self.systems)):
            print(f"{item.__name__}: {system.name}", file=sys.stderr)
            try:
                await item(system)
            except ItemFailed as failure:
                print(failure, file=sys.stderr)
                self.results.failed.append(str(failure))

    async def fill(self, system: System, server: Server, *, size: int = 16) -> float:
        """Submit to an empty server, and say at what rate."""
        await server.empty()
        jobs = self.sizes.jobs(system)
        return (await system.run("submit", server.url, jobs=jobs, submitters=SUBMITTERS, size=size))["rate"]

    async def drain(self, system: System, url: str, *, concurrency: int = 100, wait_ms: float = 0) -> float:
        """Run what was submitted, and say at what rate."""
        jobs = self.sizes.jobs(system)
        return (await system.run("drain", url, jobs=jobs, concurrency=concurrency, wait_ms=wait_ms))["rate"]

    async def rates(self, system: System) -> None:
        """(a), (b) at 100, and (j): what they cost the server."""
        jobs = self.sizes.jobs(system)
        await self.plain.empty()
        before = await self.plain.spent()
        submitted = await self.fill(system, self.plain)
        full = await self.plain.spent()
        drained = await self.drain(system, self.plain.url)
        after = await self.plain.spent()
        found = {
            SUBMITS: submitted,
            DRAIN: drained,
            "Redis commands per job, those of scripts included": (after["commands"] - before["commands"]) / jobs,
            "Redis reads of a socket per job": (after["reads"] - before["reads"]) / jobs,
            "bytes to and from Redis per job": (after["bytes"] - before["bytes"]) / jobs,
            "CPU of Redis per job, us": (after["cpu_us"] - before["cpu_us"]) / jobs,
            "bytes in Redis of a waiting job": (full["memory"] - before["memory"]) / jobs,
            "bytes in Redis of a finished job": (after["memory"] - before["memory"]) / jobs,
        }
        for item, value in found.items():
            self.results.add(item, system, value)

    async def narrow(self, system: System) -> None:
        """(b) at 10."""
        await self.fill(system, self.plain)
        self.results.add("drain, jobs/s, 10 workers", system, await self.drain(system, self.plain.url, concurrency=10))

    async def wide(self, system: System) -> None:
        """(b) at 1,000, and what the scripts alone would allow."""
        await self.fill(system, self.plain)
        rate = await self.drain(system, self.plain.url, concurrency=1000)
        self.results.add(WIDE, system, rate)
        if system.name == OURS:
            await self.fill(system, self.plain)
            rate = await bare_rate(self.plain.url, self.sizes.ours)
            self.results.add(BARE_LOOP, System(BARE), rate)

    async def idle(self, system: System) -> None:
        """(c)."""
        await self.plain.empty()
        found = await system.run("latency", self.plain.url, probes=self.sizes.probes)
        for share in ("p50", "p99"):
            self.results.add(f"submit to start, idle, {share}, ms", system, found[f"{share}_ms"])

    async def open_loop(self, system: System) -> None:
        """(d) at half of the rate at which it would submit and drain by turns, which is what one server can keep up."""
        rates = [self.results.values.get(item, {}).get(system.name) for item in (SUBMITS, DRAIN)]
        if not all(rates):
            raise ItemFailed(f"{system.name}, open loop: its rates are not known")
        rate = 0.5 / sum(1 / known[-1] for known in rates if known)
        jobs = int(rate * OPEN_LOOP_SECONDS)
        await self.plain.empty()
        await system.run("submit", self.plain.url, jobs=0, submitters=1, size=0)  # the queue is there, with one job
        receiving = await system.begin("receive", self.plain.url, jobs=jobs)
        assert receiving.stdout is not None
        try:
            await receiving.stdout.readline()
            offered = await system.run("offer", self.plain.url, jobs=jobs, rate=rate)
            found = await system.end("receive", receiving)
        finally:
            if receiving.returncode is None:
                receiving.kill()
                await receiving.wait()
        self.results.add("steady at half of the top rate, jobs/s", system, offered["rate"])
        for share in ("p50", "p90", "p99", "p99.9"):
            self.results.add(f"submit to start, steady, {share}, ms", system, found[f"{share}_ms"])

    async def waiting(self, system: System) -> None:
        """(f)."""
        await self.fill(system, self.plain)
        rate = await self.drain(system, self.plain.url, wait_ms=5)
        self.results.add("drain, jobs/s, handlers that wait 5 ms", system, rate)

    async def large(self, system: System) -> None:
        """(g)."""
        self.results.add("submits/s, 10 KB", system, await self.fill(system, self.plain, size=10_240))
        self.results.add("drain, jobs/s, 10 KB", system, await self.drain(system, self.plain.url))

    async def fsync(self, system: System) -> None:
        """(h)."""
        self.results.add("submits/s, appendfsync always", system, await self.fill(system, self.safe))
        self.results.add(FSYNC, system, await self.drain(system, self.safe.url))

    async def far(self, system: System) -> None:
        """(i), at 100 workers, and for aioflow at 1,000 too."""
        for concurrency in (100, 1000) if system.name == OURS else (100,):
            await self.fill(system, self.plain)
            async with delayed(self.plain.port, 1.0) as port:
                rate = await self.drain(system, f"redis://127.0.0.1:{port}/0", concurrency=concurrency)
            self.results.add(f"drain, jobs/s, 1 ms further away, {concurrency:,} workers", system, rate)

    async def http(self, system: System) -> None:
        """(e)."""
        if system.name not in {OURS, "arq", "saq"}:
            return
        await self.plain.empty()
        async with serving(system, self.plain) as url:
            rate, slow_ms = await requests(url, HTTP_SECONDS)
        self.results.add(HTTP, system, rate)
        self.results.add("POST /payments, p99, ms", system, slow_ms)
        if system.name == OURS:
            async with bare_server() as url:
                rate, slow_ms = await requests(url, HTTP_SECONDS)
            self.results.add(BARE_HTTP, System(BARE), rate)
            self.results.add("bare aiohttp, p99, ms", System(BARE), slow_ms)

    async def start(self, system: System) -> None:
        """How long a user waits for what."""
        if system.name == OURS:
            self.results.add("import aioflow, ms", system, await imported())
            self.results.add("serve with all services until ready, s", system, await served())

    async def growth(self, system: System) -> None:
        """(k), of aioflow only: a peer would take a quarter of an hour to submit as much."""
        if system.name != OURS:
            return
        for item, values in (await grown(system, self.sizes.deepest)).items():
            for value in values:
                self.results.add(item, system, value)


@asynccontextmanager
async def serving(system: System, server: Server) -> AsyncIterator[str]:
    """The URL of a system's ingress: the payments service, or FastAPI with the peer."""
    if system.name == OURS:
        serve = Serve("services.payments:service", "--redis", server.url, "--port", "0", "--no-workers")
        await serve.start()
        try:
            yield serve.url
        finally:
            serve.close()
        return
    port = free_port()
    process = await system.start("fastapi_app.py", server.url, str(port))

    def listening() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        await wait_until(listening, 20)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await asyncio.wait_for(process.communicate(), 10)
