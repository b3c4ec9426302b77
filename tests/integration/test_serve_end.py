"""How a serving process ends when something in it will not: in time, with what it printed, and the right exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import ROOT
from tests.waiting import wait_until

APP = """
import asyncio, os
from contextlib import asynccontextmanager
from aioflow import ConfigError, Service

CASE = os.environ["CASE"]
kept = []

async def deaf():
    while True:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            print("swallowed")

@asynccontextmanager
async def lifespan(runtime):
    if CASE == "task":
        kept.append(asyncio.create_task(deaf(), name="a task of the service's own"))
    if CASE in ("handler", "nobody reads"):
        await runtime.submit(work)
    yield
    if CASE == "lifespan":
        await deaf()
    if CASE == "nobody reads":
        raise ConfigError("the lifespan says no")

service = Service("demo", lifespan=lifespan)

@service.task(timeout=None)
async def work() -> None:
    open("ran", "w").close()
    await deaf()

@service.get("/slow")
async def slow(request, runtime):
    kept.append(runtime._spawn(fails(), "a loop that fails"))
    await asyncio.wait(kept)
    return {}

async def fails():
    raise RuntimeError("it broke")
"""


class Process:
    """A `serve` whose output goes to pipes."""

    def __init__(self, folder: Path, case: str, *arguments: str) -> None:
        (folder / "app.py").write_text(APP)
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "aioflow",
                "serve",
                "app:service",
                "--redis",
                "memory:",
                "--grace",
                "0.3",
                *arguments,
            ],
            cwd=folder,
            env={**clean, "PYTHONPATH": str(ROOT), "CASE": case},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline()

    async def stop(self) -> tuple[int, str, str]:
        """(exit code, what it printed, what it logged) after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        out, err = await asyncio.to_thread(self.process.communicate, None, 15)
        return self.process.returncode, out, err


@pytest.mark.parametrize(
    ("case", "left"),
    [
        pytest.param("task", "a task of the service's own", id="a task of the service"),
        pytest.param("lifespan", "aioflow lifespans", id="a lifespan that does not end"),
    ],
)
async def test_what_takes_no_notice_of_the_stop_ends_with_the_process(tmp_path: Path, case: str, left: str) -> None:
    code, _, err = await Process(tmp_path, case, "--no-ingress").stop()
    assert code == 0
    assert "took no notice of the stop" in err
    assert left in err


async def test_what_a_handler_has_printed_is_there(tmp_path: Path) -> None:
    process = Process(tmp_path, "handler", "--no-ingress")
    await wait_until((tmp_path / "ran").exists)
    code, out, _ = await process.stop()
    assert code == 0
    assert set(out.split()) == {"swallowed"}


async def test_nobody_reads_what_it_says_at_its_end(tmp_path: Path) -> None:
    process = Process(tmp_path, "nobody reads", "--no-ingress")
    assert process.process.stderr is not None
    process.process.stderr.close()
    process.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.process.wait, 15) == 2
    assert process.process.stdout is not None
    process.process.stdout.close()


async def test_a_part_that_fails_is_told_by_the_exit_code(tmp_path: Path) -> None:
    process = Process(tmp_path, "", "--port", "0")
    host, port = process.greeting.partition("on http://")[2].partition(",")[0].split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /slow HTTP/1.1\r\nHost: demo\r\n\r\n")
    await wait_until(lambda: process.process.poll() is not None, 15)
    code, _, err = await process.stop()
    writer.close()
    assert code == 1
    assert "it broke" in err
