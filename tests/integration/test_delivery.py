"""Deliveries over a real Valkey to real receivers on loopback, which the allow-list admits."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import SecretStr
from standardwebhooks import WebhookVerificationError
from yarl import URL

from aioflow import ConfigError, Job, JobFailed, Runtime, Service, State, delivery
from aioflow.delivery import Delivery, DeliverySettings
from aioflow.delivery.exchange import Gate, exchange
from aioflow.delivery.names import Resolver
from aioflow.delivery.posting import Sender
from aioflow.delivery.signing import Signer
from aioflow.delivery.urls import Rules, Target
from aioflow.testing import run_handler
from tests.receiver import OTHER_SECRET, SECRET, Got, Receiver, raw_receiver, receiver
from tests.serving import ROOT
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until

SOON: dict[str, Any] = {"base": 0.01, "longest": 1.0}


def settings(*secrets: str, **given: Any) -> DeliverySettings:
    """Settings that let deliveries go to this machine."""
    allow = given.pop("allow", ("127.0.0.0/8",))
    return DeliverySettings(
        secrets=tuple(SecretStr(secret) for secret in secrets or (SECRET,)), allow=allow, **{**SOON, **given}
    )


def to(url: str, **data: Any) -> Delivery:
    return Delivery(url=url, type="test.happened", data=data)


Start = Callable[..., Runtime]


@pytest.fixture
def start(valkey: Valkey, namespace: str) -> Start:
    """Makes runtimes on the test's own namespace."""

    def make(*services: Service, **options: Any) -> Runtime:
        return Runtime(services, redis=valkey.url, namespace=namespace, **options)

    return make


class Turns(AbstractResolver):
    """Answers with one list of addresses after another; the last one stays."""

    def __init__(self, *turns: Sequence[str]) -> None:
        self._turns = list(turns)
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        self.asked.append(host)
        addresses = self._turns.pop(0) if len(self._turns) > 1 else self._turns[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=0,
            )
            for address in addresses
        ]

    async def close(self) -> None: ...


# ---- what is sent


async def test_a_job_of_another_service_emits_a_delivery_that_verifies(start: Start) -> None:
    shop = Service("shop")
    number = 10**59 + 7

    @shop.task()
    async def sell(url: str, job: Job) -> None:
        job.commit.submit("delivery.post", Delivery(url=url, type="shop.sold", data={"number": number, "ü": [1.5]}))

    made = delivery.make_service(settings(SECRET, OTHER_SECRET))
    async with receiver() as there, start(shop, made) as runtime:
        await (await sell.submit(f"{there.url}?a=b")).result(5)
        await wait_until(lambda: there.got)
        (got,) = there.got
        assert got.path == "/hook?a=b"
        assert got.body == orjson.dumps({"n": 0, "ü": [1.5]}).replace(b'"n":0', b'"number":%d' % number)
        assert got.verified(SECRET) == got.verified(OTHER_SECRET) == {"number": number, "ü": [1.5]}
        assert len(got.headers["webhook-signature"].split(" ")) == 2
        assert abs(int(got.headers["webhook-timestamp"]) - time.time()) < 10
        assert got.headers["content-type"] == "application/json"
        with pytest.raises(WebhookVerificationError):
            Got(got.headers, got.body + b" ", got.path).verified()
        handle = runtime.handle("delivery.post", got.id)
        assert await handle.result(5) == delivery.Delivered(status=204)


