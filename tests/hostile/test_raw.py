"""What no HTTP client sends: forms of framing in which a proxy may see another request, pipelines, bytes of all kinds.

What a parser refuses on its own is in tests/integration/test_ingress.py too; here a second request lies behind it,
which must not be answered.
"""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.hostile.conftest import port_of
from tests.serving import Serve

HOST = b"Host: x\r\n"
GET = b"GET /healthz HTTP/1.1\r\n" + HOST
POST = b"POST /payments HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
HIDDEN = GET + b"\r\n"
PAYMENT = b'{"payer_id": "ann", "recipient_id": "bob", "amount": 1}'
CHUNKED = b"Transfer-Encoding: chunked\r\n"
EMPTY_CHUNK = b"\r\n0\r\n\r\n"
KEY = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"


def length(value: bytes) -> bytes:
    """A length that is none, a body, and what hides behind it."""
    return POST + b"Content-Length:" + value + b"\r\n\r\n[1]" + HIDDEN


def coding(header: bytes) -> bytes:
    """A coding that is none, an empty body of chunks, and what hides behind it."""
    return POST + header + EMPTY_CHUNK + HIDDEN


def chunks(body: bytes) -> bytes:
    """A body in chunks, and what hides behind it."""
    return POST + CHUNKED + b"\r\n" + body + HIDDEN


REFUSED: dict[str, bytes] = {
    "a length, then chunks": POST + b"Content-Length: 6\r\n" + CHUNKED + EMPTY_CHUNK + b"G" + HIDDEN,
    "chunks, then a length": POST + CHUNKED + b"Content-Length: 4\r\n\r\n5c\r\n" + HIDDEN,
    "the same length twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\n[1]" + HIDDEN,
    "a list of lengths": length(b" 3, 3"),
    "a length with a plus": length(b" +3"),
    "a length below zero": length(b" -3"),
    "a length with an underscore": length(b" 1_0"),
    "a length in hex": length(b" 0x3"),
    "a length in other digits": length(b" \xd9\xa3"),
    "a length without end": length(b" " + b"9" * 40),
    "a length that is not said": length(b""),
    "a length of two": length(b" 1 2"),
    "chunked, identity": coding(b"Transfer-Encoding: chunked, identity\r\n"),
    "identity, chunked": coding(b"Transfer-Encoding: identity, chunked\r\n"),
    "identity": coding(b"Transfer-Encoding: identity\r\n"),
    "gzip, chunked": coding(b"Transfer-Encoding: gzip, chunked\r\n"),
    "chunked twice": coding(CHUNKED * 2),
    "chunked, chunked": coding(b"Transfer-Encoding: chunked, chunked\r\n"),
    "xchunked": coding(b"Transfer-Encoding: xchunked\r\n"),
    "chunked behind a tab of another kind": coding(b"Transfer-Encoding: \x0bchunked\r\n"),
    "a space before the colon": coding(b"Transfer-Encoding : chunked\r\n"),
    "chunks in HTTP/1.0": b"POST /payments HTTP/1.0\r\n" + HOST + CHUNKED + EMPTY_CHUNK + HIDDEN,
    "a folded header": GET + b"X: a\r\n b\r\n\r\n" + HIDDEN,
    "a folded coding": coding(b"Transfer-Encoding:\r\n chunked\r\n"),
    "a space before the first header": b"GET /healthz HTTP/1.1\r\n " + HOST + b"\r\n" + HIDDEN,
    "lines that end with LF": b"GET /healthz HTTP/1.1\nHost: x\n\n" + HIDDEN,
    "a header that ends with LF": GET + b"X: a\nY: b\r\n\r\n" + HIDDEN,
    "a header with a CR": GET + b"X: a\rY: b\r\n\r\n" + HIDDEN,
    "chunks that end with LF": chunks(b"3\n[1]\n0\n\n"),
    "a chunk below zero": chunks(b"-3\r\n[1]\r\n0\r\n\r\n"),
    "a chunk with 0x": chunks(b"0x3\r\n[1]\r\n0\r\n\r\n"),
    "a chunk without end": chunks(b"f" * 17 + b"\r\n[1]\r\n0\r\n\r\n"),
    "a chunk that is longer": chunks(b"3\r\n[1]x\r\n0\r\n\r\n"),
    "an LF in what a chunk is called": chunks(b"3;a\nb\r\n[1]\r\n0\r\n\r\n"),
    "a length behind the chunks": chunks(b"3\r\n[1]\r\n0\r\nContent-Length: 3\r\n\r\n"),
    "a NUL in a header": GET + b"X: a\0b\r\n\r\n" + HIDDEN,
    "a NUL in a header's name": GET + b"X\0: b\r\n\r\n" + HIDDEN,
    "a NUL in the path": b"GET /pay\0ments HTTP/1.1\r\n" + HOST + b"\r\n" + HIDDEN,
    "two hosts": GET + HOST + b"\r\n" + HIDDEN,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
    "HTTP/1.10": b"GET /healthz HTTP/1.10\r\n" + HOST + b"\r\n" + HIDDEN,
    "tabs between the words": b"GET\t/healthz\tHTTP/1.1\r\n" + HOST + b"\r\n" + HIDDEN,
    "a header without a name": GET + b": x\r\n\r\n" + HIDDEN,
    "two thousand trailers": chunks(b"3\r\n[1]\r\n0\r\n" + b"X: y\r\n" * 2000 + b"\r\n"),
}
"""One refusal each, and the end of the connection: nothing that lies behind it is read."""

