"""The payments service as a client sees it: a real runtime on a real Valkey, behind a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import math
import re
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import orjson
import pytest
from aiohttp import web
from redis.asyncio import Redis
from yarl import URL

from aioflow import Handle, Runtime, Service, Task
from aioflow.engine.keys import Queue
from aioflow.ingress.app import make_app
from aioflow.ingress.server import Ingress
from aioflow.settings import Settings, load_settings
from services.payments.api import LEDGER, STATUSES, charge
from services.payments.api import service as payments
from services.payments.gateways import Decision
from services.payments.models import GatewayError, Outcome, Payment, Receipt
from services.payments.settings import PaymentsSettings
from tests.curl import curl
from tests.serving import bound
from tests.valkey import Valkey
from tests.waiting import wait_until

PAYMENT = {"payer_id": "alice", "recipient_id": "shop", "amount": 1250}
JSON = {"Content-Type": "application/json"}
T0 = 1_767_225_600_000  # 2026-01-01T00:00:00Z

T = TypeVar("T")
tiny = Service("tiny")


@tiny.task(bound=2)
async def hold(number: int) -> int:
    return number


@tiny.get("/elsewhere")
async def elsewhere(request: web.Request, runtime: Runtime) -> None:
    raise web.HTTPFound("/healthz")


tiny.post("/holds", submits=hold)


async def eventually(condition: Callable[[], Awaitable[T | None]]) -> T:
    """What the service answers once it answers something true."""
    asked: Callable[[], Any] = condition
    answer: T = await wait_until(asked)
    return answer


class ScriptedGateway:
    """Answers as the test says, success when nothing is said; decisions wait until the gate is open."""

    def __init__(self) -> None:
        self.script: deque[Outcome] = deque()
        self.always: Outcome = Outcome.SUCCESS
        self.open = asyncio.Event()
        self.open.set()
        self.calls: Counter[str] = Counter()

    async def charge(self, payment: Payment, *, idempotency_key: str) -> Decision:
        self.calls[idempotency_key] += 1
        outcome = self.script.popleft() if self.script else self.always
        if outcome is Outcome.API_ERROR:
            raise GatewayError("the gateway answered api_error")
        await self.open.wait()
        return Decision(txn_id=f"txn_{idempotency_key}", outcome=outcome)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer with its JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any

    def check(self) -> Answer:
        """What holds for every answer: problems are problem+json, and no 5xx but 503 is ever given."""
        if self.status < 400:
            assert self.headers["Content-Type"] == "application/json"
            return self
        assert self.status < 500 or self.status == 503, self
        assert self.headers["Content-Type"] == "application/problem+json", self
        if self.body is not None:
            assert self.body["type"] == "about:blank"
            assert self.body["status"] == self.status
            assert self.body["title"]
            assert self.body["detail"]
        if self.status in {429, 503}:
            assert int(self.headers["Retry-After"]) >= 1
        return self

    @property
    def fields(self) -> list[str]:
        """The fields that a problem names."""
        return [error["field"] for error in self.body.get("errors", [])]


class Api:
    """A client of one served runtime."""

    def __init__(self, runtime: Runtime, url: str, session: aiohttp.ClientSession) -> None:
        self.runtime = runtime
        self.url = url
        self.session = session
        self.queue = Queue(runtime.namespace, "payments", "charge")

    async def ask(self, method: str, path: str, **request: Any) -> Answer:
        """Send a request; the path is sent as it is written."""
        async with self.session.request(
            method, URL(self.url + path, encoded=True), allow_redirects=False, **request
        ) as answer:
            body = await answer.read()
            return Answer(answer.status, answer.headers, orjson.loads(body) if body else None).check()

    async def get(self, path: str) -> Any:
        """The body of a 200."""
        answer = await self.ask("GET", path)
        assert answer.status == 200, answer
        return answer.body

    async def post(self, payment: object = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Post a payment: JSON, or bytes as they are."""
        body = payment if isinstance(payment, bytes) else orjson.dumps(PAYMENT if payment is None else payment)
        return await self.ask("POST", "/payments", data=body, headers={**JSON, **(headers or {})})

    async def pay(self, **changed: object) -> str:
        """The tracking id of a payment that is accepted."""
        answer = await self.post({**PAYMENT, **changed})
        assert answer.status == 202, answer
        tracking_id: str = answer.body["tracking_id"]
        return tracking_id

    async def reached(self, tracking_id: str, status: str) -> Any:
        """The payment once it has that status."""

        async def shown() -> Any:
            payment = await self.get(f"/payments/{tracking_id}")
            return payment if payment["status"] == status else None

        return await eventually(shown)

    async def back(self) -> None:
        """Return once Redis is there again."""

        async def ready() -> bool:
            return (await self.ask("GET", "/readyz")).status == 200

        await eventually(ready)

    async def raw(self, request: bytes) -> Answer:
        """Send bytes, which no client library would."""
        reader, writer = await asyncio.open_connection(URL(self.url).host, URL(self.url).port)
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers["Content-Length"]))
        writer.close()
        await writer.wait_closed()
        return Answer(int(head[0].split()[1]), headers, orjson.loads(body)).check()

    async def stored(self) -> dict[str, bytes | None]:
        """Every key of the namespace that a request could leave something in, with its content."""
        redis = self.runtime.redis
        keys = [key.decode() async for key in redis.scan_iter(f"{self.runtime.namespace}:*")]
        own = {"config", "totals", "bell", "runners"}  # written by the runtime as well, at times of its own
        kept = [key for key in keys if key.rpartition(":")[2] not in own and ":{fleet}:" not in key]
        return {key: await redis.dump(key) for key in sorted(kept)}

    async def data(self) -> dict[str, dict[str, Any]]:
        """The service's own keys by name: timelines as {member: time}, hashes as {field: record}."""
        redis: Any = self.runtime.redis
        prefix = self.runtime.key(payments, "")
        found: dict[str, dict[str, Any]] = {}
        async for key in redis.scan_iter(f"{prefix}*"):
            if await redis.type(key) == b"zset":
                entries = await redis.zrange(key, 0, -1, withscores=True)
                content = {member.decode(): score for member, score in entries}
            else:
                content = {field.decode(): orjson.loads(value) for field, value in (await redis.hgetall(key)).items()}
            found[key.decode().removeprefix(prefix)] = content
        return found

    async def pages(self, path: str, limit: int) -> list[list[Any]]:
        """All pages of a listing, by its cursors."""
        found: list[list[Any]] = []
        cursor = ""
        while True:
            joined = f"{path}{'&' if '?' in path else '?'}limit={limit}"
            body = await self.get(joined + (f"&cursor={cursor}" if cursor else ""))
            found.append(body["payments"])
            assert len(body["payments"]) <= limit
            if body["cursor"] is None:
                return found
            assert len(body["payments"]) == limit
            cursor = quote(body["cursor"], safe="")


@asynccontextmanager
async def served(runtime: Any, held: Runtime | None = None) -> AsyncIterator[Api]:
    """The application of a runtime on a loopback port; `held` is the runtime itself where `runtime` is a wrapper."""
    ingress, listener = Ingress(make_app(runtime)), bound()
    await ingress.open(listener)
    try:
        async with aiohttp.ClientSession() as session:
            yield Api(held or runtime, f"http://127.0.0.1:{listener.getsockname()[1]}", session)
    finally:
        await ingress.close()


