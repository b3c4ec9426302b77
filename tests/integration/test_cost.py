"""What a job costs, in counts that do not depend on how busy the machine is; each bound leaves about a third."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.integration.costing import run
from tests.serving import ROOT
from tests.valkey import Valkey

JOBS = 10_000
MOST_COMMANDS = 0.9
"""Of the server, those that scripts call included: measured 0.69 a job."""
MOST_CALLS = 0.058
"""Requests of a client, each with its batch: measured 0.044 a job."""
MOST_BYTES = 375
"""To and from the server, measured 284 a job."""
COUNTED = 2_000
MOST_INSTRUCTIONS = 330_000
"""Of the process that submits and runs: measured 249,000 to 250,000 a job by Python 3.11, two starts among them."""


@pytest.mark.timeout(120)
async def test_what_a_job_costs_the_server(own_valkey: Valkey) -> None:
    async with Redis.from_url(own_valkey.admin_url) as redis:
        before = await redis.info("all")
        await run(own_valkey.url, JOBS)
        after = await redis.info("all")

    def each(*counters: str) -> float:
        return sum(float(after[counter] - before[counter]) for counter in counters) / JOBS

    assert each("total_commands_processed") < MOST_COMMANDS
    assert each("total_reads_processed") < MOST_CALLS
    assert each("total_net_input_bytes", "total_net_output_bytes") < MOST_BYTES


@pytest.mark.timeout(240)
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="instructions are counted by valgrind, which is not here")
async def test_how_many_instructions_a_job_costs(own_valkey: Valkey, tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    command = (
        "valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={counts}",
        sys.executable, "-m", "tests.integration.costing", own_valkey.url, str(COUNTED),
    )  # fmt: skip
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        started = await asyncio.create_subprocess_exec(
            "callgrind_control", "--instr=on", str(process.pid), stdout=pipe, stderr=pipe
        )
        assert await started.wait() == 0
        _, said = await process.communicate(b"\n")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said.decode()
    collected = re.search(r"Collected : (\d+)", said.decode())
    assert collected is not None
    assert int(collected[1]) / COUNTED < MOST_INSTRUCTIONS
