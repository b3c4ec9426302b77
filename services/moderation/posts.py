"""What changes something: items in, desks, assignments, extensions and decisions."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import Any

import orjson
from aiohttp import web

from aioflow import Problem, Runtime
from aioflow.web import PreferHeader, format_time, read_wait
from services.moderation.board import Board, Desk, Refused
from services.moderation.declared import hub_of, service
from services.moderation.hub import MOST_WATCHES, Hub, Watch
from services.moderation.models import Ask, Decision, Extension, Item, Moderator
from services.moderation.params import body_of
from services.moderation.records import shown_decision, shown_lock
from services.moderation.shown import Assignments, DecisionRecord, Extended, Joined, Left, Taken

LOOK_SECONDS = 1.0
"""A request that waits looks this often, should a message be lost or its client have gone."""


@service.post("/moderation/items", body=Item, answers={200: Taken, 202: Taken}, problems=(409, 429, 503))
async def submit(request: web.Request, runtime: Runtime) -> web.Response:
    """Take an item; the same again is the same item."""
    hub, item = hub_of(runtime), await body_of(request, Item)
    limit = hub.board.settings.content_limit
    if len(item.content.encode()) > limit:
        message = f"it has more than {limit} bytes as UTF-8"
        raise Problem(413, f"content: {message}", errors=[("content", message)])
    await runtime.admit()
    body = orjson.dumps(item.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
    try:
        new = await hub.board.submit(item, body)
    except Refused as refused:
        if refused.code == -1:
            raise Problem(409, f"there is another item {item.id}; use another id or send the same again") from refused
        raise Problem(429, f"{hub.board.settings.bound} items are undecided; submit later") from refused
    return answer(202 if new else 200, {"status": "accepted" if new else "known", "id": item.id})


@service.post("/moderation/desks", body=Moderator, answers={200: Joined}, problems=(404, 503))
async def join(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """Open a desk that asks for items, or take over the one that this moderator has."""
    hub, moderator = hub_of(runtime), await body_of(request, Moderator)
    await hub.board.join(moderator)
    return {
        "status": "joined",
        "moderator": moderator.name,
        "assignments": shown_locks(await looked(hub, moderator.name)),
    }


@service.post("/moderation/desks/{moderator:[^/]+}/leave", answers={200: Left}, problems=(503,))
async def leave(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """Close a desk; what it holds goes back at once."""
    name = request.match_info["moderator"]
    if not await hub_of(runtime).board.leave(name):
        raise no_desk(name)
    return {"status": "left", "moderator": name}


@service.post(
    "/moderation/assignments", headers=PreferHeader, body=Ask, answers={200: Assignments}, problems=(404, 409, 503)
)
async def assignments(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """What a desk holds, after it was given the next item if it has room; with Prefer: wait once there is one."""
    hub, asking = hub_of(runtime), await body_of(request, Ask)
    ends = time.monotonic() + (read_wait(request, runtime.settings.longest_wait) or 0.0)
    check_room(hub)
    watch = Watch(asking.moderator, secrets.token_hex(8))
    with hub.watching(watch):
        try:
            await hub.board.ask(watch.name, watch.by, max(0, round((ends - time.monotonic()) * 1000)))
        except Refused as refused:
            if refused.code == 0:
                raise no_desk(watch.name) from refused
            raise Problem(409, f"{watch.name} has a WebSocket, to which items are pushed") from refused
        try:
            desk = await answered(request, runtime, watch, ends)
        except asyncio.CancelledError:
            await hub.board.drop(watch.name, watch.by)
            raise
        if has_gone(request):
            # Whoever asks again has what the desk holds; nobody does, and the item would wait for its lock to expire.
            await hub.board.drop(watch.name, watch.by)
        return {"moderator": watch.name, "assignments": shown_locks(desk)}


async def answered(request: web.Request, runtime: Runtime, watch: Watch, ends: float) -> Desk:
    """What the desk holds once it waits no longer."""
    hub = hub_of(runtime)
    desk = await looked(hub, watch.name)
    while desk.by == watch.by and (left := ends - time.monotonic()) > 0:
        if runtime.closing.is_set() or has_gone(request):
            break
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left, LOOK_SECONDS)):
                await watch.changed.wait()
        watch.changed.clear()
        desk = await looked(hub, watch.name)
    if desk.by == watch.by:
        await hub.board.rest(watch.name, watch.by, hub.board.settings.idle_ms)
        desk = await looked(hub, watch.name)  # an item may have come just before
    return desk


def has_gone(request: web.Request) -> bool:
    """Whether the client has closed its connection."""
    return request.transport is None or request.transport.is_closing()


@service.post("/moderation/items/{id:[^/]+}/extend", body=Extension, answers={200: Extended}, problems=(409, 503))
async def extend(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """More time under a lock."""
    hub, wish, item_id = hub_of(runtime), await body_of(request, Extension), request.match_info["id"]
    return await extended(hub.board, item_id, wish)


async def extended(board: Board, item_id: str, wish: Extension) -> dict[str, Any]:
    """The new deadline."""
    try:
        deadline_ms = await board.extend(item_id, wish.token)
    except Refused as refused:
        raise problem_of(refused, item_id) from refused
    return {"status": "extended", "item": item_id, "expires_at": format_time(deadline_ms)}


@service.post(
    "/moderation/items/{id:[^/]+}/decisions", body=Decision, answers={200: DecisionRecord}, problems=(409, 503)
)
async def decide(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """Decide an item under a lock; the same decision again is answered as the first time."""
    hub, decision, item_id = hub_of(runtime), await body_of(request, Decision), request.match_info["id"]
    return await decided(hub, item_id, decision)


async def decided(hub: Hub, item_id: str, decision: Decision) -> dict[str, Any]:
    """The record of the decision."""
    try:
        record = await hub.board.decide(item_id, decision)
    except Refused as refused:
        raise problem_of(refused, item_id) from refused
    if hub.board.settings.tells:
        hub.wake()
    return shown_decision(record)


def problem_of(refused: Refused, item_id: str) -> Problem:
    """Why a lock could not be used."""
    match refused.code:
        case 0:
            return Problem(404, f"there is no item {item_id}")
        case -1:
            return Problem(
                409, f"item {item_id} is not locked under this token; the lock has expired, or was another's"
            )
        case -2:
            return Problem(409, "another decision was made under this token")
        case -3:
            return Problem(409, f"item {item_id} was skipped as often as may be; decide or escalate it")
        case _:
            message = "it is not above the level that the item has"
            return Problem(422, f"level: {message}", errors=[("level", message)])


def check_room(hub: Hub) -> None:
    """Raise Problem where this process serves as many as it may."""
    if hub.count >= MOST_WATCHES:
        raise Problem(503, f"{MOST_WATCHES} moderators are served by this process; try again")


async def looked(hub: Hub, name: str) -> Desk:
    """What a desk holds. Raises Problem where there is none."""
    desk = await hub.board.look(name)
    if desk is None:
        raise no_desk(name)
    return desk


def no_desk(name: str) -> Problem:
    """A moderator who has not joined, or has left."""
    return Problem(404, f"{name} has no desk; join by POST /moderation/desks")


def shown_locks(desk: Desk) -> list[dict[str, Any]]:
    """What a desk holds, longest held first."""
    return [shown_lock(lock) for lock in desk.locks]


def answer(status: int, body: Any) -> web.Response:
    """JSON with a status of its own."""
    return web.Response(status=status, body=orjson.dumps(body), headers={"Content-Type": "application/json"})