@asynccontextmanager
async def running(settings: Settings, *services: Service, workers: bool = True) -> AsyncIterator[Api]:
    async with Runtime(services or (payments,), settings=settings, workers=workers) as runtime, served(runtime) as api:
        yield api


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> ScriptedGateway:
    """The gateway that payments ask."""
    scripted = ScriptedGateway()
    monkeypatch.setattr(payments, "lifespan", lambda runtime: contextlib.nullcontext(scripted))
    return scripted


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The five attempts of a payment follow one another at once."""
    retry = replace(charge.options.retry, base=0.002, longest=0.01)
    monkeypatch.setattr(charge, "options", replace(charge.options, retry=retry))


@pytest.fixture
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A payment is dead after its first failure."""
    monkeypatch.setattr(charge, "options", replace(charge.options, retry=replace(charge.options.retry, attempts=1)))


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim whose answer was lost is made again after half a second."""
    monkeypatch.setattr(charge, "options", replace(charge.options, lease=0.5))


@pytest.fixture
def settings(valkey: Valkey, namespace: str) -> Settings:
    return load_settings(redis=valkey.url, namespace=namespace, body_limit=4096)


@pytest.fixture
async def api(settings: Settings, gateway: ScriptedGateway) -> AsyncIterator[Api]:
    """Payments, served whole."""
    async with running(settings) as served_whole:
        yield served_whole


@pytest.fixture
async def idle(settings: Settings, gateway: ScriptedGateway) -> AsyncIterator[Api]:
    """Payments, accepted only."""
    async with running(settings, workers=False) as accepting:
        yield accepting


def moment(shown: str) -> int:
    """UTC ms of a time as the service shows it."""
    assert shown.endswith("Z")
    return round(datetime.fromisoformat(shown).timestamp() * 1000)


async def server_ms(api: Api) -> int:
    seconds, micros = await api.runtime.redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


def escaped(party_id: str) -> str:
    """An id as one segment of a path; dots too, since clients drop the segments "." and ".."."""
    return quote(party_id, safe="").replace(".", "%2E")


# ---- the receipt


async def test_a_payment_is_accepted_with_a_receipt_and_found_at_its_location(
    api: Api, gateway: ScriptedGateway
) -> None:
    gateway.open.clear()
    before = await server_ms(api)
    answer = await api.post()
    assert answer.status == 202
    tracking_id = answer.body["tracking_id"]
    assert answer.body == {"status": "OK", "tracking_id": tracking_id}
    assert answer.headers["Location"] == f"/payments/{tracking_id}"
    shown = await api.reached(tracking_id, "running")
    assert shown["payment"] == {**PAYMENT, "currency": "USD"}
    assert shown["attempt"] == 1
    assert before <= moment(shown["submitted_at"]) <= await server_ms(api)
    gateway.open.set()
    shown = await api.reached(tracking_id, "success")
    assert shown["receipt"] == {
        "tracking_id": tracking_id,
        "txn_id": f"txn_{tracking_id}",
        "outcome": "success",
        **PAYMENT,
        "currency": "USD",
    }
    assert before <= moment(shown["submitted_at"]) <= moment(shown["finished_at"]) <= await server_ms(api)


async def test_a_payment_that_nobody_works_on_is_queued(idle: Api) -> None:
    shown = await idle.get(f"/payments/{await idle.pay()}")
    assert (shown["status"], shown["attempt"]) == ("queued", 0)


async def test_an_unknown_tracking_id_is_404(api: Api) -> None:
    for path in ("/payments/0123", "/payments/%00", "/payments/%FF", f"/payments/{'x' * 4000}", "/payments/%7Bid%7D"):
        assert (await api.ask("GET", path)).status == 404
    assert (await api.ask("POST", "/payments/0123/requeue")).status == 404
    for path in ("/", "/payment", "/payments/", "/payers//payments", "/payers/a/b/payments", "/payers/a"):
        assert (await api.ask("GET", path)).status == 404


# ---- outcomes and their indexes


@pytest.mark.parametrize(
    ("outcome", "txns", "records", "made_by", "received_by"),
    [
        ("success", "successful_txns", "txns", "payments_made_by:alice", "payments_received_by:shop"),
        (
            "insufficient_funds",
            "insufficient_funds_txns",
            "insufficient_funds_records",
            "insufficient_funds_made_by:alice",
            "insufficient_funds_received_by:shop",
        ),
    ],
)
async def test_an_outcome_is_indexed_once_in_its_own_four_places(
    api: Api, gateway: ScriptedGateway, outcome: str, txns: str, records: str, made_by: str, received_by: str
) -> None:
    gateway.always = Outcome(outcome)
    before = await server_ms(api)
    tracking_id = await api.pay()
    shown = await api.reached(tracking_id, outcome)
    txn_id, finished = f"txn_{tracking_id}", moment(shown["finished_at"])
    assert before <= finished <= await server_ms(api)
    record = {"tracking_id": tracking_id, "txn_id": txn_id, "outcome": outcome, **PAYMENT, "currency": "USD"}
    assert await api.data() == {
        txns: {txn_id: finished},
        made_by: {txn_id: finished},
        received_by: {txn_id: finished},
        records: {txn_id: record},
    }
    listed = [{**record, "at": shown["finished_at"]}]
    for path in ("/payments", "/payers/alice/payments", "/recipients/shop/payments"):
        assert (await api.get(f"{path}?status={outcome}"))["payments"] == listed
    other = "success" if outcome != "success" else "insufficient_funds"
    for path in ("/payments", "/payers/alice/payments", "/recipients/shop/payments"):
        assert (await api.get(f"{path}?status={other}"))["payments"] == []
    counts = {status: (await api.get(f"/payments/count?status={status}"))["count"] for status in (outcome, other)}
    assert counts == {outcome: 1, other: 0}


async def test_an_api_error_is_indexed_until_a_later_outcome(api: Api, gateway: ScriptedGateway) -> None:
    gateway.script.extend([Outcome.API_ERROR, Outcome.API_ERROR])
    gateway.open.clear()
    tracking_id = await api.pay()
    await wait_until(lambda: gateway.calls[tracking_id] == 3)
    assert set(await api.data()) == {"api_errors"}
    (listed,) = (await api.get("/payments?status=api_error"))["payments"]
    assert (listed["tracking_id"], listed["status"], listed["attempt"]) == (tracking_id, "running", 3)
    assert (await api.get("/payments/count?status=api_error"))["count"] == 1
    gateway.open.set()
    await api.reached(tracking_id, "success")
    assert set(await api.data()) == {
        "successful_txns",
        "txns",
        "payments_made_by:alice",
        "payments_received_by:shop",
    }
    assert (await api.get("/payments?status=api_error"))["payments"] == []


async def test_the_outcome_and_the_end_of_the_api_error_are_one_commit(
    api: Api, gateway: ScriptedGateway, valkey: Valkey
) -> None:
    gateway.script.append(Outcome.API_ERROR)
    async with Redis.from_url(valkey.admin_url, protocol=2) as watcher, watcher.monitor() as monitor:
        tracking_id = await api.pay()
        await api.reached(tracking_id, "success")
        await api.runtime.redis.execute_command("ECHO", f"the end of {tracking_id}")
        scripts: list[list[str]] = []
        async for command in monitor.listen():
            if command["command"] == f"ECHO the end of {tracking_id}":
                break
            if command["command"].upper().startswith("EVALSHA"):
                scripts.append([])
            elif command["client_type"] == "lua" and scripts:
                scripts[-1].append(f"{command['command']} -")
    (commit,) = [written for written in scripts if any(f"txn_{tracking_id}" in command for command in written)]
    done = {(op.upper(), key) for op, key, *_ in map(str.split, commit) if op.upper() != "TYPE"}
    prefix = api.runtime.key(payments, "")
    assert {(op, key.removeprefix(prefix)) for op, key in done if key.startswith(prefix)} == {
        ("ZREM", "api_errors"),
        ("HSET", "txns"),
        ("ZADD", "successful_txns"),
        ("ZADD", "payments_made_by:alice"),
        ("ZADD", "payments_received_by:shop"),
    }
    assert {("ZREM", api.queue.keys["running"]), ("HSET", api.queue.keys["results"])} <= done


async def test_a_payment_that_keeps_failing_is_dead_and_can_be_requeued(api: Api, gateway: ScriptedGateway) -> None:
    gateway.always = Outcome.API_ERROR
    tracking_id = await api.pay()
    shown = await api.reached(tracking_id, "dead")
    assert gateway.calls[tracking_id] == shown["attempt"] == 5
    assert shown["failure"] == {"error": "GatewayError", "message": "the gateway answered api_error", "attempt": 5}
    for status in ("api_error", "dead"):
        assert [job["tracking_id"] for job in (await api.get(f"/payments?status={status}"))["payments"]] == [
            tracking_id
        ]
        assert (await api.get(f"/payments/count?status={status}"))["count"] == 1
    assert set(await api.data()) == {"api_errors"}
    gateway.always = Outcome.INSUFFICIENT_FUNDS
    requeued = await api.ask("POST", f"/payments/{tracking_id}/requeue")
    assert (requeued.status, requeued.body) == (202, {"status": "OK", "tracking_id": tracking_id})
    assert requeued.headers["Location"] == f"/payments/{tracking_id}"
    await api.reached(tracking_id, "insufficient_funds")
    assert [(await api.get(f"/payments/count?status={status}"))["count"] for status in ("api_error", "dead")] == [0, 0]
    assert set((await api.data())["insufficient_funds_txns"]) == {f"txn_{tracking_id}"}
    again = await api.ask("POST", f"/payments/{tracking_id}/requeue")
    assert again.status == 409
    assert tracking_id in again.body["detail"]


PAYLOADS = {
    "garbage": b"garbage",
    "no line": b"",
    "no JSON": b"\n{'payer_id': 1}",
    "NaN": b"\nNaN",
    "not UTF-8": b'\n"\xff"',
    "nothing": None,
}


async def forge(api: Api, tracking_id: str, envelope: bytes | None) -> None:
    """Put a job into the line behind the API's back; None: without a record."""
    keys, now = api.queue.keys, await server_ms(api)
    if envelope is not None:
        await api.runtime.redis.hset(keys["jobs"], tracking_id, envelope)
    await api.runtime.redis.zadd(keys["open"], {tracking_id: now})
    await api.runtime.redis.zadd(keys["ready"], {tracking_id: 4 * 2**42 + now})


