"""`python harness.py SYSTEM ITEM JSON`: do one item of work with one system, in this process; prints JSON.

A system is a module `with_SYSTEM` that has `payload(number, text, sent)`, what a job carries; `submitter(url)`, a
context that gives an async call which takes such a payload and returns once the job is taken; and `worker(url,
concurrency, handle)`, a context in which jobs are run by `handle(number, sent)`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import uvloop

PATIENCE = 240.0
"""Seconds for whatever is waited for."""
WARM_UP = 50
IDLE_SECONDS = 0.005
"""Between two probes of the latency: long enough for every system to wait for work again."""

Handle = Callable[[int, int], Awaitable[None]]


class System(Protocol):
    """What a module `with_...` has."""

    def payload(self, number: int, text: str, sent: int) -> Any:
        """What a job carries."""

    def submitter(self, url: str) -> AbstractAsyncContextManager[Callable[[Any], Awaitable[object]]]:
        """What takes a payload."""

    def worker(self, url: str, concurrency: int, handle: Handle) -> AbstractAsyncContextManager[None]:
        """Runs jobs until it is left."""


def percentiles(took: list[float]) -> dict[str, float]:
    """Milliseconds, of seconds."""
    took.sort()
    return {
        f"p{share:g}_ms": 1000 * took[min(len(took) - 1, int(len(took) * share / 100))] for share in (50, 90, 99, 99.9)
    }


async def submit(system: System, url: str, *, jobs: int, submitters: int, size: int) -> dict[str, float]:
    """Many submitters side by side; each has its payload at hand."""
    async with system.submitter(url) as send:

        async def submitter(number: int) -> None:
            payload = system.payload(number, "x" * size, 0)
            for _ in range(jobs // submitters):
                await send(payload)

        await send(system.payload(0, "x" * size, 0))  # connected, and its scripts loaded
        began = time.perf_counter()
        await asyncio.gather(*(submitter(number) for number in range(submitters)))
        return {"rate": jobs / (time.perf_counter() - began)}


async def drain(system: System, url: str, *, jobs: int, concurrency: int, wait_ms: float) -> dict[str, float]:
    """From the start of the first handler to the end of that of the last of so many jobs."""
    ended, done, began = 0, asyncio.Event(), 0.0

    async def handle(_: int, __: int) -> None:
        nonlocal ended, began
        if not began:
            began = time.perf_counter()
        if wait_ms:
            await asyncio.sleep(wait_ms / 1000)
        ended += 1
        if ended == jobs:
            done.set()

    async with system.worker(url, concurrency, handle), asyncio.timeout(PATIENCE):
        await done.wait()
        return {"rate": jobs / (time.perf_counter() - began)}


async def latency(system: System, url: str, *, probes: int) -> dict[str, float]:
    """From the call that submits to the first line of the handler, one job at a time, in one process."""
    started: asyncio.Queue[float] = asyncio.Queue()

    async def handle(_: int, __: int) -> None:
        started.put_nowait(time.perf_counter())

    took = []
    async with system.worker(url, 100, handle), system.submitter(url) as send:
        for number in range(WARM_UP + probes):
            payload = system.payload(number, "", 0)
            await asyncio.sleep(IDLE_SECONDS)
            async with asyncio.timeout(PATIENCE):
                began = time.perf_counter()
                await send(payload)
                took.append(await started.get() - began)
    return percentiles(took[WARM_UP:])


async def receive(system: System, url: str, *, jobs: int) -> dict[str, float]:
    """From when a job should have been sent, by the clock of this machine, to the first line of its handler."""
    took: list[float] = []
    done = asyncio.Event()

    async def handle(_: int, sent: int) -> None:
        if not sent:
            return  # the one that made the queue
        took.append((time.monotonic_ns() - sent) / 1e9)
        if len(took) == jobs:
            done.set()

    async with system.worker(url, 100, handle), asyncio.timeout(PATIENCE):
        print("ready", flush=True)
        await done.wait()
    return percentiles(took)


async def offer(system: System, url: str, *, jobs: int, rate: float) -> dict[str, float]:
    """Submit at a steady rate, whatever becomes of the ones before: each says when it should have been sent."""
    async with system.submitter(url) as send, asyncio.TaskGroup() as group:
        began = time.monotonic_ns()
        for number in range(jobs):
            due = began + int(number * 1e9 / rate)
            ahead = due - time.monotonic_ns()
            if ahead > 0:
                await asyncio.sleep(ahead / 1e9)
            group.create_task(_sent(send, system.payload(number, "", due)))
        ended = time.monotonic_ns()
    return {"rate": jobs / ((ended - began) / 1e9)}


async def _sent(send: Callable[[Any], Awaitable[object]], payload: Any) -> None:
    await send(payload)


ITEMS: dict[str, Callable[..., Coroutine[Any, Any, dict[str, float]]]] = {
    "submit": submit,
    "drain": drain,
    "latency": latency,
    "receive": receive,
    "offer": offer,
}


def main() -> None:
    """Run the item that is asked for."""
    name, item, options = sys.argv[1:4]
    system: Any = importlib.import_module(f"with_{name}")
    if hasattr(system, "prepare"):
        system.prepare()

    async def run() -> None:
        print(json.dumps(await ITEMS[item](system, **json.loads(options))), flush=True)
        os._exit(0)  # what was to be measured is known; not every system ends in order

    uvloop.run(run())


if __name__ == "__main__":
    main()