async def test_the_environments_proxies_are_not_used(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver() as there, receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        made = delivery.make_service(settings())
        async with start(made) as runtime:
            await (await runtime.submit("delivery.post", to(there.url))).result(5)
        assert (len(there.got), len(proxy.got)) == (1, 0)


async def test_a_chosen_id_is_the_webhook_id_unless_it_must_not_be_signed(start: Start) -> None:
    async with receiver() as there, start(delivery.make_service(settings())) as runtime:
        await (await runtime.submit("delivery.post", to(there.url), id="order-1")).result(5)
        with pytest.raises(JobFailed, match="cannot be a webhook-id"):
            await (await runtime.submit("delivery.post", to(there.url), id="order.1")).result(5)
        assert there.ids == {"order-1": 1}


# ---- what comes of the answer


async def test_failures_are_retried_under_one_id_until_it_is_taken(start: Start) -> None:
    made = delivery.make_service(settings())
    async with receiver(lambda there, _: 500 if len(there.got) < 4 else 202) as there, start(made) as runtime:
        handle = await runtime.submit("delivery.post", to(there.url, number=7))
        assert await handle.result(10) == delivery.Delivered(status=202)
        assert there.ids == {handle.id: 4}
        assert [got.verified() for got in there.got] == [{"number": 7}] * 4
        assert [past.error for past in (await handle.status()).history] == ["DeliveryFailed"] * 3


async def test_a_dead_letter_keeps_every_status_and_the_first_kilobyte_and_is_delivered_by_hand(start: Start) -> None:
    def answer(there: Receiver, _: Got) -> web.Response:
        return web.Response(status=499 + len(there.got), text=f"no {len(there.got)}\n\x1b[31m" + "x" * 5000)

    async with receiver(answer) as there, start(delivery.make_service(settings(attempts=10))) as runtime:
        handle = await runtime.submit("delivery.post", to(there.url))
        with pytest.raises(JobFailed) as failed:
            await handle.result(20)
        status = await handle.status()
        messages = [past.message for past in status.history] + [failed.value.message]
        assert len(messages) == 10
        for number, message in enumerate(messages, 1):
            start_of = f"the receiver answered {499 + number}: no {number}\\n\\x1b[31m"
            assert message.startswith(start_of)
            assert message.count("x" * 500) == 2, "the first 1 KiB"
            assert message.count("x") < 1024
        assert failed.value.error == "DeliveryFailed"
        there.answers = None
        assert await runtime.requeue("delivery.post", handle.id)
        assert await handle.result(5) == delivery.Delivered(status=204)
        assert there.ids == {handle.id: 11}


async def test_410_ends_it_at_once(start: Start) -> None:
    gone = web.Response(status=410, text="moved away")
    async with receiver(gone) as there, start(delivery.make_service(settings())) as runtime:
        with pytest.raises(JobFailed) as failed:
            await (await runtime.submit("delivery.post", to(there.url))).result(5)
        assert failed.value.error == "DeliveryGone"
        assert failed.value.message == "the receiver answered 410: moved away"
        assert len(there.got) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_failures_that_are_not_followed(start: Start, status: int) -> None:
    async with receiver() as elsewhere:
        answer = web.Response(status=status, headers={"Location": elsewhere.url}, text="over there")
        async with receiver(answer) as there, start(delivery.make_service(settings(attempts=1))) as runtime:
            with pytest.raises(
                JobFailed, match=f"answered {status}, a redirect, and redirects are not followed: over there"
            ):
                await (await runtime.submit("delivery.post", to(there.url))).result(5)
        assert (len(there.got), len(elsewhere.got)) == (1, 0)


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("7", 7, 7.1),
        ("0", 0, 0.1),
        (lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True), 28, 30.1),
        (lambda: format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), 0, 0.1),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0, 0.1),
        ("999999999999", 3600, 3600.1),
        ("9" * 500, 0, 0.1),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600, 3600.1),
        ("-5", 0, 0.1),
        ("soon", 0, 0.1),
        ("", 0, 0.1),
    ],
)
async def test_retry_after_is_the_least_wait(value: Any, least: float, most: float) -> None:
    said = value() if callable(value) else value
    async with receiver(lambda *_: web.Response(status=503, headers={"Retry-After": said})) as there:
        chosen = settings(longest=3600, base=0.05)
        made = delivery.make_service(chosen)

        sender = Sender(chosen, Signer([SECRET]), Resolver())
        ran = await run_handler(made.tasks["post"], to(there.url), resources=sender)
        assert ran.outcome == "retry"
        assert ran.delay is not None
        assert least <= ran.delay <= most