ANSWERED: dict[str, tuple[bytes, list[int]]] = {
    "a pipeline": (HIDDEN * 300, [200] * 300),
    "a pipeline of bodies": ((POST + b"Content-Length: %d\r\n\r\n%s" % (len(PAYMENT), PAYMENT)) * 50, [202] * 50),
    "a body of a GET, which nobody reads": (GET + b"Content-Length: %d\r\n\r\n%s" % (len(HIDDEN), HIDDEN), [200]),
    "a WebSocket of no version, with a pipeline": (
        b"GET /moderation/desk HTTP/1.1\r\n"
        + HOST
        + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\n"
        + KEY
        + b"\r\n"
        + HIDDEN,
        [400, 200],
    ),
    "an upgrade for nobody, and a coding behind it": (
        GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + coding(b"Transfer-Encoding: gzip, chunked\r\n"),
        [200, 400],
    ),
    "a coding in capitals": (POST + b"Transfer-Encoding: Chunked\r\n" + EMPTY_CHUNK + HIDDEN, [400, 200]),
    "bytes in the path that are no UTF-8": (b"GET /payments/%ff%fe%00 HTTP/1.1\r\n" + HOST + b"\r\n", [404]),
    "a path that climbs": (b"GET /payments/../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n", [404]),
    "a host that is none": (b"GET /healthz HTTP/1.1\r\nHost: a b\\c@[:99999999\r\n\r\n", [200]),
    "a proxy's request": (b"CONNECT a:1 HTTP/1.1\r\n" + HOST + b"\r\n", [404]),
    "a question to nobody": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", [404]),
    "a method nobody has": (b"TRACE /healthz HTTP/1.1\r\n" + HOST + b"\r\n", [405]),
}


async def statuses(port: int, sent: bytes, expected: int) -> tuple[list[int], bool]:
    """The statuses of all answers, and whether the server has closed: asked for until it has, or all have come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        async with asyncio.timeout(10):
            writer.write(sent)
            while more := await reader.read(1 << 16):
                got += more
                if len(found := re.findall(rb"HTTP/1\.[01] (\d{3}) ", got)) >= expected:
                    break
            else:
                return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", got)], True
    finally:
        writer.close()
    return [int(status) for status in found], False


@pytest.mark.parametrize("name", REFUSED)
async def test_a_form_that_may_be_read_in_two_ways_is_refused_and_ends_the_connection(
    everything: Serve, name: str
) -> None:
    answered, closed = await statuses(port_of(everything), REFUSED[name], 1 << 30)
    assert (answered in ([400], [431]), closed) == (True, True), answered
    assert await statuses(port_of(everything), HIDDEN, 1) == ([200], False), "the next client is served"


@pytest.mark.parametrize("name", ANSWERED)
async def test_what_is_unusual_and_in_order_is_answered(everything: Serve, name: str) -> None:
    sent, expected = ANSWERED[name]
    answered, _ = await statuses(port_of(everything), sent, len(expected))
    assert answered == expected


async def test_nothing_is_read_behind_a_request_for_another_protocol(everything: Serve) -> None:
    sent = GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + POST + b"Content-Length: 60\r\n\r\n" + HIDDEN
    assert await statuses(port_of(everything), sent, 1 << 30) == ([200], True)


async def test_bytes_that_are_nothing_are_refused_or_ended(everything: Serve) -> None:
    for sent in (
        b"GET /healthz\r\n\r\n",
        b"\0" * 100_000,
        b"\xff" * 20_000,
        b"a" * 100_000,
        b"\r\n" * 10 + b"\x80\r\n",
    ):
        answered, closed = await statuses(port_of(everything), sent, 1 << 30)
        assert closed, sent[:20]
        assert set(answered) <= {400, 414, 431}, sent[:20]
