"""A desk over a WebSocket: the first message joins, assignments are pushed, decisions are messages.

The desk outlives its connection by the grace period, so that one that drops and comes back keeps what it holds.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from typing import Annotated, Any

import orjson
from aiohttp import WSCloseCode, WSMsgType, web
from pydantic import Field, TypeAdapter, ValidationError

from aioflow import Problem, ProtocolError, Runtime, StoreUnavailable
from aioflow.web import message_of
from services.moderation.board import Lock
from services.moderation.declared import hub_of, service
from services.moderation.hub import Hub, Watch
from services.moderation.models import Decide, Extend, Join, Leave
from services.moderation.posts import check_room, decided, extended
from services.moderation.records import shown_lock

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
"""A peer that does not answer a ping within half of it has dropped."""
JOIN_SECONDS = 10.0
SEND_SECONDS = 10.0
"""A peer that takes so long to read has dropped."""
LARGEST_MESSAGE = 16_384
REPLACED = 4001
"""Close code: the moderator has joined elsewhere."""
NOT_JOINED = 4002
"""Close code: the first message was no join that could be taken."""
MESSAGES: TypeAdapter[Join | Decide | Extend | Leave] = TypeAdapter(
    Annotated[Join | Decide | Extend | Leave, Field(discriminator="type")]
)
TYPES = ("join", "decide", "extend", "leave")


@service.get("/moderation/desk", answers={101: None}, problems=(503,))
async def desk(request: web.Request, runtime: Runtime) -> web.WebSocketResponse:
    """A moderator's session."""
    hub = hub_of(runtime)
    check_room(hub)
    websocket = web.WebSocketResponse(heartbeat=HEARTBEAT_SECONDS, max_msg_size=LARGEST_MESSAGE, timeout=2.0)
    await websocket.prepare(request)
    await Session(hub, websocket).run()
    return websocket