async def test_what_does_not_answer_is_retried(start: Start) -> None:
    async with receiver() as there:
        pass  # nobody listens there now
    async with start(delivery.make_service(settings(attempts=2))) as runtime:
        handle = await runtime.submit("delivery.post", to(there.url))
        with pytest.raises(JobFailed, match="no answer: ClientConnectorError"):
            await handle.result(5)
        assert len((await handle.status()).history) == 1


# ---- receivers that mean no good


async def failure_of(start: Start, url: str, **given: Any) -> tuple[JobFailed, float]:
    """How a delivery of one attempt fails, and how long it took."""
    async with start(delivery.make_service(settings(attempts=1, **given))) as runtime:
        began = time.monotonic()
        with pytest.raises(JobFailed) as failed:
            await (await runtime.submit("delivery.post", to(url))).result(10)
        return failed.value, time.monotonic() - began


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def headers_for_ever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-Header: %s\r\n" % (b"x" * 1000))
        await writer.drain()
        await asyncio.sleep(0)


async def one_header_for_ever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX-Header: ")
    while True:
        writer.write(b"x" * 1000)
        await writer.drain()
        await asyncio.sleep(0)


async def hints_for_ever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.001)


async def drop_by_drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for letter in b"HTTP/1.1 200 OK\r\n" * 1000:
        writer.write(bytes([letter]))
        await asyncio.sleep(0.05)


async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\x1b]0;owned\x07\r\n")
    await writer.drain()
    await asyncio.sleep(0.05)


async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (silent, "no answer within 0.5 s"),
        (headers_for_ever, "no answer"),
        (one_header_for_ever, "no answer"),
        (hints_for_ever, "no answer within 0.5 s"),
        (drop_by_drop, "no answer within 0.5 s"),
        (nonsense, "no answer"),
        (hangs_up, "no answer"),
    ],
)
async def test_an_answer_that_is_none_takes_no_longer_than_the_limit(start: Start, answer: Any, said: str) -> None:
    async with raw_receiver(answer) as url:
        failed, seconds = await failure_of(start, url, timeout=0.5)
    assert failed.error == "DeliveryFailed"
    assert said in failed.message
    assert failed.message.isprintable()
    assert seconds < 3


async def test_a_certificate_that_nobody_vouches_for_is_a_failure(start: Start) -> None:
    sent = b""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        sent = await reader.read(10)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(ROOT / "tests" / "localhost.pem")
    async with raw_receiver(take, tls=context) as url:
        failed, _ = await failure_of(start, url.replace("127.0.0.1", "localhost"), allow=("localhost",))
    assert "CERTIFICATE_VERIFY_FAILED" in failed.message
    assert not sent


async def test_a_handshake_that_does_not_end_takes_no_longer_than_the_limit(start: Start) -> None:
    async with raw_receiver(silent) as url:
        failed, seconds = await failure_of(start, url.replace("http:", "https:"), timeout=0.5)
    assert "no answer within 0.5 s" in failed.message
    assert seconds < 3


async def test_name_servers_that_do_not_answer_take_no_longer_than_the_limit(start: Start) -> None:
    class Silent(Turns):
        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
            await asyncio.Event().wait()
            return []

    made = delivery.make_service(settings(attempts=1, timeout=0.5), resolver=Silent([]))
    async with start(made) as runtime:
        with pytest.raises(JobFailed, match=r"no answer within 0.5 s"):
            await (await runtime.submit("delivery.post", to("https://hooks.example/"))).result(5)


async def test_a_body_for_ever_is_read_for_a_kilobyte_and_no_longer_than_the_limit(start: Start) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"2000\r\n%s\r\n" % (b"y" * 0x2000))
            await writer.drain()
            sent += 0x2000

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 1000\r\n\r\nhalf of")
        await asyncio.Event().wait()

    async with raw_receiver(flood) as url:
        failed, seconds = await failure_of(start, url, timeout=5.0)
    assert failed.message == "the receiver answered 500: " + "y" * 1024
    assert seconds < 3
    assert sent < 16 << 20
    async with raw_receiver(trickle) as url:
        failed, seconds = await failure_of(start, url, timeout=0.5)
    assert failed.message == "the receiver answered 500: half of (cut off)"
    assert seconds < 3


