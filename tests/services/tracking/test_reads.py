"""Queries and changes: what they answer, who may ask, and what is refused."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from aioflow.settings import Settings
from services.tracking import queries
from services.tracking.models import LONGEST_URL
from services.tracking.service import Tracking
from tests.services.tracking.client import BEARER, EVENT, JSON, TOKEN, Api, serving

T0 = 1_767_225_600  # 2026-01-01T00:00:00Z
CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
FIREFOX = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) Gecko/20100101 Firefox/128.0"


async def fill(api: Api) -> list[str]:
    """Ten requests, a minute apart; their ids."""
    events = [
        {
            "url": f"https://{'a' if number % 2 else 'b'}.example/{number % 3}?n={number}",
            "ip": f"192.0.2.{number % 4}",
            "user_agent": CHROME if number < 7 else FIREFOX,
            "occurred_at": T0 + 60 * number,
            "referrer": "https://search.example/50%" if number == 5 else None,
        }
        for number in range(10)
    ]
    ids: list[str] = (await api.post(events)).body["tracking_ids"]
    await api.settled()
    return ids


# ---- counts


async def test_counts_by_minute_hour_and_day(api: Api) -> None:
    await fill(api)
    told = await api.get(f"/track/stats?since={T0}&until=2026-01-01T00:05:00Z&bucket=minute")
    assert (told["count"], told["unique_ips"], len(told["buckets"])) == (5, 4, 5)
    assert told["buckets"][1] == {"start": "2026-01-01T00:01:00.000Z", "count": 1, "unique_ips": 1}
    for bucket in ("hour", "day"):
        told = await api.get(f"/track/stats?since={T0 - 86400}&until={T0 + 3600}&bucket={bucket}")
        assert told["buckets"] == [{"start": "2026-01-01T00:00:00.000Z", "count": 10, "unique_ips": 4}]
    assert (await api.get("/track/stats"))["count"] == 0  # the last day, by hour


async def test_the_most_frequent(api: Api) -> None:
    await fill(api)
    for by, best in (
        ("host", ("a.example", 5, 2)),
        ("path", ("/0", 4, 4)),
        ("ip", ("192.0.2.0", 3, 1)),
        ("browser", ("Chrome", 7, 4)),
        ("os", ("Linux", 7, 4)),
        ("referrer", ("https://search.example/50%", 1, 1)),
        ("url", ("https://a.example/0?n=3", 1, 1)),
    ):
        told = await api.get(f"/track/top?by={by}&limit=1")
        assert told == {"by": by, "top": [dict(zip(("value", "count", "unique_ips"), best, strict=True))]}
    told = await api.get(f"/track/top?by=browser&since={T0 + 420}")
    assert told["top"] == [{"value": "Firefox", "count": 3, "unique_ips": 3}]


# ---- lists


@pytest.mark.parametrize("sort", ["occurred_at", "-occurred_at", "received_at", "-received_at"])
async def test_pages_hold_each_request_once_and_in_order(api: Api, sort: str) -> None:
    ids = await fill(api)  # all received in one millisecond: the id decides
    found: list[str] = []
    path = f"/track/requests?limit=3&sort={sort}"
    page = await api.get(path)
    while True:
        found += [row["id"] for row in page["requests"]]
        if page["cursor"] is None:
            break
        page = await api.get(f"{path}&cursor={page['cursor']}")
    assert found == (ids if not sort.startswith("-") else ids[::-1])


@pytest.mark.parametrize("sort", ["occurred_at", "-occurred_at", "received_at", "-received_at"])
async def test_pages_neither_repeat_nor_hide_a_request_while_others_come_and_go(api: Api, sort: str) -> None:
    ids = await fill(api)
    if sort.startswith("-"):
        ids.reverse()
    path = f"/track/requests?limit=4&sort={sort}"
    page = await api.get(path)
    found = [row["id"] for row in page["requests"]]
    for comes in (True, True, False, False, False, False, False, False, False):
        if page["cursor"] is None:
            break
        if comes:  # before the place, at it and behind it; and the row goes on which the cursor stands
            await api.post([{**EVENT, "occurred_at": T0 + 60 * number} for number in range(-1, 11)])
            await api.settled()
            assert (await api.ask("DELETE", f"/track/requests/{found[-1]}")).status == 204
        page = await api.get(f"{path}&cursor={page['cursor']}")
        found += [row["id"] for row in page["requests"]]
    assert page["cursor"] is None
    assert len(found) == len(set(found))
    assert [key for key in found if key in ids] == ids


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("host=a.example", [9, 7, 5, 3, 1]),
        ("ip=192.0.2.3&browser=Chrome", [3]),
        ("path=/1&os=Windows", [7]),
        ("url=" + quote("https://b.example/0?n=0", safe=""), [0]),
        ("q=N=4", [4]),
        ("q=50%25", [5]),
        ("q=%25", [5]),  # no pattern: a character
        ("q=n_1", []),
        ("q=firefox", [9, 8, 7]),
        (f"since={T0 + 60}&until={T0 + 180}", [2, 1]),
        ("host=nowhere", []),
    ],
)
async def test_filters_and_search(api: Api, query: str, numbers: list[int]) -> None:
    ids = await fill(api)
    page = await api.get(f"/track/requests?{query}")
    assert [row["id"] for row in page["requests"]] == [ids[number] for number in numbers]


async def test_requests_by_their_ids(api: Api) -> None:
    ids = await fill(api)
    page = await api.get(f"/track/requests?ids={ids[3]},{ids[1]},none.0")
    assert [row["id"] for row in page["requests"]] == [ids[3], ids[1]]


# ---- one


async def test_a_change_also_changes_what_is_derived(api: Api) -> None:
    tracking_id = await api.track(ip="192.0.2.1", properties={"a": 1})
    before = await api.row(tracking_id)
    change = {"url": "https://other.example/x", "user_agent": FIREFOX, "ip": None, "occurred_at": T0}
    answer = await api.ask("PATCH", f"/track/requests/{tracking_id}", {**BEARER, **JSON}, json=change)
    assert answer.status == 200, answer
    after = await api.row(tracking_id)
    assert after == answer.body
    changed = {name: after[name] for name in after if after[name] != before[name]}
    changed.pop("device", None)
    assert changed == {
        "url": "https://other.example/x",
        "host": "other.example",
        "path": "/x",
        "ip": None,
        "user_agent": FIREFOX,
        "browser": "Firefox",
        "browser_version": "128.0",
        "os": "Windows",
        "os_version": "10",
        "occurred_at": "2026-01-01T00:00:00.000Z",
    }


async def test_a_deleted_request_is_gone(api: Api) -> None:
    tracking_id = await api.track()
    await api.row(tracking_id)
    path = f"/track/requests/{tracking_id}"
    assert (await api.ask("DELETE", path)).status == 204
    for method in ("GET", "DELETE"):
        assert (await api.ask(method, path)).status == 404
    change = await api.ask("PATCH", path, {**BEARER, **JSON}, json={"ip": None})
    assert change.status == 404


# ---- what is refused


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("stats?bucket=week", "bucket"),
        ("stats?since=0&bucket=minute", "bucket"),
        ("stats?since=2&until=1", "until"),
        ("top", "by"),
        ("top?by=user_agent", "by"),
        ("top?by=ip&by=url", "by"),
        ("requests?host=a.example&host=b.example", "host"),
        ("top?by=ip&limit=1001", "limit"),
        ("requests?limit=0", "limit"),
        ("requests?sort=ip", "sort"),
        ("requests?hosts=x", "hosts"),
        ("requests?q=", "q"),
        ("requests?q=%00", "q"),
        ("requests?cursor=x", "cursor"),
        ("requests?cursor=bm9uZQ", "cursor"),
        ("requests?cursor=" + queries.cursor_of("occurred_at", 1, "x"), "cursor"),
        ("requests?cursor=" + queries.cursor_of("-occurred_at", 2**60, "x"), "cursor"),
        ("requests?cursor=" + queries.cursor_of("-occurred_at", True, "x"), "cursor"),
        ("requests?cursor=W10", "cursor"),
        ("requests?ids=" + ",".join("x" * 201), "ids"),
    ],
)
async def test_a_wrong_parameter_is_named(api: Api, path: str, field: str) -> None:
    answer = await api.ask("GET", f"/track/{path}")
    assert (answer.status, answer.fields) == (422, [field]), answer


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"{", 400, None),
        (b"[]", 422, "body"),
        (b"{}", 422, "body"),
        (b'{"id": "x"}', 422, "id"),
        (b'{"url": null}', 422, "url"),
        (b'{"occurred_at": null}', 422, "occurred_at"),
        (b'{"ip": "x"}', 422, "ip"),
        (b'{"url": "' + b"x" * LONGEST_URL + b'x"}', 422, "url"),
    ],
)
async def test_a_wrong_change_changes_nothing(api: Api, body: bytes, status: int, field: str | None) -> None:
    tracking_id = await api.track()
    before = await api.row(tracking_id)
    answer = await api.ask("PATCH", f"/track/requests/{tracking_id}", {**BEARER, **JSON}, data=body)
    assert (answer.status, answer.fields) == (status, [] if field is None else [field])
    assert await api.row(tracking_id) == before


@pytest.mark.parametrize("key", ["x", "x.0", "%00", "a" * 300, "01%2F"])
async def test_a_request_that_there_is_not(api: Api, key: str) -> None:
    assert (await api.ask("GET", f"/track/requests/{key}")).status == 404


ASKED = [
    ("GET", "/track/stats"),
    ("GET", "/track/top?by=ip"),
    ("GET", "/track/requests"),
    ("GET", "/track/requests/x"),
    ("PATCH", "/track/requests/x"),
    ("DELETE", "/track/requests/x"),
]


@pytest.mark.parametrize(("method", "path"), ASKED)
async def test_reads_need_the_token(api: Api, method: str, path: str) -> None:
    for given in (
        {},
        {"Authorization": "Bearer no"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer ü"},
    ):
        answer = await api.ask(method, path, given)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(("method", "path"), ASKED)
async def test_without_a_token_that_is_set_reads_are_refused_and_the_setting_is_said(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    monkeypatch.delenv("TRACKING_TOKEN")
    async with serving(settings) as api:
        answer = await api.ask(method, path)
        assert answer.status == 403
        assert "TRACKING_TOKEN" in answer.body["detail"]
        assert (await api.post(EVENT)).status == 202


async def test_a_query_that_takes_too_long_is_ended(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(api)
    tracking: Tracking = api.runtime.resources["tracking"]
    monkeypatch.setattr(tracking.database, "_query_seconds", 0.2)

    async def forever(connection: Any, *_: Any) -> Any:
        endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
        return await connection.exec_driver_sql(endless)

    monkeypatch.setattr(queries, "stats", forever)
    answer = await api.ask("GET", "/track/stats")
    assert answer.status == 503
    assert "longer than 0.2 s" in answer.body["detail"]
    assert (await api.get("/track/requests?limit=1"))["cursor"]  # the connection is of use again
