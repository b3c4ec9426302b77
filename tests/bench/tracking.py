"""POST /track into SQLite: how fast events are accepted, and how fast they are all in the table.

Collecting and processing are processes of their own, as is the generator; the database is asked how many rows it has.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import orjson
import psutil
import uvloop

from services.tracking.generator import Events
from tests.serving import Serve
from tests.valkey import Valkey
from tests.waiting import wait_until

CONNECTIONS = 128
"""A receipt waits for the disk: so many posts share one fsync."""
ALL_SECONDS = 120.0


class Tracked(NamedTuple):
    """Events per second until all were accepted, until all were in the table, and CPU seconds of both processes."""

    accepted: float
    stored: float
    cpu_us: float


class Poster(asyncio.Protocol):
    """One connection that posts the next body as soon as the one before is answered."""

    def __init__(self, host: str, bodies: Iterator[bytes]) -> None:
        self._head = f"POST /track HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: "
        self._bodies = bodies
        self._transport: asyncio.WriteTransport | None = None
        self._answer = b""
        self.accepted = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._post()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        if not end or length is None or len(body) < int(length[1]):
            return
        if not head.startswith(b"HTTP/1.1 202"):
            self.done.set_exception(AssertionError(self._answer[:500]))
            return
        self.accepted += orjson.loads(body).get("accepted", 1)
        self._answer = b""
        self._post()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(AssertionError(f"a connection was lost: {error}"))

    def _post(self) -> None:
        assert self._transport is not None
        body = next(self._bodies, None)
        if body is None:
            self.done.set_result(None)
            self._transport.close()
        else:
            self._transport.write(f"{self._head}{len(body)}\r\n\r\n".encode() + body)


def _generate(url: str, events: int, of_post: int, told: multiprocessing.Queue[int]) -> None:
    async def run() -> None:
        drawn, parts = Events(1), urlsplit(url)
        bodies = [
            orjson.dumps([drawn.draw() for _ in range(of_post)] if of_post > 1 else drawn.draw())
            for _ in range(events // of_post)
        ]
        told.put(-1)
        rest = iter(bodies)
        made = [
            await asyncio.get_running_loop().create_connection(
                lambda: Poster(parts.netloc, rest), str(parts.hostname), int(parts.port or 80)
            )
            for _ in range(min(CONNECTIONS, len(bodies)))
        ]
        await asyncio.gather(*(poster.done for _, poster in made))
        told.put(sum(poster.accepted for _, poster in made))

    uvloop.run(run())


def _rows(file: Path) -> int:
    with closing(sqlite3.connect(file)) as database:
        return int(database.execute("SELECT count(*) FROM requests").fetchone()[0])


def _cpu(*processes: Serve) -> float:
    times = [psutil.Process(serve.process.pid).cpu_times() for serve in processes if serve.process is not None]
    return sum(float(spent.user + spent.system) for spent in times)


async def tracked(server: Valkey, events: int, of_post: int) -> Tracked:
    """Post so many events, and wait until exactly so many rows are there."""
    with tempfile.TemporaryDirectory() as folder:
        options = ("services.tracking:service", "--redis", server.url, "--data", folder)
        collecting = Serve(*options, "--no-workers", "--port", "0")
        processing = Serve(*options, "--no-ingress")
        file = Path(folder) / "tracking.sqlite3"
        context = multiprocessing.get_context("spawn")
        told: multiprocessing.Queue[int] = context.Queue()
        try:
            await asyncio.gather(collecting.start(), processing.start())
            await wait_until(file.exists, 30)
            generator = context.Process(target=_generate, args=(collecting.url, events, of_post, told), daemon=True)
            generator.start()
            await asyncio.to_thread(told.get, True, 60)
            began, spent = time.perf_counter(), _cpu(collecting, processing)
            accepted = await asyncio.to_thread(told.get, True, ALL_SECONDS)
            until_accepted = time.perf_counter() - began
            await wait_until(lambda: _rows(file) >= accepted, ALL_SECONDS)
            until_stored = time.perf_counter() - began
            assert _rows(file) == accepted == events
            cpu = (_cpu(collecting, processing) - spent) / events
            await asyncio.to_thread(generator.join)
            return Tracked(events / until_accepted, events / until_stored, cpu * 1e6)
        finally:
            collecting.close()
            processing.close()
