"""Sorted-set time indexes: members scored by UTC milliseconds, read by range, count and page.

A handler writes them through `job.commit.record`, so an entry lands with the acknowledgement. Reading goes through
the runtime that holds the service.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from aioflow.errors import ConfigError

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
LARGEST_MS = 2**42
MOST_ENTRIES = 1000
"""Scores stay below this until 2109."""


def parse_keep(keep: str | None) -> int:
    """ "90d" (s, m, h, d) in milliseconds; None, for ever, is 0. Raises ConfigError."""
    if keep is None:
        return 0
    found = re.fullmatch(r"([1-9]\d{0,8})([smhd])", keep)
    if not found:
        raise ConfigError(f'keep={keep!r}: write a number and s, m, h or d, such as "90d"')
    return int(found[1]) * UNITS_MS[found[2]]


@dataclass(frozen=True, slots=True)
class Page:
    """Entries as (member, UTC ms), oldest first, and the cursor of the next page: None where this is the last."""

    entries: list[tuple[str, int]]
    cursor: str | None


class TimelineStore(Protocol):
    """What a timeline needs from the runtime that holds its service."""

    async def timeline_page(
        self, service: str, name: str, since_ms: int, until_ms: int, limit: int, after: tuple[int, str] | None
    ) -> list[tuple[str, int]]: ...

    async def timeline_count(self, service: str, name: str, since_ms: int, until_ms: int) -> int: ...


class TimelineOwner(Protocol):
    """The service that declared a timeline."""

    @property
    def name(self) -> str: ...

    def store(self) -> TimelineStore: ...


@dataclass(frozen=True, slots=True)
class TimelineKey:
    """One sorted set of a timeline."""

    owner: TimelineOwner
    name: str
    keep_ms: int

    async def page(
        self, *, since_ms: int = 0, until_ms: int = LARGEST_MS, limit: int = 100, cursor: str | None = None
    ) -> Page:
        """Entries with since <= time < until, oldest first, at most `limit` (1 to 1,000).

        A page after a cursor never skips an entry; where the cursor's entry has left its place since, entries of the
        same millisecond may come again. Raises ValueError for a cursor that is none, ConfigError, StoreUnavailable.
        """
        store, owner, name = self.owner.store(), self.owner.name, self.name
        return await page(
            lambda since, until, most, after: store.timeline_page(owner, name, since, until, most, after),
            since_ms,
            until_ms,
            limit,
            cursor,
        )

    async def count(self, *, since_ms: int = 0, until_ms: int = LARGEST_MS) -> int:
        """How many entries lie in since <= time < until."""
        return await self.owner.store().timeline_count(self.owner.name, self.name, since_ms, until_ms)


class Timeline(TimelineKey):
    """A family of sorted sets: `made_by[key]` is one of them, and `made_by` itself the one without a key."""

    __slots__ = ()

    def __getitem__(self, key: str) -> TimelineKey:
        if not key:
            raise ConfigError(f"timeline {self.name}: the key is empty")
        return TimelineKey(self.owner, f"{self.name}:{key}", self.keep_ms)


ReadPage = Callable[[int, int, int, tuple[int, str] | None], Awaitable[list[tuple[str, int]]]]


async def page(read: ReadPage, since_ms: int, until_ms: int, limit: int, cursor: str | None) -> Page:
    """One page of any sorted set that is scored in UTC ms, by `read(since, until, limit, after)`."""
    if not 1 <= limit <= MOST_ENTRIES:
        raise ConfigError(f"a page has 1 to {MOST_ENTRIES:,} entries, not limit={limit!r}")
    entries = await read(since_ms, until_ms, limit, decode_cursor(cursor) if cursor else None)
    return Page(entries, encode_cursor(*entries[-1]) if len(entries) == limit else None)


def encode_cursor(member: str, at_ms: int) -> str:
    """A cursor is opaque to its users: the last entry's time and member."""
    return base64.urlsafe_b64encode(f"{at_ms}:{member}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[int, str]:
    """The (UTC ms, member) of a cursor. Raises ValueError where it is none of ours."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        at_ms, _, member = text.partition(":")
        return int(at_ms), member
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"cursor {cursor[:40]!r} is not one that a page gave") from error
