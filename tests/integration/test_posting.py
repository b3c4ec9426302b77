"""POSTs of a load test, on real sockets that answer as servers may."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import aiohttp
import pytest
import trustme

from aioflow import posting as posting_module
from aioflow.posting import Answer, CannotConnect, Poster
from tests.waiting import wait_until

END, SILENCE = b"end", b""
"""Of a connection; until the client ends it."""
TAKEN = b"HTTP/1.1 202 Accepted\r\nLocation: /jobs/1\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """Gives each request its answer, part by part, and keeps what came."""

    def __init__(self, *answers: list[bytes]) -> None:
        self.answers = list(answers)
        self.came: list[bytes] = []
        self.connections: list[asyncio.Task[None] | None] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer on one connection."""
        self.connections.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # the client has ended it
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
                self.came.append(head + await reader.readexactly(length))
                for part in self.answers.pop(0):
                    if part == END:
                        writer.close()
                        return
                    if part == SILENCE:
                        await reader.read()
                    writer.write(part)
                    await writer.drain()
            await reader.read()
        writer.close()


@asynccontextmanager
async def serving(*answers: list[bytes], tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    made = Server(*answers)
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=tls)
    made.url = f"http{'s' if tls else ''}://localhost:{listening.sockets[0].getsockname()[1]}/jobs?a=b%20c"
    async with listening:
        yield made
    await asyncio.wait_for(asyncio.gather(*filter(None, made.connections)), 5)


Post = Callable[[], Awaitable[Answer]]


@asynccontextmanager
async def posting(server: Server, seconds: float = 5.0) -> AsyncIterator[Post]:
    with closing(Poster(server.url, seconds)) as poster:
        yield lambda: poster.post(b"[1]")


async def test_a_connection_is_kept_from_post_to_post() -> None:
    async with serving([TAKEN], [TAKEN], [TAKEN]) as server, posting(server) as post:
        assert [await post() for _ in range(3)] == [Answer(202, b"{}", "/jobs/1")] * 3
        assert len(server.connections) == 1
        assert server.came[0].startswith(b"POST /jobs?a=b%20c HTTP/1.1\r\nHost: localhost:")
        assert server.came[2].endswith(b"Content-Type: application/json\r\nContent-Length: 3\r\n\r\n[1]")


@pytest.mark.parametrize(
    ("answer", "expected", "connections"),
    [
        ([b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[", b"]\r\n0\r\n\r\n"], Answer(200, b"[]", None), 1),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"], Answer(204, b"", None), 1),
        ([b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"], Answer(302, b"", "/x"), 1),
        ([TAKEN.replace(b"Location", b"Connection: close\r\nLocation")], Answer(202, b"{}", "/jobs/1"), 2),
        ([b"HTTP/1.1 200 OK\r\n\r\nto the", b" end", END], Answer(200, b"to the end", None), 2),
        ([b"HTTP/1.1 101 Switch\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"], Answer(101, b"", None), 2),
    ],
    ids=["chunked", "continued", "redirect", "closed", "to the end", "other protocol"],
)  # fmt: skip
async def test_answers_of_all_kinds(answer: list[bytes], expected: Answer, connections: int) -> None:
    async with serving(answer, [TAKEN]) as server, posting(server) as post:
        assert await post() == expected
        assert await post() == Answer(202, b"{}", "/jobs/1")
        assert len(server.connections) == connections


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ([END], aiohttp.ServerDisconnectedError),
        ([b"HTTP/1.1 202 Acc", END], aiohttp.ClientError),
        ([b"HTTP/1.1 202 Accepted\r\nContent-Length: 9\r\n\r\n{", END], aiohttp.ClientPayloadError),
        ([b"no HTTP at all\r\n\r\n"], aiohttp.ClientError),
        ([SILENCE], TimeoutError),
        ([b"HTTP/1.1 202 Accepted\r\nX: ", *[b"x"] * 9, SILENCE], TimeoutError),
        ([b"HTTP/1.1 202 Accepted\r\nContent-Length: 9\r\n\r\n{", SILENCE], TimeoutError),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", SILENCE], TimeoutError),
    ],
    ids=["closed", "cut head", "cut body", "garbage", "silent", "silent head", "silent body", "silent after 100"],
)
async def test_what_breaks_is_told_and_its_connection_given_up(answer: list[bytes], error: type[Exception]) -> None:
    async with serving(answer, [TAKEN]) as server, posting(server, 0.2) as post:
        with pytest.raises(error):
            await post()
        assert len(server.came) == 1, "it may have been taken, and is not sent again"
        assert await post() == Answer(202, b"{}", "/jobs/1")


async def test_a_connection_that_the_server_has_ended_is_not_used_again() -> None:
    async with serving([TAKEN, END], [TAKEN]) as server:
        with closing(Poster(server.url, 5.0)) as poster:
            await poster.post(b"1")
            await wait_until(lambda: not poster._idle[0][0].is_connected())
            assert await poster.post(b"2") == Answer(202, b"{}", "/jobs/1")


async def test_a_connection_that_was_idle_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving([TAKEN], [TAKEN]) as server, posting(server) as post:
        await post()
        monkeypatch.setattr(posting_module, "KEPT_SECONDS", 0.0)
        await post()
        assert len(server.connections) == 2


async def test_a_post_that_is_cancelled_leaves_no_answer_for_the_next() -> None:
    async with serving([SILENCE], [TAKEN]) as server, posting(server) as post:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await post()
        assert await post() == Answer(202, b"{}", "/jobs/1")
        assert len(server.connections) == 2


async def test_nobody_there() -> None:
    poster = Poster("http://127.0.0.1:9/jobs", 5.0)
    with pytest.raises(CannotConnect, match=r"cannot connect: .*127\.0\.0\.1"):
        await poster.post(b"")


async def test_nobody_takes_the_connection() -> None:
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):  # more than it keeps in line
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        poster = Poster(f"http://127.0.0.1:{listener.getsockname()[1]}", 0.2)
        with pytest.raises(TimeoutError):
            await poster.post(b"")


async def test_names_and_passwords_of_the_url_are_sent_and_tls_is_spoken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with serving([TAKEN], tls=context) as server:
        server.url = server.url.replace("localhost", "ann:s%20e@localhost")
        with pytest.raises(CannotConnect, match="certificate verify failed"):
            async with posting(server) as post:
                await post()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        async with posting(server) as post:
            assert (await post()).status == 202
        assert b"\r\nAuthorization: Basic YW5uOnMgZQ==\r\n" in server.came[0]
