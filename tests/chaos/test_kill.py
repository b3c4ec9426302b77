"""Processes killed by real signals: nothing accepted is lost, nothing lands twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from aioflow import Handle, Runtime, State
from aioflow.embedded import EmbeddedServer
from services.payments.api import charge
from services.payments.api import service as payments
from tests.chaos.demo import LEASE, Work, work
from tests.chaos.demo import service as demo
from tests.integration.test_embedded import is_locked
from tests.serving import ROOT, Serve
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until

PAYMENTS = 20_000
SUBMITTERS = 200
KILLS = 5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Submitters:
    """Concurrent clients that post until they have a receipt, as clients with an idempotency key do."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.accepted: dict[str, str] = {}  # idempotency key -> tracking id
        self.refused: Counter[str] = Counter()
        self.stopped = asyncio.Event()

    async def have(self, count: int) -> None:
        """Wait for so many receipts."""
        await wait_until(lambda: len(self.accepted) >= count, 90)

    async def run(self, payments_in_all: int) -> None:
        connector = aiohttp.TCPConnector(limit=SUBMITTERS)
        timeout = aiohttp.ClientTimeout(total=20)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.gather(
                *(self._submit(session, range(first, payments_in_all, SUBMITTERS)) for first in range(SUBMITTERS))
            )

    async def _submit(self, session: aiohttp.ClientSession, numbers: range) -> None:
        for number in numbers:
            while not self.stopped.is_set() and not await self._post(session, number):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopped.wait(), 0.05)  # a client's backoff

    async def _post(self, session: aiohttp.ClientSession, number: int) -> bool:
        body = {"payer_id": f"payer-{number % 50}", "recipient_id": f"shop-{number % 7}", "amount": number + 1}
        headers = {"Idempotency-Key": f"key-{number}"}
        try:
            async with session.post(f"{self._url}/payments", json=body, headers=headers) as answer:
                if answer.status == 202:
                    self.accepted[headers["Idempotency-Key"]] = (await answer.json())["tracking_id"]
                    return True
                self.refused[str(answer.status)] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            self.refused[type(error).__name__] += 1
        return False


@pytest.mark.timeout(240)
async def test_20000_payments_survive_five_kills_of_the_serving_process(tmp_path: Path) -> None:
    port = free_port()
    fast = {"PAYMENTS_SIMULATED_LATENCY": "0.005"}
    serve = Serve("--data", str(tmp_path / "data"), "--port", str(port), environment=fast)
    embedded = EmbeddedServer(tmp_path / "data")
    submitters = Submitters(f"http://127.0.0.1:{port}")
    await serve.start()
    try:
        posting = asyncio.create_task(submitters.run(PAYMENTS))
        for kill in range(1, KILLS + 1):
            mark = kill * PAYMENTS // (KILLS + 2)
            await submitters.have(mark)
            serve.kill()
            await serve.start()
        await posting
        assert len(set(submitters.accepted.values())) == PAYMENTS
        await embedded.start()
        async with Runtime([payments], redis=embedded.url, workers=False) as runtime:

            async def nothing_open() -> bool:
                return (await runtime.sizes(charge)).open == 0

            await wait_until(nothing_open, 90)
            await check_payments(runtime, set(submitters.accepted.values()))
        assert await serve.stop() == 0
    finally:
        serve.close()
        await embedded.start()
        await embedded.stop()


async def check_payments(runtime: Runtime, accepted: set[str]) -> None:
    """Each accepted payment has exactly one outcome, and all indexes, records and the gateway's ledger agree."""
    redis: Any = runtime.redis

    async def index(name: str) -> set[str]:
        return {member.decode() for member in await redis.zrange(runtime.key(payments, name), 0, -1)}

    async def records(name: str) -> dict[str, dict[str, object]]:
        found = await redis.hgetall(runtime.key(payments, name))
        return {txn_id.decode(): orjson.loads(record) for txn_id, record in found.items()}

    succeeded, declined = await records("txns"), await records("insufficient_funds_records")
    failed = await index("api_errors")
    by_outcome = [
        {str(record["tracking_id"]) for record in succeeded.values()},
        {str(record["tracking_id"]) for record in declined.values()},
        failed,
    ]
    without = sorted(accepted.difference(*by_outcome))
    assert not without, f"no outcome: {await runtime.inspect_many(charge, without[:5])}"
    assert sum(map(len, by_outcome)) == len(accepted), "a payment has two outcomes"
    assert set().union(*by_outcome) == accepted
    for kind, of_kind in (("successful_txns", succeeded), ("insufficient_funds_txns", declined)):
        assert await index(kind) == set(of_kind)
    for prefix, of_kind in (("payments", succeeded), ("insufficient_funds", declined)):
        for part, party in (("made_by", "payer_id"), ("received_by", "recipient_id")):
            for name in {str(record[party]) for record in of_kind.values()}:
                mine = {txn_id for txn_id, record in of_kind.items() if record[party] == name}
                assert await index(f"{prefix}_{part}:{name}") == mine
    ledger = await redis.hgetall(runtime.key(payments, "gateway_ledger"))
    decided = {str(record["tracking_id"]): record for of_kind in (succeeded, declined) for record in of_kind.values()}
    # A payment that is dead of api_errors may not have been decided; every decision has been taken over.
    assert {key.decode() for key in ledger} == set(decided)
    for tracking_id, entry in ledger.items():
        first, taken = orjson.loads(entry), decided[tracking_id.decode()]
        assert (first["txn_id"], first["outcome"]) == (taken["txn_id"], taken["outcome"])
        assert first["payment"]["amount"] == taken["amount"]
    sizes = await runtime.sizes(charge)
    assert sizes.done == len(succeeded) + len(declined)
    assert sizes.dead == len(failed)


