"""One run: services and submitters as real processes, a seeded schedule of what goes wrong, then the check."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from aioflow import AioflowError, Runtime
from aioflow.engine import scripts
from services.payments.api import charge
from services.payments.api import service as payments
from tests.chaos.check import Check
from tests.chaos.work import LEASE, SQLITE, book, books, die, sell, shop, stock, take
from tests.proxy import Proxy
from tests.serving import ROOT, Serve, bound
from tests.valkey import Valkey
from tests.waiting import wait_until

NAMESPACE = "chaos"
SERVICES = ("tests.chaos.work:shop", "tests.chaos.work:stock", "tests.chaos.work:books", "services.payments:service")
RUNTIMES = 3
SUBMITTERS = 2
SETTLED_SECONDS = 120.0
"""Once nothing goes wrong any more, all that was accepted must be done within so many."""


@dataclass
class Report:
    """What a run did, and what it found."""

    seed: int
    minutes: float
    faults: Counter[str] = field(default_factory=Counter)
    process_kills: int = 0
    server_kills: int = 0
    accepted: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)
    schedule: list[str] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return dict(vars(self))


class Submitting:
    """One submitting process after the other."""

    def __init__(self, number: int, command: list[str], folder: Path) -> None:
        self._number = number
        self._command = command
        self._log = folder / f"receipts-{number}"
        self._said = (folder / f"submitter-{number}.log").open("ab")
        self._lives = 0
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        """Begin another life."""
        self._lives += 1
        life = f"s{self._number}l{self._lives}"
        self.process = subprocess.Popen(
            [*self._command, "--log", str(self._log), "--life", life], cwd=ROOT, stdout=self._said, stderr=self._said
        )

    def receipts(self) -> list[tuple[str, str]]:
        """(kind, name) of each receipt; the last line may have been cut short with its process."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [(kind, name) for kind, _, name in (line.partition(" ") for line in lines)]

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._said.close()