@pytest.mark.parametrize("payload", PAYLOADS)
async def test_a_dead_payment_that_cannot_be_read_is_shown_without_its_payment(
    api: Api, gateway: ScriptedGateway, payload: str
) -> None:
    await forge(api, "badid", PAYLOADS[payload])
    shown = await api.reached("badid", "dead")
    assert shown["payment"] is None
    assert shown["failure"].keys() == {"error", "message", "attempt"}
    assert (shown["failure"]["error"], shown["failure"]["attempt"]) == ("CodecError", 1)
    good = await api.pay()
    await api.reached(good, "success")
    assert (await api.get("/payments?status=dead"))["payments"] == [shown]
    assert (await api.get("/payments/count?status=dead"))["count"] == 1
    assert (await api.get("/payments?status=api_error"))["payments"] == []
    assert gateway.calls == {good: 1}
    await api.ask("POST", "/payments/badid/requeue")  # 5xx would fail here
    await api.reached("badid", "dead")


async def test_an_unfinished_payment_that_cannot_be_read_is_listed_with_the_others(idle: Api) -> None:
    await forge(idle, "badid", b"garbage")
    await forge(idle, "gone", None)
    await forge(idle, "odd", b"\n[5]")
    good = await idle.pay()
    payment = {**PAYMENT, "currency": "USD"}
    for path in ("/payments?status=open", "/payments/overdue?older_than=0&until=9999999999"):

        async def listed(path: str = path) -> bool:
            found = {shown["tracking_id"]: shown["payment"] for shown in (await idle.get(path))["payments"]}
            return found == {"badid": None, "gone": None, "odd": [5], good: payment}

        await eventually(listed)


async def test_a_failure_is_told_without_its_traceback_and_worker(
    api: Api, gateway: ScriptedGateway, one_attempt: None
) -> None:
    gateway.always = Outcome.API_ERROR
    tracking_id = await api.pay()
    shown = await api.reached(tracking_id, "dead")
    kept = orjson.loads((await api.runtime.inspect(charge, tracking_id)).result or b"")
    assert "Traceback" in kept["traceback"]
    for body in (
        shown,
        (await api.get("/payments?status=dead"))["payments"][0],
        (await api.get("/payments?status=api_error"))["payments"][0],
        (await api.post(headers={"Prefer": "wait=5"})).body,
    ):
        told = body.get("failure", body)
        assert told["error"] == "GatewayError"
        assert not {"traceback", "worker"} & told.keys()
        assert "Traceback" not in str(body)


# ---- Idempotency-Key


async def test_the_same_idempotency_key_is_the_same_payment(api: Api, gateway: ScriptedGateway) -> None:
    keyed = {"Idempotency-Key": "order 17"}
    first = await api.post(headers=keyed)
    tracking_id = first.body["tracking_id"]
    await api.reached(tracking_id, "success")
    formatted = b'{ "currency":"USD",\n"amount" :1250, "recipient_id": "sh\\u006fp","payer_id":"alice"}'
    for body in (PAYMENT, formatted):
        again = await api.post(body, keyed)
        assert (again.status, again.body, again.headers["Location"]) == (
            202,
            first.body,
            first.headers["Location"],
        )
    assert gateway.calls == {tracking_id: 1}
    before = await api.stored()
    other = await api.post({**PAYMENT, "amount": 1251}, keyed)
    assert other.status == 409
    assert tracking_id in other.body["detail"]
    assert await api.stored() == before
    assert (await api.post(headers={"Idempotency-Key": "order 18"})).body["tracking_id"] != tracking_id


async def test_concurrent_posts_of_one_key_are_one_payment(api: Api, gateway: ScriptedGateway) -> None:
    answers = await asyncio.gather(*(api.post(headers={"Idempotency-Key": "k" * 255}) for _ in range(20)))
    (tracking_id,) = {answer.body["tracking_id"] for answer in answers}
    await api.reached(tracking_id, "success")
    assert gateway.calls == {tracking_id: 1}


