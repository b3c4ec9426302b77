"""The processes of a run: runtimes, submitters, the server behind its proxy, the database; and their supervisor."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.chaos import ledger
from tests.chaos.history import LINE, History, Span
from tests.chaos.receipts import Receipt, read
from tests.chaos.server import Server
from tests.chaos.work import KEEP, MOST_MEMORY, POSTGRES, SQLITE, TABLE
from tests.postgres import Postgres
from tests.proxy import Proxy
from tests.serving import ROOT, Serve, bound

NAMESPACE = "chaos"
MODULE = "tests.chaos.work"
SERVICES = (*(f"{MODULE}:{name}" for name in ("shop", "stock", "books", "archive")), "services.payments:service")
RUNTIMES = 3
SUBMITTERS = 2
PAGE = 4096
HOUR = 3600


class Submitting:
    """One submitting process after the other."""

    def __init__(self, number: int, command: list[str], folder: Path) -> None:
        self._number = number
        self._command = command
        self._log = folder / f"receipts-{number}"
        self._out = folder / f"submitter-{number}.log"
        self._err = self._out.open("ab")
        self._lives = 0
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        """Begin another life."""
        self._lives += 1
        life = f"s{self._number}l{self._lives}"
        self.process = subprocess.Popen(
            [*self._command, "--log", str(self._log), "--life", life], cwd=ROOT, stdout=self._err, stderr=self._err
        )

    @property
    def said(self) -> str:
        """Standard output and error of all its lives."""
        return self._out.read_text()

    def receipts(self) -> Iterator[Receipt]:
        """All that its lives were given."""
        return read(self._log)

    def close(self) -> None:
        """End it whatever its state."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._err.close()


class World:
    """All processes; what dies is started again, as a supervisor does it."""

    def __init__(self, seed: int, pace: float, deadly: float) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aioflow-chaos-"))
        self.ledger = self.folder / "ledger"
        self.ledger.mkdir()
        self.books = self.folder / "books.sqlite3"
        self.history = History()
        self.server = Server(self.folder)
        self.proxy = Proxy(self.server.socket)
        self.runtimes: list[Serve] = []
        self.submitters: list[Submitting] = []
        self.ports: list[int] = []
        self.exits: list[str] = []
        """Processes that ended by themselves, and not in order, where the server was there."""
        self.process_kills = 0
        self.memory_kills = 0
        self.losses: Span | None = None
        """Since when replies are being lost."""
        self._options = ["--seed", str(seed), "--pace", str(pace), "--deadly", str(deadly)]
        self._database: Postgres | None = None
        self.archive = ""
        """The URL of a database of `database`."""

    async def start(self) -> None:
        """Everything but the submitters, which are started one by one."""
        self.server.start()
        self._database = await asyncio.to_thread(Postgres)
        self.archive = await asyncio.to_thread(self.database.new_database)
        await asyncio.to_thread(self.database.run, TABLE, self.archive)
        await self.proxy.__aenter__()
        sockets = [bound() for _ in range(RUNTIMES)]
        self.ports = [listener.getsockname()[1] for listener in sockets]
        for listener in sockets:
            listener.close()
        # Where clocks step by an hour, a record must outlive one, or a repeated submit of its id is a new job.
        keep = HOUR + 600 if self.server.can_step else 600
        environment = {
            "AIOFLOW_NAMESPACE": NAMESPACE,
            ledger.FOLDER: str(self.ledger),
            SQLITE: str(self.books),
            POSTGRES: self.archive,
            KEEP: str(keep),
            "PAYMENTS_SIMULATED_LATENCY": "0.02",
        }
        for number, port in enumerate(self.ports):
            words = (*SERVICES, "--redis", self._url(number), "--port", str(port), "--grace", "2")
            self.runtimes.append(Serve(*words, environment=environment))
        for number in range(SUBMITTERS):
            command = [sys.executable, "-m", "tests.chaos.submitter", "--redis", self._url(number), *self._options]
            command += ["--namespace", NAMESPACE, "--ports", *map(str, self.ports)]
            self.submitters.append(Submitting(number, command, self.folder))
        await asyncio.gather(*(runtime.start() for runtime in self.runtimes))

    def _url(self, number: int) -> str:
        return self.proxy.url if number == 0 else self.server.url

    async def close(self, *, keep: bool = False) -> None:
        """End everything whatever its state; `keep` the logs and ledgers."""
        if keep:
            for number, runtime in enumerate(self.runtimes):
                (self.folder / f"runtime-{number}.log").write_text(runtime.said)
        for kept in self._kept:
            kept.close()
        if self.ports:
            await self.proxy.__aexit__()
        self.server.close()
        if self._database is not None:
            self._database.close()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def database(self) -> Postgres:
        """The PostgreSQL of a world that has started."""
        assert self._database is not None
        return self._database

    @property
    def _kept(self) -> list[Serve | Submitting]:
        return [*self.runtimes, *self.submitters]

    # ---- the supervisor

    async def supervise(self) -> None:
        """Start again what has died, and kill what takes more memory than there is; a job's own kill counts too."""
        while True:
            for kept in self._kept:
                if kept.process is not None and kept.process.poll() is not None:
                    if kept.process.returncode == -signal.SIGKILL:
                        self.history.died(kept.process.pid)
                        self.process_kills += 1
                    elif kept.process.returncode and not self.history.is_server_away(now := time.monotonic(), now):
                        self.exits.append(f"{type(kept).__name__} with exit code {kept.process.returncode}")
                    kept.spawn()
            for runtime in self.runtimes:
                if runtime.process is not None and memory_of(runtime.process.pid) > MOST_MEMORY:
                    self.memory_kills += 1
                    self.kill(runtime.process)
            if self.losses is not None and not self.proxy.is_losing:
                self.losses.ended = time.monotonic()
                self.losses = None
            await asyncio.sleep(0.1)

    def kill(self, process: subprocess.Popen[bytes] | None) -> str:
        """SIGKILL; whose."""
        pid = self.signal(process, signal.SIGKILL)
        self.history.died(int(pid))
        return pid

    def signal(self, process: subprocess.Popen[bytes] | None, number: signal.Signals) -> str:
        """Send a signal; whose process it is."""
        assert process is not None
        with suppress(ProcessLookupError):
            process.send_signal(number)
        return str(process.pid)

    def lose(self, mark: bytes, times: int) -> None:
        """Lose so many replies on the line of those behind the proxy."""
        self.losses = self.losses or self.history.begin(LINE)
        self.proxy.lose_reply(mark, times)


def memory_of(pid: int) -> int:
    """Bytes that a process has in memory; 0 where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0
