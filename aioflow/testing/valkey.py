"""A Valkey server of a test run's own: in a temporary folder, on a unix socket, nothing on disk, gone at the end."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from aioflow.embedded import find_binary
from aioflow.errors import StoreUnavailable

START_SECONDS = 15.0
POLL_SECONDS = 0.002
WATCH = 'read -r _; kill -9 "$1"; rm -rf "$2"'
"""A shell that waits for the end of its input: that is the end of the process that runs the tests, however it comes."""


class PrivateValkey:
    """`with PrivateValkey() as server:` starts it and kills it; `server.url` is what a runtime takes."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="aioflow-test-"))
        self._socket = self._folder / "s"
        self.url = f"unix://{quote(str(self._socket))}"
        self._server: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<PrivateValkey {self.url} running={self._server is not None}>"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        """Start it and wait until it answers; that takes some ms, for which the caller's event loop stands still."""
        options = ("--port", "0", "--save", "", "--appendonly", "no", "--locale-collate", "C")
        self._server = subprocess.Popen(  # noqa: S603 - our own binary and settings
            [str(find_binary()), *options, "--unixsocket", str(self._socket), "--dir", str(self._folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the tests, which end it last
        )
        self._watch = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", WATCH, "sh", str(self._server.pid), str(self._folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._server.poll() is not None:
                raise StoreUnavailable(f"the test's valkey ended with exit status {self._server.returncode}")
            if time.monotonic() > end:
                raise StoreUnavailable(f"the test's valkey does not answer within {START_SECONDS:g} s")
            time.sleep(POLL_SECONDS)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(str(self._socket))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        return False

    def close(self) -> None:
        """Kill it and remove its folder. May be repeated."""
        # The watch first: the number of a process that has ended may be given to another.
        for process in (self._watch, self._server):
            if process is not None:
                process.kill()
                process.wait()
        if self._watch is not None and self._watch.stdin is not None:
            self._watch.stdin.close()
        self._watch = self._server = None
        shutil.rmtree(self._folder, ignore_errors=True)