async def test_a_2xx_counts_whatever_follows_it(start: Start) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        await asyncio.Event().wait()

    async with raw_receiver(endless) as url, start(delivery.make_service(settings())) as runtime:
        assert await (await runtime.submit("delivery.post", to(url))).result(5) == delivery.Delivered(status=200)


async def test_a_body_that_grows_when_it_is_unpacked_is_not_unpacked(start: Start) -> None:

    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = packer.compress(bytes(50 << 20)) + packer.flush()
    answer = web.Response(status=500, body=bomb, headers={"Content-Encoding": "gzip"})
    async with receiver(answer) as there:
        failed, _ = await failure_of(start, there.url)
        assert there.got[0].headers["accept-encoding"] == "identity"
    assert failed.message == "the receiver answered 500: (a body in gzip, which was not asked for)"


# ---- where it may go


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://127.0.0.1:{port}/", "scheme"),
        ("https://127.0.0.1/", "loopback"),
        ("https://2130706433/", "spelling"),
        ("https://[::ffff:127.0.0.1]/", "loopback"),
        ("https://localhost/", "loopback"),
        ("https://u:p@example.com/", "userinfo"),
        ("https://169.254.169.254/latest/meta-data", "metadata"),
    ],
)
async def test_what_the_rules_refuse_is_dead_at_once_with_the_rule(start: Start, url: str, rule: str) -> None:
    async with receiver() as there, start(delivery.make_service(settings(allow=()))) as runtime:
        with pytest.raises(JobFailed, match=rf"refused \({rule}\)") as failed:
            await (await runtime.submit("delivery.post", to(url.format(port=there.port)))).result(5)
        assert (failed.value.error, failed.value.attempt) == ("UrlRefused", 1)
        assert not there.got


async def test_a_name_of_this_machine_is_refused_by_what_it_really_resolves_to(start: Start) -> None:
    """The system's own resolver; the list admits another port, so that nothing is refused before it is asked."""
    async with receiver() as there:
        chosen = settings(allow=(f"127.0.0.0/8:{there.port + 1}", f"10.0.0.0/8:{there.port}"), http=True)
        chosen = chosen.model_copy(update={"ports": (there.port,)})
        async with start(delivery.make_service(chosen)) as runtime:
            with pytest.raises(JobFailed, match=r"refused \(loopback\)"):
                await (await runtime.submit("delivery.post", to(f"http://localhost:{there.port}/"))).result(5)
        assert not there.got


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["::ffff:127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["169.254.169.254"]]
)
async def test_a_public_name_with_one_private_address_is_refused(start: Start, addresses: list[str]) -> None:
    made = delivery.make_service(settings(allow=()), resolver=Turns(addresses))
    async with start(made) as runtime:
        with pytest.raises(JobFailed, match=r"https://hooks.example:443 is refused \((loopback|metadata)\)"):
            await (await runtime.submit("delivery.post", to("https://hooks.example/"))).result(5)


async def test_a_name_that_changes_between_two_attempts_is_refused_at_the_second(start: Start) -> None:
    async with receiver(500) as there, receiver(host="127.0.0.2", port=there.port) as inside:
        turns = Turns(["127.0.0.1"], ["127.0.0.2"])
        made = delivery.make_service(settings(allow=("127.0.0.1",)), resolver=turns)
        async with start(made) as runtime:
            handle = await runtime.submit("delivery.post", to(f"http://hooks.example:{there.port}/"))
            with pytest.raises(JobFailed, match="refused") as failed:
                await handle.result(5)
        assert failed.value.error == "UrlRefused"
        assert (len(there.got), len(inside.got), turns.asked) == (1, 0, ["hooks.example"] * 2)


