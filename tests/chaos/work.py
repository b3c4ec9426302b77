"""Three services that hand orders on to each other, for runs in which everything is killed.

`shop.sell` emits to `stock.take`, that to `books.book`, which writes batches into SQLite. Each notes by an effect that
it did its part of an order: after any number of kills every order must have each note exactly once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from typing import Literal

from pydantic import BaseModel

from aioflow import Batch, Job, Retry, Service

shop, stock, books = Service("shop"), Service("stock"), Service("books")
SQLITE = "CHAOS_SQLITE"
"""The environment variable that names the file of the books."""
LEASE = 1.0
PATIENT = Retry(attempts=50, base=0.02, longest=0.5)
BLAMELESS = 100
"""Processes are killed all the time here, which no job can help."""


class Order(BaseModel):
    """An order by the name that its submitter gave it; `due_ms` is UTC, 0: at once."""

    name: str
    deed: Literal["", "fail", "block", "sleep"] = ""
    due_ms: int = 0


@shop.task(lease=LEASE, retry=PATIENT, most_crashes=BLAMELESS, concurrency=50)
async def sell(order: Order, job: Job) -> str:
    """Sell, and have it taken from stock; some fail at first, hold up the loop, or take longer than the lease."""
    if order.due_ms > time.time() * 1000 + 1:
        job.commit.hincrby("early", order.name, 1)
    if order.deed == "fail" and job.attempt == 1:
        raise ValueError("no till is open")
    if order.deed == "block":
        time.sleep(0.2)  # noqa: ASYNC251 - that is the deed
    if order.deed == "sleep":
        await asyncio.sleep(1.5 * LEASE)
    job.commit.hincrby("sold", order.name, 1)
    job.commit.submit("stock.take", order)
    return order.name


@shop.task(lease=LEASE, concurrency=2)
async def die(name: str) -> None:
    """Kill the process, as an error in a C library does; after three times the job is dead."""
    os.kill(os.getpid(), signal.SIGKILL)


@stock.task(lease=LEASE, retry=PATIENT, most_crashes=BLAMELESS)
def take(order: Order, job: Job) -> None:
    """Take it from stock, in a thread."""
    job.commit.hincrby("taken", order.name, 1)
    job.commit.submit("books.book", order)


@books.task(lease=LEASE, retry=PATIENT, most_crashes=BLAMELESS, batch=100, linger=0.02)
async def book(orders: list[Order], batch: Batch) -> None:
    """Write it down; a repeated batch writes nothing twice."""
    for order, job in zip(orders, batch.jobs, strict=True):
        job.commit.hincrby("booked", order.name, 1)
    await asyncio.to_thread(write, [order.name for order in orders])


def write(names: list[str]) -> None:
    """Into SQLite, as one transaction."""
    connection = sqlite3.connect(os.environ[SQLITE], timeout=20)
    with connection:
        connection.execute("CREATE TABLE IF NOT EXISTS orders (name TEXT PRIMARY KEY)")
        connection.executemany("INSERT OR IGNORE INTO orders VALUES (?)", [(name,) for name in names])
    connection.close()