@pytest.fixture
async def simulated(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """Payments as they are out of the box, but for the chances."""
    for name in ("ERROR_RATE", "INSUFFICIENT_RATE", "LATENCY"):
        monkeypatch.setenv(f"PAYMENTS_SIMULATED_{name}", "0")
    async with running(settings) as served_whole:
        yield served_whole


async def forget(api: Api, tracking_id: str) -> None:
    """What the end of its retention does to a decided payment."""
    keys = api.queue.keys
    async with api.runtime.redis.pipeline(transaction=True) as pipeline:
        for part in ("jobs", "results"):
            pipeline.hdel(keys[part], tracking_id)
        pipeline.zrem(keys["done"], tracking_id)
        await pipeline.execute()
    assert (await api.ask("GET", f"/payments/{tracking_id}")).status == 404


async def test_a_forgotten_key_with_another_payment_is_refused_and_overwrites_nothing(simulated: Api) -> None:
    api, keyed = simulated, {"Idempotency-Key": "order 17"}
    tracking_id = (await api.post(headers=keyed)).body["tracking_id"]
    await api.reached(tracking_id, "success")
    before = await api.data()
    await forget(api, tracking_id)
    other = {**PAYMENT, "payer_id": "mallory", "amount": 999_999}
    assert (await api.post(other, keyed)).body == {"status": "OK", "tracking_id": tracking_id}
    shown = await api.reached(tracking_id, "dead")
    assert shown["payment"] == {**other, "currency": "USD"}
    assert (shown["failure"]["error"], shown["failure"]["attempt"], shown["attempt"]) == ("Discard", 1, 1)
    assert "Idempotency-Key" in shown["failure"]["message"]
    failed_at = moment(shown["finished_at"])
    assert await api.data() == {**before, "api_errors": {tracking_id: failed_at}}
    assert (await api.get("/payers/mallory/payments"))["payments"] == []
    (paid,) = (await api.get("/payers/alice/payments"))["payments"]
    assert (paid["payer_id"], paid["amount"]) == ("alice", 1250)
    for status in ("dead", "api_error"):
        assert (await api.get(f"/payments?status={status}"))["payments"] == [shown]
    assert (await api.ask("POST", f"/payments/{tracking_id}/requeue")).status == 202
    assert (await api.reached(tracking_id, "dead"))["failure"]["error"] == "Discard"
    assert (await api.data())["txns"] == before["txns"]


async def test_a_forgotten_key_with_the_same_payment_gets_its_decision_again(simulated: Api) -> None:
    api, keyed = simulated, {"Idempotency-Key": "order 17", "Prefer": "wait=5"}
    first = await api.post(headers=keyed)
    before = await api.data()
    await forget(api, first.body["tracking_id"])
    assert (await api.post(headers=keyed)).body == first.body
    after = await api.data()
    assert {name: set(content) for name, content in after.items()} == {name: set(old) for name, old in before.items()}
    assert (after["txns"], after[LEDGER]) == (before["txns"], before[LEDGER])


@pytest.mark.parametrize("key", ["", "k" * 256, "tab\there", "\N{GREEK SMALL LETTER ALPHA}"])
async def test_a_bad_idempotency_key_is_400(idle: Api, key: str) -> None:
    answer = await idle.post(headers={"Idempotency-Key": key})
    assert answer.status == 400
    assert "Idempotency-Key" in answer.body["detail"]
    assert await idle.stored() == {}


# ---- Prefer: wait


@pytest.mark.parametrize(
    "prefer", [["wait=5"], ["respond-async, wait=5"], ["respond-async", "Wait=5"], ["wait=999999"]]
)
async def test_prefer_wait_answers_with_the_outcome(api: Api, prefer: list[str]) -> None:
    headers = [*JSON.items(), *(("Prefer", value) for value in prefer)]
    answer = await api.ask("POST", "/payments", data=orjson.dumps(PAYMENT), headers=headers)
    assert answer.status == 200
    tracking_id = answer.body["tracking_id"]
    assert answer.headers["Location"] == f"/payments/{tracking_id}"
    # What was granted: at most AIOFLOW_LONGEST_WAIT, 60 by default.
    assert answer.headers["Preference-Applied"] == ("wait=60" if prefer == ["wait=999999"] else "wait=5")
    receipt = (await api.get(f"/payments/{tracking_id}"))["receipt"]
    assert answer.body == {"status": "done", "tracking_id": tracking_id, "result": receipt}
    assert receipt["outcome"] == "success"


async def test_prefer_wait_tells_of_a_dead_payment(api: Api, gateway: ScriptedGateway, one_attempt: None) -> None:
    gateway.always = Outcome.API_ERROR
    answer = await api.post(headers={"Prefer": "wait=5"})
    assert answer.status == 200
    assert answer.body == {
        "status": "dead",
        "tracking_id": answer.body["tracking_id"],
        "error": "GatewayError",
        "message": "the gateway answered api_error",
    }


async def test_prefer_wait_answers_202_where_the_outcome_does_not_come_in_time(
    settings: Settings, gateway: ScriptedGateway
) -> None:
    gateway.open.clear()
    async with running(settings.model_copy(update={"longest_wait": 0.05})) as api:
        for wait in ("wait=0", "wait=60"):
            answer = await api.post(headers={"Prefer": wait})
            assert (answer.status, answer.body["status"]) == (202, "OK")
            assert "Preference-Applied" not in answer.headers
        gateway.open.set()
        assert (await api.reached(answer.body["tracking_id"], "success"))["attempt"] == 1


@pytest.mark.parametrize(
    "prefer", ["", "wait", "wait=", "wait=-1", "wait=x", "wait=5s", "await=5", "wait=5.5", "\u0663"]
)
async def test_a_preference_that_is_none_is_ignored(api: Api, prefer: str) -> None:
    keyed = {"Idempotency-Key": "k"}
    await api.reached((await api.post(headers=keyed)).body["tracking_id"], "success")
    # Whoever waits for this payment now has its outcome at once.
    answer = await api.post(headers={**keyed, "Prefer": prefer})
    assert (answer.status, "Preference-Applied" in answer.headers) == (202, False)


class CutAfterReceipt:
    """A runtime whose Redis dies directly after it has accepted a job."""

    def __init__(self, runtime: Runtime, server: Valkey) -> None:
        self._runtime = runtime
        self._server = server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    async def submit_json(self, task: Task[Any, Any], body: bytes, *, job_id: str | None = None) -> Handle[Any]:
        handle = await self._runtime.submit_json(task, body, job_id=job_id)
        self._server.kill()
        return handle


async def test_a_payment_stays_accepted_where_redis_dies_while_its_outcome_is_waited_for(
    own_valkey: Valkey, namespace: str, gateway: ScriptedGateway, short_lease: None
) -> None:
    async with Runtime([payments], redis=own_valkey.url, namespace=namespace) as runtime:
        async with served(runtime) as whole:
            await whole.post(headers={"Prefer": "wait=5"})
        gateway.open.clear()
        async with served(CutAfterReceipt(runtime, own_valkey), runtime) as api:
            answer = await api.post(headers={"Prefer": "wait=1"})
            assert (answer.status, answer.body["status"]) == (202, "OK")
            own_valkey.start()
            gateway.open.set()
            await api.back()
            await api.reached(answer.body["tracking_id"], "success")


# ---- queries


async def seed(api: Api, times: Sequence[int], outcome: str = "success") -> list[str]:
    """Payments of alice to shop that were decided at these UTC ms; their txn ids, in the order of time and id."""
    txns, records, made_by, received_by = {
        "success": ("successful_txns", "txns", "payments_made_by", "payments_received_by"),
        "insufficient_funds": (
            "insufficient_funds_txns",
            "insufficient_funds_records",
            "insufficient_funds_made_by",
            "insufficient_funds_received_by",
        ),
    }[outcome]
    redis, seeded = api.runtime.redis, {f"txn_{index:03d}": at_ms for index, at_ms in enumerate(times)}
    for name in (txns, f"{made_by}:alice", f"{received_by}:shop"):
        await redis.zadd(api.runtime.key(payments, name), dict(seeded))
    for txn_id in seeded:
        decided = {"tracking_id": txn_id[4:], "txn_id": txn_id, "outcome": outcome, "currency": "USD"}
        receipt = Receipt.model_validate({**PAYMENT, **decided})
        await redis.hset(api.runtime.key(payments, records), txn_id, receipt.model_dump_json())
    return sorted(seeded, key=lambda txn_id: (seeded[txn_id], txn_id))


def txn_ids(listed: Sequence[Mapping[str, str]]) -> list[str]:
    return [payment["txn_id"] for payment in listed]


@pytest.mark.parametrize("path", ["/payments?status=success&", "/payers/alice/payments?", "/recipients/shop/payments?"])
@pytest.mark.parametrize(
    ("since", "until"),
    [
        ("1767225600.001", "1767225600.003"),
        ("1767225600.0010", "1767225600.003999999"),
        ("2026-01-01T00:00:00.001Z", "2026-01-01T00:00:00.003Z"),
        ("2026-01-01t00:00:00.001z", "2026-01-01T00:00:00.003%2B00:00"),
        ("2026-01-01T01:00:00.001%2B01:00", "2025-12-31T18:30:00.003-05:30"),
        ("2026-01-01T05:45:00.001+05:45", "2026-01-01T02:00:00.003+02:00"),
        ("2026-01-01T00:00:00.001000Z", "2026-01-01T00:00:00.003999Z"),
    ],
)
async def test_a_range_takes_its_begin_and_leaves_its_end(idle: Api, path: str, since: str, until: str) -> None:
    await seed(idle, range(T0, T0 + 5))
    assert txn_ids((await idle.get(f"{path}since={since}&until={until}"))["payments"]) == ["txn_001", "txn_002"]
    assert txn_ids((await idle.get(f"{path}since={since}"))["payments"]) == ["txn_001", "txn_002", "txn_003", "txn_004"]
    assert txn_ids((await idle.get(f"{path}until={until}"))["payments"]) == ["txn_000", "txn_001", "txn_002"]
    assert txn_ids((await idle.get(f"{path}since={until}&until={until}"))["payments"]) == []


async def test_a_shown_time_finds_its_payment_to_the_millisecond(idle: Api) -> None:
    txns = await seed(idle, [T0 + ms for ms in sorted({1, 123, 501, *range(0, 1000, 37)})])
    listed = (await idle.get("/payments?status=success"))["payments"]
    assert txn_ids(listed) == txns
    for index, payment in enumerate(listed):
        at_ms = moment(payment["at"])
        for since in (payment["at"], f"{at_ms // 1000}.{at_ms % 1000:03d}"):
            counted = await idle.get(f"/payments/count?status=success&since={since}")
            assert counted == {"status": "success", "count": len(txns) - index}, since


async def test_times_beyond_every_payment_are_no_error(idle: Api) -> None:
    await seed(idle, [T0])
    for far in ("9999999999", "9999-12-31T23:59:59-23:59"):
        assert (await idle.get(f"/payments/count?status=success&since={far}"))["count"] == 0
        assert (await idle.get(f"/payments/count?status=success&until={far}"))["count"] == 1
    for early in ("0", "0001-01-01T00:00:00%2B23:59", "1969-12-31T23:59:59Z"):
        assert (await idle.get(f"/payments/count?status=success&since={early}"))["count"] == 1
        assert (await idle.get(f"/payments/count?status=success&until={early}"))["count"] == 0


@pytest.mark.parametrize("times", [[T0 + 7 * index for index in range(20)], [T0] * 20, [T0] * 7 + [T0 + 1] * 13])
@pytest.mark.parametrize("outcome", ["success", "insufficient_funds"])
async def test_pages_of_decided_payments_skip_and_double_nothing(idle: Api, times: list[int], outcome: str) -> None:
    txns = await seed(idle, times, outcome)
    for path in ("/payments", "/payers/alice/payments", "/recipients/shop/payments"):
        for limit in (1, 3, 5, 20, 21):
            pages = await idle.pages(f"{path}?status={outcome}", limit)
            assert txn_ids([payment for page in pages for payment in page]) == txns
        within = await idle.pages(f"{path}?status={outcome}&since=2026-01-01T00:00:00.001Z", 2)
        late = [txn_id for txn_id, at_ms in zip(txns, sorted(times), strict=True) if at_ms > T0]
        assert txn_ids([payment for page in within for payment in page]) == late


async def test_a_page_goes_on_where_the_one_before_ended_whatever_comes_meanwhile(idle: Api) -> None:
    await seed(idle, [T0, T0 + 1, T0 + 2])
    first = await idle.get("/payments?status=success&limit=2")
    await seed(idle, [T0, T0 + 1, T0 + 2, T0 + 3])
    second = await idle.get(f"/payments?status=success&limit=2&cursor={first['cursor']}")
    assert txn_ids(first["payments"] + second["payments"]) == ["txn_000", "txn_001", "txn_002", "txn_003"]


def ids(listed: Sequence[Mapping[str, str]]) -> list[str]:
    return [payment["tracking_id"] for payment in listed]


async def test_payments_that_are_queued_or_run_are_listed_by_pages(api: Api, gateway: ScriptedGateway) -> None:
    gateway.open.clear()
    tracking_ids = sorted(await asyncio.gather(*(api.pay(amount=amount) for amount in range(1, 13))))
    await wait_until(lambda: len(gateway.calls) == 12)
    redis = api.runtime.redis
    for part in ("open", "started"):
        await redis.zadd(api.queue.keys[part], dict.fromkeys(tracking_ids, T0), xx=True)
    for path in ("/payments?status=open", "/payments?status=running", "/payments/overdue?older_than=3600"):
        for limit in (1, 5, 12, 100):
            listed = [payment for page in await api.pages(path, limit) for payment in page]
            assert ids(listed) == tracking_ids
            assert {payment["status"] for payment in listed} == {"running"}
    for status in ("open", "running"):
        assert (await api.get(f"/payments/count?status={status}&until=2026-01-01T00:00:00.001Z"))["count"] == 12
        assert (await api.get(f"/payments/count?status={status}&since=2026-01-01T00:00:00.001Z"))["count"] == 0
        assert (await api.get(f"/payments?status={status}&until=2026-01-01T00:00:00Z"))["payments"] == []
    gateway.open.set()
    for tracking_id in tracking_ids:
        await api.reached(tracking_id, "success")
    for status in ("open", "running"):
        assert (await api.get(f"/payments?status={status}")) == {"payments": [], "cursor": None}


async def test_failed_payments_are_listed_by_pages(api: Api, gateway: ScriptedGateway, one_attempt: None) -> None:
    gateway.always = Outcome.API_ERROR
    tracking_ids = sorted(await asyncio.gather(*(api.pay(amount=amount) for amount in range(1, 13))))
    for tracking_id in tracking_ids:
        await api.reached(tracking_id, "dead")
    for key in (api.queue.keys["dead"], api.runtime.key(payments, "api_errors")):
        await api.runtime.redis.zadd(key, dict.fromkeys(tracking_ids, T0), xx=True)
    for status in ("dead", "api_error"):
        for limit in (1, 5, 12, 100):
            listed = [payment for page in await api.pages(f"/payments?status={status}", limit) for payment in page]
            assert ids(listed) == tracking_ids
            assert {payment["failure"]["error"] for payment in listed} == {"GatewayError"}
        assert (await api.get(f"/payments/count?status={status}&since=2026-01-01T00:00:00.001Z"))["count"] == 0


async def test_overdue_payments_are_those_that_are_unfinished_for_longer(idle: Api) -> None:
    young, old, older = [await idle.pay(amount=amount) for amount in (1, 2, 3)]
    now = await server_ms(idle)
    await idle.runtime.redis.zadd(idle.queue.keys["open"], {old: now - 61_000, older: now - 7_200_000})

    async def overdue(query: str) -> tuple[list[str], int]:
        body = await idle.get(f"/payments/overdue{query}")
        assert body["cursor"] is None
        return ids(body["payments"]), body["count"]

    assert await overdue("") == ([older, old], 2)
    assert await overdue("?older_than=60.5") == ([older, old], 2)
    assert await overdue("?older_than=100") == ([older], 1)
    assert await overdue("?older_than=7300") == ([], 0)
    assert await overdue("?older_than=999999999") == ([], 0)

    async def all_three() -> bool:
        return await overdue("?older_than=0") == ([older, old, young], 3)

    await eventually(all_three)
    first = await idle.get("/payments/overdue?limit=1")
    assert (ids(first["payments"]), first["count"]) == ([older], 2)


async def test_overdue_payments_have_a_range_of_submission_too(idle: Api) -> None:
    tracking_ids = [await idle.pay(amount=amount) for amount in range(1, 6)]
    scores = {tracking_id: T0 + index for index, tracking_id in enumerate(tracking_ids)}
    young = await idle.pay()
    await idle.runtime.redis.zadd(idle.queue.keys["open"], scores)
    ranges: list[tuple[str, list[str]]] = [
        ("", tracking_ids),
        ("since=1767225600.001", tracking_ids[1:]),
        ("until=2026-01-01T00:00:00.003Z", tracking_ids[:3]),
        ("since=2026-01-01T00:00:00.001Z&until=1767225600.003", tracking_ids[1:3]),
        ("since=1767225600.003&until=1767225600.003", []),
        ("until=9999999999", tracking_ids),
        ("since=9999999999", []),
        (f"since={(await server_ms(idle)) / 1000 - 30:.3f}", []),
    ]
    for query, expected in ranges:
        for limit in (1, 2, 100):
            pages = await idle.pages(f"/payments/overdue?{query}", limit)
            assert ids([payment for page in pages for payment in page]) == expected, query
        assert (await idle.get(f"/payments/overdue?{query}"))["count"] == len(expected), query

    async def only_young() -> bool:
        body = await idle.get("/payments/overdue?older_than=0&since=2026-01-01T00:00:00.005Z")
        return (ids(body["payments"]), body["count"]) == ([young], 1)

    await eventually(only_young)


@pytest.mark.parametrize("hours_off", [-2, 2])
async def test_overdue_goes_by_the_clock_of_the_server(
    idle: Api, monkeypatch: pytest.MonkeyPatch, hours_off: int
) -> None:
    now = await server_ms(idle) + hours_off * 3_600_000
    monkeypatch.setattr(idle.runtime._live_store(), "_clock", lambda: now)
    young, old = [await idle.pay(amount=amount) for amount in (1, 2)]
    open_payments = idle.queue.keys["open"]
    assert await idle.runtime.redis.zscore(open_payments, young) == now
    await idle.runtime.redis.zadd(open_payments, {old: now - 61_000})
    body = await idle.get("/payments/overdue")
    assert (ids(body["payments"]), body["count"]) == ([old], 1)


PARTY_IDS = [
    *("a", "a b", " ", "a:b", "{a}", "}:q:charge:jobs", "a/b", "/payments", "%2F", "%252f%", ".", "..", "+", "*"),
    *(
        "a?b=c&d#e;f",
        "\"'\\`",
        "a+b@c.d",
        "\u00fc\u20ac\u6f22",
        "e\u0301",
        "[a-z]",
        "x" * 128,
        "\N{GRINNING FACE}" * 128,
    ),
]


@pytest.mark.parametrize("party_id", PARTY_IDS)
async def test_any_printable_id_can_pay_be_paid_and_be_queried(api: Api, party_id: str) -> None:
    tracking_ids = {await api.pay(payer_id=party_id), await api.pay(payer_id="bob", recipient_id=party_id)}
    for tracking_id in tracking_ids:
        await api.reached(tracking_id, "success")
    (made,) = (await api.get(f"/payers/{escaped(party_id)}/payments"))["payments"]
    (received,) = (await api.get(f"/recipients/{escaped(party_id)}/payments"))["payments"]
    assert (made["payer_id"], received["recipient_id"]) == (party_id, party_id)
    assert {made["tracking_id"], received["tracking_id"]} == tracking_ids
    assert set(await api.data()) == {
        "successful_txns",
        "txns",
        f"payments_made_by:{party_id}",
        "payments_made_by:bob",
        f"payments_received_by:{party_id}",
        "payments_received_by:shop",
    }


async def test_a_party_without_payments_has_none(idle: Api) -> None:
    for path in ("/payers/nobody/payments", "/recipients/%FF/payments", "/payers/%00/payments"):
        assert await idle.get(path) == {"payments": [], "cursor": None}


BAD_TIMES = [
    *("", "yesterday", "-1", "1e9", "NaN", "1767225600.", "17672256000000", "2026-01-01", "2026-01-01T00:00:00"),
    *("2026-01-01%2000:00:00Z", "2026-02-30T00:00:00Z", "2026-01-01T25:00:00Z", "2026-01-01T00:00:00%2B24:00", "%FF"),
]
BAD_QUERIES = {
    "status": [
        *("/payments", "/payments?status=", "/payments?status=done", "/payments?status=%FF", "/payments/count"),
        *(
            "/payments/count?status=Success",
            "/payers/a/payments?status=dead",
            "/recipients/a/payments?status=api_error",
        ),
    ],
    "limit": [
        f"{path}limit={limit}"
        for path in ("/payments?status=open&", "/payments/overdue?")
        for limit in ("", "0", "1001", "-1", "1.5", "ten", "99999999999", "%D9%A3")
    ],
    "cursor": [
        f"{path}cursor={cursor}"
        for path in ("/payments?status=success&", "/payments?status=dead&", "/payers/a/payments?")
        for cursor in ("x", "!", "AAAA", "%FF", "YWJj", "bmFuOng", "MToA%0A", "%20")
    ],
    "since": [
        f"{path}since={time}"
        for path in ("/payments/count?status=success&", "/payments/overdue?")
        for time in BAD_TIMES
    ],
    "until": [
        *(
            f"{path}until={time}"
            for path in ("/payments/count?status=success&", "/payments/overdue?")
            for time in BAD_TIMES
        ),
        *("/payments?status=open&since=2&until=1", "/payments/overdue?since=2&until=1"),
    ],
    "older_than": [f"/payments/overdue?older_than={seconds}" for seconds in ("", "-1", "inf", "1e3", "9999999999")],
}


@pytest.mark.parametrize("field", BAD_QUERIES)
async def test_a_bad_query_value_is_422_and_named(idle: Api, field: str) -> None:
    for query in BAD_QUERIES[field]:
        answer = await idle.ask("GET", query)
        assert (answer.status, answer.fields) == (422, [field]), query
        assert answer.body["detail"].startswith(f"{field}: ")


# ---- bad requests


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/payments", "GET,POST"),
        ("DELETE", "/payments/0123", "GET"),
        ("POST", "/payments/count", "GET"),
        ("POST", "/payments/overdue", "GET"),
        ("GET", "/payments/0123/requeue", "POST"),
        ("PATCH", "/payers/alice/payments", "GET"),
        ("POST", "/recipients/shop/payments", "GET"),
        ("HEAD", "/payments", "GET,POST"),
        ("POST", "/healthz", "GET,HEAD"),
        ("POST", "/readyz", "GET,HEAD"),
    ],
)
async def test_a_wrong_method_is_405_with_what_is_allowed(idle: Api, method: str, path: str, allow: str) -> None:
    answer = await idle.ask(method, path)
    assert answer.status == 405
    assert answer.headers["Allow"] == allow


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"payer_id=alice", b"{'payer_id': 'alice'}", b'{"payer_id": "\xff"}', b'{"payer_id": "\\ud800"}'),
        *(orjson.dumps(PAYMENT) + b"}", orjson.dumps(PAYMENT)[:-1] + b",}", b"\xef\xbb\xbf" + orjson.dumps(PAYMENT)),
        *(b"[" * 4000, "{}".encode("utf-16")),
    ],
    ids=range(11),
)
async def test_a_body_that_is_not_json_is_400(idle: Api, body: bytes) -> None:
    answer = await idle.post(body)
    assert answer.status == 400
    assert "not JSON" in answer.body["detail"]
    assert await idle.stored() == {}


