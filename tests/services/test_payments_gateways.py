"""The gateways: the simulated one over a real Valkey, the one behind HTTP against a real server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from redis.asyncio import Redis

from aioflow import ConfigError, JobFailed, Runtime, State
from aioflow.engine.connect import no_retry
from services.payments import gateways
from services.payments.api import LEDGER, charge
from services.payments.api import service as payments
from services.payments.gateways import CheckedGateway, Decision, HttpGateway, SimulatedGateway
from services.payments.models import GatewayError, Outcome, Payment, PaymentRefused
from tests.serving import Serve
from tests.valkey import Valkey
from tests.waiting import wait_until

PAYMENT = Payment(payer_id="alice", recipient_id="shop", amount=1250)
OTHER = PAYMENT.model_copy(update={"payer_id": "mallory"})
KEYS = [f"key-{number}" for number in range(200)]


# ---- simulated


@pytest.fixture
async def redis(valkey: Valkey) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey.admin_url, protocol=2) as client:
        yield client


Simulated = Callable[..., SimulatedGateway]


@pytest.fixture
def simulated(redis: Redis, namespace: str) -> Simulated:
    """Makes gateways, each with a ledger of its own unless it is named."""
    made = 0

    def make(ledger: str = "", **options: Any) -> SimulatedGateway:
        nonlocal made
        made += 1
        return SimulatedGateway(redis, f"{namespace}:{ledger or made}", **{"latency": 0, "error_rate": 0, **options})

    return make


async def decisions(gateway: SimulatedGateway) -> dict[str, Decision | None]:
    """What the gateway answers to each key; None where it fails."""

    async def ask(key: str) -> Decision | None:
        try:
            return await gateway.charge(PAYMENT, idempotency_key=key)
        except GatewayError:
            return None

    return {key: await ask(key) for key in KEYS}


async def test_decisions_follow_the_seed(simulated: Simulated) -> None:
    first = await decisions(simulated(seed=7, insufficient_rate=0.3, error_rate=0.2))
    assert await decisions(simulated(seed=7, insufficient_rate=0.3, error_rate=0.2)) == first
    assert await decisions(simulated(seed=8, insufficient_rate=0.3, error_rate=0.2)) != first


async def test_rates_are_shares_of_the_payments(simulated: Simulated) -> None:
    found = list((await decisions(simulated(seed=1, insufficient_rate=0.3, error_rate=0.2))).values())
    decided = [decision.outcome for decision in found if decision is not None]
    assert 20 <= found.count(None) <= 60
    assert 0.2 <= decided.count(Outcome.INSUFFICIENT_FUNDS) / len(decided) <= 0.4
    for rate, outcome in ((0.0, Outcome.SUCCESS), (1.0, Outcome.INSUFFICIENT_FUNDS)):
        found = list((await decisions(simulated(insufficient_rate=rate))).values())
        assert {decision and decision.outcome for decision in found} == {outcome}


async def test_a_failure_leaves_nothing_in_the_ledger(simulated: Simulated, redis: Redis, namespace: str) -> None:
    assert set((await decisions(simulated("ledger", error_rate=1))).values()) == {None}
    assert not await redis.exists(f"{namespace}:ledger")


async def test_a_repeated_charge_gets_the_first_answer_and_one_ledger_entry(
    simulated: Simulated, redis: Redis, namespace: str
) -> None:
    first = await decisions(simulated("ledger", seed=1, insufficient_rate=0.5))
    assert {decision and decision.outcome for decision in first.values()} == {
        Outcome.SUCCESS,
        Outcome.INSUFFICIENT_FUNDS,
    }
    ledger: Any = await redis.hgetall(f"{namespace}:ledger")
    # Whatever is set otherwise by then, and in whatever process: the ledger decides.
    assert await decisions(simulated("ledger", seed=2, insufficient_rate=0)) == first
    assert await redis.hgetall(f"{namespace}:ledger") == ledger
    entries = {key.decode(): orjson.loads(entry) for key, entry in ledger.items()}
    assert entries == {
        key: {"txn_id": decision.txn_id, "outcome": decision.outcome, "payment": PAYMENT.model_dump()}
        for key, decision in first.items()
        if decision is not None
    }
    assert len({entry["txn_id"] for entry in entries.values()}) == len(KEYS)


async def test_a_decision_is_never_followed_by_an_error(simulated: Simulated, redis: Redis, namespace: str) -> None:
    gateway = simulated("ledger", seed=1, insufficient_rate=0.5, error_rate=0.5)
    first: dict[str, Decision] = {}
    for _ in range(8):
        failed = 0
        for key, decision in (await decisions(gateway)).items():
            assert decision is not None or key not in first, "an error after a decision"
            if decision is not None:
                assert first.setdefault(key, decision) == decision
            failed += decision is None
        # What failed wrote nothing; what is written was answered.
        assert await redis.hlen(f"{namespace}:ledger") == len(first) == len(KEYS) - failed
    assert len(first) > 190
    # However often it fails otherwise, and in whatever process.
    down = await decisions(simulated("ledger", seed=2, error_rate=1))
    assert {key: decision for key, decision in down.items() if decision is not None} == first


@pytest.mark.parametrize("error_rate", [0, 1])
@pytest.mark.parametrize(
    "changed", [{"payer_id": "mallory"}, {"recipient_id": "mallory"}, {"amount": 1251}, {"currency": "EUR"}]
)
async def test_another_payment_under_a_known_key_is_refused(
    simulated: Simulated, redis: Redis, namespace: str, error_rate: float, changed: dict[str, Any]
) -> None:
    first = await simulated("ledger").charge(PAYMENT, idempotency_key="key")
    ledger: Any = await redis.hgetall(f"{namespace}:ledger")
    gateway = simulated("ledger", error_rate=error_rate)
    with pytest.raises(PaymentRefused, match="another payment"):
        await gateway.charge(PAYMENT.model_copy(update=changed), idempotency_key="key")
    assert await gateway.charge(PAYMENT, idempotency_key="key") == first
    assert await redis.hgetall(f"{namespace}:ledger") == ledger


async def test_of_concurrent_payments_under_one_key_one_is_decided(simulated: Simulated) -> None:
    rivals = [PAYMENT.model_copy(update={"amount": amount}) for amount in range(1, 21)]
    gateway = simulated("ledger")
    answers = await asyncio.gather(
        *(gateway.charge(rival, idempotency_key="key") for rival in rivals), return_exceptions=True
    )
    assert Counter(map(type, answers)) == {Decision: 1, PaymentRefused: 19}


async def test_concurrent_charges_under_one_key_are_one(simulated: Simulated, redis: Redis, namespace: str) -> None:
    rivals = [simulated("ledger", seed=seed, insufficient_rate=0.5) for seed in range(20)]
    answers = await asyncio.gather(*(rival.charge(PAYMENT, idempotency_key="key") for rival in rivals))
    assert len(set(answers)) == 1
    assert await redis.hlen(f"{namespace}:ledger") == 1


async def test_latency_follows_the_seed_too(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(gateways, "asyncio", SimpleNamespace(sleep=sleep))
    for seed in (1, 1, 2):
        await decisions(simulated(seed=seed, latency=0.05))
    first, again, other = slept[:200], slept[200:400], slept[400:]
    assert first == again != other
    assert 0 <= min(first) < max(first) <= 0.1
    assert 0.04 < sum(first) / len(first) < 0.06


async def test_a_ledger_that_cannot_be_reached_is_an_api_error(own_valkey: Valkey) -> None:
    async with Redis.from_url(own_valkey.admin_url, protocol=2, retry=no_retry()) as redis:
        gateway = SimulatedGateway(redis, "ledger", latency=0, error_rate=0)
        first = await gateway.charge(PAYMENT, idempotency_key="key")
        own_valkey.kill()
        with pytest.raises(GatewayError, match="ledger"):
            await gateway.charge(PAYMENT, idempotency_key="key")
        own_valkey.start()
        assert await gateway.charge(PAYMENT, idempotency_key="key") == first
        await redis.config_set("maxmemory", 1)
        with pytest.raises(GatewayError, match="ledger"):
            await gateway.charge(PAYMENT, idempotency_key="another")


# ---- behind HTTP


class Bank:
    """A gateway as a company would run it: a ledger by Idempotency-Key, and whatever trouble the test wants."""

    def __init__(self) -> None:
        self.url = ""
        self.outcome = "success"
        self.ledger: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, Any]] = []
        self.trouble: list[Callable[[web.Request], web.StreamResponse]] = []
        """What the next requests get instead of their answer, although they are charged."""
        self.hangs = asyncio.Event()

    async def charge(self, request: web.Request) -> web.StreamResponse:
        key, payment = request.headers["Idempotency-Key"], await request.json()
        self.requests.append((key, payment))
        answer = self.ledger.setdefault(
            key, {"txn_id": f"bank_{len(self.ledger)}", "outcome": self.outcome, "payment": payment}
        )
        if self.trouble:
            return self.trouble.pop(0)(request)
        return web.json_response(answer)

    async def hang(self, request: web.Request) -> web.StreamResponse:
        """Sends its head and half of its body, and nothing more."""
        answer = web.StreamResponse(headers={"Content-Length": "100"})
        await answer.prepare(request)
        await answer.write(b'{"txn_id": "b')
        await self.hangs.wait()
        return answer

    async def silent(self, request: web.Request) -> web.StreamResponse:
        await self.hangs.wait()
        raise web.HTTPOk


@asynccontextmanager
async def opened(bank: Bank) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_post("/charge", bank.charge)
    app.router.add_post("/hang", bank.hang)
    app.router.add_post("/silent", bank.silent)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    bank.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield
    finally:
        bank.hangs.set()
        await runner.cleanup()


@pytest.fixture
async def bank() -> AsyncIterator[Bank]:
    made = Bank()
    async with opened(made):
        yield made


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


def answers(
    body: str | bytes, status: int = 200, headers: dict[str, str] | None = None
) -> Callable[[web.Request], web.StreamResponse]:
    data = body.encode() if isinstance(body, str) else body
    return lambda _: web.Response(body=data, status=status, headers=headers)


def cuts(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.mark.parametrize("outcome", ["success", "insufficient_funds"])
async def test_the_gateway_is_asked_with_the_payment_and_its_key(
    bank: Bank, session: aiohttp.ClientSession, outcome: str
) -> None:
    bank.outcome = outcome
    gateway = HttpGateway(session, f"{bank.url}/charge", timeout=5)
    decision = await gateway.charge(PAYMENT, idempotency_key="key-1")
    assert decision == Decision(txn_id="bank_0", outcome=Outcome(outcome))
    assert bank.requests == [("key-1", PAYMENT.model_dump())]
    assert await gateway.charge(PAYMENT, idempotency_key="key-1") == decision
    assert (await gateway.charge(PAYMENT, idempotency_key="key-2")).txn_id == "bank_1"


TROUBLE: dict[str, Callable[[web.Request], web.StreamResponse]] = {
    "api_error": answers('{"txn_id": "t", "outcome": "api_error"}'),
    "api_error without a transaction": answers('{"outcome": "api_error"}'),
    "500": answers("", 500),
    "503 with an outcome": answers('{"txn_id": "t", "outcome": "success"}', 503),
    "400": answers("no", 400),
    "404": answers("no", 404),
    "409": answers("the first request under this key is still being worked on", 409),
    "429": answers("later", 429),
    "202": answers('{"txn_id": "t", "outcome": "success"}', 202),
    "204": answers("", 204),
    "redirect": answers("", 307, {"Location": "/charge"}),
    "redirect elsewhere": answers("", 302, {"Location": "http://127.0.0.1:1/"}),
    "no answer": answers(""),
    "not JSON": answers("<html>success</html>"),
    "not UTF-8": answers(b'{"txn_id": "\xff", "outcome": "success"}'),
    "another outcome": answers('{"txn_id": "t", "outcome": "perhaps"}'),
    "no transaction": answers('{"outcome": "success"}'),
    "an empty transaction": answers('{"txn_id": "", "outcome": "success"}'),
    "a transaction that is a number": answers('{"txn_id": 5, "outcome": "success"}'),
    "a list": answers("[]"),
    "cut": cuts,
    "a compressed answer that is none": answers("x", 200, {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_whatever_is_no_decision_is_an_api_error(
    bank: Bank, session: aiohttp.ClientSession, trouble: str
) -> None:
    gateway = HttpGateway(session, f"{bank.url}/charge", timeout=5)
    bank.trouble = [TROUBLE[trouble]]
    with pytest.raises(GatewayError, match=r"^the gateway"):
        await gateway.charge(PAYMENT, idempotency_key="key")
    assert len(bank.requests) == 1
    assert (await gateway.charge(PAYMENT, idempotency_key="key")).txn_id == "bank_0"


async def test_422_refuses_the_payment(bank: Bank, session: aiohttp.ClientSession) -> None:
    bank.trouble = [answers('{"txn_id": "t", "outcome": "success"}', 422)]
    with pytest.raises(PaymentRefused, match="422"):
        await HttpGateway(session, f"{bank.url}/charge", timeout=5).charge(PAYMENT, idempotency_key="key")


class Always:
    """A gateway that has one answer."""

    def __init__(self, decision: Decision) -> None:
        self._decision = decision

    async def charge(self, payment: Payment, *, idempotency_key: str) -> Decision:
        return self._decision


@pytest.mark.parametrize("outcome", [Outcome.SUCCESS, Outcome.INSUFFICIENT_FUNDS])
async def test_a_decision_that_is_recorded_for_another_payment_is_refused(
    redis: Redis, namespace: str, outcome: Outcome
) -> None:
    records = {outcome: f"{namespace}:{outcome}" for outcome in (Outcome.SUCCESS, Outcome.INSUFFICIENT_FUNDS)}
    decision = Decision(txn_id="txn", outcome=outcome)
    gateway = CheckedGateway(Always(decision), redis, records)
    assert await gateway.charge(PAYMENT, idempotency_key="key") == decision
    await redis.hset(records[outcome], "txn", decision.receipt(PAYMENT, "key").model_dump_json())
    assert await gateway.charge(PAYMENT, idempotency_key="key") == decision
    for payment, key in ((OTHER, "key"), (PAYMENT, "another key")):
        with pytest.raises(PaymentRefused, match="transaction txn of another payment"):
            await gateway.charge(payment, idempotency_key=key)


async def test_records_that_cannot_be_read_are_an_api_error(own_valkey: Valkey) -> None:
    async with Redis.from_url(own_valkey.admin_url, protocol=2, retry=no_retry()) as redis:
        decision = Decision(txn_id="txn", outcome=Outcome.SUCCESS)
        gateway = CheckedGateway(Always(decision), redis, {Outcome.SUCCESS: "txns"})
        own_valkey.kill()
        with pytest.raises(GatewayError, match="records"):
            await gateway.charge(PAYMENT, idempotency_key="key")


@pytest.mark.parametrize("path", ["/hang", "/silent"])
async def test_a_gateway_that_takes_too_long_is_an_api_error(
    bank: Bank, session: aiohttp.ClientSession, path: str
) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(GatewayError, match=r"did not answer within 0\.05 s"):
            await HttpGateway(session, f"{bank.url}{path}", timeout=0.05).charge(PAYMENT, idempotency_key="key")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/charge", "https://127.0.0.1:1/"])
async def test_a_gateway_that_cannot_be_reached_is_an_api_error(session: aiohttp.ClientSession, url: str) -> None:
    with pytest.raises(GatewayError, match="cannot be asked"):
        await HttpGateway(session, url, timeout=5).charge(PAYMENT, idempotency_key="key")


# ---- end to end


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow one another at once."""
    retry = replace(charge.options.retry, base=0.002, longest=0.01)
    monkeypatch.setattr(charge, "options", replace(charge.options, retry=retry))


