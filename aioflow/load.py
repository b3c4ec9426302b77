"""What a service's own load generator is made of, for `aioflow load SERVICE`: where to submit, and who can be asked.

A generator is an async context manager, declared by `@service.load`, that is given LoadOptions and yields a Load. The
command submits by many submitters at a time, measures, and accounts for everything that was receipted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import orjson

from aioflow.job import LONGEST_ID
from aioflow.posting import CannotConnect, Poster

REFUSED = (429, 503)
ANSWER_SECONDS = 30.0


class Refused(Exception):
    """The job was not taken since the queue is full or the server has too much to do."""


class Failed(Exception):
    """The submit failed. `kind` is what it is counted under; where it is `hopeless`, another would fail as well."""

    def __init__(self, kind: str, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.hopeless = hopeless


class Target(Protocol):
    """Where jobs go. Raises Refused, Failed."""

    async def submit(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """A job as its keeper shows it; times in seconds on this process' monotonic clock, where they are known."""

    state: str
    """A job's state; "kept" where no more is known than that there is a record."""
    started: float | None = None
    ended: float | None = None


class Keeper(Protocol):
    """Who can be asked for jobs by their ids, `batch` at a time. Raises StoreUnavailable.

    `look` answers None for what is missing. Where all must `arrive`, what is not seen done or dead in the time that
    the load test waits is missing as well. `totals` are counters of the queue, where there are any.
    """

    batch: int
    arrive: bool

    @property
    def can_tell(self) -> bool: ...

    async def look(self, ids: Sequence[str]) -> list[Seen | None]: ...

    async def totals(self) -> dict[str, int] | None: ...

    async def synchronize(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What a generator is told: where the service answers, how many submit at a time, and a seed of what is drawn."""

    url: str
    submitters: int
    seed: int


@dataclass(frozen=True, slots=True)
class Load:
    """A generator that is open; `name` says in the report where the jobs went."""

    name: str
    target: Target
    keeper: Keeper


Generator = Callable[[LoadOptions], AbstractAsyncContextManager[Load]]


class HttpTarget:
    """POSTs JSON to a URL; a receipt is a 202 with a tracking_id or an id. To be closed."""

    def __init__(self, url: str, body: Callable[[], bytes]) -> None:
        self._url = url
        self._body = body
        self._poster = Poster(url, ANSWER_SECONDS)

    async def submit(self) -> str:
        """Submit one job; its id. Raises Refused, Failed."""
        url = self._url
        try:
            status, said, location = await self._poster.post(self._body())
        except TimeoutError as error:
            raise Failed("timeout", f"POST {url}: no answer within {ANSWER_SECONDS:g} s") from error
        except aiohttp.ClientError as error:
            raise Failed("connection", f"POST {url}: {error}", hopeless=isinstance(error, CannotConnect)) from error
        if status in REFUSED:
            raise Refused(f"POST {url} answered {status}")
        if status != 202:
            told = f"POST {url} answered {status}: {said[:300].decode(errors='replace')}"
            raise Failed(str(status), told, hopeless=status < 500 and status != 408)
        job_id = id_in(said)
        if job_id is None:
            raise Failed("no id", f"POST {url} answered 202 without a tracking_id or an id", hopeless=True)
        self.receipted(job_id, location)
        return job_id

    def close(self) -> None:
        """Close its connections."""
        self._poster.close()

    def receipted(self, job_id: str, location: str | None) -> None:
        """What else a receipt says; to be overridden by whoever wants to know."""


def id_in(receipt: bytes) -> str | None:
    """The job's id in a receipt, if there is one."""
    try:
        told = orjson.loads(receipt)
    except orjson.JSONDecodeError:
        return None
    job_id = (told.get("tracking_id") or told.get("id")) if isinstance(told, dict) else None
    return job_id if isinstance(job_id, str) and 1 <= len(job_id) <= LONGEST_ID else None


def open_session(connections: int) -> aiohttp.ClientSession:
    """A client with as many connections as there are submitters."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections), timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    )
