"""Tracking as a client sees it: a real runtime on a real Valkey, behind a real socket, over a real database."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from yarl import URL

from aioflow import Runtime
from aioflow.cli.serve import bind
from aioflow.ingress.app import make_app
from aioflow.ingress.server import Ingress
from aioflow.settings import Settings, load_settings
from services.tracking import service
from services.tracking.service import store
from tests.waiting import wait_until

TOKEN = "a token of the tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
JSON = {"Content-Type": "application/json"}
EVENT = {"url": "https://example.org/page"}


@dataclass(frozen=True)
class Answer:
    """An HTTP answer with its JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any

    def check(self) -> Answer:
        """What holds for every answer: errors are problem+json, and no 5xx but 503 is ever given."""
        if self.status >= 400:
            assert self.status < 500 or self.status == 503, self
            assert self.headers["Content-Type"] == "application/problem+json", self
            assert self.body["status"] == self.status
            assert self.body["title"] != "Error"
            assert self.body["detail"]
        return self

    @property
    def fields(self) -> list[str]:
        """The fields that a problem names."""
        return [error["field"] for error in self.body.get("errors", [])]


class Api:
    """A client of tracking."""

    def __init__(self, url: str, session: aiohttp.ClientSession, runtime: Runtime | None = None) -> None:
        self.url = url
        self.session = session
        self._runtime = runtime

    @property
    def runtime(self) -> Runtime:
        """The runtime that answers, where it is of this process."""
        assert self._runtime is not None
        return self._runtime

    async def ask(self, method: str, path: str, headers: Mapping[str, str] = BEARER, **request: Any) -> Answer:
        """Send a request; the path is sent as it is written."""
        url = URL(self.url + path, encoded=True)
        async with self.session.request(method, url, headers=headers, **request) as answer:
            body = await answer.read()
            is_json = answer.content_type.endswith("json")
            return Answer(answer.status, answer.headers, orjson.loads(body) if is_json else body).check()

    async def get(self, path: str) -> Any:
        """The body of a 200."""
        answer = await self.ask("GET", path)
        assert answer.status == 200, answer
        return answer.body

    async def post(self, body: object, headers: Mapping[str, str] | None = None) -> Answer:
        """Post events: JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        return await self.ask("POST", "/track", {**JSON, **(headers or {})}, data=io.BytesIO(data))

    async def track(self, **event: object) -> str:
        """The tracking id of one event that is accepted."""
        answer = await self.post({**EVENT, **event})
        assert answer.status == 202, answer
        tracking_id: str = answer.body["tracking_id"]
        return tracking_id

    async def row(self, tracking_id: str) -> Any:
        """A request once it is in the table."""

        async def shown() -> Any:
            answer = await self.ask("GET", f"/track/requests/{tracking_id}")
            return answer.body if answer.status == 200 else None

        return await wait_until(shown, 20)

    async def settled(self) -> None:
        """Return once all that was accepted is processed."""

        async def empty() -> bool:
            return (await self.runtime.sizes(store)).open == 0

        await wait_until(empty, 20)


@asynccontextmanager
async def serving(settings: Settings, *, workers: bool = True) -> AsyncIterator[Api]:
    """A client of a runtime of this process."""
    async with Runtime([service], settings=settings, workers=workers) as runtime:
        ingress = Ingress(make_app(runtime))
        listener = bind(load_settings(port=0))
        await ingress.open(listener)
        try:
            async with aiohttp.ClientSession() as session:
                yield Api(f"http://127.0.0.1:{listener.getsockname()[1]}", session, runtime)
        finally:
            await ingress.close()
            listener.close()