async def test_a_payment_is_charged_once_though_the_gateway_fails_twice(
    bank: Bank, valkey: Valkey, namespace: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAYMENTS_GATEWAY_URL", f"{bank.url}/charge")
    bank.trouble = [cuts, answers("", 503)]
    async with Runtime([payments], redis=valkey.url, namespace=namespace) as runtime:
        handle = await charge.submit(PAYMENT)
        receipt = await handle.result(timeout=10)
        assert receipt.model_dump(mode="json") == {
            "tracking_id": handle.id,
            "txn_id": "bank_0",
            "outcome": "success",
            **PAYMENT.model_dump(),
        }
        assert bank.requests == [(handle.id, PAYMENT.model_dump())] * 3
        assert set(bank.ledger) == {handle.id}
        info = await handle.status()
        assert (info.state, info.attempt, info.failures) == (State.DONE, 3, 2)
        prefix = runtime.key(payments, "")
        kept = {key.decode().removeprefix(prefix) async for key in runtime.redis.scan_iter(f"{prefix}*")}
        assert kept == {"successful_txns", "txns", "payments_made_by:alice", "payments_received_by:shop"}
        assert await runtime.redis.zcard(f"{prefix}successful_txns") == 1


@pytest.mark.parametrize("compares", [True, False])
async def test_a_bank_that_knows_the_key_for_another_payment_ends_the_payment_at_once(
    bank: Bank, valkey: Valkey, namespace: str, quick: None, monkeypatch: pytest.MonkeyPatch, compares: bool
) -> None:
    monkeypatch.setenv("PAYMENTS_GATEWAY_URL", f"{bank.url}/charge")
    async with Runtime([payments], redis=valkey.url, namespace=namespace) as runtime:
        redis: Any = runtime.redis
        receipt = await (await charge.submit(PAYMENT, id="order-17")).result(timeout=10)
        record = await redis.hgetall(runtime.key(payments, "txns"))
        for part, command in (("jobs", redis.hdel), ("results", redis.hdel), ("done", redis.zrem)):
            await command(runtime._queues[charge].keys[part], "order-17")  # its retention ends
        if compares:
            bank.trouble = [answers("", 422)]
        handle = await charge.submit(OTHER, id="order-17")
        with pytest.raises(JobFailed) as failure:
            await handle.result(timeout=10)
        assert failure.value.error == "Discard"
        assert ("422" if compares else receipt.txn_id) in failure.value.message
        assert (await handle.status()).attempt == 1
        assert bank.requests == [("order-17", PAYMENT.model_dump()), ("order-17", OTHER.model_dump())]
        assert await redis.hgetall(runtime.key(payments, "txns")) == record
        assert await redis.zrange(runtime.key(payments, "api_errors"), 0, -1) == [b"order-17"]
        assert not await redis.exists(runtime.key(payments, "payments_made_by:mallory"))


@pytest.mark.timeout(90)
async def test_every_decision_is_taken_over_though_half_the_calls_fail_and_workers_are_killed(
    own_valkey: Valkey, namespace: str
) -> None:
    environment = {
        "AIOFLOW_NAMESPACE": namespace,
        "PAYMENTS_SIMULATED_ERROR_RATE": "0.5",
        "PAYMENTS_SIMULATED_LATENCY": "0.02",
    }
    serve = Serve("tests.services.hurried:service", "--redis", own_valkey.url, "--no-ingress", environment=environment)
    try:
        async with Runtime([payments], redis=own_valkey.url, namespace=namespace, workers=False) as runtime:
            redis: Any = runtime.redis
            ledger_key = runtime.key(payments, LEDGER)
            await charge.submit_many([PAYMENT] * 2000)
            for kill in range(1, 4):
                serve.spawn()

                async def decided(enough: int = 250 * kill) -> bool:
                    return int(await redis.hlen(ledger_key)) >= enough

                await wait_until(decided, 20)
                serve.kill()
            await serve.start()

            async def all_ended() -> bool:
                return (await runtime.sizes(charge)).open == 0

            await wait_until(all_ended, 30)
            records = {
                **await redis.hgetall(runtime.key(payments, "txns")),
                **await redis.hgetall(runtime.key(payments, "insufficient_funds_records")),
            }
            taken = {orjson.loads(record)["tracking_id"]: txn_id for txn_id, record in records.items()}
            ledger = {key.decode(): orjson.loads(entry) for key, entry in (await redis.hgetall(ledger_key)).items()}
            assert {key: entry["txn_id"].encode() for key, entry in ledger.items()} == taken
            dead = {job_id.decode() for job_id in await redis.zrange(runtime.key(payments, "api_errors"), 0, -1)}
            assert not dead & ledger.keys()
            assert len(dead) + len(ledger) == 2000
            assert await serve.stop() == 0
    finally:
        serve.close()


async def test_a_redis_that_goes_away_within_a_charge_costs_an_attempt_not_the_payment(
    own_valkey: Valkey,
    namespace: str,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in {"ERROR_RATE": "0", "INSUFFICIENT_RATE": "0", "LATENCY": "0"}.items():
        monkeypatch.setenv(f"PAYMENTS_SIMULATED_{name}", value)
    started, go = asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        started.set()
        await go.wait()

    monkeypatch.setattr(gateways, "asyncio", SimpleNamespace(sleep=sleep))
    async with Runtime([payments], redis=own_valkey.url, namespace=namespace) as runtime:
        handle = await charge.submit(PAYMENT)
        await started.wait()
        own_valkey.kill()
        go.set()
        await wait_until(lambda: "GatewayError" in caplog.text)
        own_valkey.start()
        assert (await handle.result(timeout=10)).outcome is Outcome.SUCCESS
        assert await runtime.redis.hkeys(runtime.key(payments, LEDGER)) == [handle.id.encode()]
        assert not await runtime.redis.exists(runtime.key(payments, "api_errors"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATEWAY_URL", "gateway"),
        ("GATEWAY_URL", "ftp://gateway/"),
        ("GATEWAY_URL", "http://"),
        ("GATEWAY_TIMEOUT", "0"),
        ("GATEWAY_TIMEOUT", "inf"),
        ("SIMULATED_SEED", "x"),
        ("SIMULATED_ERROR_RATE", "1.01"),
        ("SIMULATED_INSUFFICIENT_RATE", "nan"),
        ("SIMULATED_LATENCY", "-1"),
    ],
)
async def test_a_wrong_setting_is_named_before_anything_runs(
    valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"PAYMENTS_{name}", value)
    with pytest.raises(ConfigError, match=f"PAYMENTS_{name}: ") as refusal:
        async with Runtime([payments], redis=valkey.url, namespace=namespace):
            pass
    assert "\n" not in str(refusal.value)


async def test_an_empty_url_is_no_url(valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYMENTS_GATEWAY_URL", "")
    async with Runtime([payments], redis=valkey.url, namespace=namespace) as runtime:
        assert isinstance(runtime.resources["payments"], SimulatedGateway)
