"""A load generator for one kind of request, and the bare aiohttp server it is compared with.

Both run in processes of their own; the generator keeps one request in flight on each of its connections.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast
from urllib.parse import urlsplit

import orjson
import uvloop
from aiohttp import web

from tests.waiting import wait_until

CONNECTIONS = 64
OFFERED = 100_000
BODY = orjson.dumps({"payer_id": "ann", "recipient_id": "bob", "amount": 1250, "currency": "USD"})
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Requester(asyncio.Protocol):
    """One connection that posts again as soon as it is answered."""

    def __init__(self, host: str, until: float) -> None:
        self._request = (
            f"POST /payments HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(BODY)}\r\n\r\n"
        ).encode() + BODY
        self._until = until
        self._sent = 0.0
        self._answer = b""
        self.took: list[float] = []
        self._transport: asyncio.WriteTransport | None = None
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._post()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if not end or length is None or len(body) < int(length[1]):
            return
        assert head.startswith(b"HTTP/1.1 202"), self._answer[:200]
        self._answer = b""
        now = time.perf_counter()
        self.took.append(now - self._sent)
        assert self._transport is not None
        if now < self._until:
            self._post()
        elif not self.done.done():
            self.done.set_result(None)
            self._transport.close()

    def _post(self) -> None:
        assert self._transport is not None
        self._sent = time.perf_counter()
        self._transport.write(self._request)


def _generate(url: str, seconds: float, told: multiprocessing.Queue[tuple[float, float]]) -> None:
    async def run() -> None:
        parts = urlsplit(url)
        began = time.perf_counter()
        made = [
            await asyncio.get_running_loop().create_connection(
                lambda: Requester(parts.netloc, began + seconds), str(parts.hostname), int(parts.port or 80)
            )
            for _ in range(CONNECTIONS)
        ]
        await asyncio.gather(*(requester.done for _, requester in made))
        spent = time.perf_counter() - began
        took = sorted(one for _, requester in made for one in requester.took)
        told.put((len(took) / spent, 1000 * took[int(0.99 * len(took))]))

    uvloop.run(run())


async def requests(url: str, seconds: float) -> tuple[float, float]:
    """Requests that a server answers per second, and their p99 in ms; the first second is a warm-up."""
    context = multiprocessing.get_context("spawn")
    told: multiprocessing.Queue[tuple[float, float]] = context.Queue()
    for length in (1.0, seconds):
        generator = context.Process(target=_generate, args=(url, length, told), daemon=True)
        generator.start()
        found = await asyncio.to_thread(told.get, True, seconds + 30)
        await asyncio.to_thread(generator.join)
    return found


def _serve_bare(port: int) -> None:
    async def accept(request: web.Request) -> web.Response:
        orjson.loads(await request.read())
        return web.Response(
            status=202, body=b'{"status":"OK","tracking_id":"x"}', headers={"Content-Type": "application/json"}
        )

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/payments", accept)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()

    uvloop.run(run())


class Sink(asyncio.Protocol):
    """Answers each POST at once, unread."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data.count(b"POST ") * b'HTTP/1.1 202 Accepted\r\nContent-Length: 10\r\n\r\n{"id":"x"}')


def _serve_sink(port: int) -> None:
    async def run() -> None:
        await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", port)
        await asyncio.Event().wait()

    uvloop.run(run())


async def offered() -> float:
    """Requests per second that `aioflow load` makes where the server costs next to nothing."""
    async with bare_server(_serve_sink) as url:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aioflow", "load", "payments.charge", BODY.decode(), "--url", url, "--json"),
            *("--submitters", str(CONNECTIONS), "--jobs", str(OFFERED), "--settle", "0"),
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()
    told = orjson.loads(said)
    assert told["accepted"] == OFFERED
    return float(told["throughput"]["accepted_per_s"])


@asynccontextmanager
async def bare_server(serve: Callable[[int], None] = _serve_bare) -> AsyncIterator[str]:
    """The URL of an aiohttp handler that only parses the JSON and answers 202."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    process.start()

    def listening() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        await wait_until(listening)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.join()
