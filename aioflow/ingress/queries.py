"""Query parameters of routes: times, ranges, pages, numbers, choices. What is wrong is a 422 that names it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated

from aiohttp import web
from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict

from aioflow.ingress.problems import Problem
from aioflow.timeline import LARGEST_MS

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LARGEST_PAGE = 1000
DEFAULT_PAGE = 100
SECONDS = re.compile(r"[0-9]{1,10}(\.[0-9]{1,9})?", re.ASCII)
NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?", re.ASCII)

Time = Annotated[
    str,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "date-time"},
                {"type": "string", "pattern": r"^[0-9]{1,10}(\.[0-9]{1,9})?$"},
            ],
            "description": "epoch seconds, or RFC 3339 with a zone",
        }
    ),
]
"""What `read_time` reads, for the description of a route."""
Seconds = Annotated[
    str,
    WithJsonSchema(
        {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,6})?$", "description": "a number of seconds, 0 or more"}
    ),
]
"""What `read_seconds` reads, for the description of a route."""


class RangeQuery(TypedDict, total=False):
    """What `read_range` reads, for the description of a route."""

    since: Time
    until: Time


class PageQuery(TypedDict, total=False):
    """What `read_page` reads, for the description of a route."""

    limit: Annotated[int, Field(ge=1, le=LARGEST_PAGE)]
    cursor: Annotated[str, Field(description="as an answer had it")]


class KeyHeader(TypedDict, total=False):
    """What `id_of_key` is given, for the description of a route."""

    idempotency_key: Annotated[
        str,
        Field(
            alias="Idempotency-Key",
            pattern="^[!-~]([ -~]{0,253}[!-~])?$",
            description="the same key is the same job",
        ),
    ]


class PreferHeader(TypedDict, total=False):
    """What `read_wait` reads, for the description of a route."""

    prefer: Annotated[
        str,
        Field(alias="Prefer", description="wait=SECONDS: answer with the result, should it come in time (RFC 7240)"),
    ]


def wrong(name: str, message: str) -> Problem:
    """The problem of one parameter or field; raise it."""
    return Problem(422, f"{name}: {message}", errors=[(name, message)])


def read_range(request: web.Request, *, since_ms: int = 0, until_ms: int = LARGEST_MS) -> tuple[int, int]:
    """`since` and `until` in UTC ms, or these where they are left out. Raises Problem."""
    since_ms, until_ms = read_time(request, "since", since_ms), read_time(request, "until", until_ms)
    if until_ms < since_ms:
        raise wrong("until", "it lies before since")
    return since_ms, until_ms


def read_time(request: web.Request, name: str, default_ms: int) -> int:
    """A time in UTC ms: epoch seconds, or RFC 3339 with a zone. Raises Problem."""
    text = request.query.get(name)
    if text is None:
        return default_ms
    try:
        return parse_time(text.replace(" ", "+"))  # an unescaped + comes as a space
    except ValueError as error:
        raise wrong(name, str(error)) from error


def parse_time(text: str, *, bounded: bool = True) -> int:
    """Epoch seconds or RFC 3339 in UTC ms; `bounded`, what lies outside 0 to 2^42 is the nearer of the two.

    Cut, not rounded, so that the last moment before a millisecond is before it. Raises ValueError.
    """
    at_ms = _ms_of(text)
    return min(max(0, at_ms), LARGEST_MS) if bounded else at_ms


def _ms_of(text: str) -> int:
    if SECONDS.fullmatch(text):
        return int(Decimal(text) * 1000)
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or "T" not in text.upper():
        raise ValueError("use epoch seconds, or RFC 3339 with a zone, such as 2026-01-31T12:00:00Z")
    return (moment - EPOCH) // timedelta(milliseconds=1)


def format_time(at_ms: int) -> str:
    """UTC ms as RFC 3339."""
    return (EPOCH + timedelta(milliseconds=at_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_page(
    request: web.Request, *, default: int = DEFAULT_PAGE, largest: int = LARGEST_PAGE
) -> tuple[int, str | None]:
    """`limit`, from 1 to `largest`, and `cursor`. Raises Problem."""
    text = request.query.get("limit", str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or not 1 <= int(text) <= largest:
        raise wrong("limit", f"use a whole number from 1 to {largest}")
    return int(text), request.query.get("cursor")


def read_seconds(request: web.Request, name: str, default: float) -> float:
    """A number of seconds. Raises Problem."""
    text = request.query.get(name)
    if text is None:
        return default
    if not NUMBER.fullmatch(text):
        raise wrong(name, "use a number of seconds, 0 or more")
    return float(text)


def read_choice(request: web.Request, name: str, allowed: Sequence[str], default: str | None = None) -> str:
    """One of these words. Raises Problem."""
    text = request.query.get(name, default)
    if text is None or text not in allowed:
        raise wrong(name, f"use one of {', '.join(allowed)}")
    return text


def refuse_unknown(request: web.Request, allowed: Sequence[str]) -> None:
    """Raise Problem where a parameter is none of these, or is there twice: no filter may be passed over in silence."""
    for name in request.query:
        if name not in allowed:
            raise wrong(name[:100], f"there is no such parameter; there are {', '.join(allowed)}")
        if len(request.query.getall(name)) > 1:
            raise wrong(name, "say it once")