def without(*names: str) -> dict[str, object]:
    return {name: value for name, value in PAYMENT.items() if name not in names}


BAD_AMOUNTS = ["1", "", 1.0, 1.5, True, 0, -1, 2**53, None, [1], {}]
BAD_PARTIES = ["", "x" * 129, "a\x00b", "a\nb", "\t", "\x7f", "\u200b", "\u2028", "\ue000", 5, None, ["a"]]
BAD_CURRENCIES = ["", "usd", "US", "USDX", "USD\n", "\u00dcSD", 840, None]
BAD_PAYMENTS: list[tuple[object, list[str]]] = [
    (without("payer_id"), ["payer_id"]),
    (without("recipient_id", "amount"), ["recipient_id", "amount"]),
    ({}, ["payer_id", "recipient_id", "amount"]),
    ({**PAYMENT, "ammount": 1}, ["ammount"]),
    ({**PAYMENT, "tracking_id": "mine"}, ["tracking_id"]),
    ({**PAYMENT, "": 1}, ["body"]),
    ([], ["body"]),
    ([PAYMENT], ["body"]),
    (None, ["body"]),
    ("payment", ["body"]),
    (17, ["body"]),
    *(({**PAYMENT, "amount": amount}, ["amount"]) for amount in BAD_AMOUNTS),
    *(({**PAYMENT, name: party}, [name]) for name in ("payer_id", "recipient_id") for party in BAD_PARTIES),
    *(({**PAYMENT, "currency": currency}, ["currency"]) for currency in BAD_CURRENCIES),
]


