"""What a request says beside its path: bodies as models, times, pages and preferences, each refused by name."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel

from aioflow import Page, Problem
from aioflow.timeline import LARGEST_MS, ReadPage, page

LARGEST_PAGE = 1000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WAIT = re.compile(r"(?:^|[,;\s])wait=([0-9]{1,6})(?:$|[,;\s])", re.IGNORECASE)
PLACES = 10 * LARGEST_MS
"""Beyond every place in a line."""

Model = TypeVar("Model", bound=BaseModel)


async def body_of(request: web.Request, model: type[Model]) -> Model:
    """The JSON body as a model. Raises Problem, and ValidationError that names the field."""
    if request.content_type != "application/json":
        raise Problem(415, f"send application/json, not {request.headers.get('Content-Type', 'a body without a type')}")
    try:
        body = await request.read()
    except ConnectionError as error:
        raise Problem(400, "the connection ended before the body did") from error
    return model.model_validate_json(body)


def wait_of(request: web.Request, longest: float) -> float:
    """The seconds of `Prefer: wait=SECONDS` (RFC 7240), at most `longest`; 0 without it."""
    found = WAIT.search(",".join(request.headers.getall("Prefer", ())))
    return 0.0 if found is None else min(float(found[1]), longest)


async def page_of(request: web.Request, read: ReadPage, since_ms: int = 0, until_ms: int = PLACES) -> Page:
    """One page, as `limit` and `cursor` say."""
    text = request.query.get("limit", "100")
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= LARGEST_PAGE:
        raise wrong("limit", f"use a whole number from 1 to {LARGEST_PAGE}")
    try:
        return await page(read, since_ms, until_ms, int(text), request.query.get("cursor"))
    except ValueError as error:
        raise wrong("cursor", str(error)) from error


def range_of(request: web.Request) -> tuple[int, int]:
    """`since` (included) and `until` (not included) in UTC ms."""
    since_ms, until_ms = time_of(request, "since", 0), time_of(request, "until", LARGEST_MS)
    if until_ms < since_ms:
        raise wrong("until", "it lies before since")
    return since_ms, until_ms


def time_of(request: web.Request, name: str, default: int) -> int:
    """Epoch seconds or RFC 3339, in UTC ms."""
    text = request.query.get(name)
    if text is None:
        return default
    if re.fullmatch(r"[0-9]{1,10}(\.[0-9]{1,9})?", text):
        return min(int(Decimal(text) * 1000), LARGEST_MS)
    try:
        moment = datetime.fromisoformat(text.upper().replace(" ", "+"))  # an unescaped + comes as a space
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or "T" not in text.upper():
        raise wrong(name, "use epoch seconds, or RFC 3339 with a zone, such as 2026-01-31T12:00:00Z")
    return min(max(0, (moment - EPOCH) // timedelta(milliseconds=1)), LARGEST_MS)


def seconds_of(request: web.Request, name: str, default: float) -> float:
    """A number of seconds."""
    text = request.query.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text):
        raise wrong(name, "use a number of seconds, 0 or more")
    return float(text)


def choice_of(request: web.Request, name: str, default: str, allowed: tuple[str, ...]) -> str:
    """One of some words."""
    found = request.query.get(name, default)
    if found not in allowed:
        raise wrong(name, f"use one of {', '.join(allowed)}")
    return found


def wrong(name: str, message: str) -> Problem:
    """A parameter that cannot be taken."""
    return Problem(422, f"{name}: {message}", errors=[(name, message)])
