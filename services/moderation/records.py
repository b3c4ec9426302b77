"""How what Redis holds is shown: items, locks, desks and decisions as JSON, times as RFC 3339 in UTC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import orjson

from aioflow import ProtocolError
from aioflow.web import format_time
from services.moderation.board import Lock

T = TypeVar("T")
PLACE_STEP = 2**42
"""A place in line is priority * this + UTC ms."""
ITEM_FIELDS = ("state", "skill", "level", "place", "author", "moderator", "since", "votes", "skips", "decided")
DESK_FIELDS = ("skills", "level", "holds", "since", "by", "kind")


def ours(key: str, show: Callable[..., T], *row: Any) -> T:
    """What is shown of a row. Raises ProtocolError that names the key where nobody of ours wrote that row."""
    try:
        return show(*row)
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"what {key} holds is not moderation's: {error!r}") from error


def texts(row: Sequence[bytes | None]) -> list[str | None]:
    """A row of a hash, decoded."""
    return [None if value is None else value.decode() for value in row]


def shown_item(item_id: str, row: Sequence[bytes | None]) -> dict[str, Any] | None:
    """An item by its ITEM_FIELDS, without its content; None where it is not there."""
    state, skill, level, place, author, moderator, since, votes, skips, decided = texts(row)
    if state is None or skill is None or place is None:
        return None
    category, _, language = skill.partition(":")
    priority, submitted_ms = divmod(int(place), PLACE_STEP)
    shown: dict[str, Any] = {
        "id": item_id,
        "status": "locked" if state == "assigned" else state,
        "category": category,
        "language": language,
        "level": int(level or 1),
        "priority": priority,
        "author": author,
        "submitted_at": format_time(submitted_ms),
        "votes": len((votes or "").splitlines()),
        "skips": int(skips or 0),
    }
    if state == "assigned" and since is not None:
        shown |= {"moderator": moderator, "assigned_at": format_time(int(since))}
    if decided is not None:
        shown["decided_at"] = format_time(int(decided))
    return shown


def shown_lock(lock: Lock) -> dict[str, Any]:
    """An item as its holder gets it, with its content and the token to decide it under."""
    item = orjson.loads(lock.body)
    return {
        "item": lock.item,
        "token": lock.token,
        "content": item["content"],
        "category": item["category"],
        "language": item["language"],
        "author": item["author"],
        "priority": item["priority"],
        "level": lock.level,
        "votes": lock.votes,
        "assigned_at": format_time(lock.since_ms),
        "expires_at": format_time(lock.deadline_ms),
    }


def shown_desk(name: str, row: Sequence[bytes | None], held: int, place: int | None, now_ms: int) -> dict[str, Any]:
    """A desk by its DESK_FIELDS; `place` is that of its seat in the line of waiting moderators, from 1."""
    skills, level, holds, since, by, kind = texts(row)
    pairs = [skill.split(":") for skill in (skills or "").split()]
    shown: dict[str, Any] = {
        "moderator": name,
        "categories": sorted({pair[0] for pair in pairs}),
        "languages": sorted({pair[-1] for pair in pairs}),
        "level": int(level or 1),
        "holds": int(holds or 1),
        "held": held,
        "connected": kind == "socket" and bool(by),
        "waiting": place is not None,
    }
    if place is not None and since:
        shown |= {"place": place, "waiting_since": format_time(int(since)), "waiting_seconds": age(int(since), now_ms)}
    return shown


def shown_decision(record: Mapping[str, str]) -> dict[str, Any]:
    """A decision: who, what, when, and how long it took."""
    category, _, language = record["skill"].partition(":")
    assigned_ms, decided_ms = int(record["assigned"]), int(record["decided"])
    shown: dict[str, Any] = {
        "token": record["token"],
        "item": record["item"],
        "moderator": record["moderator"],
        "decision": record["decision"],
        "outcome": record["outcome"],
        "category": category,
        "language": language,
        "level": int(record["level"]),
        "assigned_at": format_time(assigned_ms),
        "decided_at": format_time(decided_ms),
        "took_seconds": (decided_ms - assigned_ms) / 1000,
    }
    if record["reason"]:
        shown["reason"] = record["reason"]
    if record["to_level"]:
        shown["to_level"] = int(record["to_level"])
    if record["votes"]:
        votes = [vote.partition(":") for vote in record["votes"].splitlines()]
        shown["votes"] = [{"decision": choice, "moderator": moderator} for choice, _, moderator in votes]
    return shown


def age(since_ms: int, now_ms: int) -> float:
    """Seconds since then, by the server's clock."""
    return max(0, now_ms - since_ms) / 1000
