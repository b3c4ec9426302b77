"""What is asked of the table: statements of SQLAlchemy Core, the same for SQLite and PostgreSQL.

Every list is bounded. Pages go on from the last row's place (its time and id), so that rows which come meanwhile
neither repeat nor hide one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from aioflow.web import format_time

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

BUCKETS = {"minute": 60_000, "hour": 3_600_000, "day": 86_400_000}
MOST_BUCKETS = 10_000
COLUMNS = ("url", "host", "path", "ip", "browser", "os", "referrer")
"""What can be counted by, and filtered by."""
SORTS = ("-occurred_at", "occurred_at", "-received_at", "received_at")
SORTED_BY = {"occurred_at": "occurred_ms", "received_at": "received_ms"}
Shown = dict[str, Any]
Columns = dict[str, Any]
"""Of a row, by name."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which requests: a half-open range of the time they are sorted by, exact filters, text to be found, ids."""

    since_ms: int
    until_ms: int
    filters: Mapping[str, str]
    search: str | None = None
    ids: tuple[str, ...] | None = None
    sort: str = SORTS[0]


async def stats(connection: AsyncConnection, since_ms: int, until_ms: int, bucket: str) -> Shown:
    """Counts and unique addresses of a range, in all and by bucket; buckets without a request are left out."""
    from sqlalchemy import distinct, func, select

    table = _table()
    at, width = table.c.occurred_ms, BUCKETS[bucket]
    within = (at >= since_ms) & (at < until_ms)
    unique = func.count(distinct(table.c.ip))
    total = (await connection.execute(select(func.count(), unique).where(within))).one()
    start = (at - at % width).label("start")
    counted = select(start, func.count(), unique).where(within).group_by(start).order_by(start).limit(MOST_BUCKETS)
    return {
        "since": format_time(since_ms),
        "until": format_time(until_ms),
        "bucket": bucket,
        "count": total[0],
        "unique_ips": total[1],
        "buckets": [
            {"start": format_time(int(begin)), "count": count, "unique_ips": ips}
            for begin, count, ips in (await connection.execute(counted)).all()
        ],
    }


async def top(connection: AsyncConnection, since_ms: int, until_ms: int, by: str, limit: int) -> list[Shown]:
    """The most frequent values of a column, with their counts and unique addresses."""
    from sqlalchemy import distinct, func, select

    table = _table()
    column, at, count = table.c[by], table.c.occurred_ms, func.count().label("count")
    counted = (
        select(column, count, func.count(distinct(table.c.ip)))
        .where((at >= since_ms) & (at < until_ms) & column.is_not(None))
        .group_by(column)
        .order_by(count.desc(), column)
        .limit(limit)
    )
    rows = (await connection.execute(counted)).all()
    return [{"value": value, "count": times, "unique_ips": ips} for value, times, ips in rows]


async def page(
    connection: AsyncConnection, wanted: Wanted, limit: int, after: tuple[int, str] | None
) -> tuple[list[Columns], str | None]:
    """Some rows from a place on, and the cursor of the next; None: these are the last."""
    from sqlalchemy import and_, or_, select

    table = _table()
    at = table.c[SORTED_BY[wanted.sort.removeprefix("-")]]
    descending = wanted.sort.startswith("-")
    conditions = [at >= wanted.since_ms, at < wanted.until_ms]
    conditions += [table.c[name] == value for name, value in wanted.filters.items()]
    if wanted.search is not None:
        found = (table.c[name].icontains(wanted.search, autoescape=True) for name in ("url", "referrer", "user_agent"))
        conditions.append(or_(*found))
    if wanted.ids is not None:
        conditions.append(table.c.id.in_(wanted.ids))
    if after is not None:
        at_ms, key = after
        beyond = (at < at_ms, table.c.id < key) if descending else (at > at_ms, table.c.id > key)
        # The first condition is for the index alone: the other, with its "or", cannot be looked up.
        conditions += [at <= at_ms if descending else at >= at_ms, or_(beyond[0], and_(at == at_ms, beyond[1]))]
    order = (at.desc(), table.c.id.desc()) if descending else (at, table.c.id)
    rows = (await connection.execute(select(table).where(*conditions).order_by(*order).limit(limit + 1))).mappings()
    found_rows = [plain(row) for row in rows]
    cursor = None
    if len(found_rows) > limit:
        last = found_rows[limit - 1]
        cursor = cursor_of(wanted.sort, last[at.name], last["id"])
    return found_rows[:limit], cursor


async def one(connection: AsyncConnection, key: str) -> Columns | None:
    """A row by its id."""
    from sqlalchemy import select

    table = _table()
    row = (await connection.execute(select(table).where(table.c.id == key))).mappings().one_or_none()
    return None if row is None else plain(row)


async def change(connection: AsyncConnection, key: str, values: Columns) -> bool:
    """Change columns of a row; False where there is none."""
    from sqlalchemy import update

    table = _table()
    return bool((await connection.execute(update(table).where(table.c.id == key).values(**values))).rowcount)


async def delete(connection: AsyncConnection, key: str) -> bool:
    """Delete a row; False where there is none."""
    from sqlalchemy import delete as delete_from

    table = _table()
    return bool((await connection.execute(delete_from(table).where(table.c.id == key))).rowcount)


def plain(row: Any) -> Columns:
    """A row with plain names, as JSON wants them: those of SQLAlchemy are a kind of text of its own."""
    return {str(name): value for name, value in row.items()}


def shown(row: Columns) -> Shown:
    """A row as it is answered."""
    told = dict(row)
    told["received_at"], told["occurred_at"] = (
        format_time(told.pop("received_ms")),
        format_time(told.pop("occurred_ms")),
    )
    told["properties"] = None if row["properties"] is None else orjson.loads(row["properties"])
    return told


def cursor_of(sort: str, at_ms: int, key: str) -> str:
    """A place in a sort order, as opaque text."""
    return base64.urlsafe_b64encode(orjson.dumps([sort, at_ms, key])).rstrip(b"=").decode()


def place_of(cursor: str, sort: str) -> tuple[int, str]:
    """The place that a cursor stands for. Raises ValueError."""
    try:
        told = orjson.loads(base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), b"-_", validate=True))
    except (binascii.Error, ValueError):
        told = None
    match told:
        case [str() as of, int() as at_ms, str() as key] if (
            not isinstance(at_ms, bool) and 0 <= at_ms < 2**53 and "\x00" not in key
        ):
            if of == sort:
                return at_ms, key
            raise ValueError(f"it belongs to sort={of[:40]}")
    raise ValueError("use one that an answer had, as it was")


def _table() -> Any:
    from services.tracking.table import requests

    return requests
