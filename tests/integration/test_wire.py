"""Round trips with a server that errs: whatever it says, no answer is another question's, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import exceptions as driver

from aioflow.engine.connect import Clients
from aioflow.engine.wire import Wire
from aioflow.errors import StoreUnavailable

MUTE = b"MUTE"
SAID = {
    b"PING": b"+PONG\r\n",
    b"ERROR": b"-ERR no\r\n",
    b"LOADING": b"-LOADING it is not there yet\r\n",
    b"MORE": b"+A\r\n+B\r\n",
    b"HALF-MORE": b"+A\r\n+B",
    b"GARBAGE": b"hello\r\n",
    b"FOREIGN-ERROR": b"-MOVED\r\n",
    b"CUT": b"$10\r\nabc",
    MUTE: b"",
}


class Server:
    """Speaks just enough to be connected to, and then says what it is asked for; after a CUT it hangs up."""

    def __init__(self) -> None:
        self.connections = 0
        self.mute = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        while line := await reader.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                words.append((await reader.readexactly(size + 2))[:-2])
            if not self.mute:
                writer.write(SAID.get(words[0], b"+OK\r\n"))
            if words[0] == b"CUT":
                break
        writer.close()


@asynccontextmanager
async def wired(connections: int = 1) -> AsyncIterator[tuple[Server, Wire, Any]]:
    """A server, a wire to it, and what closes the wire."""
    server = Server()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        clients = Clients(f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}", "aioflow:test")
        try:
            yield server, clients.wire(connections), clients.close
        finally:
            await clients.close()


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ("LOADING", driver.BusyLoadingError),
        ("MORE", driver.InvalidResponse),
        ("HALF-MORE", driver.InvalidResponse),
        ("GARBAGE", driver.InvalidResponse),
        ("FOREIGN-ERROR", driver.InvalidResponse),
        ("CUT", driver.ConnectionError),
    ],
)
async def test_a_connection_that_said_nonsense_is_asked_no_more(
    asked: str, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    async with wired() as (server, wire, _):
        assert await wire.ask([("PING",), ("PING",)]) == [b"PONG", b"PONG"]
        with pytest.raises(error):
            await wire.ask([(asked,)])
        assert await wire.ask([("PING",)]) == [b"PONG"]
        assert server.connections == 2
    assert not caplog.records


async def test_an_error_is_an_answer_among_others() -> None:
    async with wired() as (server, wire, _):
        first, second, third = await wire.ask([("PING",), ("ERROR",), ("PING",)])
        assert (first, type(second), third) == (b"PONG", driver.ResponseError, b"PONG")
        assert server.connections == 1


async def test_the_deadline_ends_the_connection_and_also_a_wait_for_one() -> None:
    async with wired() as (server, wire, _):
        await wire.ask([("PING",)])
        began = time.monotonic()
        answers = await asyncio.gather(wire.ask([(MUTE,)], 0.1), wire.ask([("PING",)], 0.05), return_exceptions=True)
        assert [type(answer) for answer in answers] == [TimeoutError, TimeoutError]
        assert time.monotonic() - began < 1
        assert await wire.ask([("PING",)]) == [b"PONG"]
        assert server.connections == 2


async def test_a_short_deadline_and_a_cancel_are_nothing_to_the_other_connections() -> None:
    async with wired(3) as (server, wire, _):
        await asyncio.gather(*(wire.ask([("PING",)]) for _ in range(3)))
        with pytest.raises(TimeoutError):
            await wire.ask([(MUTE,)], 0.05)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await wire.ask([(MUTE,)])
        assert await wire.ask([("PING",)]) == [b"PONG"]
        assert server.connections == 3


async def test_what_cannot_be_packed_costs_no_connection() -> None:
    async with wired() as (server, wire, _):
        await wire.ask([("PING",)])
        for words in (("X", "\ud800"), ("X", None)):
            with pytest.raises((TypeError, ValueError)):
                await wire.ask([words])
        assert await wire.ask([("PING",)]) == [b"PONG"]
        assert server.connections == 1


async def test_turns_come_in_order_and_those_of_the_cancelled_are_passed_on() -> None:
    async with wired() as (_, wire, __):
        await wire.ask([("PING",)])
        order: list[int] = []

        async def ask(number: int) -> None:
            await wire.ask([("PING",)])
            order.append(number)

        tasks = [asyncio.create_task(ask(number)) for number in range(6)]
        await asyncio.sleep(0)  # all have asked
        for number in (0, 1, 4):  # the one that is under way, the next, and one of the others
            tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [2, 3, 5]


async def test_a_turn_that_comes_with_the_end_begins_no_connection() -> None:
    async with wired() as (server, wire, close):
        await wire.ask([("PING",)])
        server.mute = True
        first = asyncio.create_task(wire.ask([(MUTE,)]))
        second = asyncio.create_task(wire.ask([("PING",)]))
        await asyncio.sleep(0)  # both have asked
        first.cancel()
        await asyncio.sleep(0)  # it has passed its turn on, and the second has not run yet
        began = time.monotonic()
        await close()
        assert time.monotonic() - began < 1
        with pytest.raises(StoreUnavailable, match="has stopped"):
            await second
        assert first.cancelled()
        assert server.connections == 1
