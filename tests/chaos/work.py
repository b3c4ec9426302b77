"""Services that hand orders on to each other, for runs in which everything is killed.

`shop.sell` emits to `stock.take`, that to `books.book` or `archive.file`, which write batches into SQLite and into
PostgreSQL. Each notes by an effect that it did its part of an order: after any number of kills every order must have
each note exactly once. Each attempt is noted in the run's ledger as well, by a middleware.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from pydantic import BaseModel

from aioflow import Batch, Job, Retry, Runtime, Service
from tests.chaos import ledger

SQLITE, POSTGRES, KEEP = "CHAOS_SQLITE", "CHAOS_POSTGRES", "CHAOS_KEEP"
"""Environment variables: the file of the books, the URL of the archive, the seconds for which records are kept."""
LEASE = 1.0
WAITED = 3.0 * LEASE
"""Seconds that a waiting job takes."""
HELD_UP = 2.5 * LEASE
"""Seconds for which the worst of handlers holds up its loop."""
PATIENT = Retry(attempts=50, base=0.02, longest=0.5)
BLAMELESS = 100
"""Processes are killed all the time here, which no job can help."""
MOST_MEMORY = 600 << 20
"""Bytes; a runtime that has more is killed, as a machine that runs out of memory does it."""
BITE = 16 << 20
TABLE = "CREATE TABLE IF NOT EXISTS orders (name TEXT PRIMARY KEY)"


@asynccontextmanager
async def opened(_: Runtime) -> AsyncIterator[Any]:
    """Connections to the archive, made when they are needed: the database may be away."""
    import asyncpg

    async with asyncpg.create_pool(
        os.environ.get(POSTGRES), min_size=0, max_size=2, timeout=5, command_timeout=10
    ) as pool:
        yield pool


def service(name: str, **options: Any) -> Service:
    """A service whose attempts are noted."""
    return Service(name, middleware=[ledger.noted], **options)


shop, stock, books = service("shop"), service("stock"), service("books")
archive = service("archive", lifespan=opened)
KEPT: Any = {"lease": LEASE, "keep_done": float(os.environ.get(KEEP, "600"))}


class Order(BaseModel):
    """An order by the name that its submitter gave it."""

    name: str
    deed: Literal["", "fail", "block", "hold", "sleep"] = ""


@shop.task(retry=PATIENT, most_crashes=BLAMELESS, concurrency=50, **KEPT)
async def sell(order: Order, job: Job) -> str:
    """Sell, and have it taken from stock; some fail at first, hold up the loop, or take longer than the lease."""
    if order.deed == "fail" and job.attempt == 1:
        raise ValueError("no till is open")
    if order.deed in ("block", "hold"):
        with ledger.blocked():
            time.sleep(0.2 if order.deed == "block" else HELD_UP)  # noqa: ASYNC251 - that is the deed
    if order.deed == "sleep":
        await asyncio.sleep(1.5 * LEASE)
    job.commit.hincrby("sold", order.name, 1)
    job.commit.submit("stock.take", order)
    return order.name


@shop.task(lease=LEASE, concurrency=2)
async def die(name: str) -> None:
    """Kill the process, as an error in a C library does; after three times the job is dead."""
    os.kill(os.getpid(), signal.SIGKILL)


@shop.task(lease=LEASE, concurrency=1, timeout=None)
async def eat(name: str) -> None:
    """Take more and more memory, until the process is killed for it; after three times the job is dead."""
    eaten: list[bytes] = []
    while len(eaten) * BITE < 4 * MOST_MEMORY:
        eaten.append(b"\1" * BITE)
        await asyncio.sleep(0.02)
    raise MemoryError("nobody has killed this process")


@shop.task(most_crashes=BLAMELESS, retry=PATIENT, **KEPT)
async def wait(name: str, job: Job) -> None:
    """Run for longer than a lease, in a queue that is never long: how soon it starts again is looked at."""
    await asyncio.sleep(WAITED)
    job.commit.hincrby("waited", name, 1)


@shop.task(concurrency=1, **KEPT)
async def step(name: str) -> None:
    """Nothing, one after the other: in which order they start is what is looked at."""


@stock.task(retry=PATIENT, most_crashes=BLAMELESS, **KEPT)
def take(order: Order, job: Job) -> None:
    """Take it from stock, in a thread."""
    job.commit.hincrby("taken", order.name, 1)
    job.commit.submit("archive.file" if is_filed(order.name) else "books.book", order)


def is_filed(name: str) -> bool:
    """Whether an order goes into the archive; else it goes into the books."""
    return zlib.crc32(name.encode()) % 2 == 1


@books.task(retry=PATIENT, most_crashes=BLAMELESS, batch=100, linger=0.02, **KEPT)
async def book(orders: list[Order], batch: Batch) -> None:
    """Write it down in SQLite; a repeated batch writes nothing twice."""
    for order, job in zip(orders, batch.jobs, strict=True):
        job.commit.hincrby("booked", order.name, 1)
    await asyncio.to_thread(write, [order.name for order in orders])


def write(names: list[str]) -> None:
    """As one transaction."""
    connection = sqlite3.connect(os.environ[SQLITE], timeout=20)
    with connection:
        connection.execute(TABLE)
        connection.executemany("INSERT OR IGNORE INTO orders VALUES (?)", [(name,) for name in names])
    connection.close()


@archive.task(retry=PATIENT, most_crashes=BLAMELESS, batch=100, linger=0.02, **KEPT)
async def file(orders: list[Order], batch: Batch) -> None:
    """Write it down in PostgreSQL, by one statement; a repeated batch writes nothing twice."""
    names = [order.name for order in orders]
    for name, job in zip(names, batch.jobs, strict=True):
        job.commit.hincrby("filed", name, 1)
    await batch.resources.execute("INSERT INTO orders SELECT unnest($1::text[]) ON CONFLICT DO NOTHING", names)
