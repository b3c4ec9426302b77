"""Bodies that no honest client sends, to every route that takes JSON: each is answered, by no more than a 4xx."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import zlib

import aiohttp
import pytest

from tests.hostile.conftest import port_of
from tests.hostile.known import IDS, TOKEN
from tests.serving import Serve

MIB = 1 << 20
ROUTES: dict[str, tuple[str, bytes, str]] = {
    "payments": ("POST", b'{"payer_id": "ann", "recipient_id": "bob", "amount": %s}', "/payments"),
    "factors": ("POST", b'{"number": %s}', "/compute_factors"),
    "track": ("POST", b'{"url": "https://example.org/", "properties": {"a": %s}}', "/track"),
    "track many": ("POST", b'[{"url": "https://example.org/"}, %s]', "/track"),
    "track change": ("PATCH", b'{"occurred_at": %s}', "/track/requests/{id}"),
    "item": (
        "POST",
        b'{"id": "h", "content": "c", "category": "spam", "language": "en", "author": "z", "priority": %s}',
        "/moderation/items",
    ),
    "desk": ("POST", b'{"name": "hal", "categories": ["x"], "languages": ["en"], "level": %s}', "/moderation/desks"),
    "ask": ("POST", b'{"moderator": %s}', "/moderation/assignments"),
    "extend": ("POST", b'{"token": %s}', "/moderation/items/{id}/extend"),
    "decide": ("POST", b'{"token": "a.1", "decision": "escalate", "level": %s}', "/moderation/items/{id}/decisions"),
}
"""Per route a body with a place for what is odd."""
VALUES: dict[str, bytes] = {
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "beyond a double": b"1e999",
    "next to nothing": b"1e-999",
    "minus nothing": b"-0",
    "past 2^53": b"9007199254740993",
    "past 2^64": b"18446744073709551617",
    "5,000 digits": b"9" * 5000,
    "a million digits": b"1" * 1_000_000,
    "a fraction": b"1.5",
    "a leading zero": b"01",
    "a lone surrogate": rb'"\ud800"',
    "a NUL": rb'"\u0000"',
    "a raw NUL": b'"\0"',
    "no UTF-8": b'"\xff\xfe\xc0\x80"',
    "UTF-8 of a surrogate": b'"\xed\xa0\x80"',
    "no character": '"\uffff\U0010ffff"'.encode(),
    "text from right to left": '"\u202eabc"'.encode(),
    "800 KB of text": b'"%s"' % (b"a" * 800_000),
    "deep arrays": b"[" * 50_000 + b"]" * 50_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "wide": b"[" + b"0," * 200_000 + b"0]",
    "many names": b"{" + b",".join(b'"%d":0' % number for number in range(50_000)) + b"}",
    "a name twice": b'1, "amount": 2, "number": 2, "priority": 2, "level": 2, "token": "b.1"',
    "a comment": b"1 /* one */",
    "a comma too many": b"1,",
    "nothing": b"",
    "more behind the end": b"1}} {",
    "true": b"true",
    "null": b"null",
    "an object": b"{}",
}
WHOLE: dict[str, bytes] = {
    "no byte": b"",
    "a BOM": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "only spaces": b" " * 1000,
    "zeros": b"\0" * 1000,
    "no JSON": b"<xml/>",
    "a number": b"1",
    "text": b'"a"',
    "arrays without end": b"[" * 900_000,
    "objects without end": b'{"a":' * 150_000,
    "text without end": b'"' + b"a" * 900_000,
}


async def send(
    session: aiohttp.ClientSession, serve: Serve, name: str, body: bytes, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, object]]:
    """What a route answers to a body, checked to be an answer that it may give."""
    method, _, path = ROUTES[name]
    key, value = IDS.get(path, ("", ""))
    given = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}", **(headers or {})}
    url = serve.url + path.replace(f"{{{key}}}", value)
    async with session.request(method, url, data=io.BytesIO(body), headers=given) as answer:
        told = json.loads(await answer.read())
        assert answer.status < 500, (name, answer.status, told)
        if answer.status >= 400:
            assert answer.content_type == "application/problem+json"
            assert len(json.dumps(told)) < 12_000, "a refusal is short, however long what it refuses"
        return answer.status, told


@pytest.mark.parametrize("name", ROUTES)
async def test_odd_values_are_answered(everything: Serve, name: str) -> None:
    template = ROUTES[name][1]
    refused = set()
    async with aiohttp.ClientSession() as session:
        for odd, value in VALUES.items():
            status, _ = await send(session, everything, name, template.replace(b"%s", value))
            assert status in {200, 202, 400, 404, 409, 413, 422}, (odd, status)
            if status in {400, 422}:
                refused.add(odd)
        for odd, value in WHOLE.items():
            status, _ = await send(session, everything, name, value)
            assert status in {400, 422}, (odd, status)
    assert refused >= {"NaN", "Infinity", "no UTF-8", "UTF-8 of a surrogate", "a raw NUL", "a comment", "nothing"}


@pytest.mark.parametrize("name", ROUTES)
async def test_ten_megabytes_are_too_many_however_they_come(everything: Serve, name: str) -> None:
    large = ROUTES[name][1].replace(b"%s", b'"%s"' % (b"a" * (10 * MIB)))
    async with aiohttp.ClientSession() as session:
        for body, coding in ((large, ""), (gzip.compress(large), "gzip"), (zlib.compress(large), "deflate")):
            headers = {"Content-Encoding": coding} if coding else {}
            try:
                status, _ = await send(session, everything, name, body, headers)
            except aiohttp.ClientError:  # it ends while we send: that is an answer, too
                continue
            assert status == 413, coding
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
        async with session.get(f"{everything.url}/healthz", headers=headers) as answer:
            assert answer.status == 200


async def test_a_name_that_is_there_twice_is_taken_once(everything: Serve) -> None:
    """As JSON readers do: the last of them counts, and nothing but it is stored."""
    body = b'{"payer_id": "twice", "recipient_id": "bob", "amount": 1, "amount": 2}'
    async with aiohttp.ClientSession() as session:
        status, told = await send(session, everything, "payments", body, {"Prefer": "wait=10"})
        assert status in {200, 202}
        async with session.get(f"{everything.url}/payments/{told['tracking_id']}") as answer:
            assert (await answer.json())["payment"]["amount"] == 2


async def test_a_body_of_a_byte_per_chunk_is_read(everything: Serve) -> None:
    body = b'{"payer_id": "ann", "recipient_id": "bob", "amount": 1}'
    head = b"POST /payments HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(everything))
    writer.write(head + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
    async with asyncio.timeout(10):
        assert b" 202 " in await reader.readline()
    writer.close()
