"""The HTTP ingress as a client meets it: what is refused before a route hears of it, and what /readyz says."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import AfterValidator, BaseModel
from redis.asyncio import Redis

from aioflow import ConfigError, Problem, Runtime, Service
from aioflow.cli.serve import bind
from aioflow.engine import claimer
from aioflow.ingress import app
from aioflow.ingress.app import answer_problems, make_app
from aioflow.ingress.server import LAST_ANSWERS_SECONDS, Ingress
from aioflow.settings import load_settings
from aioflow.web import json_body, read_json
from tests.serving import Serve, bound
from tests.valkey import Valkey
from tests.waiting import wait_until

HOST = b"Host: x\r\nConnection: close\r\n"
JSON = b"Content-Type: application/json\r\n"
GET = b"GET /healthz HTTP/1.1\r\n"
POST = b"POST /payments HTTP/1.1\r\n" + HOST
PAYMENT = b'{"payer_id": "alice", "recipient_id": "shop", "amount": 1250}'
CHUNKED = b"Transfer-Encoding: chunked\r\n"
WAITING = b"Expect: 100-continue\r\n"
BAD_CHUNK = b"3\r\nabc\r\nzz\r\nabc\r\n0\r\n\r\n"


def sized(body: bytes) -> bytes:
    """The end of a head, and its body."""
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


REFUSED: dict[str, tuple[int, bytes]] = {
    "a method that is none": (400, b"FOO / HTTP/1.1\r\n" + HOST + b"\r\n"),
    "no HTTP at all": (400, b"hello\r\n\r\n"),
    "TLS on a plain port": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "a version that is none": (400, b"GET / HTTP/9.1\r\n" + HOST + b"\r\n"),
    "a long path": (414, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a long header": (431, GET + HOST + b"X: " + b"a" * 9000 + b"\r\n\r\n"),
    "many headers": (431, GET + HOST + b"X: a\r\n" * 200 + b"\r\n"),
    "raw bytes in the path": (400, b"GET /payments/\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n"),
    "raw bytes in the query": (400, b"GET /payments?status=\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a path that is none": (400, b"GET payments HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a URL that is none": (400, b"GET http://[::1/x HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a URL with brackets and no host": (400, b"GET http://[]@ HTTP/1.1\r\n" + HOST + b"\r\n"),
    "no Host": (400, GET + b"Connection: close\r\n\r\n"),
    "a header without a colon": (400, GET + HOST + b"X a\r\n\r\n"),
    "two Content-Types": (400, POST + JSON + JSON + sized(PAYMENT)),
    "two Content-Lengths": (400, POST + JSON + b"Content-Length: 3\r\n" + sized(PAYMENT)),
    "a Content-Length that is no number": (400, POST + JSON + b"Content-Length: abc\r\n\r\n"),
    "a length and chunks": (400, POST + JSON + CHUNKED + sized(PAYMENT)),
    "a Transfer-Encoding that is none": (400, POST + JSON + b"Transfer-Encoding: foo\r\n\r\n"),
    "a bad chunk at once": (400, POST + JSON + CHUNKED + b"\r\n" + BAD_CHUNK),
    "a bad chunk of a body that is being read": (400, POST + JSON + CHUNKED + WAITING + b"\r\n" + BAD_CHUNK),
    "br": (415, POST + JSON + b"Content-Encoding: br\r\n" + sized(PAYMENT)),
    "zstd": (415, POST + JSON + b"Content-Encoding: zstd\r\n" + sized(PAYMENT)),
    "gzip that is none": (400, POST + JSON + b"Content-Encoding: gzip\r\n" + sized(PAYMENT)),
    "gzip that is none, for nobody": (
        404,
        b"POST /nothing HTTP/1.1\r\n" + HOST + b"Content-Encoding: gzip\r\n" + sized(PAYMENT),
    ),
    "half of a gzip": (400, POST + JSON + b"Content-Encoding: gzip\r\n" + sized(gzip.compress(PAYMENT)[:-12])),
    "an Expect that is none": (417, POST + JSON + b"Expect: foo\r\n" + sized(PAYMENT)),
    "an Expect that is none, for nobody": (417, b"GET /nothing HTTP/1.1\r\n" + HOST + b"Expect: foo\r\n\r\n"),
}
"""What a client may send by mistake or in malice, and the status that it gets."""


def exchange(port: int, sent: bytes) -> tuple[int, str, bytes]:
    """(status, media type, body) of the answer; a client that expects to be told to go on sends its body then."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        now, later = sent, b""
        if WAITING in sent:
            head, end, later = sent.partition(b"\r\n\r\n")
            now = head + end
        client.sendall(now)
        if later:
            assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(later)
        got = b""
        while more := client.recv(1 << 16):
            got += more
    head, _, body = got.partition(b"\r\n\r\n")
    media_type = re.search(r"\r\nContent-Type: ([^\r]+)", head.decode())
    assert media_type is not None, got
    return int(head.split()[1]), media_type[1], body