async def test_the_socket_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the name was said to be: a literal, which no resolver sees, and an address that is put in its place."""

    async with receiver() as there:
        given: Any = {"rules": Rules(http=True, ports=[there.port]), "timeout": 5.0}
        for host in ("127.0.0.1", "[::ffff:127.0.0.1]"):
            url = f"http://{host}:{there.port}/"
            with pytest.raises(delivery.UrlRefused, match="loopback"):
                await exchange(
                    URL(url), b"{}", {}, target=Target("http", "x.example", there.port), resolver=Resolver(), **given
                )

        async def rebound(self: Gate, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
            return await Turns(["127.0.0.1"]).resolve(host, port)  # as though it had been another when it was checked

        monkeypatch.setattr(Gate, "resolve", rebound)
        target = Target("http", "hooks.example", there.port)
        url = f"http://hooks.example:{there.port}/"
        with pytest.raises(delivery.UrlRefused, match="loopback"):
            await exchange(URL(url), b"{}", {}, target=target, resolver=Resolver(), **given)
        assert not there.got


async def test_a_name_that_does_not_resolve_is_retried(start: Start) -> None:
    failed, _ = await failure_of(start, "https://does-not-exist.invalid/")
    assert failed.error == "DeliveryFailed"
    assert "https://does-not-exist.invalid:443: no answer: ClientConnectorDNSError" in failed.message


# ---- one slow receiver among others


async def test_a_slow_receiver_holds_up_no_other_and_no_host_has_more_than_its_turns(start: Start) -> None:
    async def hang(there: Receiver, _: Got) -> int:
        await there.released.wait()
        return 200

    chosen = settings(concurrency=20, per_host=4, timeout=20.0)
    async with receiver(hang) as slow, receiver(host="127.0.0.2") as fast:
        made = delivery.make_service(chosen)
        async with start(made) as runtime:
            await runtime.submit_many("delivery.post", [to(slow.url, number=number) for number in range(100)])
            began = time.monotonic()
            await runtime.submit_many("delivery.post", [to(fast.url, number=number) for number in range(200)])
            await wait_until(lambda: len(fast.ids) == 200, 15)
            assert time.monotonic() - began < 10
            assert (slow.most_at_once, len(slow.got)) == (4, 4)
            assert fast.most_at_once <= 4
            put_off = (await runtime.totals("delivery.post"))["retried"]
            assert put_off < 4 * 500, "those that wait for a turn do not spin"
            slow.released.set()
            await wait_until(lambda: len(slow.ids) >= 20, 20)
            assert slow.most_at_once == 4
            assert set(slow.ids.values()) == {1}


# ---- settings at the start


async def test_without_a_secret_it_does_not_start_and_says_how_to_make_one(start: Start) -> None:
    made = delivery.make_service(DeliverySettings())
    with pytest.raises(ConfigError, match=r"set AIOFLOW_DELIVERY_SECRETS.*this makes a secret: python -c"):
        async with start(made):
            pass
    async with start(made, workers=False) as runtime:  # which signs nothing
        await runtime.submit("delivery.post", to("https://example.com/"))


async def test_over_the_embedded_server_it_makes_a_secret_and_keeps_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made = delivery.make_service(DeliverySettings(allow=("127.0.0.1",)))
    async with receiver() as there:
        for _ in range(2):
            async with Runtime([made], redis="embedded:", data=str(tmp_path)) as runtime:
                await (await runtime.submit("delivery.post", to(there.url, number=1))).result(10)
        secret = (tmp_path / "delivery-secret").read_text().strip()
        assert [got.verified(secret) for got in there.got] == [{"number": 1}] * 2
        assert "deliveries are signed with the secret that is kept in" in caplog.text
        assert secret not in caplog.text
        assert secret.removeprefix("whsec_") not in caplog.text


async def test_a_stop_gives_a_delivery_back(start: Start) -> None:
    async with raw_receiver(silent) as url:
        made = delivery.make_service(settings())
        async with start(made, grace=0.1) as runtime:
            handle = await runtime.submit("delivery.post", to(url))
            await in_state(handle, State.RUNNING)
        async with start(made, workers=False) as later:
            status = await later.inspect("delivery.post", handle.id)
            assert (status.state, status.failures) == (State.READY, 0)
