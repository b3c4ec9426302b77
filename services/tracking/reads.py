"""The routes that look at the table, and change it: for whoever has the token."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from aioflow import Runtime
from aioflow.web import Problem, json_response, read_choice, read_json, read_page, read_range, refuse_unknown, wrong
from services.tracking import queries
from services.tracking.database import DatabaseAway, RowRefused, TooSlow
from services.tracking.models import CHANGE, Change
from services.tracking.queries import BUCKETS, COLUMNS, MOST_BUCKETS, SORTS, Shown, Wanted
from services.tracking.rows import parts_of_agent, parts_of_url
from services.tracking.service import Tracking, service
from services.tracking.shown import ListQuery, Request, Requests, Stats, StatsQuery, Top, TopPageQuery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")
LONGEST_FILTER = 2048
LONGEST_KEY = 250
MOST_IDS = 200
DEFAULT_BUCKETS = {"minute": 60, "hour": 24, "day": 30}


@service.get("/track/stats", query=StatsQuery, answers={200: Stats}, problems=(503,), bearer=True)
async def stats(request: web.Request, runtime: Runtime) -> Shown:
    """How many requests in a time range, by minute, hour or day."""
    tracking = allowed(request, runtime)
    refuse_unknown(request, ("since", "until", "bucket"))
    bucket = read_choice(request, "bucket", tuple(BUCKETS), "hour")
    now_ms = runtime.now_ms()
    _, until_ms = read_range(request, until_ms=now_ms)
    since_ms, until_ms = read_range(
        request, since_ms=max(0, until_ms - DEFAULT_BUCKETS[bucket] * BUCKETS[bucket]), until_ms=until_ms
    )
    if (until_ms - since_ms) // BUCKETS[bucket] >= MOST_BUCKETS:
        raise wrong("bucket", f"the range has more than {MOST_BUCKETS} of them; use a wider one, or a shorter range")
    return await _asked(tracking, lambda c: queries.stats(c, since_ms, until_ms, bucket))


@service.get("/track/top", query=TopPageQuery, answers={200: Top}, problems=(503,), bearer=True)
async def top(request: web.Request, runtime: Runtime) -> Shown:
    """The most frequent pages, addresses, browsers and so on."""
    tracking = allowed(request, runtime)
    refuse_unknown(request, ("by", "since", "until", "limit"))
    by = read_choice(request, "by", COLUMNS)
    (since_ms, until_ms), (limit, _) = read_range(request), read_page(request, default=10)
    return {"by": by, "top": await _asked(tracking, lambda c: queries.top(c, since_ms, until_ms, by, limit))}


@service.get("/track/requests", query=ListQuery, answers={200: Requests}, problems=(503,), bearer=True)
async def listing(request: web.Request, runtime: Runtime) -> web.Response:
    """Requests, the newest first unless asked otherwise."""
    tracking = allowed(request, runtime)
    refuse_unknown(request, ("since", "until", "limit", "cursor", "sort", "q", "ids", *COLUMNS))
    (since_ms, until_ms), (limit, cursor) = read_range(request), read_page(request)
    sort = read_choice(request, "sort", SORTS, SORTS[0])
    try:
        after = None if cursor is None else queries.place_of(cursor, sort)
    except ValueError as error:
        raise wrong("cursor", str(error)) from error
    ids = _filter(request, "ids", MOST_IDS * LONGEST_KEY)
    listed = None if ids is None else tuple(ids.split(","))
    if listed is not None and len(listed) > MOST_IDS:
        raise wrong("ids", f"at most {MOST_IDS}")
    filters = {name: value for name in COLUMNS if (value := _filter(request, name)) is not None}
    wanted = Wanted(since_ms, until_ms, filters, _filter(request, "q"), listed, sort)
    found, following = await _asked(tracking, lambda c: queries.page(c, wanted, limit, after))
    return await asyncio.to_thread(_listed, found, following)


@service.get("/track/requests/{id}", answers={200: Request}, problems=(503,), bearer=True)
async def show(request: web.Request, runtime: Runtime) -> Shown:
    """One request."""
    tracking = allowed(request, runtime)
    return await _shown(tracking, _key(request))


@service.patch("/track/requests/{id}", body=Change, answers={200: Request}, problems=(503,), bearer=True)
async def change(request: web.Request, runtime: Runtime) -> Shown:
    """Change fields of a request, such as an address that is to be forgotten."""
    tracking = allowed(request, runtime)
    key = _key(request)
    body = await read_json(request)
    if not isinstance(body, dict) or not body:
        raise wrong("body", "send an object with the fields to be changed")
    given: dict[str, Any] = dict(CHANGE.validate_python(body))
    values: dict[str, Any] = {name: given[name] for name in ("ip", "referrer", "properties") if name in given}
    if "url" in given:
        values |= parts_of_url(given["url"])
    if "user_agent" in given:
        values |= await asyncio.to_thread(parts_of_agent, given["user_agent"])
    if "occurred_at" in given:
        values["occurred_ms"] = given["occurred_at"]
    async with _writing(tracking) as connection:
        if not await queries.change(connection, key, values):
            raise _nothing(key)
        row = await queries.one(connection, key)
    if row is None:
        raise _nothing(key)
    return queries.shown(row)


@service.delete("/track/requests/{id}", problems=(503,), bearer=True)
async def delete(request: web.Request, runtime: Runtime) -> None:
    """Delete a request."""
    tracking = allowed(request, runtime)
    key = _key(request)
    async with _writing(tracking) as connection:
        if not await queries.delete(connection, key):
            raise _nothing(key)


def allowed(request: web.Request, runtime: Runtime) -> Tracking:
    """What answers whoever has the token. Raises Problem for anybody else."""
    tracking: Tracking = runtime.resources["tracking"]
    token = tracking.settings.token
    if token is None:
        raise Problem(403, "reads are refused until a bearer token is set: TRACKING_TOKEN")
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    known = token.get_secret_value().encode()
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(errors="replace"), known):
        raise Problem(
            401,
            "send the header Authorization: Bearer TOKEN, with the token of TRACKING_TOKEN",
            headers={"WWW-Authenticate": 'Bearer realm="tracking"'},
        )
    return tracking


def _listed(rows: list[queries.Columns], cursor: str | None) -> web.Response:
    """In a thread: a thousand rows take milliseconds to be written."""
    return json_response({"requests": [queries.shown(row) for row in rows], "cursor": cursor})


async def _shown(tracking: Tracking, key: str) -> Shown:
    row = await _asked(tracking, lambda c: queries.one(c, key))
    if row is None:
        raise _nothing(key)
    return queries.shown(row)


async def _asked(tracking: Tracking, query: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    try:
        return await tracking.database.reading(query)
    except DatabaseAway as error:
        raise Problem(503, f"the database is away: {error}") from error
    except TooSlow as error:
        raise Problem(503, str(error)) from error


@asynccontextmanager
async def _writing(tracking: Tracking) -> AsyncIterator[AsyncConnection]:
    try:
        async with tracking.database.writing() as connection:
            yield connection
    except DatabaseAway as error:
        raise Problem(503, f"the database is away: {error}") from error
    except RowRefused as error:
        raise Problem(422, f"the database refuses it: {error}") from error


def _filter(request: web.Request, name: str, longest: int = LONGEST_FILTER) -> str | None:
    text = request.query.get(name)
    if text is not None and (not 1 <= len(text) <= longest or "\x00" in text):
        raise wrong(name, f"use 1 to {longest} characters without NUL")
    return text


def _key(request: web.Request) -> str:
    key = request.match_info["id"]
    if len(key) > LONGEST_KEY or "\x00" in key:
        raise _nothing(key[:LONGEST_KEY])
    return key


def _nothing(key: str) -> Problem:
    return Problem(404, f"there is no request {key} in the table; one that was just collected may still be on its way")
