"""Moderation as clients see it: a real runtime behind a real socket, and moderators over WebSockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from aioflow import Runtime
from aioflow.ingress.app import make_app
from aioflow.ingress.server import Ingress
from aioflow.settings import load_settings
from services.moderation import service
from tests.serving import bound

ITEM = {"id": "i1", "content": "Buy now!", "category": "spam", "language": "en", "author": "zoe"}
ANN = {"name": "ann", "categories": ["spam"], "languages": ["en"]}
BEN = {"name": "ben", "categories": ["spam"], "languages": ["en"]}


@dataclass(frozen=True)
class Answer:
    """An HTTP answer with its JSON; problems are problem+json, and no 5xx but 503 is ever given."""

    status: int
    headers: Any
    body: Any

    def check(self) -> Answer:
        if self.status >= 400:
            assert self.status < 500 or self.status == 503, self
            assert self.headers["Content-Type"] == "application/problem+json", self
            assert self.body["status"] == self.status
            assert self.body["detail"]
        return self

    @property
    def fields(self) -> list[str]:
        """What a problem names."""
        return [error["field"] for error in self.body.get("errors", [])]


class Desk:
    """A moderator over a WebSocket."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self.websocket = websocket

    async def next(self, seconds: float = 5.0) -> dict[str, Any]:
        """The next message."""
        told: dict[str, Any] = orjson.loads(await self.websocket.receive_str(timeout=seconds))
        return told

    async def expect(self, kind: str, seconds: float = 5.0) -> dict[str, Any]:
        """The next message, which is of this type."""
        told = await self.next(seconds)
        assert told["type"] == kind, told
        return told

    async def say(self, kind: str, **message: Any) -> None:
        """Send a message."""
        await self.websocket.send_str(orjson.dumps({"type": kind, **message}).decode())

    async def decide(self, assignment: dict[str, Any], decision: str = "approve", **more: Any) -> None:
        """Decide what was assigned."""
        await self.say("decide", item=assignment["item"], token=assignment["token"], decision=decision, **more)

    async def closed(self, seconds: float = 5.0) -> int | None:
        """Wait for the server's close, and answer it late; its code, or 1006 where the server did not wait for that."""
        message = await self.websocket.receive(timeout=seconds)
        assert message.type is aiohttp.WSMsgType.CLOSE, message
        for _ in range(10):  # turns of the loop that a server which does not wait closes the connection in
            await asyncio.sleep(0)
        await self.websocket.close()
        return self.websocket.close_code

    def drop(self) -> None:
        """Cut the connection without a word."""
        connection = self.websocket._response.connection
        assert connection is not None
        assert connection.transport is not None
        connection.transport.abort()


class Api:
    """A served runtime and a client of it."""

    def __init__(self, runtime: Runtime, ingress: Ingress, session: aiohttp.ClientSession, url: str) -> None:
        self.runtime = runtime
        self.ingress = ingress
        self.url = url
        self._session = session

    async def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """One request; a body that is no bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        headers = {**({} if data is None else {"Content-Type": "application/json"}), **(headers or {})}
        async with self._session.request(method, self.url + path, data=data, headers=headers) as answer:
            text = await answer.read()
            return Answer(answer.status, answer.headers, orjson.loads(text) if text else None).check()

    async def get(self, path: str) -> Any:
        """The body of a query that is answered."""
        answer = await self.ask("GET", path)
        assert answer.status == 200, answer
        return answer.body

    async def post(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Post JSON."""
        return await self.ask("POST", path, {} if body is None else body, headers)

    async def item(self, item_id: str = "i1", **fields: Any) -> Answer:
        """Submit an item."""
        return await self.post("/moderation/items", {**ITEM, "id": item_id, **fields})

    async def status(self, item_id: str = "i1") -> str:
        """An item's status."""
        shown = await self.get(f"/moderation/items/{item_id}")
        return str(shown["status"])

    async def assigned(self, moderator: str, wait: int = 0) -> list[dict[str, Any]]:
        """What a desk holds after it asked."""
        headers = {"Prefer": f"wait={wait}"} if wait else {}
        answer = await self.post("/moderation/assignments", {"moderator": moderator}, headers)
        assert answer.status == 200, answer
        assignments: list[dict[str, Any]] = answer.body["assignments"]
        return assignments

    async def decide(self, assignment: dict[str, Any], decision: str = "approve", **more: Any) -> Answer:
        """Decide what was assigned."""
        body = {"token": assignment["token"], "decision": decision, **more}
        return await self.post(f"/moderation/items/{assignment['item']}/decisions", body)

    @asynccontextmanager
    async def desk(self, **moderator: Any) -> AsyncIterator[Desk]:
        """A moderator who has joined over a WebSocket."""
        async with self.socket() as desk:
            await desk.say("join", **(moderator or ANN))
            await desk.expect("joined")
            yield desk

    @asynccontextmanager
    async def socket(self) -> AsyncIterator[Desk]:
        """A WebSocket that has said nothing yet."""
        async with self._session.ws_connect(f"{self.url}/moderation/desk", autoclose=False) as websocket:
            yield Desk(websocket)


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Api]:
    """A runtime of the service behind a socket."""
    runtime = Runtime([service], settings=load_settings(**options))
    async with runtime, served(runtime) as api:
        yield api


@asynccontextmanager
async def served(runtime: Runtime) -> AsyncIterator[Api]:
    """A started runtime behind a socket."""
    listener = bound()
    ingress = Ingress(make_app(runtime))
    await ingress.open(listener)
    host, port = listener.getsockname()[:2]
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            yield Api(runtime, ingress, session, f"http://{host}:{port}")
    finally:
        runtime.stop_waiting()
        await ingress.close()
