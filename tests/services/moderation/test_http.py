"""Moderation over HTTP: each status of its routes, pages and filters, and clients that go away while they wait."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from aioflow import Runtime
from aioflow.settings import load_settings
from services.moderation import service
from services.moderation.declared import hub_of
from tests.services.moderation.client import ANN, BEN, ITEM, Answer, Api, served
from tests.services.moderation.conftest import Serving
from tests.valkey import Valkey
from tests.waiting import wait_until

ITEMS, DESKS, ASK = "/moderation/items", "/moderation/desks", "/moderation/assignments"
JOIN = {"name": "ann", "categories": ["spam"], "languages": ["en"]}
LONG_AGO = "2026-01-01T00:00:00Z"
TOKEN = "ab.1"


async def joined(api: Api, **moderator: Any) -> None:
    assert (await api.post(DESKS, {**JOIN, **moderator})).status == 200


async def one_held(api: Api, item_id: str = "i1", **moderator: Any) -> dict[str, Any]:
    """A desk that asks and holds one new item."""
    await joined(api, **moderator)
    assert (await api.item(item_id)).status == 202
    (assignment,) = await api.assigned(moderator.get("name", "ann"))
    assert assignment["item"] == item_id
    return assignment


# ---- what cannot be taken


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (ITEMS, {**ITEM, "id": ""}, "id"),
        (ITEMS, {**ITEM, "id": "x" * 201}, "id"),
        (ITEMS, {**ITEM, "id": "a\nb"}, "id"),
        (ITEMS, {**ITEM, "content": None}, "content"),
        (ITEMS, {**ITEM, "content": "\ud800"}, "content"),
        (ITEMS, {**ITEM, "category": "Not So"}, "category"),
        (ITEMS, {**ITEM, "language": ["en"]}, "language"),
        (ITEMS, {**ITEM, "author": "x" * 129}, "author"),
        (ITEMS, {**ITEM, "priority": 10}, "priority"),
        (ITEMS, {**ITEM, "priority": 1.5}, "priority"),
        (ITEMS, {**ITEM, "priority": "4"}, "priority"),
        (ITEMS, {**ITEM, "priority": 2**63}, "priority"),
        (ITEMS, {**ITEM, "level": 0}, "level"),
        (ITEMS, {**ITEM, "level": True}, "level"),
        (ITEMS, {**ITEM, "submitted_at": 1_700_000_000}, "submitted_at"),
        (ITEMS, {**ITEM, "submitted_at": "2026-01-01T00:00:00"}, "submitted_at"),
        (ITEMS, {**ITEM, "submitted_at": "1969-01-01T00:00:00Z"}, "submitted_at"),
        (ITEMS, {**ITEM, "more": 1}, "more"),
        (ITEMS, {}, "id"),
        (ITEMS, [], "body"),
        (DESKS, {**JOIN, "name": ""}, "name"),
        (DESKS, {**JOIN, "categories": []}, "categories"),
        (DESKS, {**JOIN, "categories": ["a b"]}, "categories.0"),
        (DESKS, {**JOIN, "languages": [f"l{number}" for number in range(33)]}, "languages"),
        (DESKS, {**JOIN, "categories": [f"c{n}" for n in range(11)], "languages": ["a", "b", "c"]}, "languages"),
        (DESKS, {**JOIN, "level": 6}, "level"),
        (DESKS, {**JOIN, "holds": 11}, "holds"),
        (ASK, {"moderator": 7}, "moderator"),
        (ASK, {}, "moderator"),
        (f"{ITEMS}/i1/extend", {"token": "no token"}, "token"),
        (f"{ITEMS}/i1/extend", {}, "token"),
        (f"{ITEMS}/i1/decisions", {"token": TOKEN, "decision": "perhaps"}, "decision"),
        (f"{ITEMS}/i1/decisions", {"token": TOKEN, "decision": "reject"}, "reason"),
        (f"{ITEMS}/i1/decisions", {"token": TOKEN, "decision": "reject", "reason": " "}, "reason"),
        (f"{ITEMS}/i1/decisions", {"token": TOKEN, "decision": "reject", "reason": "x" * 1001}, "reason"),
        (f"{ITEMS}/i1/decisions", {"token": TOKEN, "decision": "escalate"}, "level"),
        (f"{ITEMS}/i1/decisions", {"token": TOKEN, "decision": "escalate", "level": 9}, "level"),
        (f"{ITEMS}/i1/decisions", {"token": TOKEN, "decision": "approve", "level": 2}, "level"),
    ],
)
async def test_a_wrong_field_is_422_and_named(api: Api, path: str, body: Any, field: str) -> None:
    data = body
    if isinstance(body, dict) and body.get("content") == "\ud800":
        data = b'{"id":"i1","content":"\\ud800","category":"spam","language":"en","author":"zoe"}'
    answer = await api.post(path, data)
    assert answer.status in (400, 422), answer
    if answer.status == 422:
        assert field in answer.fields, answer
    else:
        assert field == "content", "what is no JSON is 400"
    assert await keys_of(api) == [], "nothing is half-written"


async def keys_of(api: Api) -> list[str]:
    """The service's keys, but for its counters."""
    prefix = api.runtime.key(hub_of(api.runtime)._service, "")
    found = [key.decode().removeprefix(prefix) async for key in api.runtime.redis.scan_iter(f"{prefix}*")]
    return sorted(found)


