"""Where jobs are submitted to: a runtime of this process, or a URL."""

from __future__ import annotations

from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import orjson

from aioflow.cli.load.keepers import Locations
from aioflow.errors import AioflowError, ConfigError, QueueFull
from aioflow.job import LONGEST_ID
from aioflow.runtime import Runtime
from aioflow.service import Task

REFUSED = (429, 503)
JSON = {"Content-Type": "application/json"}
ANSWER_SECONDS = 30.0


class Refused(Exception):
    """The job was not taken since the queue is full or the server has too much to do."""


class Failed(Exception):
    """The submit failed. `kind` is what it is counted under; where it is `hopeless`, another would fail as well."""

    def __init__(self, kind: str, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.hopeless = hopeless


class InProcess:
    """Submits to a runtime."""

    def __init__(self, runtime: Runtime, task: Task[Any, Any], body: bytes) -> None:
        self._runtime = runtime
        self._task = task
        self._body = body

    async def submit(self) -> str:
        """Submit one job; its id. Raises Refused, Failed."""
        try:
            return (await self._runtime.submit_json(self._task, self._body)).id
        except QueueFull as error:
            raise Refused(str(error)) from error
        except AioflowError as error:
            raise Failed(type(error).__name__, str(error)) from error


class OverHttp:
    """POSTs to a URL."""

    def __init__(self, session: aiohttp.ClientSession, url: str, body: bytes, locations: Locations | None) -> None:
        self._session = session
        self._url = url
        self._body = body
        self._locations = locations

    async def submit(self) -> str:
        """Submit one job; its id. Raises Refused, Failed."""
        try:
            async with self._session.post(self._url, data=self._body, headers=JSON, allow_redirects=False) as answer:
                status, said, location = answer.status, await answer.read(), answer.headers.get("Location")
        except TimeoutError as error:
            raise Failed("timeout", f"POST {self._url}: no answer within {ANSWER_SECONDS:g} s") from error
        except aiohttp.ClientError as error:
            cannot = isinstance(error, (aiohttp.ClientConnectorError, aiohttp.InvalidURL))
            raise Failed("connection", f"POST {self._url}: {error}", hopeless=cannot) from error
        if status in REFUSED:
            raise Refused(f"POST {self._url} answered {status}")
        if status != 202:
            told = f"POST {self._url} answered {status}: {said[:300].decode(errors='replace')}"
            raise Failed(str(status), told, hopeless=status < 500 and status != 408)
        job_id = id_in(said)
        if job_id is None:
            raise Failed("no id", f"POST {self._url} answered 202 without a tracking_id or an id", hopeless=True)
        if self._locations is not None and self._locations.template is None and location and job_id in location:
            self._locations.template = urljoin(self._url, location).replace(job_id, "{id}")
        return job_id


def id_in(receipt: bytes) -> str | None:
    """The job's id in a receipt, if there is one."""
    try:
        told = orjson.loads(receipt)
    except orjson.JSONDecodeError:
        return None
    job_id = (told.get("tracking_id") or told.get("id")) if isinstance(told, dict) else None
    return job_id if isinstance(job_id, str) and 1 <= len(job_id) <= LONGEST_ID else None


def check_url(url: str) -> str:
    """The URL, or ConfigError."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"--url {url!r}: {error}") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"--url {url!r}: write http://host:port/path")
    return url


def open_session(connections: int) -> aiohttp.ClientSession:
    """A client with as many connections as there are submitters."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections), timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    )