async def test_a_payment_that_does_not_fit_is_422_and_its_fields_are_named(idle: Api) -> None:
    for payment, fields in BAD_PAYMENTS:
        answer = await idle.post(orjson.dumps(payment))
        assert (answer.status, sorted(answer.fields)) == (422, sorted(fields)), payment
        for field in fields:
            assert f"{field}: " in answer.body["detail"]
    assert await idle.stored() == {}


@pytest.mark.parametrize("amount", [b"1e3", b"1E400", b"1" + b"0" * 30, b"1" + b"0" * 400, b"-0", b"NaN", b"Infinity"])
async def test_an_amount_that_is_no_whole_number_of_minor_units_is_422(idle: Api, amount: bytes) -> None:
    answer = await idle.post(b'{"payer_id":"alice","recipient_id":"shop","amount":' + amount + b"}")
    assert (answer.status, answer.fields) == (422, ["amount"])


async def test_the_least_and_the_largest_amount_are_taken_exactly(api: Api) -> None:
    for amount in (1, 2**53 - 1):
        shown = await api.reached(await api.pay(amount=amount), "success")
        assert shown["payment"]["amount"] == shown["receipt"]["amount"] == amount


async def test_a_body_of_many_wrong_fields_gets_a_short_answer(idle: Api) -> None:
    answer = await idle.post({f"f{number}": 1 for number in range(300)} | {"x" * 500: 1})
    assert answer.status == 422
    assert len(answer.fields) == 20
    assert answer.body["detail"].endswith("and 284 more")
    answer = await idle.post({**PAYMENT, "x" * 500: 1})
    assert answer.fields == ["x" * 200]


