"""`python -m aioflow serve` as a real process."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent


def bound() -> socket.socket:
    """A socket on a free port of this machine."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


class Serve:
    """One serving process; what it says goes to files, so that no pipe fills up."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None, cwd: Path = ROOT) -> None:
        self._arguments = arguments
        self._environment = {**os.environ, "PYTHONWARNINGS": "default", **(environment or {})}
        self._cwd = cwd
        self._out = Path(tempfile.mkstemp(prefix="aioflow-serve-")[1])
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def said(self) -> str:
        """Standard output and error of all its lives."""
        return self._out.read_text()

    def spawn(self) -> None:
        """Start the process."""
        with self._out.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "aioflow", "serve", *self._arguments],
                cwd=self._cwd,
                env=self._environment,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
            )

    async def start(self) -> None:
        """Start the process and wait for its greeting."""
        told = len(self.said)
        self.spawn()

        def greeting() -> str:
            found = re.search(r"^aioflow serves .*", self.said[told:], re.MULTILINE)
            return found[0] if found else ""

        where = re.search(r"on (http://\S+),", await wait_until(greeting, 30))
        self.url = where[1] if where else ""

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 15.0) -> int:
        """Send a signal and return the exit code, which must come within so many seconds."""
        assert self.process is not None
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, seconds)

    def close(self) -> None:
        """End it whatever its state."""
        self.kill()
        self._out.unlink(missing_ok=True)