class Run:
    """A run of so many minutes; the seed decides what goes wrong, and when."""

    def __init__(self, seed: int, minutes: float, *, pace: float = 0.1, deadly: float = 0.0005) -> None:
        self.report = Report(seed, minutes)
        self._drawn = random.Random(seed)
        self._folder = Path(tempfile.mkdtemp(prefix="aioflow-chaos-"))
        self._valkey = Valkey(fsync=True)
        self._proxy = Proxy(self._valkey.socket)
        self._sockets = [bound() for _ in range(RUNTIMES)]
        self._pace = pace
        self._deadly = deadly
        self._runtimes: list[Serve] = []
        self._submitters: list[Submitting] = []
        self._frozen: set[int] = set()
        self._began = time.monotonic()

    async def run(self) -> Report:
        """Everything; the report says whether all promises were kept."""
        self._valkey.start()
        try:
            async with self._proxy:
                self._make()
                await asyncio.gather(*(runtime.start() for runtime in self._runtimes))
                for submitter in self._submitters:
                    submitter.spawn()
                supervising = asyncio.create_task(self._supervise())
                try:
                    await self._go_wrong()
                    await self._end()
                finally:
                    supervising.cancel()
                    await asyncio.wait([supervising])
        finally:
            for submitter in self._submitters:
                submitter.close()
            for runtime in self._runtimes:
                runtime.close()
            self._valkey.close()
            shutil.rmtree(self._folder, ignore_errors=True)
        return self.report

    def _make(self) -> None:
        ports = [listener.getsockname()[1] for listener in self._sockets]
        for listener in self._sockets:
            listener.close()
        environment = {
            "AIOFLOW_NAMESPACE": NAMESPACE,
            SQLITE: str(self._folder / "books.sqlite3"),
            "PAYMENTS_SIMULATED_LATENCY": "0.02",
        }
        for number, port in enumerate(ports):
            url = self._proxy.url if number == 0 else self._valkey.url
            words = (*SERVICES, "--redis", url, "--port", str(port), "--grace", "2")
            self._runtimes.append(Serve(*words, environment=environment))
        for number in range(SUBMITTERS):
            url = self._proxy.url if number == 0 else self._valkey.url
            command = [sys.executable, "-m", "tests.chaos.submitter", "--redis", url, "--namespace", NAMESPACE]
            command += ["--seed", str(self.report.seed), "--pace", str(self._pace), "--deadly", str(self._deadly)]
            command += ["--ports", *map(str, ports)]
            self._submitters.append(Submitting(number, command, self._folder))

    async def _supervise(self) -> None:
        """Start again what has died, as a supervisor does; a job that kills its process counts as a kill."""
        while True:
            everybody: list[Serve | Submitting] = [*self._runtimes, *self._submitters]
            for kept in everybody:
                if kept.process is not None and kept.process.poll() is not None:
                    self.report.process_kills += kept.process.returncode == -signal.SIGKILL
                    kept.spawn()
            await asyncio.sleep(0.1)

    # ---- what goes wrong

    async def _go_wrong(self) -> None:
        faults: dict[Callable[[], Awaitable[str]], int] = {
            self._kill_a_runtime: 8,
            self._kill_a_submitter: 3,
            self._end_a_runtime: 2,
            self._freeze_a_runtime: 3,
            self._kill_the_server: 2,
            self._freeze_the_server: 1,
            self._cut_the_line: 3,
            self._stall_the_line: 1,
            self._lose_replies: 4,
            self._kill_clients: 2,
            self._flush_scripts: 1,
            self._fill_the_memory: 1,
        }
        end = time.monotonic() + 60 * self.report.minutes
        while time.monotonic() < end:
            await asyncio.sleep(self._drawn.uniform(0.5, 3.0))
            (fault,) = self._drawn.choices(list(faults), list(faults.values()))
            detail = await fault()
            name = fault.__name__.strip("_")
            self.report.faults[name] += 1
            self.report.schedule.append(f"{time.monotonic() - self._began:.1f} {name} {detail}".rstrip())

    def _some_runtime(self) -> Serve:
        return self._drawn.choice(self._runtimes)

    def _signal(self, process: subprocess.Popen[bytes] | None, number: signal.Signals) -> str:
        assert process is not None
        with suppress(ProcessLookupError):
            process.send_signal(number)
        return str(process.pid)

    async def _kill_a_runtime(self) -> str:
        return self._signal(self._some_runtime().process, signal.SIGKILL)

    async def _kill_a_submitter(self) -> str:
        return self._signal(self._drawn.choice(self._submitters).process, signal.SIGKILL)

    async def _end_a_runtime(self) -> str:
        return self._signal(self._some_runtime().process, signal.SIGTERM)

    async def _freeze_a_runtime(self) -> str:
        """For longer than the lease: it wakes as a zombie, and settles what is another's by now."""
        process = self._some_runtime().process
        self._signal(process, signal.SIGSTOP)
        await asyncio.sleep(self._drawn.uniform(1.2, 3.0) * LEASE)
        return self._signal(process, signal.SIGCONT)

    async def _kill_the_server(self) -> str:
        await asyncio.to_thread(self._valkey.kill)
        await asyncio.sleep(self._drawn.uniform(0.0, 1.0))
        await asyncio.to_thread(self._valkey.start)
        self.report.server_kills += 1
        return ""

    async def _freeze_the_server(self) -> str:
        self._valkey.signal(signal.SIGSTOP)
        await asyncio.sleep(self._drawn.uniform(1.2, 3.0) * LEASE)
        self._valkey.signal(signal.SIGCONT)
        return ""

    async def _cut_the_line(self) -> str:
        self._proxy.cut()
        return ""

    async def _stall_the_line(self) -> str:
        self._proxy.stall()
        await asyncio.sleep(self._drawn.uniform(0.5, 6.0))
        self._proxy.flow()
        return ""

    async def _lose_replies(self) -> str:
        name = self._drawn.choice(["submit", "claim", "settle", "relay", "renew", "reap"])
        script = scripts.load(f"queue/{name}")
        self._proxy.lose_reply(script.sha.encode(), self._drawn.randint(1, 3))
        return name

    async def _kill_clients(self) -> str:
        return str(await self._asked("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))

    async def _flush_scripts(self) -> str:
        return str(await self._asked("SCRIPT", "FLUSH"))

    async def _fill_the_memory(self) -> str:
        """At maxmemory submits are refused, and the rest goes on."""
        await self._asked("CONFIG", "SET", "maxmemory", "1mb")
        await asyncio.sleep(self._drawn.uniform(0.2, 1.0))
        return str(await self._asked("CONFIG", "SET", "maxmemory", "0"))

    async def _asked(self, *words: str) -> Any:
        async with Redis.from_url(self._valkey.admin_url) as redis:
            return await redis.execute_command(*words)

    # ---- the end

    async def _end(self) -> None:
        """Nothing goes wrong any more: submitters end, the rest is done, and then everything is looked at."""
        for submitter in self._submitters:
            process, submitter.process = submitter.process, None  # nobody starts it again
            self._signal(process, signal.SIGTERM)
            assert process is not None
            await asyncio.to_thread(process.wait, 30)
        receipts: dict[str, list[str]] = {"order": [], "die": [], "payment": []}
        for submitter in self._submitters:
            for kind, name in submitter.receipts():
                receipts[kind].append(name)
        self.report.accepted = Counter({kind: len(names) for kind, names in receipts.items()})
        services = [shop, stock, books, payments]
        async with Runtime(services, redis=self._valkey.url, namespace=NAMESPACE, workers=False) as runtime:

            async def settled() -> bool:
                try:
                    views = [await runtime.overview(task) for task in (sell, die, take, book, charge)]
                except AioflowError:
                    return False
                return not any(view.sizes.open or view.outbox for view in views)

            try:
                await wait_until(settled, SETTLED_SECONDS)
            except AssertionError as error:
                self.report.wrong.append(f"work is left: {error}")
            check = Check(runtime, receipts, self._folder / "books.sqlite3")
            self.report.wrong += await check.all()
            self.report.lost, self.report.doubled = check.lost, check.doubled
        for served in self._runtimes:
            process, served.process = served.process, None
            self._signal(process, signal.SIGTERM)
            assert process is not None
            code = await asyncio.to_thread(process.wait, 30)
            if code:
                self.report.wrong.append(f"a runtime ended with {code} after the calm")
        tracebacks = sum(served.said.count("Traceback") for served in self._runtimes)
        if tracebacks:
            self.report.wrong.append(f"{tracebacks} tracebacks in the logs of the runtimes")


def new_seed() -> int:
    """One that nobody has chosen."""
    return int.from_bytes(os.urandom(4))
