"""cpu=True: handlers in processes of their own, each killed with its job and no other."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aioflow import ConfigError, JobCancelled, JobFailed, Runtime, Service, State
from tests.integration import cpu_tasks
from tests.integration.cpu_tasks import Number, effects, run_on, service, spin, square, talk, unpackable, whereabouts
from tests.serving import ROOT
from tests.valkey import Valkey
from tests.waiting import wait_until


@pytest.fixture
async def runtime(valkey: Valkey, namespace: str) -> AsyncIterator[Runtime]:
    """A runtime of the service whose handlers run in processes."""
    async with Runtime([service], redis=valkey.url, namespace=namespace, grace=0.0) as started:
        yield started


def lives(pid: int) -> bool:
    """Whether there is such a process, a zombie aside."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def pid_in(path: Path) -> int:
    """The last process that a spinning handler has noted."""
    return int((await wait_until(lambda: path.read_text().split() if path.exists() else [])).pop())


async def test_a_handler_runs_in_a_process_that_is_kept_for_the_next(runtime: Runtime) -> None:
    assert await (await square.submit(Number(value=12))).result(20) == 144
    first = await (await whereabouts.submit(0.0)).result(20)
    assert first != os.getpid()
    assert await (await whereabouts.submit(0.0)).result(20) == first


async def test_no_more_processes_than_the_tasks_concurrency(runtime: Runtime) -> None:
    handles = [await whereabouts.submit(0.05) for _ in range(8)]
    pids = {await handle.result(20) for handle in handles}
    assert 1 <= len(pids) <= 2
    await runtime.stop()
    assert not any(map(lives, pids)), "they end with the runtime"


@pytest.mark.parametrize(
    ("what", "error", "ran", "failed"),
    [
        ("plain", None, b"1", None),
        ("later", None, b"2", None),
        ("discard", "Discard: not wanted", b"1", None),
        ("raise", "ValueError: in the process", None, b"1"),
        ("odd", "RuntimeError: .*Unpacked", None, b"1"),
        ("base", "RuntimeError: OutOfOrder", None, b"1"),
        ("exit", "ProcessDied: .* exit code 3", None, None),
    ],
)
async def test_outcomes_and_effects_are_as_anywhere(
    runtime: Runtime, what: str, error: str | None, ran: bytes | None, failed: bytes | None
) -> None:
    handle = await effects.submit(what)
    if error is None:
        assert await handle.result(20) == (2 if what == "later" else 1)
    else:
        with pytest.raises(JobFailed, match=error) as raised:
            await handle.result(20)
        if what == "raise":
            assert "cpu_tasks.py" in raised.value.traceback, "the traceback is that of the process"
    redis = runtime.redis
    assert await redis.hget(runtime.key(service, "ran"), what) == ran
    assert await redis.hget(runtime.key(service, "failed"), what) == failed
    emitted = (await runtime.totals(square)).get("submitted", 0)
    assert emitted == (int(ran) if ran else 0)
    assert await (await square.submit(Number(value=2))).result(20) == 4, "the next job finds a process"


async def test_progress_and_logs_come_through(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aioflow.job")
    handle = await talk.submit(30.0)

    async def noted() -> bytes | None:
        return (await handle.status()).progress

    assert await wait_until(noted, 20) == b'"half"'
    await wait_until(lambda: len(caplog.records) >= 4)
    await handle.cancel()
    said, unread, bare, failed = caplog.records[:4]
    assert (said.name, said.getMessage()) == ("aioflow.job.cpu.talk", f"{handle.id} attempt 1: at half")
    assert (said.job_id, said.page) == (handle.id, 7)  # type: ignore[attr-defined]
    assert "cannot be logged here" in unread.getMessage()
    assert (bare.name, bare.getMessage()) == ("elsewhere", "without its extras")
    assert 'job.commit.hset("", "", "")' in failed.getMessage(), "with its traceback"


async def test_a_result_that_cannot_be_carried_over_is_said(runtime: Runtime) -> None:
    with pytest.raises(JobFailed, match="cannot be carried over"):
        await (await unpackable.submit()).result(20)


async def test_the_time_limit_kills_the_process_of_that_job_only(runtime: Runtime, tmp_path: Path) -> None:
    other = await (await whereabouts.submit(0.0)).result(20)
    handle = await spin.submit(str(tmp_path / "pids"))
    with pytest.raises(JobFailed, match=r"TimeoutError: no result within 0\.4 s"):
        await handle.result(20)
    assert not lives(await pid_in(tmp_path / "pids"))
    assert lives(other)


async def test_a_cancel_kills_the_process(runtime: Runtime, tmp_path: Path) -> None:
    handle = await run_on.submit(str(tmp_path / "pids"))
    pid = await pid_in(tmp_path / "pids")
    assert await handle.cancel()
    with pytest.raises(JobCancelled):
        await handle.result(20)
    assert not lives(pid)


async def test_a_stop_kills_the_process_before_its_job_goes_back(
    valkey: Valkey, namespace: str, tmp_path: Path
) -> None:
    async with (
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as observer,
        Runtime([service], redis=valkey.url, namespace=namespace, grace=0.0) as runtime,
    ):
        handle = await observer.submit(run_on, str(tmp_path / "pids"))
        pid = await pid_in(tmp_path / "pids")
        await runtime.stop()
        assert not lives(pid)
        info = await handle.status()
        assert (info.state, info.failures, info.crashes) == (State.READY, 0, 0)


async def test_a_process_ends_when_its_parent_is_killed(valkey: Valkey, namespace: str, tmp_path: Path) -> None:
    serve = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aioflow", "serve", "tests.integration.cpu_tasks:service", "--no-ingress"),
        *("--redis", valkey.url),
        cwd=ROOT,
        env={**os.environ, "AIOFLOW_NAMESPACE": namespace},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as observer:
        await observer.submit(run_on, str(tmp_path / "pids"))
        pid = await pid_in(tmp_path / "pids")
        serve.send_signal(signal.SIGKILL)
        await serve.wait()
        await wait_until(lambda: not lives(pid))


def test_what_cannot_run_in_a_process_is_a_config_error() -> None:
    wrong = Service("wrong")
    with pytest.raises(ConfigError, match="plain function of a module"):

        @wrong.task(cpu=True)
        async def coroutine() -> None: ...

    with pytest.raises(ConfigError, match="plain function of a module"):

        @wrong.task(cpu=True)
        def local() -> None: ...

    assert cpu_tasks.spin.options.concurrency == 1
    assert Service("other").task(cpu=True)(cpu_tasks.square.handler).options.concurrency == (os.cpu_count() or 1)


async def test_processes_come_as_work_does_and_sign_off(
    valkey: Valkey, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aioflow.engine.processes")
    async with Runtime([cpu_tasks.few], redis=valkey.url, namespace=namespace) as runtime:
        processes = runtime._pools[0]._executor._processes
        assert processes is not None
        await wait_until(lambda: len(processes._idle) == 1, 20)
        pids = {await handle.result(20) for handle in [await cpu_tasks.where.submit(0.2) for _ in range(6)]}
        assert 1 <= len(pids) <= 3
        await wait_until(lambda: processes._alive == 1)
        await wait_until(lambda: sum(map(lives, pids)) == 1)
        runtime.scale(-2)
        assert await (await cpu_tasks.where.submit(0.0)).result(20) in pids
    assert not any(map(lives, pids))
