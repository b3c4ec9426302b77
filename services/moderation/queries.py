"""What is there: items, desks, locks and decisions, a page at a time."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from aioflow import Page, Problem, Runtime
from aioflow.timeline import ReadPage
from aioflow.web import PageQuery, RangeQuery, format_time, read_choice, read_range, read_seconds, wrong
from services.moderation.declared import asked, hub_of, service
from services.moderation.models import LEVELS, Outcome
from services.moderation.params import page_of
from services.moderation.records import (
    DESK_FIELDS,
    ITEM_FIELDS,
    PLACE_STEP,
    age,
    ours,
    shown_decision,
    shown_desk,
    shown_item,
)
from services.moderation.shown import (
    Counts,
    Decisions,
    DecisionsQuery,
    Desks,
    DesksQuery,
    Line,
    LineQuery,
    Locks,
    Overdue,
    OverdueQuery,
    WholeItem,
)

CLASS = ("category", "language", "level")
FILTERS = ("moderator", "category", "outcome")


@service.get("/moderation/items", query=LineQuery, answers={200: Line}, problems=(503,))
async def waiting(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """Waiting items in the order of the line: of all, or of one class."""
    hub_of(runtime)
    name = line_of(request)
    listed = await page_of(request, reader(runtime, name))
    key = runtime.key(service, name)
    pipeline = runtime.redis.pipeline(transaction=False)
    for item_id, _ in listed.entries:
        pipeline.zrank(key, item_id)
    pipeline.zcard(key)
    *ranks, count = await asked(pipeline)
    shown = await items_of(runtime, listed)
    places = dict(zip([item_id for item_id, _ in listed.entries], ranks, strict=True))
    items = [{**item, "place": places[item["id"]] + 1} for item in shown if places[item["id"]] is not None]
    return {"items": items, "count": count, "cursor": listed.cursor}


@service.get("/moderation/items/{id:[^/]+}", answers={200: WholeItem}, problems=(503,))
async def one(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """One item, with its content."""
    hub_of(runtime)
    item_id = request.match_info["id"]
    key = runtime.key(service, f"item:{item_id}")
    pipeline = runtime.redis.pipeline(transaction=True)
    pipeline.hmget(key, *ITEM_FIELDS, "body", "token")
    pipeline.zscore(runtime.key(service, "locks"), item_id)
    row, deadline = await asked(pipeline)
    *fields, body, token = row
    shown = ours(key, shown_item, item_id, fields)
    if shown is None:
        raise Problem(404, f"there is no item {item_id}")
    if shown["status"] == "locked" and deadline is not None:
        shown["expires_at"] = format_time(int(deadline))
    if "decided_at" in shown and token is not None:
        (record,) = await records_of(runtime, [token.decode()])
        shown |= {} if record is None else {"decision": record}
    return {**shown, "content": ours(key, lambda: orjson.loads(body)["content"])}


@service.get("/moderation/overdue", query=OverdueQuery, answers={200: Overdue}, problems=(503,))
async def overdue(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """Items that have been undecided for longer than `older_than` seconds, oldest first."""
    hub_of(runtime)
    until_ms = max(0, runtime.now_ms() - int(read_seconds(request, "older_than", 3600.0) * 1000))
    listed = await page_of(request, reader(runtime, "open"), until_ms=until_ms)
    count = await runtime.timeline_count(service.name, "open", 0, until_ms)
    return {"items": await items_of(runtime, listed), "count": count, "cursor": listed.cursor}


@service.get("/moderation/locks", query=PageQuery, answers={200: Locks}, problems=(503,))
async def locks(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """Items that are held, by the deadline of their lock."""
    hub_of(runtime)
    listed = await page_of(request, reader(runtime, "locks"))
    deadlines = dict(listed.entries)
    items = await items_of(runtime, listed)
    shown = [{**item, "expires_at": format_time(deadlines[item["id"]])} for item in items if item["status"] == "locked"]
    return {"locks": shown, "cursor": listed.cursor}


@service.get("/moderation/desks", query=DesksQuery, answers={200: Desks}, problems=(503,))
async def desks(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """Moderators: `state=all` by when they joined, `state=waiting` in the order in which they get the next items."""
    hub_of(runtime)
    name = {"all": "desks", "waiting": "seats"}[read_choice(request, "state", ("all", "waiting"), "all")]
    listed = await page_of(request, reader(runtime, name))
    names = [moderator for moderator, _ in listed.entries]
    pipeline = runtime.redis.pipeline(transaction=False)
    for moderator in names:
        pipeline.hmget(runtime.key(service, f"desk:{moderator}"), *DESK_FIELDS)
        pipeline.zcard(runtime.key(service, f"held:{moderator}"))
        pipeline.zrank(runtime.key(service, "seats"), moderator)
    answers = await asked(pipeline)
    now_ms = runtime.now_ms()
    shown = [
        ours(
            runtime.key(service, f"desk:{moderator}"),
            *(shown_desk, moderator, row, held, None if rank is None else rank + 1, now_ms),
        )
        for moderator, row, held, rank in zip(names, answers[::3], answers[1::3], answers[2::3], strict=True)
        if row[0] is not None
    ]
    return {"desks": shown, "cursor": listed.cursor}


@service.get("/moderation/decisions", query=DecisionsQuery, answers={200: Decisions}, problems=(503,))
async def decisions(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """Decisions in a time range, oldest first: all, or those of one moderator, category or outcome."""
    hub_of(runtime)
    given = [name for name in FILTERS if name in request.query]
    if len(given) > 1:
        raise wrong(given[1], f"use one of {', '.join(FILTERS)} at a time")
    if given == ["outcome"]:
        read_choice(request, "outcome", tuple(Outcome))
    name = f"decisions_by_{given[0]}:{request.query[given[0]]}" if given else "decisions"
    since_ms, until_ms = read_range(request)
    listed = await page_of(request, reader(runtime, name), since_ms, until_ms)
    records = await records_of(runtime, [token for token, _ in listed.entries])
    shown = [record for record in records if record is not None]
    return {"decisions": shown, "cursor": listed.cursor}


@service.get("/moderation/counts", query=RangeQuery, answers={200: Counts}, problems=(503,))
async def counts(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """How many decisions had each outcome in a time range, and how much is there now."""
    hub_of(runtime)
    since_ms, until_ms = read_range(request)
    pipeline = runtime.redis.pipeline(transaction=True)
    for outcome in Outcome:
        pipeline.zcount(runtime.key(service, f"decisions_by_outcome:{outcome}"), since_ms, f"({until_ms}")
    for name in ("open", "waiting", "locks", "desks", "seats"):
        pipeline.zcard(runtime.key(service, name))
    found = await asked(pipeline)
    open_items, waiting_items, locked, joined, seated = found[len(Outcome) :]
    return {
        "outcomes": dict(zip([outcome.value for outcome in Outcome], found, strict=False)),
        "items": {"open": open_items, "waiting": waiting_items, "locked": locked},
        "moderators": {"joined": joined, "waiting": seated},
    }


def line_of(request: web.Request) -> str:
    """The set that holds the line that is asked for."""
    given = [name for name in CLASS if name in request.query]
    if not given:
        return "waiting"
    missing = [name for name in CLASS if name not in given]
    if missing:
        raise wrong(missing[0], "a class is a category, a language and a level")
    category, language, level = (request.query[name] for name in CLASS)
    if level not in [str(number) for number in range(1, LEVELS + 1)]:
        raise wrong("level", f"use 1 to {LEVELS}")
    return f"line:{category}:{language}:{level}"


def reader(runtime: Runtime, name: str) -> ReadPage:
    """How a sorted set of the service is read."""

    async def read(since: int, until: int, limit: int, after: tuple[int, str] | None) -> list[tuple[str, int]]:
        return await runtime.timeline_page(service.name, name, since, until, limit, after)

    return read


async def items_of(runtime: Runtime, listed: Page) -> list[dict[str, Any]]:
    """The items of a page, and for how long they have been undecided; those that are gone since are left out."""
    pipeline = runtime.redis.pipeline(transaction=False)
    for item_id, _ in listed.entries:
        pipeline.hmget(runtime.key(service, f"item:{item_id}"), *ITEM_FIELDS)
    rows = await asked(pipeline)
    now_ms = runtime.now_ms()
    shown = [
        ours(runtime.key(service, f"item:{item_id}"), undecided, item_id, row, now_ms)
        for (item_id, _), row in zip(listed.entries, rows, strict=True)
    ]
    return [item for item in shown if item is not None]


def undecided(item_id: str, row: list[bytes | None], now_ms: int) -> dict[str, Any] | None:
    """An item, and for how long it has been undecided; None where it is not there."""
    item = shown_item(item_id, row)
    submitted_ms = int(row[ITEM_FIELDS.index("place")] or 0) % PLACE_STEP
    return None if item is None else {**item, "waiting_seconds": age(submitted_ms, now_ms)}


async def records_of(runtime: Runtime, tokens: list[str]) -> list[dict[str, Any] | None]:
    """Decisions as they are shown; None for those that are kept no longer."""
    pipeline = runtime.redis.pipeline(transaction=False)
    for token in tokens:
        pipeline.hgetall(runtime.key(service, f"decision:{token}"))
    found = await asked(pipeline)
    return [
        ours(runtime.key(service, f"decision:{token}"), recorded, row) if row else None
        for token, row in zip(tokens, found, strict=True)
    ]


def recorded(row: dict[bytes, bytes]) -> dict[str, Any]:
    """A decision by its hash."""
    return shown_decision({name.decode(): value.decode() for name, value in row.items()})