class Session:
    """One WebSocket from its join to its end."""

    def __init__(self, hub: Hub, websocket: web.WebSocketResponse) -> None:
        self._hub = hub
        self._websocket = websocket
        self._sent: dict[str, str] = {}
        """Token of each assignment that was pushed and is not known to be over: its item."""
        self._deciding: set[str] = set()
        self._left = False

    async def run(self) -> None:
        """Serve it until either side ends it."""
        join = await self._joined()
        if join is None:
            return
        watch = Watch(join.name, secrets.token_hex(8), join)
        board = self._hub.board
        with self._hub.watching(watch):
            try:
                await board.join(join, watch.by, self._hub.keep_ms)
            except (StoreUnavailable, ProtocolError) as error:
                await self._refuse(Problem(503, str(error)))
                await self._websocket.close(code=WSCloseCode.TRY_AGAIN_LATER)
                return
            await self._send({"type": "joined", "moderator": join.name})
            watch.changed.set()
            tasks = [asyncio.create_task(self._read(watch)), asyncio.create_task(self._push(watch))]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                for ended in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(ended, Exception):
                        log.error("the desk of %s failed: %r", join.name, ended, exc_info=ended)
                await self._end(watch)
        # Not before both have ended: where anything still receives, the connection is closed before the peer has
        # answered, and the peer may see a connection that was lost. Any other end is said by aiohttp when this returns.
        if watch.replaced:
            await self._websocket.close(code=REPLACED, message=b"the moderator has joined elsewhere")

    async def _joined(self) -> Join | None:
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                message = await self._websocket.receive()
        except TimeoutError:
            await self._refuse(Problem(408, f"no join came within {JOIN_SECONDS:g} s"))
        else:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                return None
            try:
                return Join.model_validate_json(message.data)
            except ValidationError as error:
                await self._refuse(problem(error))
        await self._websocket.close(code=NOT_JOINED, message=b"join first")
        return None

    async def _read(self, watch: Watch) -> None:
        async for message in self._websocket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                continue
            try:
                given = MESSAGES.validate_json(message.data)
                await self._take(given, watch)
            except ValidationError as error:
                await self._refuse(problem(error), message.data)
            except Problem as refusal:
                await self._refuse(refusal, message.data)
            except (StoreUnavailable, ProtocolError) as error:
                log.warning("a message of %s could not be taken: %s", watch.name, error)
                await self._refuse(Problem(503, str(error)), message.data)
            if self._left:
                return

    async def _take(self, given: Join | Decide | Extend | Leave, watch: Watch) -> None:
        if isinstance(given, Join):
            raise Problem(409, "this WebSocket has joined already")
        if isinstance(given, Extend):
            answer = await extended(self._hub.board, given.item, given)
            await self._send({"type": "extended", **answer, "token": given.token})
        elif isinstance(given, Decide):
            self._deciding.add(given.token)
            try:
                record = await decided(self._hub, given.item, given)
                self._sent.pop(given.token, None)
            finally:
                self._deciding.discard(given.token)
                watch.changed.set()
            await self._send({"type": "decided", **record})
        else:
            await self._hub.board.leave(watch.name, watch.by)
            self._left = True

    async def _push(self, watch: Watch) -> None:
        """Send what has come to the desk, and say what it holds no more; until it is cancelled or replaced."""
        while True:
            await watch.changed.wait()
            watch.changed.clear()
            try:
                found = await self._hub.board.look(watch.name)
            except (StoreUnavailable, ProtocolError) as error:
                log.debug("desk of %s: %s", watch.name, error)
                watch.changed.set()
                await asyncio.sleep(random.uniform(0.2, 0.5))  # noqa: S311 - jitter
                continue
            if watch.replaced or (found is not None and found.by not in ("", watch.by)):
                watch.replaced = True
                return
            await self._tell({lock.token: lock for lock in (found.locks if found is not None else [])})

    async def _tell(self, held: dict[str, Lock]) -> None:
        for token in [token for token in self._sent if token not in held and token not in self._deciding]:
            await self._send({"type": "lost", "item": self._sent.pop(token), "token": token})
        for token, lock in held.items():
            if token not in self._sent and token not in self._deciding:
                self._sent[token] = lock.item
                await self._send({"type": "assignment", **shown_lock(lock)})

    async def _refuse(self, refusal: Problem, message: str | bytes | None = None) -> None:
        """Say what is wrong, with the item and the token of the message that was refused."""
        told = orjson.loads(refusal.response().text or "{}")
        await self._send({**told, **named(message), "type": "problem"})

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._websocket.send_str(orjson.dumps(message).decode())
        except (TimeoutError, ConnectionError) as error:
            log.debug("a desk does not read: %r", error)
            await self._websocket.close(code=WSCloseCode.GOING_AWAY)

    async def _end(self, watch: Watch) -> None:
        """What is held is kept for the grace period; a tick gives it back then."""
        if self._left or watch.replaced:
            return
        try:
            await self._hub.board.rest(watch.name, watch.by, self._hub.board.settings.grace_ms)
        except (StoreUnavailable, ProtocolError) as error:
            log.debug("desk of %s: %s; it beats no more", watch.name, error)


def named(message: str | bytes | None) -> dict[str, str]:
    """The item and the token of a message that could not be taken, where it has any that can be shown."""
    try:
        given = orjson.loads(message or b"")
    except orjson.JSONDecodeError:
        return {}
    given = given if isinstance(given, dict) else {}
    return {name: given[name] for name in ("item", "token") if isinstance(given.get(name), str)}


def problem(error: ValidationError) -> Problem:
    """A message that is none of ours, as the ingress says it of a body."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[:20]
    paths = [item["loc"][1:] if item["loc"][:1] and item["loc"][0] in TYPES else item["loc"] for item in found]
    fields = [
        (".".join(map(str, path)) or "message", message_of(item)) for path, item in zip(paths, found, strict=True)
    ]
    return Problem(422, "; ".join(f"{field}: {message}" for field, message in fields), errors=fields)