# ---- what never reaches a route


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """One process for all that is refused: it must take it all. No job runs in it, which might log something."""
    started = Serve("--redis", "memory:", "--port", "0", "--no-workers", environment={"PYTHONDEVMODE": "1"})
    started.spawn()
    end = time.monotonic() + 25
    while not (where := re.search(r"on (http://\S+),", started.said)):
        assert time.monotonic() < end, started.said
        time.sleep(0.01)
    started.url = where[1]
    yield started
    assert started.process is not None
    started.process.send_signal(signal.SIGTERM)
    started.process.wait(15)
    said = started.said
    started.close()
    assert not re.search("Traceback|never retrieved|never awaited|ERROR", said), said


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_parser_refuses_is_a_problem_and_no_line_of_the_log(serve: Serve, name: str) -> None:
    expected, sent = REFUSED[name]
    before = serve.said
    status, media_type, body = exchange(int(serve.url.rpartition(":")[2]), sent)
    assert (status, media_type) == (expected, "application/problem+json")
    problem = json.loads(body)
    assert problem["status"] == expected
    assert re.fullmatch(r"[^\n]{10,200}", problem["detail"])
    assert problem["title"] != "Error"
    assert serve.said == before


def test_a_body_that_can_be_read_is_taken_however_it_comes(serve: Serve) -> None:
    packed = gzip.compress(PAYMENT)
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(PAYMENT), PAYMENT)
    for sent in (
        POST + JSON + sized(PAYMENT),
        POST + JSON + b"Content-Encoding: gzip\r\n" + sized(packed),
        POST + JSON + WAITING + sized(PAYMENT),
        POST + JSON + CHUNKED + b"\r\n" + chunks,
        POST + JSON + CHUNKED + WAITING + b"\r\n" + chunks,
    ):
        assert exchange(int(serve.url.rpartition(":")[2]), sent)[:2] == (202, "application/json")


@asynccontextmanager
async def answering(application: web.Application) -> AsyncIterator[str]:
    ingress = Ingress(application)
    listener = bind(load_settings(port=0))
    await ingress.open(listener)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        await ingress.close()
        listener.close()


async def fail(_: web.Request) -> web.Response:
    raise RuntimeError("a bug")


async def fail_midway(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"begun")
    raise RuntimeError("a late bug")


async def test_a_fault_of_the_services_own_is_a_problem_and_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of an application without the middleware that answers nearly all of them before."""
    application = web.Application()
    application.router.add_get("/bug", fail)
    application.router.add_get("/late", fail_midway)
    async with answering(application) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/bug") as answer:
            assert (answer.status, answer.content_type) == (500, "application/problem+json")
            assert "a bug" not in await answer.text()
        async with session.get(f"{url}/late") as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
    shown = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [str(error) for error in shown] == ["a bug", "a late bug"]


async def answer_nobody(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()  # as it is once the client has gone, also before it is told to go on
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    raise AssertionError("nobody is there")


async def test_a_client_that_is_gone_is_no_fault_and_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    application = web.Application()
    application.router.add_get("/", answer_problems(answer_nobody))
    async with answering(application) as url, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await session.get(url)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG] == []


async def take(request: web.Request) -> web.StreamResponse:
    return web.json_response(await read_json(request))


async def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 0.1)
    application = web.Application()
    application.router.add_post("/", answer_problems(take))
    async with answering(application) as url, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"POST / HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 9\r\n\r\n[1,")
        assert b" 408 " in await reader.readline()
        writer.write(b"2, 3 ]")  # too late; it is read, and the connection ends
        assert b"application/problem+json" in await reader.read()
        writer.close()
        await writer.wait_closed()


# ---- a function before the submit


def lucky(number: int) -> int:
    """A validator of a service's own."""
    if number == 13:
        raise ValueError("unlucky")
    return number


