"""What becomes of final decisions: a job of another service, or a signed delivery, once for each whatever dies."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from aioflow import ConfigError, Runtime, Service, delivery
from aioflow.delivery import DeliverySettings
from aioflow.settings import load_settings
from services.moderation import service
from services.moderation.settings import load_settings as load_moderation
from tests.receiver import SECRET, receiver
from tests.services.moderation.client import Api, served
from tests.services.moderation.test_http import one_held
from tests.valkey import Valkey
from tests.waiting import wait_until


async def decide_some(api: Api, count: int) -> dict[str, str]:
    """Items and their outcomes; a skip and a vote are no results."""
    outcomes = {}
    for number in range(count):
        held = await one_held(api, f"i{number}")
        choice, more = (("approve", {}), ("reject", {"reason": "why"}))[number % 2]
        answer = await api.decide(held, choice, **more)
        outcomes[f"i{number}"] = answer.body["outcome"]
    await api.decide(await one_held(api, "skipped"), "skip")
    return outcomes


async def test_each_final_decision_is_a_job_of_another_service_once(
    valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODERATION_RESULTS", "ledger.book")
    booked: list[dict[str, Any]] = []
    ledger = Service("ledger")

    @ledger.task()
    async def book(decision: dict[str, Any]) -> None:
        booked.append(decision)

    async with Runtime([service, ledger], settings=load_settings(redis=valkey.url, namespace=namespace)) as runtime:
        async with served(runtime) as api:
            outcomes = await decide_some(api, 6)
            await wait_until(lambda: len(booked) >= 6)
            records = (await api.get("/moderation/decisions"))["decisions"]
        assert await runtime.redis.zcard(runtime.key(service, "untold")) == 0
    assert {decision["item"]: decision["outcome"] for decision in booked} == outcomes
    assert len(booked) == 6
    told = {decision["token"]: decision for decision in booked}
    assert [told[record["token"]] for record in records if record["token"] in told] == [
        record for record in records if record["outcome"] != "skipped"
    ]


async def test_what_is_no_token_keeps_no_result_from_being_told(
    valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODERATION_RESULTS", "ledger.book")
    booked: list[str] = []
    ledger = Service("ledger")

    @ledger.task()
    async def book(decision: dict[str, Any]) -> None:
        booked.append(decision["item"])

    async with (
        Runtime([service, ledger], settings=load_settings(redis=valkey.url, namespace=namespace)) as runtime,
        served(runtime) as api,
    ):
        foreign: Any = {"no token": 0, b"\xff": 0}
        await runtime.redis.zadd(runtime.key(service, "untold"), foreign)

        async def put_off() -> bool:
            return not await runtime.redis.zcount(runtime.key(service, "untold"), 0, 0)

        await wait_until(put_off)
        await api.decide(await one_held(api, "i1"))
        await wait_until(lambda: booked == ["i1"])


async def test_a_result_that_was_handed_on_twice_is_told_once(
    valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODERATION_RESULTS", "ledger.book")
    booked: Counter[str] = Counter()
    ledger = Service("ledger")

    @ledger.task()
    async def book(decision: dict[str, Any]) -> None:
        booked[decision["token"]] += 1

    async with (
        Runtime([service, ledger], settings=load_settings(redis=valkey.url, namespace=namespace)) as runtime,
        served(runtime) as api,
    ):
        held = await one_held(api)
        await api.decide(held)
        await wait_until(lambda: booked)
        again = await runtime.submit("moderation.tell", held["token"], id="by-hand")
        assert await again.result(5) is False
        assert booked == {held["token"]: 1}


async def test_decisions_made_while_nobody_tells_are_told_later(
    valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODERATION_RESULTS", "ledger.book")
    settings = load_settings(redis=valkey.url, namespace=namespace)
    async with Runtime([service], settings=settings, workers=False) as runtime, served(runtime) as api:
        outcomes = await decide_some(api, 3)
    booked: list[str] = []
    ledger = Service("ledger")

    @ledger.task()
    async def book(decision: dict[str, Any]) -> None:
        booked.append(decision["item"])

    async with Runtime([service, ledger], settings=settings):
        await wait_until(lambda: len(booked) == 3)
    assert set(booked) == set(outcomes)


async def test_each_final_decision_is_delivered_signed(
    valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOFLOW_DELIVERY_ALLOW", "127.0.0.0/8")
    posting = delivery.make_service(DeliverySettings(secrets=(SECRET,), allow=("127.0.0.0/8",), base=0.01))
    fails = iter([500, 503])
    async with receiver(lambda *_: next(fails, 204)) as there:
        monkeypatch.setenv("MODERATION_POST_BACK", there.url)
        settings = load_settings(redis=valkey.url, namespace=namespace)
        async with Runtime([service, posting], settings=settings) as runtime, served(runtime) as api:
            outcomes = await decide_some(api, 4)
            await wait_until(lambda: len(there.got) >= 6)
            records = (await api.get("/moderation/decisions"))["decisions"]
            await asyncio.wait_for(runtime.rest(), 5)
        assert {got.verified(SECRET)["item"]: got.verified(SECRET)["outcome"] for got in there.got} == outcomes
        assert len(there.ids) == 4, "an id each, however often it was tried"
        final = {record["token"]: record for record in records if record["outcome"] != "skipped"}
        assert {got.verified(SECRET)["token"]: got.verified(SECRET) for got in there.got} == final


def test_a_url_that_may_not_be_reached_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODERATION_POST_BACK", "http://169.254.169.254/latest")
    with pytest.raises(ConfigError, match=r"MODERATION_POST_BACK: .*refused"):
        load_moderation()
