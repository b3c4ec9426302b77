"""Moderators as clients: each has a WebSocket, decides what it is given, drops it now and then, and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import Any

import aiohttp
import orjson

BACKOFF = (0.02, 0.1)
"""Seconds until a client tries again."""


class Moderators:
    """So many of them, over whichever of these processes is there. `acked` are the decisions they had an answer to."""

    def __init__(self, urls: list[str], seed: int) -> None:
        self.urls = urls
        self.acked: dict[str, str] = {}  # token -> outcome
        self.seen: Counter[str] = Counter()
        self.stopped = asyncio.Event()
        self._random = random.Random(seed)

    async def run(self, profiles: list[dict[str, Any]]) -> None:
        """Until stopped."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
            asyncio.TaskGroup() as group,
        ):
            for profile in profiles:
                group.create_task(self._work(session, profile), name=f"moderator {profile['name']}")

    async def _work(self, session: aiohttp.ClientSession, profile: dict[str, Any]) -> None:
        while not self.stopped.is_set():
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                url = f"{self._random.choice(self.urls)}/moderation/desk"
                async with session.ws_connect(url, timeout=aiohttp.ClientWSTimeout(ws_close=1.0)) as websocket:
                    await websocket.send_json({"type": "join", **profile})
                    await self._serve(websocket)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._random.uniform(*BACKOFF)):
                    await self.stopped.wait()

    async def _serve(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        while not self.stopped.is_set():
            try:
                message = await websocket.receive(timeout=0.5)
            except TimeoutError:
                continue
            if message.type is not aiohttp.WSMsgType.TEXT:
                self.seen[f"close {websocket.close_code}"] += 1
                return
            told = orjson.loads(message.data)
            self.seen[told["type"]] += 1
            if told["type"] == "decided":
                self.acked[told["token"]] = told["outcome"]
            elif told["type"] == "assignment":
                await asyncio.sleep(self._random.uniform(0, 0.02))  # a moderator thinks
                drop = self._random.random()
                if drop < 0.02:
                    self._drop(websocket)
                    return
                await websocket.send_json(self._decision(told))
                if drop < 0.04:
                    self._drop(websocket)  # and hears no answer
                    return

    def _decision(self, told: dict[str, Any]) -> dict[str, Any]:
        chance = self._random.random()
        decided: dict[str, Any] = {"type": "decide", "item": told["item"], "token": told["token"]}
        if chance < 0.05:
            return {**decided, "decision": "skip"}
        if chance < 0.07 and told["level"] < 3:
            return {**decided, "decision": "escalate", "level": told["level"] + 1}
        return {**decided, "decision": "reject", "reason": "no"} if chance < 0.3 else {**decided, "decision": "approve"}

    def _drop(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self.seen["dropped"] += 1
        connection = websocket._response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()


async def submit_all(url_of: Any, items: list[dict[str, Any]], submitters: int) -> None:
    """Post until each was taken, as clients do whose answer may be lost."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:

        async def submit(mine: list[dict[str, Any]]) -> None:
            for item in mine:
                taken = False
                while not taken:
                    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                        async with session.post(f"{url_of()}/moderation/items", json=item) as answer:
                            taken = answer.status in (200, 202)
                    if not taken:
                        await asyncio.sleep(0.02)  # a client's backoff

        await asyncio.gather(*(submit(items[first::submitters]) for first in range(submitters)))
