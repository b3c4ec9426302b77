"""POST /track into SQLite: how fast events are accepted, and how fast they are all in the table.

Collecting and processing are processes of their own, as is the generator; the database is asked how many rows it has.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson
import psutil
import uvloop

from services.tracking.generator import Events
from tests.serving import Serve
from tests.valkey import Valkey
from tests.waiting import wait_until

CONNECTIONS = 32
JSON = {"Content-Type": "application/json"}
ALL_SECONDS = 120.0


class Tracked(NamedTuple):
    """Events per second until all were accepted, until all were in the table, and CPU seconds of both processes."""

    accepted: float
    stored: float
    cpu_us: float


def _generate(url: str, events: int, of_post: int, told: multiprocessing.Queue[int]) -> None:
    async def run() -> None:
        drawn = Events(1)
        bodies = iter(
            [
                orjson.dumps([drawn.draw() for _ in range(of_post)] if of_post > 1 else drawn.draw())
                for _ in range(events // of_post)
            ]
        )
        accepted = 0
        told.put(-1)

        async def post(session: aiohttp.ClientSession) -> None:
            nonlocal accepted
            for body in bodies:
                async with session.post(f"{url}/track", data=body, headers=JSON) as answer:
                    said: Any = orjson.loads(await answer.read())
                    assert answer.status == 202, said
                    accepted += said.get("accepted", 1)

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session:
            await asyncio.gather(*(post(session) for _ in range(CONNECTIONS)))
        told.put(accepted)

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
