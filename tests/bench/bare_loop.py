"""`python -m tests.bench.bare_loop URL JOBS BATCH`: jobs per second of a loop that only calls claim and settle.

No handlers, no types, no leases kept, no metrics: what the engine's scripts allow one connection.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import uvloop
from redis.asyncio import Redis

from aioflow.engine import scripts
from aioflow.engine.keys import Queue
from tests.bench.environments import ROOT

LEASE_MS = "60000"
MOST_BYTES = "1000000"


async def run(url: str, jobs: int, batch: int) -> float:
    """Claim and settle batches in turn until so many jobs are done."""
    queue = Queue("aioflow", "bench", "work")
    claim, settle = scripts.load("queue/claim"), scripts.load("queue/settle")
    keys = {script.sha: [queue.keys[key] for key, _ in script.keys] for script in (claim, settle)}
    async with Redis.from_url(url) as redis:
        for script in (claim, settle):
            await redis.script_load(script.source)
        done, began = 0, time.perf_counter()
        while done < jobs:
            token = f"bare.{done}"
            call: list[Any] = [*keys[claim.sha], "0", str(batch), LEASE_MS, token, MOST_BYTES, "3"]
            ids = (await redis.evalsha(claim.sha, len(keys[claim.sha]), *call))[2]
            words: list[str | bytes] = []
            for job in ids:
                words += (job, token, "done", b"null")
            call = [*keys[settle.sha], "0", str(len(ids)), *words]
            answers = await redis.evalsha(settle.sha, len(keys[settle.sha]), *call)
            assert answers[1:] == [1] * len(ids), answers
            done += len(ids)
        return done / (time.perf_counter() - began)


async def bare_rate(url: str, jobs: int) -> float:
    """As `run` with 1,000 at once, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, url, str(jobs), "1000", cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    return float(told)


if __name__ == "__main__":
    print(uvloop.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))), flush=True)
