"""Clients that send a byte now and then, heads and bodies, on 500 connections, while honest ones are served.

At what rate these are served is measured by hand: `python -m tests.hostile.slow`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time

import aiohttp
import pytest
from aiohttp import web

from aioflow import Runtime, Service
from aioflow.cli.serve import bind
from aioflow.ingress import app, protocol, server
from aioflow.ingress.app import make_app
from aioflow.ingress.server import Ingress
from aioflow.settings import load_settings
from tests.valkey import Valkey

SLOW = 500
LIMIT_SECONDS = 2.0
HEAD = b"POST /work HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def trickle(port: int, begun: bytes) -> tuple[bytes, float]:
    """Begin a request and go on by a byte at a time; all that is answered until the server ends it, and after what."""
    start = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(begun)
    ended = asyncio.create_task(hear(reader, said := bytearray()))
    try:
        while not ended.done():
            writer.write(b"1")
            await asyncio.wait([ended], timeout=0.25)
        await ended
        return bytes(said), time.monotonic() - start
    finally:
        ended.cancel()
        writer.close()


async def hear(reader: asyncio.StreamReader, said: bytearray) -> None:
    """Add what comes to `said` until the connection ends; a reset, as who sends on is given, takes nothing back."""
    with contextlib.suppress(ConnectionError):
        while more := await reader.read(1 << 16):
            said += more


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test can wait for."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", LIMIT_SECONDS)
    monkeypatch.setattr(app, "BODY_SECONDS", LIMIT_SECONDS)
    monkeypatch.setitem(server.HOW, "lingering_time", 0.5)


async def test_honest_clients_are_served_beside_500_slow_ones_which_are_ended(
    valkey: Valkey, namespace: str, short_limits: None
) -> None:
    service = Service("demo")

    @service.task()
    async def work(number: int) -> int:
        return number + 1

    service.post("/work", submits=work)
    listener = bind(load_settings(port=0))
    port = listener.getsockname()[1]
    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        ingress = Ingress(make_app(runtime))
        await ingress.open(listener)
        try:
            begun = [HEAD + b"X: ", HEAD + b"Content-Length: 1000\r\n\r\n"]
            slow = [asyncio.create_task(trickle(port, begun[number % 2])) for number in range(SLOW)]
            async with aiohttp.ClientSession() as session:
                honest = 0
                while not all(client.done() for client in slow):
                    headers = {"Prefer": "wait=5"}
                    async with session.post(f"http://127.0.0.1:{port}/work", json=honest, headers=headers) as answer:
                        assert (answer.status, (await answer.json())["result"]) == (200, honest + 1)
                    honest += 1
            ended = await asyncio.gather(*slow)
        finally:
            await ingress.close()
            listener.close()
    assert honest > 50
    assert {re.findall(rb"HTTP/1\.[01] \d+|$", said)[0][-3:] for said, _ in ended} == {b"408"}, ended[0]
    assert all(seconds >= LIMIT_SECONDS * 0.9 for _, seconds in ended)


async def test_a_head_that_stops_is_ended_wherever_on_a_connection_it_stands(short_limits: None) -> None:
    application = web.Application()
    application.router.add_get("/", app.healthz)
    ingress, listener = Ingress(application), bind(load_settings(port=0))
    await ingress.open(listener)
    port = listener.getsockname()[1]
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    try:
        async with asyncio.timeout(10):
            silent, first, second, idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
            first[1].write(request[:20])
            for _, writer in (second, idle):
                writer.write(request)
            for reader, _ in (second, idle):
                assert b" 200 " in await reader.readuntil(b"}")
            second[1].write(request[:20])
            assert await silent[0].read() == b"", "it has not said a word, and is told none"
            for reader, _ in (first, second):
                said = await reader.read()
                assert b" 408 " in said, said
                assert b"did not come within" in said, said
            idle[1].write(request)
            assert b" 200 " in await idle[0].readuntil(b"}"), "between requests a connection may be idle"
            for _, writer in (silent, first, second, idle):
                writer.close()
    finally:
        await ingress.close()
        listener.close()