POSTS = [ITEMS, DESKS, ASK, f"{ITEMS}/i1/extend", f"{ITEMS}/i1/decisions"]


@pytest.mark.parametrize("path", POSTS)
async def test_what_is_no_json_is_400_and_another_type_415(api: Api, path: str) -> None:
    assert (await api.post(path, b"{")).status == 400
    assert (await api.post(path, b"\xff")).status == 400
    assert (await api.post(path, b"{}", {"Content-Type": "text/plain"})).status == 415
    assert (await api.post(path, b"[" * 100_000)).status == 400
    assert await keys_of(api) == []


@pytest.mark.parametrize("path", [*POSTS, f"{DESKS}/ann/leave"])
async def test_another_method_is_405(api: Api, path: str) -> None:
    answer = await api.ask("DELETE", path)
    assert answer.status == 405
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize("path", POSTS)
async def test_a_huge_body_is_413(serving: Serving, path: str) -> None:
    async with serving(body_limit=10_000) as api:
        assert (await api.post(path, b"[" + b"0," * 10_000 + b"0]")).status == 413


async def test_content_over_its_limit_is_413_and_named(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODERATION_CONTENT_LIMIT", "10")
    async with serving() as api:
        assert (await api.item("i1", content="x" * 10)).status == 202
        answer = await api.item("i2", content="ü" * 6)
        assert (answer.status, answer.fields) == (413, ["content"])


# ---- what is not there, and what clashes


async def test_unknown_ids_are_404(api: Api) -> None:
    strange = quote("no such/thing ü", safe="")
    for method, path, body in (
        ("GET", f"{ITEMS}/{strange}", None),
        ("GET", f"{ITEMS}/nothing", None),
        ("POST", f"{ITEMS}/nothing/extend", {"token": TOKEN}),
        ("POST", f"{ITEMS}/nothing/decisions", {"token": TOKEN, "decision": "approve"}),
        ("POST", f"{DESKS}/nobody/leave", {}),
        ("POST", ASK, {"moderator": "nobody"}),
        ("GET", "/moderation/nothing", None),
    ):
        assert (await api.ask(method, path, body)).status == 404, path


async def test_the_same_item_again_is_the_same_and_another_of_its_id_409(api: Api) -> None:
    assert (await api.item()).body == {"status": "accepted", "id": "i1"}
    again = await api.item()
    assert (again.status, again.body["status"]) == (200, "known")
    assert (await api.item(content="another")).status == 409
    shown = await api.get(f"{ITEMS}/i1")
    assert shown["content"] == ITEM["content"]


async def test_a_second_decision_is_409_and_the_same_again_is_answered_as_at_first(api: Api) -> None:
    held = await one_held(api)
    first = await api.decide(held)
    assert (first.status, first.body["outcome"]) == (200, "approved")
    assert (await api.decide(held)).body == first.body
    assert (await api.decide(held, "reject", reason="no")).status == 409
    assert (await api.decide({**held, "token": "ab.99"})).status == 409
    assert (await api.post(f"{ITEMS}/i1/extend", {"token": held["token"]})).status == 409
    assert await api.status() == "approved"


async def test_a_decision_under_a_lock_that_is_over_is_409_and_changes_nothing(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODERATION_LOCK", "0.3")
    async with serving() as api:
        held = await one_held(api)

        async def over() -> bool:
            return await api.status() == "waiting"

        await wait_until(over)
        before = await api.get(f"{ITEMS}/i1")
        assert (await api.decide(held)).status == 409
        assert (await api.post(f"{ITEMS}/i1/extend", {"token": held["token"]})).status == 409
        assert await api.get(f"{ITEMS}/i1") == before
        assert (await api.get("/moderation/decisions"))["decisions"] == []


async def test_a_token_of_an_earlier_lock_is_409(api: Api) -> None:
    stale = await one_held(api)
    await api.post(f"{DESKS}/ann/leave")
    await joined(api, name="ben")
    (held,) = await api.assigned("ben")
    assert held["token"] != stale["token"]
    assert (await api.decide(stale)).status == 409
    assert await api.status() == "locked"
    assert (await api.decide(held)).status == 200


async def test_an_escalation_goes_up(api: Api) -> None:
    held = await one_held(api, level=2)
    answer = await api.decide(held, "escalate", level=1)
    assert (answer.status, answer.fields) == (422, ["level"])
    assert (await api.decide(held, "escalate", level=2)).body["outcome"] == "escalated"
    shown = await api.get(f"{ITEMS}/i1")
    assert (shown["status"], shown["level"]) == ("waiting", 2)


async def test_a_desk_with_a_websocket_asks_for_nothing(api: Api) -> None:
    async with api.desk():
        assert (await api.post(ASK, {"moderator": "ann"})).status == 409


# ---- what is too much


async def test_past_the_bound_it_is_429_with_retry_after_and_taken_again_below_it(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODERATION_BOUND", "1")
    async with serving() as api:
        held = await one_held(api)
        answer = await api.item("i2")
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        assert (await api.item("i1")).status == 200, "what is known is no more"
        await api.decide(held)
        assert (await api.item("i2")).status == 202


async def test_past_the_watermark_items_are_503_with_retry_after_and_decisions_go_on(
    serving: Serving, own_valkey: Valkey, namespace: str
) -> None:
    async with serving(redis=own_valkey.url, memory_watermark=0.005) as api:
        held = await one_held(api)
        await api.runtime.redis.config_set("maxmemory", "64mb")

        async def refused() -> Answer | None:
            answer = await api.item("i2")
            return answer if answer.status == 503 else None

        answer = await wait_until(refused)
        assert answer is not None
        assert "full; nothing new is taken" in answer.body["detail"]
        assert int(answer.headers["Retry-After"]) > 0
        assert (await api.decide(held)).status == 200

        await api.runtime.redis.config_set("maxmemory", "0")

        async def taken() -> bool:
            return (await api.item("i3")).status == 202

        await wait_until(taken)


async def test_a_redis_that_is_out_of_memory_is_503_and_decisions_go_on(own_valkey: Valkey) -> None:
    settings = load_settings(redis=own_valkey.url).model_copy(update={"memory_watermark": math.inf})
    async with Runtime([service], settings=settings) as runtime, served(runtime) as api:
        held = await one_held(api)
        await api.runtime.redis.config_set("maxmemory", "1mb")
        answer = await api.item("i2")
        assert answer.status == 503
        assert (await api.ask("GET", f"{ITEMS}/i2")).status == 404
        assert (await api.decide(held)).status == 200


async def test_without_redis_everything_is_503(serving: Serving, own_valkey: Valkey) -> None:
    async with serving(redis=own_valkey.url) as api:
        await joined(api)
        own_valkey.kill()
        answers = [
            await api.item("i1"),
            await api.post(DESKS, JOIN),
            await api.post(ASK, {"moderator": "ann"}),
            await api.post(f"{ITEMS}/i1/decisions", {"token": TOKEN, "decision": "approve"}),
            await api.post(f"{ITEMS}/i1/extend", {"token": TOKEN}),
            *[await api.ask("GET", f"/moderation/{name}") for name in ("items", "items/i1", "desks", "counts")],
        ]
        assert [answer.status for answer in answers] == [503] * len(answers)


# ---- looking


async def pages(api: Api, path: str, key: str, limit: int) -> list[list[dict[str, Any]]]:
    """Every page of a list, which ends."""
    found: list[list[dict[str, Any]]] = []
    cursor, sign = "", "&" if "?" in path else "?"
    for _ in range(20):
        page = await api.get(f"{path}{sign}limit={limit}{cursor}")
        found.append(page[key])
        assert len(page[key]) <= limit
        if page["cursor"] is None:
            return found
        cursor = f"&cursor={quote(page['cursor'])}"
    raise AssertionError("it does not end")


async def test_waiting_items_by_page_and_class_with_their_places(api: Api) -> None:
    for number in range(5):
        await api.item(f"i{number}", priority=(4, 0, 9, 4, 0)[number], level=1 + number % 2)
    found = await pages(api, ITEMS, "items", 2)
    assert [[item["id"] for item in page] for page in found] == [["i1", "i4"], ["i0", "i3"], ["i2"]]
    assert [item["place"] for page in found for item in page] == [1, 2, 3, 4, 5]
    assert all(0 <= item["waiting_seconds"] < 60 for page in found for item in page)
    found = await pages(api, f"{ITEMS}?category=spam&language=en&level=1", "items", 2)
    assert [(item["id"], item["place"]) for page in found for item in page] == [("i4", 1), ("i0", 2), ("i2", 3)]
    assert (await api.get(f"{ITEMS}?category=spam&language=de&level=1"))["items"] == []


async def test_moderators_and_locks_by_page(api: Api) -> None:
    for number in range(3):
        await joined(api, name=f"m{number}")
        await api.item(f"i{number}")
        await api.assigned(f"m{number}")
    found = await pages(api, DESKS, "desks", 2)
    assert [[(desk["moderator"], desk["held"]) for desk in page] for page in found] == [
        [("m0", 1), ("m1", 1)],
        [("m2", 1)],
    ]
    found = await pages(api, "/moderation/locks", "locks", 2)
    assert [[(lock["id"], lock["moderator"]) for lock in page] for page in found] == [
        [("i0", "m0"), ("i1", "m1")],
        [("i2", "m2")],
    ]
    assert all(lock["expires_at"] > lock["assigned_at"] for page in found for lock in page)
    async with api.desk(**{**ANN, "languages": ["de"]}), api.desk(**{**BEN, "languages": ["de"]}):
        waiting = await pages(api, f"{DESKS}?state=waiting", "desks", 1)
        assert [(desk["moderator"], desk["place"]) for page in waiting for desk in page] == [("ann", 1), ("ben", 2)]
        assert all(desk["waiting_seconds"] >= 0 and desk["connected"] for page in waiting for desk in page)


async def test_overdue_items_are_those_that_wait_for_longer_oldest_first(api: Api) -> None:
    await api.item("new")
    for number in (2, 1, 3):
        await api.item(f"old-{number}", submitted_at=f"2026-01-0{number}T00:00:00Z")
    found = await pages(api, "/moderation/overdue?older_than=3600", "items", 2)
    assert [[item["id"] for item in page] for page in found] == [["old-1", "old-2"], ["old-3"]]
    assert (await api.get("/moderation/overdue"))["count"] == 3
    assert (await api.get("/moderation/overdue?older_than=0.000001"))["count"] >= 3
    assert (await api.get("/moderation/overdue?older_than=999999999"))["items"] == []


async def test_decisions_and_counts_by_moderator_category_outcome_and_time(api: Api) -> None:
    for number, (name, category, choice) in enumerate(
        [("ann", "spam", "approve"), ("ben", "ads", "reject"), ("ann", "ads", "skip"), ("ann", "spam", "reject")]
    ):
        await joined(api, name=name, categories=[category])
        await api.item(f"i{number}", category=category)
        (held,) = await api.assigned(name)
        more = {"reason": "why"} if choice == "reject" else {}
        assert (await api.decide(held, choice, **more)).status == 200
        await api.post(f"{DESKS}/{name}/leave")
    path = "/moderation/decisions"
    everything = [entry["item"] for page in await pages(api, path, "decisions", 3) for entry in page]
    assert everything == ["i0", "i1", "i2", "i3"]
    for query, expected in (
        ("moderator=ann", ["i0", "i2", "i3"]),
        ("moderator=nobody", []),
        ("category=ads", ["i1", "i2"]),
        ("outcome=rejected", ["i1", "i3"]),
        ("outcome=skipped", ["i2"]),
        (f"since={LONG_AGO}", everything),
        (f"until={LONG_AGO}", []),
        (f"moderator=ann&since={LONG_AGO}&until=4000000000", ["i0", "i2", "i3"]),
    ):
        found = await pages(api, f"{path}?{query}", "decisions", 2)
        assert [entry["item"] for page in found for entry in page] == expected, query
    (record,) = (await api.get(f"{path}?moderator=ben"))["decisions"]
    assert (record["moderator"], record["reason"], record["outcome"]) == ("ben", "why", "rejected")
    assert record["assigned_at"] <= record["decided_at"]
    assert 0 <= record["took_seconds"] < 60
    counts = await api.get("/moderation/counts")
    assert counts["outcomes"] == {"approved": 1, "rejected": 2, "voted": 0, "escalated": 0, "skipped": 1}
    assert set((await api.get(f"/moderation/counts?until={LONG_AGO}"))["outcomes"].values()) == {0}


@pytest.mark.parametrize(
    ("path", "field"),
    [
        *[
            (f"{name}?limit={limit}", "limit")
            for name in ("items", "overdue", "locks", "desks")
            for limit in ("0", "x")
        ],
        *[(f"{name}?cursor=%00", "cursor") for name in ("items", "overdue", "locks", "desks", "decisions")],
        ("decisions?limit=1001", "limit"),
        ("decisions?since=yesterday", "since"),
        ("decisions?since=2026-01-01", "since"),
        ("decisions?until=-1", "until"),
        (f"decisions?since=4000000000&until={LONG_AGO}", "until"),
        ("counts?since=1e9", "since"),
        ("decisions?moderator=ann&category=spam", "category"),
        ("decisions?outcome=maybe", "outcome"),
        ("desks?state=asleep", "state"),
        ("overdue?older_than=-1", "older_than"),
        ("overdue?older_than=nan", "older_than"),
        ("items?category=spam", "language"),
        ("items?category=spam&language=en&level=6", "level"),
        ("items?category=spam&language=en&level=x", "level"),
    ],
)
async def test_a_wrong_parameter_is_422_and_named(api: Api, path: str, field: str) -> None:
    answer = await api.ask("GET", f"/moderation/{path}")
    assert (answer.status, answer.fields) == (422, [field])


# ---- waiting


async def test_a_request_waits_for_an_item_and_for_no_longer_than_it_says(api: Api) -> None:
    await joined(api)
    asking = asyncio.create_task(api.assigned("ann", wait=20))
    await waiting(api, 1)
    began = time.monotonic()
    await api.item()
    (held,) = await asking
    assert held["item"] == "i1"
    assert time.monotonic() - began < 0.9, "it is told, and does not look"
    await api.decide(held)
    began = time.monotonic()
    assert await api.assigned("ann", wait=1) == []
    assert 0.9 < time.monotonic() - began < 5
    await waiting(api, 0)


async def waiting(api: Api, count: int) -> None:
    """Until so many moderators have a seat."""

    async def seated() -> bool:
        return len((await api.get(f"{DESKS}?state=waiting"))["desks"]) == count

    await wait_until(seated)


async def going_away(api: Api) -> asyncio.Task[Any]:
    """Somebody who waits over a connection of their own; cancelled, they close it."""

    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            headers = {"Prefer": "wait=20"}
            async with session.post(api.url + ASK, json={"moderator": "ann"}, headers=headers) as answer:
                await answer.read()

    asking = asyncio.create_task(ask())
    await waiting(api, 1)
    return asking


def connections(api: Api) -> int:
    """How many clients are connected."""
    server = api.ingress._runner.server
    assert server is not None
    return sum(handler.transport is not None for handler in server.connections)


async def test_a_client_that_goes_away_gives_up_its_turn(api: Api) -> None:
    await joined(api)
    asking = await going_away(api)
    asking.cancel()
    await asyncio.wait([asking])
    await waiting(api, 0)
    await api.item()
    assert await api.status() == "waiting"


async def test_a_client_that_goes_away_as_its_item_comes_keeps_no_assignment(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await joined(api)
    hub = hub_of(api.runtime)
    seen = asyncio.Event()
    real = hub.board.look

    async def look(name: str) -> Any:
        """Answers only once the client has gone: the item has come by then."""
        found = await real(name)
        if found is not None and found.locks:
            open_before = connections(api)
            asking.cancel()
            await asyncio.wait([asking])
            await wait_until(lambda: connections(api) < open_before)
            seen.set()
        return found

    asking = await going_away(api)
    monkeypatch.setattr(hub.board, "look", look)
    await api.item()
    async with asyncio.timeout(10):
        await seen.wait()

    async def back() -> bool:
        return await api.status() == "waiting"

    await wait_until(back)
    assert (await api.get("/moderation/locks"))["locks"] == []
    assert hub.count == 0