async def chunks(body: bytes) -> AsyncIterator[bytes]:
    for first in range(0, len(body), 1000):
        yield body[first : first + 1000]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_413(idle: Api, chunked: bool) -> None:
    body = orjson.dumps(PAYMENT)
    for size, status in ((4096, 202), (4097, 413), (100_000, 413)):
        filled = body + b" " * (size - len(body))
        answer = await idle.ask("POST", "/payments", data=chunks(filled) if chunked else filled, headers=JSON)
        assert answer.status == status
    assert (await idle.get("/payments/count?status=open"))["count"] == 1


WRONG_TYPES = [
    *("text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data"),
    *("application/problem+json", "json", ";"),
]


@pytest.mark.parametrize("content_type", [None, *WRONG_TYPES])
async def test_a_wrong_content_type_is_415(idle: Api, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = await idle.ask(
        "POST", "/payments", data=orjson.dumps(PAYMENT), headers=headers, skip_auto_headers=["Content-Type"]
    )
    assert answer.status == 415
    assert "application/json" in answer.body["detail"]
    assert await idle.stored() == {}


async def test_json_is_known_by_any_spelling_of_its_type(idle: Api) -> None:
    for content_type in ("application/json; charset=utf-8", "Application/JSON", 'application/json;profile="a;b"'):
        assert (await idle.post(headers={"Content-Type": content_type})).status == 202


ODD_REQUESTS = [
    (b"Content-Type: \xff;;=\r\n", b"{}", 415),
    (b"Content-Type: application/json\r\nContent-Encoding: gzip\r\n", b"{}", 400),
    (b"Content-Type: application/json\r\nContent-Encoding: gzip\r\n", gzip.compress(b" " * 100_000), 413),
    (b"Content-Type: application/json\r\nContent-Encoding: gzip\r\n", gzip.compress(orjson.dumps(PAYMENT)), 202),
    (b"Content-Type: application/json\r\nIdempotency-Key: \xff\r\n", b"{}", 400),
    (b"Content-Type: application/json\r\nPrefer: wait=\xd9\xa3\r\n", orjson.dumps(PAYMENT), 202),
]


@pytest.mark.parametrize(("head", "body", "status"), ODD_REQUESTS, ids=range(len(ODD_REQUESTS)))
async def test_odd_bytes_in_a_request_are_answered_properly(idle: Api, head: bytes, body: bytes, status: int) -> None:
    request = b"POST /payments HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n%b" % (len(body), head, body)
    assert (await idle.raw(request)).status == status


async def test_a_client_that_leaves_within_its_body_leaves_nothing_behind(
    idle: Api, caplog: pytest.LogCaptureFixture
) -> None:
    for abort in (False, True):
        reader, writer = await asyncio.open_connection(URL(idle.url).host, URL(idle.url).port)
        writer.write(b"POST /payments HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: 80\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"  # the request is being handled
        writer.write(orjson.dumps(PAYMENT)[:20])
        if abort:
            writer.transport.abort()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    assert (await idle.get("/payments/count?status=open"))["count"] == 0
    assert await idle.stored() == {}
    assert "a route failed" not in caplog.text


# ---- a full queue, a full Redis, no Redis


async def test_a_full_queue_is_429_until_there_is_room(valkey: Valkey, namespace: str) -> None:
    async with running(load_settings(redis=valkey.url, namespace=namespace), tiny, workers=False) as api:

        async def post(number: int, **headers: str) -> Answer:
            return await api.ask("POST", "/holds", data=str(number), headers={**JSON, **headers})

        keyed = {"Idempotency-Key": "first"}
        first = await post(1, **keyed)
        assert (first.status, "Location" in first.headers) == (202, False)
        assert (await post(2)).status == 202
        before = await api.stored()
        full = await post(3)
        assert (full.status, full.headers["Retry-After"]) == (429, "1")
        assert "tiny.hold" in full.body["detail"]
        assert (await post(1, **keyed)).body == first.body
        assert (await post(9, **keyed)).status == 409
        assert await api.stored() == before


async def test_redirects_of_routes_stay_redirects(valkey: Valkey, namespace: str) -> None:
    settings = load_settings(redis=valkey.url, namespace=namespace)
    async with (
        running(settings, tiny, workers=False) as api,
        api.session.get(f"{api.url}/elsewhere", allow_redirects=False) as answer,
    ):
        assert (answer.status, answer.headers["Location"]) == (302, "/healthz")


QUERIES = [
    "/payments/0123",
    *(
        f"/payments?status={status}"
        for status in ("success", "insufficient_funds", "api_error", "open", "running", "dead")
    ),
    "/payments/count?status=success",
    "/payments/count?status=open",
    "/payers/alice/payments",
    "/recipients/shop/payments",
    "/payments/overdue",
]


async def test_without_redis_everything_is_503_and_nothing_is_half_written(
    own_valkey: Valkey, namespace: str, gateway: ScriptedGateway
) -> None:
    async with running(load_settings(redis=own_valkey.url, namespace=namespace)) as api:
        assert await api.get("/readyz") == {"status": "ready"}
        tracking_id = await api.pay()
        await api.reached(tracking_id, "success")
        before = await api.stored()
        own_valkey.kill()
        answers = [
            await api.post(),
            await api.post(headers={"Idempotency-Key": "k"}),
            await api.post(headers={"Prefer": "wait=5"}),
            await api.ask("POST", f"/payments/{tracking_id}/requeue"),
            *[await api.ask("GET", path) for path in (*QUERIES, "/readyz")],
        ]
        assert {answer.status for answer in answers} == {503}
        assert await api.get("/healthz") == {"status": "up"}
        assert (await api.post(b"{}")).status == 422
        own_valkey.start()
        await api.back()
        assert await api.stored() == before
        assert (await api.post(headers={"Prefer": "wait=5"})).status == 200


@pytest.fixture
def small_valkey() -> Iterator[Valkey]:
    """A server with a limit of memory."""
    server = Valkey(arguments=("--maxmemory", "64mb"))
    server.start()
    yield server
    server.close()


async def test_over_the_watermark_nothing_new_is_taken(
    small_valkey: Valkey, namespace: str, gateway: ScriptedGateway
) -> None:
    settings = load_settings(redis=small_valkey.url, namespace=namespace, memory_watermark=0.5)
    gateway.open.clear()
    async with running(settings) as api:
        tracking_id = await api.pay()
        used = (await api.runtime.redis.info("memory"))["used_memory"]
        await api.runtime.redis.config_set("maxmemory", int(used * 1.3))

        async def refused() -> Answer | None:
            answer = await api.post()
            return answer if answer.status == 503 else None

        full = await eventually(refused)
        assert "full" in full.body["detail"]
        taken = (await api.get("/payments/count?status=open"))["count"]
        assert (await api.post()).status == 503
        assert (await api.get("/payments/count?status=open"))["count"] == taken
        gateway.open.set()
        await api.reached(tracking_id, "success")
        await api.runtime.redis.config_set("maxmemory", used * 100)

        async def taken_again() -> bool:
            return (await api.post()).status == 202

        await eventually(taken_again)


async def test_a_redis_that_is_out_of_memory_is_503_and_finishes_what_it_has(
    small_valkey: Valkey, namespace: str, gateway: ScriptedGateway
) -> None:
    settings = load_settings(redis=small_valkey.url, namespace=namespace)
    gateway.open.clear()
    async with running(settings.model_copy(update={"memory_watermark": math.inf})) as api:
        tracking_id = await api.pay()
        await api.reached(tracking_id, "running")
        await api.runtime.redis.config_set("maxmemory", 1)
        before = await api.stored()
        for headers in ({}, {"Idempotency-Key": "k"}, {"Prefer": "wait=5"}):
            answer = await api.post(headers=headers)
            assert answer.status == 503
            assert "maxmemory" in answer.body["detail"]
        assert await api.stored() == before
        for path in QUERIES[1:]:
            await api.get(path)
        gateway.open.set()
        await api.reached(tracking_id, "success")
        assert set((await api.data())["txns"]) == {f"txn_{tracking_id}"}
        await api.runtime.redis.config_set("maxmemory", 0)
        assert (await api.post(headers={"Prefer": "wait=5"})).status == 200


async def test_the_process_is_healthy_and_ready(api: Api) -> None:
    assert await api.get("/healthz") == {"status": "up"}
    assert await api.get("/readyz") == {"status": "ready"}


async def test_a_stopped_runtime_answers_503(settings: Settings, gateway: ScriptedGateway) -> None:
    runtime = Runtime([payments], settings=settings)
    async with runtime:
        pass
    async with served(runtime) as api:
        for path in ("/readyz", *QUERIES):
            assert (await api.ask("GET", path)).status == 503
        assert (await api.post()).status == 503


# ---- what the README says

README = (Path(__file__).resolve().parent.parent.parent / "services" / "payments" / "README.md").read_text()


async def test_the_curl_lines_of_the_readme_answer_what_it_prints(
    own_valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = re.findall(r"^\$ (curl .+)\n(.+)$", README, re.MULTILINE)
    assert len(commands) == README.count("curl -s")
    monkeypatch.setenv("PAYMENTS_SIMULATED_LATENCY", "0")
    async with running(load_settings(redis=own_valkey.url, namespace=namespace)) as api:
        for command, printed in commands:
            answer = await curl(command, api.url)
            assert re.fullmatch(re.escape(printed).replace(r"\.\.\.", "[^{}]+?"), answer), (command, answer)


def test_the_tables_of_the_readme_are_complete() -> None:
    routes = re.findall(r"^\| `(GET|POST) (/pay\S+|/recip\S+)` \|", README, re.MULTILINE)
    declared = [(route.method, route.path.replace(":[^/]+", "")) for route in payments.routes]
    assert sorted(routes) == sorted(declared)
    settings = re.findall(r"^\| `(PAYMENTS_\w+)` \| (?:`(\S+)`)? ?\| (.+) \|$", README, re.MULTILINE)
    assert settings == [
        (f"PAYMENTS_{name.upper()}", "" if field.default is None else str(field.default), field.description)
        for name, field in PaymentsSettings.model_fields.items()
    ]
    assert set(re.findall(r"^\| `(\w+)` \| [^|]+ \| of ", README, re.MULTILINE)) == set(STATUSES)


async def test_the_readme_names_every_key(api: Api, gateway: ScriptedGateway) -> None:
    gateway.script.extend([Outcome.SUCCESS, Outcome.INSUFFICIENT_FUNDS])
    for status in ("success", "insufficient_funds"):
        await api.reached(await api.pay(), status)
    gateway.always = Outcome.API_ERROR
    await api.reached(await api.pay(), "dead")
    written = {name.replace(":alice", ":<payer_id>").replace(":shop", ":<recipient_id>") for name in await api.data()}
    table = README.partition("<!-- keys -->")[2].partition("\n\n")[0]
    assert written | {LEDGER} == set(re.findall(r"^\| `(\S+)`", table, re.MULTILINE))
