"""`python -m tests.hostile.slow`: the rate at which honest clients are served, without and with 500 slow connections.

A real `serve` process over a private Valkey; the slow connections are another process', and are begun anew as they end.
Exit code 1 where honest clients get less than 80 % of the rate that they have alone.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time

import aiohttp

from tests.serving import ROOT, Serve
from tests.valkey import Valkey

CONNECTIONS = 500
HONEST = 8
SECONDS = 8.0
ROUNDS = 5
LEAST = 0.8
PAYMENT = {"payer_id": "ann", "recipient_id": "bob", "amount": 1}
HEAD = b"POST /payments HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def hold(port: int, begun: bytes) -> None:
    """A slow connection after the other: a byte a second."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(begun)
            while not reader.at_eof():
                writer.write(b"1")
                await asyncio.sleep(1)
        except ConnectionError:
            continue
        finally:
            writer.close()


async def hold_all(port: int) -> None:
    """Half of them are slow with their heads, half with their bodies."""
    begun = [HEAD + b"X: ", HEAD + b"Content-Length: 1000\r\n\r\n"]
    async with asyncio.TaskGroup() as group:
        for number in range(CONNECTIONS):
            group.create_task(hold(port, begun[number % 2]))
        print("held", flush=True)


async def rate(url: str) -> float:
    """Payments per second that are answered with 202."""
    count, end = 0, time.monotonic() + SECONDS

    async def pay(session: aiohttp.ClientSession) -> None:
        nonlocal count
        while time.monotonic() < end:
            async with session.post(f"{url}/payments", json=PAYMENT) as answer:
                assert answer.status == 202, await answer.text()
                count += 1

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*[pay(session) for _ in range(HONEST)])
    return count / SECONDS


async def main() -> None:
    """Rates in turns, and their ratio."""
    valkey = Valkey()
    serve = Serve("services.payments:service", "--redis", valkey.url, "--port", "0", "--no-workers")
    try:
        valkey.start()
        await serve.start()
        port = serve.url.rpartition(":")[2]
        await rate(serve.url)  # warm
        alone, beside = [], []
        for _ in range(ROUNDS):
            alone.append(await rate(serve.url))
            slow = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.hostile.slow", port), cwd=ROOT, stdout=subprocess.PIPE
            )
            assert slow.stdout is not None
            await slow.stdout.readline()
            beside.append(await rate(serve.url))
            slow.kill()
            await slow.wait()
        print("alone  " + " ".join(f"{each:7.0f}/s" for each in alone))
        print("beside " + " ".join(f"{each:7.0f}/s" for each in beside))
        share = statistics.median(beside) / statistics.median(alone)
        print(f"{share:.0%} of the usual rate beside {CONNECTIONS} slow connections; the bar is {LEAST:.0%}")
        sys.exit(share < LEAST)
    finally:
        serve.close()
        valkey.close()


if __name__ == "__main__":
    asyncio.run(hold_all(int(sys.argv[1])) if len(sys.argv) > 1 else main())
