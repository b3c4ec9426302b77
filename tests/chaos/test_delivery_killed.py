"""A process that is killed while it delivers: every webhook arrives, under the one id it has."""

from __future__ import annotations

import asyncio
import sys

import pytest

from aioflow import Runtime, State, delivery
from tests.chaos.orders import sell
from tests.chaos.orders import service as orders
from tests.receiver import SECRET, Got, Receiver, receiver
from tests.serving import ROOT, Serve
from tests.valkey import Valkey
from tests.waiting import wait_until

ORDERS = 30
CLI = [sys.executable, "-m", "aioflow"]


@pytest.mark.timeout(120)
async def test_every_webhook_arrives_under_one_id_though_the_process_is_killed(valkey: Valkey, namespace: str) -> None:
    killed = asyncio.Event()

    async def hang_until_the_kill(there: Receiver, _: Got) -> int:
        if not killed.is_set():
            await killed.wait()
        return 204

    environment = {
        "AIOFLOW_NAMESPACE": namespace,
        "AIOFLOW_DELIVERY_SECRETS": SECRET,
        "AIOFLOW_DELIVERY_ALLOW": "127.0.0.1",
    }
    serve = Serve(
        *("tests.chaos.orders:service", "aioflow.delivery:service", "--redis", valkey.url, "--no-ingress"),
        environment=environment,
    )
    emitter = Runtime([orders, delivery.make_service()], redis=valkey.url, namespace=namespace, workers=False)
    async with receiver(hang_until_the_kill) as there, emitter as runtime:
        try:
            await serve.start()
            sold = {(await runtime.submit(sell, there.url)).id for _ in range(ORDERS)}
            await wait_until(lambda: there.at_once == 10, 10)
            serve.kill()
            killed.set()
            await serve.start()

            async def all_delivered() -> bool:
                return await runtime.jobs_count("delivery.post", "done") == ORDERS

            await wait_until(all_delivered, 60)
            told = {got.id: got.verified()["order"] for got in there.got}
            assert len(told) == ORDERS
            assert set(told.values()) == sold, "one webhook-id an order"
            assert len(there.got) == ORDERS + 10, "the killed process had ten under way"
            assert await serve.stop() == 0
        finally:
            serve.close()


@pytest.mark.timeout(60)
async def test_a_dead_delivery_is_delivered_by_the_command_line(valkey: Valkey, namespace: str) -> None:
    settings = delivery.DeliverySettings(secrets=(SECRET,), allow=("127.0.0.1",), attempts=1)
    made = delivery.make_service(settings)
    async with receiver(500) as there, Runtime([made], redis=valkey.url, namespace=namespace) as runtime:
        handle = await runtime.submit(
            "delivery.post", delivery.Delivery(url=there.url, type="orders.sold", data={"order": 1})
        )

        async def is_dead() -> bool:
            return (await handle.status()).state is State.DEAD

        await wait_until(is_dead)
        there.answers = 204
        where = ["--redis", valkey.url, "--namespace", namespace, "--service", "aioflow.delivery:service"]
        for command in (["jobs", "show", handle.id, *where], ["jobs", "retry", handle.id, *where]):
            process = await asyncio.create_subprocess_exec(
                *CLI, *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            said, _ = await process.communicate()
            assert process.returncode == 0, said
            if command[1] == "show":
                assert b"the receiver answered 500" in said
        assert await handle.result(10) == delivery.Delivered(status=204)
        assert there.ids == {handle.id: 2}
