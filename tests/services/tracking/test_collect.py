"""Collecting: what is taken, what is refused and how, whose address counts, and that a repeat is no second event."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from aioflow import State
from aioflow.settings import Settings
from services.tracking.collect import GIF
from services.tracking.models import BYTES_OF_JOB, EVENTS_OF_JOB, moment_of
from services.tracking.proxies import client_address
from services.tracking.service import store
from tests.services.tracking.client import BEARER, EVENT, Api, serving
from tests.valkey import Valkey
from tests.waiting import wait_until

FIREFOX = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) Gecko/20100101 Firefox/128.0"
IMAGE = "/track.gif?url=https%3A%2F%2Fexample.org%2F1"


# ---- what is taken


async def test_an_event_comes_into_the_table_with_all_that_it_says(api: Api) -> None:
    tracking_id = await api.track(
        url="HTTPS://user@Example.ORG:8443/a/b%20c?x=1#end",
        ip="::ffff:192.0.2.7",
        user_agent=FIREFOX,
        occurred_at="2026-01-01T01:00:00.25+01:00",
        referrer="https://search.example/?q=ü",
        properties={"plan": "pro", "seats": 3, "price": 1.5, "trial": False, "coupon": None},
    )
    row = await api.row(tracking_id)
    received = row.pop("received_at")
    assert received > "2026"
    assert row == {
        "id": tracking_id,
        "url": "HTTPS://user@Example.ORG:8443/a/b%20c?x=1#end",
        "host": "example.org",
        "path": "/a/b%20c",
        "ip": "192.0.2.7",
        "user_agent": FIREFOX,
        "browser": "Firefox",
        "browser_version": "128.0",
        "os": "Windows",
        "os_version": "10",
        "device": row["device"],
        "occurred_at": "2026-01-01T00:00:00.250Z",
        "referrer": "https://search.example/?q=ü",
        "properties": {"plan": "pro", "seats": 3, "price": 1.5, "trial": False, "coupon": None},
    }


async def test_what_an_event_does_not_say_comes_from_its_request(api: Api) -> None:
    answer = await api.post(EVENT, {"User-Agent": FIREFOX, "X-Forwarded-For": "203.0.113.9"})
    assert (answer.status, answer.headers["Location"]) == (202, f"/track/requests/{answer.body['tracking_id']}")
    row = await api.row(answer.body["tracking_id"])
    assert (row["ip"], row["user_agent"], row["browser"]) == ("127.0.0.1", FIREFOX, "Firefox")
    assert row["occurred_at"] == row["received_at"]
    assert (row["path"], row["referrer"], row["properties"]) == ("/page", None, None)


async def test_a_user_agent_of_raw_bytes_is_taken_as_text(api: Api) -> None:
    answer = await api.post(EVENT, {"User-Agent": "b\udcff" + "a" * 600})
    assert len((await api.row(answer.body["tracking_id"]))["user_agent"]) == 512


async def test_an_image_for_pages_without_scripts(api: Api) -> None:
    for path, headers, url in (
        ("/track.gif?url=https%3A%2F%2Fexample.org%2F1", {"Referer": "https://example.org/r"}, "https://example.org/1"),
        ("/track.gif", {"Referer": "https://example.org/2"}, "https://example.org/2"),
    ):
        answer = await api.ask("GET", path, headers)
        assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, "image/gif", GIF)
        assert "no-store" in answer.headers["Cache-Control"]
        await api.settled()
        assert [row["url"] for row in (await api.get("/track/requests?limit=1"))["requests"]] == [url]
    for path in ("/track.gif", "/track.gif?url=x", "/track.gif?url=https://a.b/%00", "/track.gif?url="):
        answer = await api.ask("GET", path, {})
        assert (answer.status, answer.fields) == (422, ["url"])


async def test_an_array_is_taken_and_what_is_wrong_in_it_is_said_by_place(api: Api) -> None:
    events: list[Any] = [{"url": f"https://example.org/{number}"} for number in range(1000)]
    events[1], events[500], events[999] = {"url": "no"}, 7, {**EVENT, "properties": {"a": []}, "x": 1}
    answer = await api.post(events)
    assert (answer.status, answer.body["status"], answer.body["accepted"]) == (202, "OK", 997)
    assert [(error["index"], error["field"]) for error in answer.body["errors"]] == [
        (1, "url"),
        (500, ""),
        (999, "properties"),
    ]
    ids = answer.body["tracking_ids"]
    assert [number for number, tracking_id in enumerate(ids) if tracking_id is None] == [1, 500, 999]
    await api.settled()
    assert (await api.get("/track/stats"))["count"] == 997
    for number in (0, 2, 998):
        assert (await api.row(ids[number]))["url"] == f"https://example.org/{number}"
    jobs = await api.runtime.sizes(store)
    assert jobs.done == math.ceil(997 / EVENTS_OF_JOB)


@pytest.mark.parametrize("text", ["x" * 900, '"' * 450, "\\" * 450, "\x01" * 150])
async def test_an_array_is_divided_by_bytes_too(api: Api, text: str) -> None:
    large = {**EVENT, "properties": {str(number): text for number in range(17)}}
    answer = await api.post([large] * 60)  # nearly a megabyte, of 15 KB each
    assert (answer.status, answer.body["accepted"], answer.body["errors"]) == (202, 60, [])
    await api.settled()
    assert (await api.runtime.sizes(store)).done > 60 * 15_000 // BYTES_OF_JOB
    assert (await api.row(answer.body["tracking_ids"][-1]))["properties"] == large["properties"]


# ---- what is refused

WRONG: dict[str, tuple[object, int, list[str]]] = {
    "no JSON": (b"{", 400, []),
    "NaN": (b'{"url": "https://example.org", "occurred_at": NaN}', 400, []),
    "half a surrogate": (rb'{"url": "https://example.org/\ud800"}', 400, []),
    "a number": (7, 422, ["body"]),
    "null": (None, 422, ["body"]),
    "an empty array": ([], 422, ["body"]),
    "an array of wrong ones": ([{}, {"url": 1}], 422, ["0.url", "1.url"]),
    "an array that is too long": ([EVENT] * 1001, 413, []),
    "a body that is too large": (b"[" + b" " * (1 << 20) + b"]", 413, []),
    "no url": ({}, 422, ["url"]),
    "a url without a host": ({"url": "/page"}, 422, ["url"]),
    "a url with a line break": ({"url": "https://example.org/a\n"}, 422, ["url"]),
    "a url with half an address": ({"url": "http://[::1/x"}, 422, ["url"]),
    "a url that is too long": ({"url": "https://example.org/" + "x" * 2048}, 422, ["url"]),
    "a field that there is not": ({**EVENT, "uri": "x"}, 422, ["uri"]),
    "an ip that is none": ({**EVENT, "ip": "1.2.3"}, 422, ["ip"]),
    "an ip with a zone": ({**EVENT, "ip": "fe80::1%eth0"}, 422, ["ip"]),
    "a time without a zone": ({**EVENT, "occurred_at": "2026-01-01T00:00:00"}, 422, ["occurred_at"]),
    "a time that is too far": ({**EVENT, "occurred_at": 1e300}, 422, ["occurred_at"]),
    "a text of a time that is too far": ({**EVENT, "occurred_at": "4398046512"}, 422, ["occurred_at"]),
    "a date that is too far": ({**EVENT, "occurred_at": "9999-12-31T23:59:59-23:59"}, 422, ["occurred_at"]),
    "a date that is too early": ({**EVENT, "occurred_at": "0001-01-01T00:00:00+23:59"}, 422, ["occurred_at"]),
    "a time that is true": ({**EVENT, "occurred_at": True}, 422, ["occurred_at"]),
    "a user agent that is too long": ({**EVENT, "user_agent": "x" * 513}, 422, ["user_agent"]),
    "NUL": ({**EVENT, "referrer": "a\x00b"}, 422, ["referrer"]),
    "NUL in a property": ({**EVENT, "properties": {"a": "\x00"}}, 422, ["properties"]),
    "a property that is not flat": ({**EVENT, "properties": {"a": {"b": 1}}}, 422, ["properties"]),
    "a property that is too large a number": ({**EVENT, "properties": {"a": 2**53}}, 422, ["properties"]),
    "too many properties": ({**EVENT, "properties": {str(n): 1 for n in range(51)}}, 422, ["properties"]),
    "properties of too many bytes": (
        {**EVENT, "properties": {str(n): "x" * 999 for n in range(17)}},
        422,
        ["properties"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_wrong_is_named_and_nothing_of_it_is_taken(api: Api, name: str) -> None:
    body, status, fields = WRONG[name]
    answer = await api.post(body)
    assert (answer.status, answer.fields) == (status, fields), answer
    assert (await api.runtime.sizes(store)).open == 0
    assert (await api.runtime.totals(store)).get("submitted", 0) == 0


async def test_a_body_that_is_no_json_by_its_type(api: Api) -> None:
    answer = await api.ask("POST", "/track", {"Content-Type": "text/plain"}, data=b"{}")
    assert answer.status == 415


async def test_a_queue_that_is_full_takes_none_or_says_which(
    api: Api, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = f"{settings.namespace}:1:{{tracking.0}}:q:store:config"
    await api.runtime.pause(store)
    await api.runtime.redis.hset(queue, "bound", "1")
    answer = await api.post([EVENT] * (EVENTS_OF_JOB + 1))
    assert (answer.status, answer.body["accepted"], len(answer.body["errors"])) == (202, EVENTS_OF_JOB, 1)
    assert answer.body["errors"][0]["message"].startswith("not taken, send it again")
    assert answer.body["tracking_ids"][-1] is None
    for answer in (await api.post(EVENT), await api.post([EVENT]), await api.ask("GET", IMAGE, {})):
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        assert "its bound of " in answer.body["detail"]


async def test_above_the_watermark_nothing_is_taken_and_nothing_that_was_is_lost(
    own_valkey: Valkey, settings: Settings
) -> None:
    tight = settings.model_copy(update={"redis": own_valkey.url, "memory_budget": 32 << 20, "memory_watermark": 0.5})
    large = [{**EVENT, "properties": {"text": "x" * 900}}] * 500
    async with serving(tight) as api:
        await api.runtime.pause(store)
        accepted = 0
        for _ in range(500):  # 16 MiB are there long before
            answer = await api.post(large)
            if answer.status != 202:
                break
            accepted += answer.body["accepted"]
        for refused in (answer, await api.post(EVENT), await api.ask("GET", IMAGE, {})):
            assert (refused.status, refused.headers["Retry-After"]) == (503, "2")
            assert "full; nothing new is taken" in refused.body["detail"]
        assert accepted > 0
        assert (await api.runtime.totals(store))["submitted"] == math.ceil(500 / EVENTS_OF_JOB) * (accepted // 500)
        await api.runtime.resume(store)
        await api.settled()
        assert (await api.get("/track/stats"))["count"] == accepted
        await api.runtime.redis.config_set("maxmemory", 1 << 30)  # room for more

        async def taken() -> bool:
            return (await api.post(EVENT)).status == 202

        await wait_until(taken, 10)


async def test_without_redis_nothing_is_taken_and_what_was_is_there_afterwards(
    own_valkey: Valkey, settings: Settings
) -> None:
    async with serving(settings.model_copy(update={"redis": own_valkey.url})) as api:
        before = await api.track()
        await api.row(before)
        await asyncio.to_thread(own_valkey.kill)
        for answer in (await api.post(EVENT), await api.post([EVENT] * 300), await api.ask("GET", IMAGE, {})):
            assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
        await asyncio.to_thread(own_valkey.start)

        async def taken() -> bool:
            return (await api.post(EVENT)).status == 202

        await wait_until(taken, 15)
        await api.settled()
        assert (await api.get("/track/stats"))["count"] == 2


@pytest.mark.parametrize(
    ("given", "ms"),
    [
        (0, 0),
        (1.5, 1500),
        (1767225600.123, 1767225600123),
        (1767225599.9999, 1767225599999),
        (4398046511, 4398046511000),
    ],
)
def test_epoch_seconds_are_cut_to_milliseconds(given: float, ms: int) -> None:
    assert moment_of(given) == ms


# ---- repeats


@pytest.mark.parametrize("count", [1, 3, 2 * EVENTS_OF_JOB + 1])
async def test_the_same_key_is_the_same_events_whoever_sends_them_again(api: Api, count: int) -> None:
    key = {"Idempotency-Key": "order-1"}
    body: object = EVENT if count == 1 else [{"url": f"https://example.org/{number}"} for number in range(count)]
    first = await api.post(body, {**key, "User-Agent": "one"})
    again = await api.post(body, {**key, "User-Agent": "another"})  # and at another time
    assert (first.status, again.status) == (202, 202)
    assert again.body == first.body
    other: object = {**EVENT, "ip": "192.0.2.1"} if count == 1 else [*([EVENT] * count), EVENT]
    assert (await api.post(other, key)).status == 409
    await api.settled()
    assert (await api.get("/track/stats"))["count"] == count


async def test_an_array_that_begins_as_another_under_its_key_is_refused_as_a_whole(api: Api) -> None:
    key = {"Idempotency-Key": "order-1"}
    first = await api.post([EVENT] * EVENTS_OF_JOB, key)
    assert first.status == 202
    assert (await api.post([EVENT] * (2 * EVENTS_OF_JOB), key)).status == 409
    assert (await api.post([EVENT] * EVENTS_OF_JOB, key)).body == first.body
    await api.settled()
    assert (await api.get("/track/stats"))["count"] == EVENTS_OF_JOB


@pytest.mark.parametrize(("first", "second"), [(EVENT, [EVENT]), ([EVENT], EVENT)])
async def test_a_key_stands_for_one_event_or_for_an_array(api: Api, first: object, second: object) -> None:
    key = {"Idempotency-Key": "order-1"}
    assert (await api.post(first, key)).status == 202
    assert (await api.post(second, key)).status == 409
    await api.settled()
    assert (await api.get("/track/stats"))["count"] == 1


async def test_a_key_that_is_none(api: Api) -> None:
    assert (await api.post(EVENT, {"Idempotency-Key": "ä"})).status == 400


# ---- whose address


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        ("203.0.113.5", {}, "203.0.113.5"),
        ("203.0.113.5", {"X-Forwarded-For": "192.0.2.1"}, "203.0.113.5"),  # not trusted: the header is the client's
        ("10.0.0.1", {"X-Forwarded-For": "192.0.2.1"}, "192.0.2.1"),
        ("10.0.0.1", {"X-Forwarded-For": "6.6.6.6, 192.0.2.1"}, "192.0.2.1"),  # the client's own begin is not believed
        ("10.0.0.1", {"X-Forwarded-For": "192.0.2.1, 10.0.0.2, 2001:db8::1"}, "192.0.2.1"),
        ("10.0.0.1", {"X-Forwarded-For": "unknown"}, "10.0.0.1"),
        ("10.0.0.1", {"X-Forwarded-For": "junk, 10.0.0.3"}, "10.0.0.3"),
        ("10.0.0.1", {}, "10.0.0.1"),
        ("::ffff:10.0.0.1", {"X-Forwarded-For": "::ffff:192.0.2.1"}, "192.0.2.1"),
        ("", {"X-Forwarded-For": "192.0.2.1"}, None),
    ],
)
def test_x_forwarded_for_is_believed_as_far_as_it_was_written_by_who_is_trusted(
    peer: str, header: Mapping[str, str], client: str | None
) -> None:
    request = make_mocked_request("GET", "/", headers=header).clone(remote=peer)
    trusted = (ip_network("10.0.0.0/8"), ip_network("2001:db8::1"))
    assert client_address(request, trusted) == client


async def test_trusted_proxies_are_a_setting(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKING_TRUSTED_PROXIES", "127.0.0.0/8, ::1")
    async with serving(settings) as api:
        answer = await api.post(EVENT, {"X-Forwarded-For": "192.0.2.77"})
        assert (await api.row(answer.body["tracking_id"]))["ip"] == "192.0.2.77"


# ---- apart from processing


async def test_collecting_waits_for_whoever_processes(settings: Settings, tmp_path: Path) -> None:
    async with serving(settings, workers=False) as api:
        tracking_id = await api.track()
        handle = api.runtime.handle(store, tracking_id.partition(".")[0])
        assert (await handle.status()).state is State.READY
        assert not list(tmp_path.glob("tracking*"))
        async with serving(settings) as processing:
            await processing.settled()
        row = await api.ask("GET", f"/track/requests/{tracking_id}", BEARER)  # opened now, and by this runtime
        assert row.status == 200
