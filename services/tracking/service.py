"""The service and its one task: batches of events go into the table, and wait while the database is away.

Collecting needs the task's queue and nothing else; the database is opened by whoever processes, or asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aioflow import Batch, Breaker, Discard, Retry, Runtime, Service
from services.tracking.database import Database, DatabaseAway
from services.tracking.models import Collected
from services.tracking.rows import Row, rows_of
from services.tracking.settings import TrackingSettings, check_installed, load_settings
from services.tracking.store import insert

BATCH = 250
ROWS_AT_ONCE = 2000
"""Rows of a call that are in memory at a time."""
MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Tracking:
    """What the routes and the task share."""

    settings: TrackingSettings
    database: Database


@asynccontextmanager
async def lifespan(runtime: Runtime) -> AsyncIterator[Tracking]:
    """The settings and a database that nobody has opened; the workers' process begins to, and waits for nothing."""
    settings = load_settings()
    url = settings.url(runtime.settings.data)
    check_installed(url)
    database = Database(url, settings.query_seconds)
    if runtime.works:
        database.prepare()
    try:
        yield Tracking(settings, database)
    finally:
        await database.close()


service = Service("tracking", lifespan=lifespan)


# Two calls at a time: rows of one are made while those of the other are written. The record of a job is needed for as
# long as its post may be repeated; the row stays. One failure opens the breaker, since a call fails with all its jobs.
@service.task(
    batch=BATCH,
    concurrency=2 * BATCH,
    linger=0.05,
    timeout=600,
    retry=Retry(attempts=5, base=1, longest=60),
    breaker=Breaker(on=(DatabaseAway,), failures=1, wait=0.5, longest=10),
    keep_done=3600,
    most_crashes=10,
)
async def store(payloads: list[Collected], batch: Batch) -> None:
    """Write the events of some jobs; a job whose rows are refused fails by itself, and its other rows are written."""
    tracking: Tracking = batch.resources
    first = 0
    while first < len(payloads):
        last, rows = first, 0
        while last < len(payloads) and (last == first or rows + len(payloads[last]["events"]) <= ROWS_AT_ONCE):
            rows += len(payloads[last]["events"])
            last += 1
        await _store(tracking.database, payloads, batch, range(first, last))
        first = last


async def _store(database: Database, payloads: list[Collected], batch: Batch, positions: range) -> None:
    def make() -> list[Row]:
        return [row for at in positions for row in rows_of(batch.jobs[at].id, payloads[at])]

    refused = await insert(database, await asyncio.to_thread(make))
    if not refused:
        return
    for at in positions:
        of_job = [(key, why) for key, why in refused.items() if key.rpartition(".")[0] == batch.jobs[at].id]
        if of_job:
            named = "; ".join(f"{key}: {why}" for key, why in of_job[:MOST_NAMED])
            batch.fail(at, Discard(f"the database refuses {len(of_job)} of its events: {named}"))
