"""The Valkey of a run: it may be killed, its clock set, and the disk under its append-only file be full."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.valkey import Valkey

FAKETIME = (
    Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"),
)
"""Where Debian's package libfaketime puts it."""
LOADED_IN = 120.0
"""Seconds in which a restarted server has read its append-only file."""
ROOM = 1 << 20
"""Bytes that are left on the small disk."""
FULL_IN = 30.0
STEPPED_IN = 3.0
"""Seconds in which a new offset is read: libfaketime looks once a second."""


class Server(Valkey):
    """With appendfsync always."""

    def __init__(self, folder: Path) -> None:
        library = next((str(path) for path in FAKETIME if path.exists()), "")
        self._offset = folder / "clock"
        faked = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }
        super().__init__(fsync=True, environment=faked if library else None)
        self.can_step = bool(library)
        self.can_fill = os.geteuid() == 0 and mounts(folder / "disk")
        self._aof = self.folder / "appendonlydir"
        self._mounted = False
        self.offset = self.latest = 0
        """Seconds that its clock is off now, and was at most."""
        self.step(0)

    def step(self, offset: int) -> None:
        """Set its clock to so many seconds off; it shows that within `STEPPED_IN` seconds."""
        self.offset, self.latest = offset, max(self.latest, offset)
        new = self._offset.with_suffix(".new")
        new.write_text(f"{offset:+d}\n")
        new.replace(self._offset)

    def start(self, seconds: float = LOADED_IN) -> None:
        """Start it and wait until it has read what there is."""
        super().start(seconds)

    def kill(self) -> None:
        """SIGKILL it and wait for its end."""
        process = self.process
        super().kill()
        if process is not None:
            tidy(process.pid)

    def start_on_a_small_disk(self) -> None:
        """Kill it, and start it with its append-only file on a disk that has `ROOM` left."""
        self.kill()
        aside = self.folder / "aside"
        self._aof.rename(aside)
        self._aof.mkdir()
        files = list(aside.iterdir())
        size = sum(file.stat().st_size + 8192 for file in files) + ROOM
        mount(self._aof, size)
        self._mounted = True
        for file in files:
            shutil.copy2(file, self._aof)
        with suppress(AssertionError):  # it may be full before the first answer
            self.start()

    async def wait_for_a_full_disk(self) -> int | None:
        """Its exit code once it has ended, as it does by design; None where it has not in `FULL_IN` seconds."""
        assert self.process is not None
        try:
            return await asyncio.to_thread(self.process.wait, FULL_IN)
        except subprocess.TimeoutExpired:
            return None

    def make_room(self) -> None:
        """Put its append-only file back on the large disk, all that is there of it, and start it."""
        self.kill()
        shutil.rmtree(self.folder / "aside")
        moved = self.folder / "moved"
        shutil.copytree(self._aof, moved)
        self._unmount()
        self._aof.rmdir()
        moved.rename(self._aof)
        self.start()

    def _unmount(self) -> None:
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self._aof)], check=True)
            self._mounted = False

    def close(self) -> None:
        """End it and remove its folder."""
        self.kill()
        self._unmount()
        super().close()


def mount(folder: Path, size: int) -> None:
    """A disk of so many bytes, in memory. Raises CalledProcessError where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def mounts(folder: Path) -> bool:
    """Whether this process may mount a disk."""
    folder.mkdir()
    try:
        mount(folder, ROOM)
    except (OSError, subprocess.CalledProcessError):
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


def tidy(pid: int) -> None:
    """Remove what libfaketime leaves of a process that was killed."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        Path("/dev/shm", name).unlink(missing_ok=True)
