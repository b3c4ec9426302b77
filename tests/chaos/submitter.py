"""`python -m tests.chaos.submitter`: a process that submits until it is ended, and notes each receipt it was given.

Whatever has no receipt is submitted again under the same name, where the server was away, full or too slow; any other
refusal is noted. Orders go through a runtime of its own, payments over HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from typing import Any

import aiohttp
import uvloop

from aioflow import QueueFull, Runtime, StoreUnavailable
from tests.chaos import receipts
from tests.chaos.receipts import REFUSED
from tests.chaos.work import Order, die, eat, sell, shop, wait

DEEDS = ["fail"] * 20 + ["sleep"] * 5 + ["block"] * 2
"""Of a thousand orders."""
WAITING = 0.3
"""Seconds from one waiting job to the next."""
LATER = (429, 503)
"""Answers that ask to try again."""
PAUSE = 0.05
"""Seconds before somebody who got no receipt asks again."""
HOLDING = 0.0001
"""How many of all orders hold up their loop for longer than a lease."""


class Submitter:
    """Many concurrent submitters. `life` makes the names of this process' work unlike those of any other."""

    def __init__(self, life: str, seed: int, log: int, ports: list[int], deadly: float) -> None:
        self._life = life
        self._drawn = random.Random(f"{seed} {life}")
        self._log = log
        self._ports = ports
        self._deadly = deadly
        self._number = 0
        self.ending = asyncio.Event()

    def _name(self) -> str:
        self._number += 1
        return f"{self._life}-{self._number}"

    async def orders(self, runtime: Runtime, pace: float) -> None:
        """Submit one order after the other, at most one in so many seconds."""
        while not self.ending.is_set():
            due = time.monotonic() + pace
            name = self._name()
            if self._drawn.random() < self._deadly:
                deadly, kind = self._drawn.choice([(die, "die"), (die, "die"), (eat, "eat")])
                await self._until_received(runtime, kind, deadly, name, name)
                continue
            delay = self._drawn.choice([0.1, 1.0, 3.0]) if self._drawn.random() < 0.1 else 0.0
            order = Order(name=name, deed=self._deed())
            priority = self._drawn.choice([0, 4, 4, 9])
            await self._until_received(runtime, "order", sell, name, order, delay=delay, priority=priority)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def waits(self, runtime: Runtime) -> None:
        """Submit jobs that take their time, a few."""
        while not self.ending.is_set():
            name = self._name()
            await self._until_received(runtime, "wait", wait, name, name)
            await asyncio.sleep(WAITING)

    def _deed(self) -> Any:
        if self._drawn.random() < HOLDING:
            return "hold"
        chance = self._drawn.randrange(1000)
        return DEEDS[chance] if chance < len(DEEDS) else ""

    async def _until_received(
        self, runtime: Runtime, kind: str, task: Any, name: str, payload: Any, *, delay: float = 0.0, priority: int = 4
    ) -> None:
        first = time.monotonic()
        while not self.ending.is_set():
            try:
                await runtime.submit(task, payload, id=name, delay=delay, priority=priority)
            except (StoreUnavailable, QueueFull):
                await asyncio.sleep(PAUSE)
            else:
                due = first + delay if delay else 0.0
                receipts.write(self._log, kind, name, runtime.durability, first, due)
                return

    async def payments(self, session: aiohttp.ClientSession, pace: float) -> None:
        """Post one payment after the other to whichever process answers."""
        while not self.ending.is_set():
            due = time.monotonic() + pace
            name = self._name()
            while not self.ending.is_set():
                if await self._post(session, name):
                    break
                await asyncio.sleep(PAUSE)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _post(self, session: aiohttp.ClientSession, name: str) -> bool:
        payer = int(name.rpartition("-")[2]) % 50  # the same whenever it is sent again
        body = {"payer_id": f"payer-{payer}", "recipient_id": "shop", "amount": 100}
        url = f"http://127.0.0.1:{self._drawn.choice(self._ports)}/payments"
        try:
            async with session.post(url, json=body, headers={"Idempotency-Key": name}) as answer:
                if answer.status == 202:
                    receipts.write(self._log, "payment", (await answer.json())["tracking_id"], "http")
                elif answer.status not in LATER:
                    receipts.write(self._log, REFUSED, f"{name}:{answer.status}", "http")
                return answer.status == 202
        except (aiohttp.ClientError, TimeoutError):
            return False


async def run(options: argparse.Namespace) -> None:
    """Submit until a SIGTERM."""
    log = os.open(options.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    submitter = Submitter(options.life, options.seed, log, options.ports, options.deadly)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, submitter.ending.set)
    timeout = aiohttp.ClientTimeout(total=10)
    runtime = Runtime([shop], redis=options.redis, namespace=options.namespace, workers=False)
    async with runtime, aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as tasks:
        tasks.create_task(submitter.waits(runtime))
        for _ in range(options.submitters):
            tasks.create_task(submitter.orders(runtime, options.pace))
            tasks.create_task(submitter.payments(session, 4 * options.pace))


def main() -> None:
    """What the run passes."""
    options = argparse.ArgumentParser(prog="python -m tests.chaos.submitter")
    options.add_argument("--redis", required=True)
    options.add_argument("--namespace", required=True)
    options.add_argument("--log", required=True)
    options.add_argument("--life", required=True)
    options.add_argument("--seed", type=int, required=True)
    options.add_argument("--ports", type=int, nargs="+", required=True)
    options.add_argument("--submitters", type=int, default=20)
    options.add_argument("--pace", type=float, default=0.1)
    options.add_argument("--deadly", type=float, default=0.0)
    try:
        uvloop.run(run(options.parse_args()))
    except StoreUnavailable as error:  # at the start: it is started again
        sys.exit(str(error))


if __name__ == "__main__":
    main()