async def test_a_function_makes_the_payload_before_the_submit(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")

    @service.task()
    async def double(number: int) -> int:
        return 2 * number

    async def from_query(request: web.Request, runtime: Runtime) -> Any:
        number = request.query.get("number", "")
        if number == "13":
            raise Problem(422, "number: unlucky", errors=[("number", "unlucky")])
        return int(number) if number.isdigit() else number

    service.get("/double", submits=double, before=from_query, location="/double/{id}")
    service.post("/double", submits=double, before=from_query)
    with pytest.raises(ConfigError, match="GET /other: say by before= what the payload is"):
        service.get("/other", submits=double)  # type: ignore[call-overload]
    async with (
        Runtime([service], redis=valkey.url, namespace=namespace) as runtime,
        answering(make_app(runtime)) as url,
        aiohttp.ClientSession() as session,
    ):
        for method in ("GET", "POST"):
            headers = {"Idempotency-Key": "once", "Prefer": "wait=10"}
            async with session.request(method, f"{url}/double?number=21", headers=headers) as answer:
                told = await answer.json()
                assert (answer.status, told["result"]) == (200, 42)
            for wrong, field in (("13", "number: unlucky"), ("many", "does not fit its type")):
                async with session.request(method, f"{url}/double?number={wrong}") as answer:
                    assert (answer.status, field in (await answer.json(content_type=None))["detail"]) == (422, True)
        async with session.get(f"{url}/double?number=4") as answer:
            assert answer.status == 202
            assert answer.headers["Location"] == f"/double/{(await answer.json())['tracking_id']}"
        assert (await runtime.totals(double))["submitted"] == 2, "the same key is the same job"


async def test_who_wants_to_wait_while_a_runtime_ends_is_told_that_the_job_was_accepted(
    valkey: Valkey, namespace: str
) -> None:
    service = Service("demo")

    @service.task()
    async def work(number: int) -> int:
        return number

    service.post("/work", submits=work)
    async with (
        Runtime([service], redis=valkey.url, namespace=namespace, workers=False) as runtime,
        answering(make_app(runtime)) as url,
        aiohttp.ClientSession() as session,
    ):
        runtime.stop_waiting()
        async with asyncio.timeout(10), session.post(f"{url}/work", json=1, headers={"Prefer": "wait=60"}) as answer:
            assert (answer.status, "Preference-Applied" in answer.headers) == (202, False)


async def test_a_function_before_the_submit_reads_a_body_that_is_said_to_be_json(
    valkey: Valkey, namespace: str
) -> None:
    service = Service("demo")

    @service.task()
    async def double(number: int) -> int:
        return 2 * number

    class Doubled(BaseModel):
        number: Annotated[int, AfterValidator(lucky)]

    async def from_body(request: web.Request, runtime: Runtime) -> int:
        return Doubled.model_validate_json(await json_body(request)).number

    service.post("/double", submits=double, before=from_body)
    settings = load_settings(redis=valkey.url, namespace=namespace, body_limit=1024)
    async with (
        Runtime([service], settings=settings) as runtime,
        answering(make_app(runtime)) as url,
        aiohttp.ClientSession() as session,
    ):
        for body, kind, status, said in (
            ('{"number": 21}', "application/json", 200, ""),
            ('{"number": 21}', "text/plain", 415, "send application/json, not text/plain"),
            ('{"number": 21}' + " " * 1024, "application/json", 413, "larger than this server takes"),
            ('{"number": 21', "application/json", 400, "the body is not JSON"),
            ('{"number": 13}', "application/json", 422, "number: unlucky"),
        ):
            headers = {"Content-Type": kind, "Prefer": "wait=10"}
            async with session.post(f"{url}/double", data=body, headers=headers) as answer:
                told = await answer.json(content_type=None)
                assert (answer.status, said in told.get("detail", "")) == (status, True), told
                if status == 422:
                    assert told["errors"] == [{"field": "number", "message": "unlucky"}], "as the validator said it"
        assert (await runtime.totals(double))["submitted"] == 1


# ---- readiness


@asynccontextmanager
async def ready(valkey: Valkey, namespace: str, **settings: Any) -> AsyncIterator[str]:
    """Where a service with one task answers over HTTP."""
    service = Service("demo")

    @service.task()
    async def work(number: int) -> int:
        return number

    service.post("/work", submits=work)
    async with (
        Runtime([service], redis=valkey.url, namespace=namespace, grace=0, **settings) as runtime,
        answering(make_app(runtime)) as url,
    ):
        yield url


async def readiness(session: aiohttp.ClientSession, url: str) -> tuple[int, str]:
    async with session.get(f"{url}/readyz") as answer:
        said = await answer.json(content_type=None)
        return answer.status, said.get("detail", said["status"])


async def test_a_claimer_without_progress_is_not_ready(
    own_valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claimer, "BLOCK_SECONDS", 0.1)
    monkeypatch.setattr(claimer, "STALE_SECONDS", 1.5)
    async with (
        Redis.from_url(own_valkey.admin_url, protocol=2) as admin,
        ready(own_valkey, namespace) as url,
        aiohttp.ClientSession() as session,
    ):
        assert await readiness(session, url) == (200, "ready")
        # Nothing that writes is answered, nor a blocking pop; a ping is.
        await admin.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")

        async def stuck() -> str:
            status, detail = await readiness(session, url)
            return detail if status == 503 else ""

        assert re.fullmatch(r"no progress lately: <Claimer demo\.work .*>", await wait_until(stuck))
        await admin.execute_command("CLIENT", "UNPAUSE")

        async def mended() -> bool:
            return await readiness(session, url) == (200, "ready")

        await wait_until(mended)


async def test_a_silent_redis_is_not_ready_and_the_reason_is_said(own_valkey: Valkey, namespace: str) -> None:
    async with ready(own_valkey, namespace) as url, aiohttp.ClientSession() as session:
        own_valkey.signal(signal.SIGSTOP)
        try:
            status, detail = await readiness(session, url)
        finally:
            own_valkey.signal(signal.SIGCONT)
        assert status == 503
        assert re.fullmatch(r"redis does not answer: \S.*", detail)


async def test_a_redis_over_its_limit_is_full_and_no_more(own_valkey: Valkey, namespace: str) -> None:
    async with (
        Redis.from_url(own_valkey.admin_url, protocol=2) as admin,
        ready(own_valkey, namespace) as url,
        aiohttp.ClientSession() as session,
    ):
        await admin.config_set("maxmemory", 1)

        async def refused() -> str:
            async with session.post(f"{url}/work", json=1) as answer:
                detail: str = (await answer.json()).get("detail", "")
                return detail if answer.status == 503 and "full" in detail else ""

        assert await wait_until(refused) == "redis is 100% full; nothing new is taken for now"
        await admin.config_set("maxmemory", 0)


async def test_routes_of_every_method(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")
    shelf: dict[str, str] = {}

    @service.put("/shelf/{name}")
    async def put(request: web.Request, runtime: Runtime) -> dict[str, str]:
        shelf[request.match_info["name"]] = (await request.read()).decode()
        return shelf

    @service.patch("/shelf/{name}")
    async def patch(request: web.Request, runtime: Runtime) -> dict[str, str]:
        shelf[request.match_info["name"]] += (await request.read()).decode()
        return shelf

    @service.delete("/shelf/{name}")
    async def delete(request: web.Request, runtime: Runtime) -> None:
        del shelf[request.match_info["name"]]

    async with (
        Runtime([service], redis=valkey.url, namespace=namespace) as runtime,
        answering(make_app(runtime)) as url,
        aiohttp.ClientSession() as session,
    ):
        told: list[tuple[int, Any]] = []
        for method, body in (("PUT", "a"), ("PATCH", "b"), ("DELETE", None), ("POST", "c")):
            async with session.request(method, f"{url}/shelf/x", data=body) as answer:
                told.append((answer.status, await answer.read()))
    assert told[:3] == [(200, b'{"x":"a"}'), (200, b'{"x":"ab"}'), (204, b"")]
    assert told[3][0] == 405


async def test_a_request_that_ends_as_its_time_is_up_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    asked, gate = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def slow(_: web.Request) -> web.Response:
        asked.set()
        await gate
        return web.Response(text="late")

    application = web.Application()
    application.router.add_get("/slow", slow)
    ingress = Ingress(application)
    listener = bound()
    await ingress.open(listener)
    reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
    writer.write(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n")
    await asked.wait()
    closing = asyncio.create_task(ingress.close())
    for _ in range(5):
        await asyncio.sleep(0)  # it waits for the request now
    asyncio.get_running_loop().call_later(LAST_ANSWERS_SECONDS / 2, gate.set_result, None)
    time.sleep(LAST_ANSWERS_SECONDS + 0.1)  # noqa: ASYNC251 - the end of the request and of its time are due at once
    answer = await reader.read()
    await closing
    writer.close()
    assert answer.endswith(b"late")
    assert not [record for record in caplog.records if record.name == "aiohttp.server"]
