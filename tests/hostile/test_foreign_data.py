"""Keys and fields of another under the services' names: what asks for them names them, and all else goes on."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from aioflow import Runtime, Service
from aioflow.cli.serve import bind
from aioflow.ingress.app import make_app
from aioflow.ingress.server import Ingress
from aioflow.settings import load_settings
from services.factors import service as factors
from services.moderation import service as moderation
from services.payments import service as payments
from tests.valkey import Valkey
from tests.waiting import wait_until

WRONG_TYPE = "none"
"""Instead of fields to be written: the key is to be of another type."""


class Served:
    """A service over HTTP, with its keys at hand."""

    def __init__(self, runtime: Runtime, session: aiohttp.ClientSession, service: Service) -> None:
        self.redis: Any = runtime.redis
        self._runtime, self._session, self._service = runtime, session, service

    def key(self, name: str) -> str:
        """A key of the service's own data; one of a queue as `q:task:part`."""
        key = self._runtime.key(self._service, name)
        return key.replace(":d:q:", ":q:")

    async def plant(self, name: str, field: str, value: str) -> str:
        """Another's data at a key: of another type, or in a field; the key."""
        key = self.key(name)
        if value == WRONG_TYPE:
            kind = await self.redis.type(key)
            await self.redis.delete(key)
            await (self.redis.sadd if kind != b"set" else self.redis.rpush)(key, "foreign")
        else:
            await self.redis.hset(key, field, value)
        return key

    async def ask(self, method: str, path: str, body: Any = None, wait: bool = True) -> tuple[int, Any]:
        """Status and body of an answer."""
        headers = {"Prefer": "wait=10"} if wait else {}
        async with self._session.request(method, path, json=body, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def refusal(self, path: str) -> str:
        """What a query that meets another's data says."""
        status, told = await self.ask("GET", path)
        assert status == 503, (path, told)
        assert "is away" not in told["detail"]
        return str(told["detail"])


@asynccontextmanager
async def serving(valkey: Valkey, namespace: str, service: Service) -> AsyncIterator[Served]:
    """Serve it."""
    listener = bind(load_settings(port=0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with (
        Runtime([service], redis=valkey.url, namespace=namespace, grace=0.5) as runtime,
        aiohttp.ClientSession(url) as session,
    ):
        ingress = Ingress(make_app(runtime))
        await ingress.open(listener)
        try:
            yield Served(runtime, session, service)
        finally:
            await ingress.close()
            listener.close()


# ---- payments and factors

PAYMENT = {"payer_id": "ann", "recipient_id": "bob", "amount": 1}
OF_PAYMENTS = {
    "a record that is no JSON": ("txns", "{txn}", "foreign", "/payments?status=success"),
    "a record that is no object": ("txns", "{txn}", "[1]", "/payers/ann/payments"),
    "records of another type": ("txns", "", WRONG_TYPE, "/payments?status=success"),
    "a timeline of another type": ("successful_txns", "", WRONG_TYPE, "/payments?status=success"),
    "a timeline of another type, counted": ("successful_txns", "", WRONG_TYPE, "/payments/count?status=success"),
    "a payer's timeline": ("payments_made_by:ann", "", WRONG_TYPE, "/payers/ann/payments"),
    "a recipient's timeline": ("payments_received_by:bob", "", WRONG_TYPE, "/recipients/bob/payments"),
    "api_errors": ("api_errors", "", WRONG_TYPE, "/payments?status=api_error"),
    "open jobs": ("q:charge:open", "", WRONG_TYPE, "/payments?status=open"),
    "open jobs, overdue": ("q:charge:open", "", WRONG_TYPE, "/payments/overdue"),
    "dead jobs": ("q:charge:dead", "", WRONG_TYPE, "/payments?status=dead"),
    "a results row": ("q:charge:results", "{id}", "foreign", "/payments/{id}"),
}


@pytest.fixture
def surely(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that takes every payment."""
    monkeypatch.setenv("PAYMENTS_SIMULATED_INSUFFICIENT_RATE", "0")
    monkeypatch.setenv("PAYMENTS_SIMULATED_ERROR_RATE", "0")


@pytest.mark.parametrize("name", OF_PAYMENTS)
async def test_payments_name_what_is_not_theirs(valkey: Valkey, namespace: str, surely: None, name: str) -> None:
    planted, field, value, path = OF_PAYMENTS[name]
    async with serving(valkey, namespace, payments) as served:
        _, paid = await served.ask("POST", "/payments", PAYMENT)
        words = {"id": paid["tracking_id"], "txn": paid["result"]["txn_id"]}
        key = await served.plant(planted, field.format(**words), value)
        said = await served.refusal(path.format(**words))
        assert key in said or (":q:" in key and words["id"] in said), said
        status, told = await served.ask("GET", "/payments/unknown")
        assert status == 404 or key in told["detail"], "what meets none of it is answered"
        if value != WRONG_TYPE:
            assert (await served.ask("POST", "/payments", PAYMENT))[0] == 200


async def test_a_ledger_of_another_type_fails_payments_and_no_more(
    valkey: Valkey, namespace: str, surely: None
) -> None:
    async with serving(valkey, namespace, payments) as served:
        await served.redis.sadd(served.key("gateway_ledger"), "foreign")
        _, told = await served.ask("POST", "/payments", PAYMENT, wait=False)

        async def noted() -> bool:
            _, counted = await served.ask("GET", "/payments/count?status=api_error")
            return bool(counted["count"] == 1)

        await wait_until(noted)
        await served.redis.delete(served.key("gateway_ledger"))

        async def paid() -> bool:
            _, payment = await served.ask("GET", f"/payments/{told['tracking_id']}")
            return bool(payment["status"] == "success")

        await wait_until(paid)


async def test_factors_name_a_result_that_is_not_theirs(valkey: Valkey, namespace: str) -> None:
    async with serving(valkey, namespace, factors) as served:
        _, told = await served.ask("POST", "/compute_factors", {"number": "12"})
        job_id = told["tracking_id"]
        results = served.key("q:compute:results")
        line = (await served.redis.hget(results, job_id)).partition(b"\n")[0]
        for row in (line + b"\nforeign", line + b"\n1", b"foreign"):
            await served.redis.hset(results, job_id, row)
            assert job_id in await served.refusal(f"/compute_factors/{job_id}")


# ---- moderation

ITEM = {"id": "i1", "content": "Buy!", "category": "spam", "language": "en", "author": "zoe"}
DESK = {"name": "ann", "categories": ["spam"], "languages": ["en"], "holds": 1}
OF_MODERATION = {
    "an item's place": ("item:i2", "place", "foreign", ("/moderation/items/i2", "/moderation/items")),
    "an item's level": ("item:i2", "level", "foreign", ("/moderation/items/i2", "/moderation/overdue?older_than=0")),
    "an item's skips": ("item:i1", "skips", "foreign", ("/moderation/items/i1", "/moderation/locks")),
    "an item's text": ("item:i2", "body", "foreign", ("/moderation/items/i2",)),
    "an item of another type": ("item:i2", "", WRONG_TYPE, ("/moderation/items/i2", "/moderation/items")),
    "the line": ("waiting", "", WRONG_TYPE, ("/moderation/items", "/moderation/counts")),
    "a class": ("line:spam:en:1", "", WRONG_TYPE, ("/moderation/items?category=spam&language=en&level=1",)),
    "open items": ("open", "", WRONG_TYPE, ("/moderation/overdue", "/moderation/counts")),
    "locks": ("locks", "", WRONG_TYPE, ("/moderation/locks", "/moderation/items/i1")),
    "a desk's level": ("desk:ann", "level", "foreign", ("/moderation/desks",)),
    "a desk of another type": ("desk:ann", "", WRONG_TYPE, ("/moderation/desks",)),
    "what a desk holds": ("held:ann", "", WRONG_TYPE, ("/moderation/desks",)),
    "desks": ("desks", "", WRONG_TYPE, ("/moderation/desks",)),
    "seats": ("seats", "", WRONG_TYPE, ("/moderation/desks?state=waiting", "/moderation/counts")),
    "a decision": ("decision:{token}", "decided", "foreign", ("/moderation/decisions", "/moderation/items/i0")),
    "a decision's type": ("decision:{token}", "", WRONG_TYPE, ("/moderation/decisions", "/moderation/items/i0")),
    "decisions": ("decisions", "", WRONG_TYPE, ("/moderation/decisions",)),
    "decisions of one": ("decisions_by_moderator:ann", "", WRONG_TYPE, ("/moderation/decisions?moderator=ann",)),
    "outcomes": ("decisions_by_outcome:approved", "", WRONG_TYPE, ("/moderation/counts",)),
}


async def staged(served: Served) -> str:
    """i0 is decided, ann holds i1, i2 waits; the token of the decision."""
    assert (await served.ask("POST", "/moderation/desks", DESK))[0] == 200
    for item_id in ("i0", "i1", "i2"):
        assert (await served.ask("POST", "/moderation/items", {**ITEM, "id": item_id}))[0] == 202
    _, asked = await served.ask("POST", "/moderation/assignments", {"moderator": "ann"})
    token: str = asked["assignments"][0]["token"]
    decision = {"token": token, "decision": "approve"}
    assert (await served.ask("POST", "/moderation/items/i0/decisions", decision))[0] == 200
    _, asked = await served.ask("POST", "/moderation/assignments", {"moderator": "ann"})
    assert [held["item"] for held in asked["assignments"]] == ["i1"]
    await served.ask("GET", "/moderation/decisions")
    return token


@pytest.mark.parametrize("name", OF_MODERATION)
async def test_moderation_names_what_is_not_its_own(valkey: Valkey, namespace: str, name: str) -> None:
    planted, field, value, paths = OF_MODERATION[name]
    async with serving(valkey, namespace, moderation) as served:
        key = await served.plant(planted.format(token=await staged(served)), field, value)
        for path in paths:
            assert key in await served.refusal(path)
        other = {**ITEM, "id": "other", "category": "ads"}
        status, told = await served.ask("POST", "/moderation/items", other)
        assert status == 202 or key in told["detail"], told


@pytest.mark.parametrize("due", ["locks", "asks", "beats", "walks", "untold"])
async def test_a_tick_that_meets_another_s_set_names_it_and_does_the_rest(
    valkey: Valkey, namespace: str, due: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MODERATION_LOCK", "1")
    caplog.set_level(logging.WARNING)
    async with serving(valkey, namespace, moderation) as served:
        await served.redis.delete(served.key(due))
        await served.redis.sadd(served.key(due), "foreign")

        def named() -> bool:
            return any(served.key(due) in record.getMessage() for record in caplog.records)

        await wait_until(named)
        if due in {"walks", "untold"}:  # the others are what a desk and its lock are made of
            assert (await served.ask("POST", "/moderation/desks", DESK))[0] == 200
            assert (await served.ask("POST", "/moderation/items", ITEM))[0] == 202
            _, asked = await served.ask("POST", "/moderation/assignments", {"moderator": "ann"})
            assert [held["item"] for held in asked["assignments"]] == ["i1"]

            async def expired() -> bool:
                _, shown = await served.ask("GET", "/moderation/items/i1")
                return bool(shown["status"] == "waiting")

            await wait_until(expired)
