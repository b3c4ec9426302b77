"""An answer in one piece says on the wire what aiohttp's says, and leaves to aiohttp whatever is not plain."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from aioflow.ingress.answers import JSON, JsonAnswer
from aioflow.ingress.server import Ingress
from tests.serving import bound

BODY = b'{"status":"OK"}'
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
ENDS = re.compile(rb"Connection: close|HTTP/1\.0\r\nHost")
"""A request that is the last of its connection."""
Change = Callable[[web.Response], None]


def nothing(_: web.Response) -> None: ...


async def exchange(address: tuple[str, int], sent: bytes) -> bytes:
    """All that a connection answers."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(sent)
    heard = await reader.read()
    writer.close()
    return heard


def comparable(heard: bytes) -> tuple[list[bytes], bytes]:
    """The lines of the first head, sorted and without the date, and all that follows it."""
    head, _, rest = heard.partition(b"\r\n\r\n")
    return sorted(line for line in head.split(b"\r\n") if not line.startswith(b"Date: ")), re.sub(
        rb"Date: .*\r\n", b"", rest
    )


async def both(
    change: Change, request: bytes, *, before: Callable[[web.Application], None] = lambda _: None, **options: Any
) -> tuple[bool, bytes, bytes]:
    """Whether ours was written in one piece, and what the two said."""
    made: list[JsonAnswer] = []
    options = {"status": 202, "body": BODY, "headers": {**JSON, "Location": "/jobs/1"}, **options}

    async def ours(_: web.Request) -> web.Response:
        made.append(JsonAnswer(**options))
        change(made[0])
        return made[0]

    async def aiohttps(_: web.Request) -> web.Response:
        answer = web.Response(**options)
        change(answer)
        return answer

    async def last(_: web.Request) -> web.Response:
        return web.Response(text="last")

    application = web.Application()
    application.router.add_route("*", "/ours", ours)
    application.router.add_route("*", "/aios", aiohttps)
    application.router.add_get("/last", last)
    before(application)
    ingress, listener = Ingress(application), bound()
    await ingress.open(listener)
    try:
        address = listener.getsockname()[:2]
        behind = b"" if ENDS.search(request) else LAST
        said = [await exchange(address, request.replace(b"/PATH", path) + behind) for path in (b"/ours", b"/aios")]
    finally:
        await ingress.close()
    return bool(made[0]._written), said[0], said[1]


GET = b"GET /PATH HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /PATH HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("request_", "options"),
    [
        (GET, {}),
        (POST, {}),
        (POST, {"status": 200, "headers": JSON}),
        (GET, {"status": 409, "reason": "Not now"}),
        (GET, {"body": b""}),
        (GET, {"body": b"x" * 3_000_000}),
        (GET, {"headers": {**JSON, "Location": "/jobs/\u00e9"}}),
    ],
)
async def test_a_plain_answer_says_what_aiohttps_says(request_: bytes, options: dict[str, Any]) -> None:
    plain, ours, aiohttps = await both(nothing, request_, **options)
    assert plain
    assert comparable(ours) == comparable(aiohttps)
    assert ours.endswith(b"last"), "the connection goes on"
    assert ours.count(b"\r\nDate: ") == 2


def give_cookie(answer: web.Response) -> None:
    answer.set_cookie("a", "b")


def give_header(answer: web.Response) -> None:
    answer.headers["X-Request-Id"] = "7"


def give_date(answer: web.Response) -> None:
    answer.headers["Date"] = "never"


@pytest.mark.parametrize(
    ("change", "request_", "options"),
    [
        (nothing, GET.replace(b"GET", b"HEAD"), {}),
        (nothing, GET.replace(b"1.1", b"1.0"), {}),
        (nothing, GET.replace(b"1.1", b"1.0").replace(b"Host", b"Connection: keep-alive\r\nHost"), {}),
        (nothing, GET.replace(b"Host", b"Connection: close\r\nHost"), {}),
        (nothing, GET, {"status": 204}),
        (nothing, GET, {"status": 304}),
        (nothing, GET, {"body": None}),
        (web.Response.force_close, GET, {}),
        (web.Response.enable_compression, GET.replace(b"Host", b"Accept-Encoding: gzip\r\nHost"), {}),
        (give_cookie, GET, {}),
        (give_header, GET, {}),
        (give_date, GET, {}),
        (nothing, GET, {"headers": {**JSON, "Location": "/\r\nX: 1"}}),
    ],
)
async def test_any_other_is_aiohttps(change: Change, request_: bytes, options: dict[str, Any]) -> None:
    plain, ours, aiohttps = await both(change, request_, **options)
    assert not plain
    assert comparable(ours) == comparable(aiohttps)
    assert b"\r\nX: 1" not in ours


async def test_a_signal_of_the_applications_is_heard() -> None:
    async def sign(_: web.Request, answer: web.StreamResponse) -> None:
        answer.headers["X-Signed"] = "yes"

    def before(application: web.Application) -> None:
        application.on_response_prepare.append(sign)

    plain, ours, aiohttps = await both(nothing, GET, before=before)
    assert not plain
    assert comparable(ours) == comparable(aiohttps)
    assert ours.count(b"X-Signed: yes") == 2


async def test_a_client_that_is_gone_gets_nothing_and_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    def drop(application: web.Application) -> None:
        @web.middleware
        async def dropping(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            answer = await handler(request)
            assert request.transport is not None
            request.transport.close()
            return answer

        application.middlewares.append(dropping)

    _, ours, aiohttps = await both(nothing, GET, before=drop)
    assert ours == aiohttps == b""
    assert not caplog.records
