"""The cap of running computations follows orders and signals, and SIGQUIT through the pid file gives them back."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from aioflow import Runtime
from services.factors.compute import compute
from services.factors.compute import service as factors
from services.factors.models import Question
from tests.chaos.journal import JOURNAL, notes_in
from tests.serving import ROOT, Serve
from tests.valkey import Valkey
from tests.waiting import wait_until

HARD = (10**29 + 319) * (10**29 + 379)
"""It takes a second at least, and then begins anew."""


def sizes_are(runtime: Runtime, running: int, ready: int) -> Callable[[], Awaitable[bool]]:
    """Whether so many computations run and wait."""

    async def asked() -> bool:
        sizes = await runtime.sizes(compute)
        return (sizes.running, sizes.ready) == (running, ready)

    return asked


@pytest.mark.timeout(60)  # a server, a command and four processes that compute are started one after the other
async def test_the_cap_follows_orders_and_signals_and_sigquit_gives_everything_back(
    valkey: Valkey, namespace: str, tmp_path: Path
) -> None:
    journal, pid_file = tmp_path / "journal", tmp_path / "pid"
    serve = Serve(
        *("tests.chaos.noted_factors:service", "--redis", valkey.url, "--no-ingress", "--grace", "0.1"),
        *("--pid-file", str(pid_file)),
        environment={
            "AIOFLOW_NAMESPACE": namespace,
            "FACTORS_WORKERS": "1",
            JOURNAL: str(journal),
            "TEST_ENDLESS": str(HARD),
        },
    )
    try:
        async with Runtime([factors], redis=valkey.url, namespace=namespace, workers=False) as runtime:
            await serve.start()
            handles = [await runtime.submit(compute, Question(number=str(HARD))) for _ in range(4)]
            await wait_until(sizes_are(runtime, 1, 3), 20)

            ordering = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "aioflow", "scale", "factors.compute", "2"),
                *("--redis", valkey.url, "--namespace", namespace),
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await ordering.communicate()
            assert ordering.returncode == 0, said
            await wait_until(sizes_are(runtime, 2, 2), 20)

            pid = int(pid_file.read_text())
            os.kill(pid, signal.SIGTTOU)
            await wait_until(lambda: "factors.compute: 1 at a time" in serve.said)
            await wait_until(sizes_are(runtime, 2, 2), 1)  # what runs is not disturbed
            for handle in handles[:2]:
                await handle.cancel()
            await wait_until(sizes_are(runtime, 1, 1), 20)
            os.kill(pid, signal.SIGTTIN)
            await wait_until(sizes_are(runtime, 2, 0), 20)

            processes = await computing(journal, handles[2].id, handles[3].id)
            os.kill(pid, signal.SIGQUIT)
            assert serve.process is not None
            assert await asyncio.to_thread(serve.process.wait, 20) == 0
            assert not pid_file.exists()
            assert await sizes_are(runtime, 0, 2)()
            for handle in handles[2:]:
                status = await handle.status()
                assert (status.failures, status.crashes) == (0, 0)
            assert not any(map(lives, processes))
    finally:
        serve.close()


async def computing(journal: Path, *job_ids: str) -> list[int]:
    """The processes of these jobs, once they are at work."""

    def there() -> list[int] | None:
        found = {noted.job_id: noted.process for noted in notes_in(journal) if noted.job_id in job_ids}
        return [*found.values()] if len(found) == len(job_ids) else None

    processes = await wait_until(there, 20)
    assert processes is not None
    return processes


def lives(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
