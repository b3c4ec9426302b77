"""Where jobs are submitted to: a runtime of this process, or a URL."""

from __future__ import annotations

from typing import Any
from urllib.parse import urljoin, urlsplit

from yarl import URL

from aioflow.cli.load.keepers import Locations
from aioflow.errors import AioflowError, ConfigError, QueueFull
from aioflow.load import Failed, HttpTarget, Refused
from aioflow.runtime import Runtime
from aioflow.service import Task


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


class OverHttp(HttpTarget):
    """POSTs one payload to a URL, and notes where the receipts say that its jobs are."""

    def __init__(self, url: str, body: bytes, locations: Locations) -> None:
        super().__init__(url, lambda: body)
        self._locations = locations

    def receipted(self, job_id: str, location: str | None) -> None:
        """The first Location with the id is the template of all."""
        if self._locations.template is None and location and job_id in location:
            self._locations.template = urljoin(self._url, location).replace(job_id, "{id}")


def check_url(url: str) -> str:
    """The URL, or ConfigError."""
    try:
        parts = urlsplit(url)
        _ = parts.port, URL(url)
    except ValueError as error:
        raise ConfigError(f"--url {url!r}: {error}") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"--url {url!r}: write http://host:port/path")
    return url
