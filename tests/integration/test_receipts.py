"""What a receipt means: who can give which durability, and what a submitter hears where it was not reached.

A receipt leaves after the fdatasync of its write, also where many submits share one; and where the server stops to
give what was asked for, no receipt leaves at all.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aioflow import ConfigError, Runtime, Service, StoreUnavailable
from aioflow.engine import receipts
from aioflow.engine.keys import Queue
from aioflow.engine.store import Store
from tests import acl
from tests.integration.scripts.state import new
from tests.valkey import Valkey
from tests.waiting import wait_until


def server_with(policy: str) -> Iterator[Valkey]:
    server = Valkey(arguments=("--appendonly", "yes", "--appendfsync", policy))
    server.start()
    yield server
    server.close()


@pytest.fixture
def everysec() -> Iterator[Valkey]:
    """A server that syncs once a second."""
    yield from server_with("everysec")


@pytest.fixture
def never_syncs() -> Iterator[Valkey]:
    """A server that leaves syncing to the operating system."""
    yield from server_with("no")


@pytest.fixture
def service() -> Service:
    made = Service("demo")

    @made.task()
    async def work(number: int) -> int:
        return number

    return made


# ---- who gives what


async def test_the_default_is_what_the_server_gives(
    own_valkey: Valkey, valkey: Valkey, everysec: Valkey, namespace: str, service: Service
) -> None:
    given = {own_valkey.url: "fsync", valkey.url: "memory", everysec.url: "memory", "memory:": "memory"}
    for url, durability in given.items():
        async with Runtime([service], redis=url, namespace=namespace, workers=False) as runtime:
            assert runtime.durability == durability, url
    async with Runtime([service], redis=own_valkey.url, namespace=namespace, durability="memory") as runtime:
        assert runtime.durability == "memory"
    async with Runtime([service], redis=own_valkey.url, namespace=namespace, durability="fsync") as runtime:
        assert runtime.durability == "fsync"


async def test_fsync_from_a_server_that_does_not_give_it_is_a_config_error_that_says_what_to_change(
    valkey: Valkey, everysec: Valkey, namespace: str, service: Service
) -> None:
    for url, change in ((valkey.url, "CONFIG SET"), (everysec.url, "CONFIG SET"), ("memory:", "use another server")):
        runtime = Runtime([service], redis=url, namespace=namespace, durability="fsync")
        with pytest.raises(ConfigError) as wrong:
            await runtime.start()
        for words in ('durability "fsync"', "appendonly yes", "appendfsync always", change):
            assert words in str(wrong.value), url


@pytest.mark.parametrize(("command", "named"), [("config", "CONFIG GET"), ("waitaof", "WAITAOF")])
async def test_a_server_that_may_not_be_asked_or_has_no_waitaof_gives_memory(
    own_valkey: Valkey, namespace: str, service: Service, command: str, named: str
) -> None:
    admin = Store(own_valkey.url, name="admin")
    await admin.redis.execute_command("ACL", "SETUSER", acl.USER, f"-{command}")
    await admin.close()
    with pytest.raises(ConfigError, match=f"it refuses {named} "):
        await Runtime([service], redis=own_valkey.url, namespace=namespace, durability="fsync").start()
    async with Runtime([service], redis=own_valkey.url, namespace=namespace) as runtime:
        assert runtime.durability == "memory"


# ---- receipts that cannot be given


async def test_a_job_that_was_not_synced_in_time_has_no_receipt(
    never_syncs: Valkey, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "RECEIPT_MS", 50)
    store = Store(never_syncs.url, name="aioflow:test")
    with pytest.raises(StoreUnavailable, match="did not fsync within 50 ms; the jobs may have been taken"):
        await store.submit([new(queue, "a")], "fsync")
    assert (await store.sizes(queue)).open == 1
    with pytest.raises(StoreUnavailable):
        await store.submit([new(queue, "a")], "fsync")  # known, and still not synced
    assert await store.submit([new(queue, "a")]) == [0]
    await store.close()


async def test_a_server_that_stops_to_log_gives_no_receipt(
    own_valkey: Valkey, namespace: str, service: Service
) -> None:
    async with Runtime([service], redis=own_valkey.url, namespace=namespace, workers=False) as runtime:
        await runtime.submit("demo.work", 1)
        await runtime.redis.config_set("appendonly", "no")
        with pytest.raises(StoreUnavailable) as away:
            await runtime.submit("demo.work", 2, id="mine")
        assert away.value.job_id == "mine"
        await runtime.redis.config_set("appendonly", "yes")

        async def again() -> bool:
            try:
                return not (await runtime.submit("demo.work", 2, id="mine")).created
            except StoreUnavailable:
                return False  # the file is being made anew

        await wait_until(again)


async def test_a_server_whose_policy_is_lowered_while_it_runs_gives_no_receipt(
    own_valkey: Valkey, namespace: str, service: Service
) -> None:
    async with Runtime([service], redis=own_valkey.url, namespace=namespace, workers=False) as runtime:
        await runtime.submit("demo.work", 1)
        await runtime.redis.config_set("appendfsync", "everysec")
        with pytest.raises(StoreUnavailable, match="does not fsync before it answers any more") as refused:
            await runtime.submit("demo.work", 2, id="mine")
        assert refused.value.job_id == "mine"
        await runtime.redis.config_set("appendfsync", "always")
        assert not (await runtime.submit("demo.work", 2, id="mine")).created


async def test_a_repeated_submit_writes_so_that_its_receipt_speaks_for_it(own_valkey: Valkey, queue: Queue) -> None:
    store = Store(own_valkey.url, name="aioflow:test")

    async def logged() -> int:
        return int((await store.redis.info("persistence"))["aof_current_size"])

    assert await store.submit([new(queue, "a")], "fsync") == [1]
    for answer in (0, 0):
        before = await logged()
        assert await store.submit([new(queue, "a")], "fsync") == [answer]
        assert await logged() > before
    before = await logged()
    assert await store.submit([new(queue, "a", envelope="\n2")], "fsync") == [-1]
    assert await logged() > before
    await store.close()


# ---- many at once, under strace

CALL = re.compile(r"^\d+ +\S+ (write|writev|fdatasync|fsync)\((\d+)<([^>]*)>(.*)$")
ANSWER = re.compile(r"\*\d+\\r\\n:\d{13}\\r\\n:1\\r\\n")


def early_answers(trace: str) -> tuple[int, int]:
    """(answers to submits, those that left while something written to the append-only file was not synced)."""
    answers = early = 0
    unsynced = False
    for line in trace.splitlines():
        call = CALL.match(line)
        if not call:
            continue
        name, _, path, rest = call.groups()
        if "appendonly.aof" in path:
            unsynced = name.startswith("write")
        elif found := ANSWER.findall(rest):
            answers += len(found)
            early += len(found) * unsynced
    return answers, early


async def submit_traced(server: Valkey, trace: Path, namespace: str, service: Service) -> tuple[int, int]:
    assert server.process is not None
    tracer = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-tt", "-y", "-s", "65535", "-e", "trace=write,writev,fdatasync,fsync"),
        *("-o", str(trace), "-p", str(server.process.pid)),
        stderr=subprocess.DEVNULL,
    )
    try:
        async with Runtime([service], redis=server.url, namespace=namespace, workers=False) as runtime:

            async def attached() -> bool:
                assert tracer.returncode is None, "strace could not attach"
                await runtime._live_store().ping()
                return trace.exists() and "PONG" in trace.read_text()

            await wait_until(attached)

            async def submitter() -> None:
                for number in range(10):
                    await runtime.submit("demo.work", number)

            await asyncio.gather(*[submitter() for _ in range(250)])
    finally:
        tracer.send_signal(signal.SIGINT)
        await tracer.wait()
    return early_answers(trace.read_text())


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed; CI installs it")
async def test_no_receipt_of_many_concurrent_submits_leaves_before_the_sync(
    own_valkey: Valkey, everysec: Valkey, namespace: str, service: Service, tmp_path: Path
) -> None:
    answers, early = await submit_traced(own_valkey, tmp_path / "always", namespace, service)
    assert answers >= 25, "batches of at most 100"
    assert early == 0
    # And the check can fail: this server answers first and syncs later.
    answers, early = await submit_traced(everysec, tmp_path / "everysec", namespace, service)
    assert early > answers / 2