@pytest.mark.timeout(90)
async def test_sigterm_under_load_finishes_or_gives_back_every_payment(own_valkey: Valkey, namespace: str) -> None:
    environment = {"AIOFLOW_NAMESPACE": namespace, "PAYMENTS_SIMULATED_LATENCY": "1.0"}
    serve = Serve(
        "services.payments:service", "--redis", own_valkey.url, "--port", "0", "--grace", "1", environment=environment
    )
    await serve.start()
    submitters = Submitters(serve.url)
    try:
        posting = asyncio.create_task(submitters.run(100_000))
        await submitters.have(2000)
        sent = time.monotonic()
        assert await serve.stop() == 0
        assert time.monotonic() - sent < 1 + 10, "it waits for more than its grace"
        submitters.stopped.set()
        await posting
        for fault in ("Task was destroyed", "unclosed", "Traceback", "never awaited", "ResourceWarning"):
            assert fault not in serve.said
    finally:
        serve.close()
    async with Runtime([payments], redis=own_valkey.url, workers=False, namespace=namespace) as runtime:
        sizes = await runtime.sizes(charge)
        assert sizes.running == 0
        ids = list(submitters.accepted.values())
        infos = [
            info for at in range(0, len(ids), 1000) for info in await runtime.inspect_many(charge, ids[at : at + 1000])
        ]
        states = Counter(info.state if info else None for info in infos)
        assert states.keys() <= {State.DONE, State.READY, State.SCHEDULED}
        assert states[State.DONE] > 0
        assert states[State.READY] > 0


@pytest.mark.timeout(60)
async def test_ctrl_c_in_a_terminal_stops_serve_and_its_server(tmp_path: Path) -> None:
    master, slave = os.openpty()
    data = tmp_path / "data"
    command = [sys.executable, "-m", "aioflow", "serve", "--data", str(data), "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, preexec_fn=lambda: os.login_tty(slave), stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    said = bytearray()
    os.set_blocking(master, False)

    def read() -> bytearray:
        with contextlib.suppress(BlockingIOError):
            said.extend(os.read(master, 65536))
        return said

    try:
        await wait_until(lambda: b"aioflow serves" in read(), 30)
        os.write(master, b"\x03")
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert b"Traceback" not in said
        assert not is_locked(data), "its server lives as long as the lock"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)
        embedded = EmbeddedServer(data)
        await embedded.start()
        await embedded.stop()


@pytest.mark.timeout(60)
async def test_a_job_that_kills_its_process_three_times_is_dead_and_the_others_go_on(
    own_valkey: Valkey, namespace: str
) -> None:
    arguments = ("tests.chaos.demo:service", "--redis", own_valkey.url, "--no-ingress")
    serve = Serve(*arguments, environment={"AIOFLOW_NAMESPACE": namespace})
    try:
        async with Runtime([demo], redis=own_valkey.url, workers=False, namespace=namespace) as runtime:
            killer = await work.submit(Work(kill=True))
            others = [await work.submit(Work(seconds=0.01)) for _ in range(50)]
            for _ in range(3):
                serve.spawn()
                process = serve.process
                assert process is not None
                assert await asyncio.to_thread(process.wait, 20) == -signal.SIGKILL
            await serve.start()

            async def dead() -> bool:
                return (await killer.status()).state is State.DEAD

            await wait_until(dead, 15)
            info = await killer.status()
            last = orjson.loads(info.result or b"")
            assert (last["error"], last["message"], last["attempt"]) == ("Crashed", "lease expired 3 times", 3)
            assert info.crashes == 3
            assert [(failure.error, failure.attempt) for failure in info.history] == [("Crashed", 1), ("Crashed", 2)]
            assert {await other.result(15) for other in others} == {other.id for other in others}
            ran = await runtime.redis.hgetall(runtime.key(demo, "ran"))
            assert ran == {other.id.encode(): b"1" for other in others}
            assert await serve.stop() == 0
    finally:
        serve.close()


@pytest.mark.timeout(60)
async def test_a_killed_workers_job_starts_elsewhere_within_its_lease_and_a_second_in_its_old_place(
    own_valkey: Valkey, namespace: str
) -> None:
    environment = {"AIOFLOW_NAMESPACE": namespace}
    arguments = ("tests.chaos.demo:service", "--redis", own_valkey.url, "--no-ingress", "--workers", "1")
    first, second = (Serve(*arguments, environment=environment) for _ in range(2))
    try:
        async with Runtime([demo], redis=own_valkey.url, workers=False, namespace=namespace) as runtime:

            async def started(job: Handle[str], attempt: int) -> int | None:
                info = await job.status()
                return info.started_ms if info.attempt == attempt else None

            await first.start()
            victim = await work.submit(Work(seconds=30))
            await wait_until(lambda: started(victim, 1))
            await second.start()
            # The second runtime is busy until the victim is back in line; later jobs wait there with it.
            busy = await work.submit(Work(seconds=30))
            await wait_until(lambda: started(busy, 1))
            later = [await work.submit(Work()) for _ in range(5)]
            killed = time.monotonic()
            first.kill()
            await in_state(victim, State.READY)
            await busy.cancel()
            await wait_until(lambda: started(victim, 2))
            assert time.monotonic() - killed < LEASE + 1.0
            info = await victim.status()
            assert (info.state, info.crashes) == (State.RUNNING, 1)
            assert (await runtime.sizes(work)).ready == len(later), "a later job was started before it"
    finally:
        first.close()
        second.close()
