"""From events to rows of the table: URLs are split, user agents parsed. Runs in a thread; nothing here waits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import orjson

from services.tracking.models import URL, Collected, moment_of, row_id

REMEMBERED_AGENTS = 20_000
"""A user agent that is new takes more than a millisecond to parse; most are not new."""

Row = dict[str, Any]


class Agent(NamedTuple):
    """What a user agent says."""

    browser: str | None
    browser_version: str | None
    os: str | None
    os_version: str | None
    device: str | None


NOBODY = Agent(None, None, None, None, None)


def rows_of(job_id: str, collected: Collected) -> list[Row]:
    """The rows of a job; what an event does not say is the post's."""
    received_ms, ip, user_agent = collected["received_ms"], collected["ip"], collected["user_agent"]
    rows = []
    for index, event in enumerate(collected["events"]):
        given, occurred, properties = event.get("user_agent"), event.get("occurred_at"), event.get("properties")
        rows.append(
            {
                "id": row_id(job_id, index),
                "received_ms": received_ms,
                "occurred_ms": received_ms if occurred is None else moment_of(occurred),
                **parts_of_url(event["url"]),
                "ip": event.get("ip") or ip,
                **parts_of_agent(user_agent if given is None else given),
                "referrer": event.get("referrer"),
                "properties": written(properties),
            }
        )
    return rows


def parts_of_url(url: str) -> Row:
    """The columns of a URL that has been checked."""
    found = URL.fullmatch(url)
    if found is None:
        raise AssertionError(f"a URL that has not been checked: {url!r}")
    return {"url": url, "host": found[1].lower(), "path": found[2] or "/"}


def parts_of_agent(user_agent: str | None) -> Row:
    """The columns of a user agent."""
    return {"user_agent": user_agent, **(parse_agent(user_agent) if user_agent else NOBODY)._asdict()}


def written(properties: dict[str, Any] | None) -> str | None:
    """Properties as text."""
    return None if properties is None else orjson.dumps(properties).decode()


@lru_cache(REMEMBERED_AGENTS)
def parse_agent(user_agent: str) -> Agent:
    """The browser, system and device of a user agent, as far as they are known."""
    found = _parser()(user_agent)
    browser, system, device = found.user_agent, found.os, found.device
    return Agent(
        browser.family if browser else None,
        _version(browser.major, browser.minor) if browser else None,
        system.family if system else None,
        _version(system.major, system.minor) if system else None,
        device.family if device else None,
    )


def _version(*parts: str | None) -> str | None:
    return ".".join(part for part in parts if part) or None


@cache
def _parser() -> Callable[[str], Any]:
    import ua_parser

    return ua_parser.parse
