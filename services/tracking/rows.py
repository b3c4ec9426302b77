"""From events to rows of the table: URLs are split, user agents parsed. Runs in a thread; nothing here waits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

from services.tracking.models import EVENTS, URL, Collected, row_id

REMEMBERED_AGENTS = 20_000
"""A user agent that is new takes 40 us to parse, several times as long as all else of its row; most are not new."""


class Agent(NamedTuple):
    """What a user agent says."""

    browser: str | None
    browser_version: str | None
    os: str | None
    os_version: str | None
    device: str | None


NOBODY = Agent(None, None, None, None, None)


class Row(NamedTuple):
    """A row of the table, its columns in order."""

    id: str
    received_ms: int
    occurred_ms: int
    url: str
    host: str
    path: str
    ip: str | None
    user_agent: str | None
    browser: str | None
    browser_version: str | None
    os: str | None
    os_version: str | None
    device: str | None
    referrer: str | None
    properties: str | None


def rows_of(job_id: str, collected: Collected) -> list[Row]:
    """The rows of a job; what an event does not say is the post's. Raises ValueError where it holds no events."""
    received_ms, ip, user_agent = collected["received_ms"], collected["ip"], collected["user_agent"]
    rows = []
    for index, event in enumerate(EVENTS.validate_json(collected["events"])):
        url, agent = event["url"], event.get("user_agent", user_agent)
        rows.append(
            Row(
                row_id(job_id, index),
                received_ms,
                event.get("occurred_ms", received_ms),
                url,
                *_split(url),
                event.get("ip", ip),
                agent,
                *(parse_agent(agent) if agent else NOBODY),
                event.get("referrer"),
                event.get("properties"),
            )
        )
    return rows


def parts_of_url(url: str) -> dict[str, Any]:
    """The columns of a URL, by name. Raises ValueError."""
    host, path = _split(url)
    return {"url": url, "host": host, "path": path}


def parts_of_agent(user_agent: str | None) -> dict[str, Any]:
    """The columns of a user agent, by name. The first call takes a quarter of a second."""
    return {"user_agent": user_agent, **(parse_agent(user_agent) if user_agent else NOBODY)._asdict()}


def _split(url: str) -> tuple[str, str]:
    found = URL.fullmatch(url)
    if found is None:
        raise ValueError(f"{url[:100]!r} is no URL with a host")
    return found[1].lower(), found[2] or "/"


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
