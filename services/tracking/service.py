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
BYTES_AT_ONCE = 2 << 20
"""Events of a call that are in memory as rows at a time."""
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


# Two calls at a time: rows of one are made while those of the other are written. Records of finished jobs are kept no
# longer than must be, since they are most of what Redis holds; a post that is repeated later meets its own rows. One
# failure opens the breaker, since a call fails with all its jobs.
@service.task(
    batch=BATCH,
    concurrency=2 * BATCH,
    linger=0.05,
    timeout=600,
    retry=Retry(attempts=5, base=1, longest=60),
    breaker=Breaker(on=(DatabaseAway,), failures=1, wait=0.5, longest=10),
    keep_done=600,
    most_crashes=10,
)
async def store(payloads: list[Collected], batch: Batch) -> None:
    """Write the events of some jobs; a job whose rows are refused fails by itself, and its other rows are written."""
    tracking: Tracking = batch.resources
    first = 0
    while first < len(payloads):
        last, size = first, 0
        while last < len(payloads) and (last == first or size + len(payloads[last]["events"]) <= BYTES_AT_ONCE):
            size += len(payloads[last]["events"])
            last += 1
        await _store(tracking.database, payloads, batch, range(first, last))
        first = last


async def _store(database: Database, payloads: list[Collected], batch: Batch, positions: range) -> None:
    rows, unreadable = await asyncio.to_thread(_rows, payloads, batch, positions)
    for at, why in unreadable.items():
        batch.fail(at, Discard(f"it holds no events: {why}"))
    refused = await insert(database, rows)
    if not refused:
        return
    for at in positions:
        of_job = [(key, why) for key, why in refused.items() if key.rpartition(".")[0] == batch.jobs[at].id]
        if of_job:
            named = "; ".join(f"{key}: {why}" for key, why in of_job[:MOST_NAMED])
            batch.fail(at, Discard(f"the database refuses {len(of_job)} of its events: {named}"))


def _rows(payloads: list[Collected], batch: Batch, positions: range) -> tuple[list[Row], dict[int, str]]:
    """The rows of some jobs, and why there are none, by the place of the job: it was not submitted by our routes."""
    rows: list[Row] = []
    unreadable: dict[int, str] = {}
    for at in positions:
        try:
            rows += rows_of(batch.jobs[at].id, payloads[at])
        except ValueError as error:
            unreadable[at] = " ".join(str(error).split())[:300]
    return rows, unreadable
