"""The routes in: POST /track takes one event or an array of them, GET /track.gif one from a page without scripts.

They know nothing of the database. An answer of 202 says that the events are as durable as the runtime promises; the
rest of an array that cannot be taken is named, event by event. Where Redis is as full as it may be, nothing is read
and all is refused, as by the framework's own routes.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web
from pydantic import ValidationError

from aioflow import AioflowError, Handle, IdConflict, Runtime
from aioflow.web import KeyHeader, Problem, id_of_key, json_response, message_of, read_json, wrong
from services.tracking.models import (
    BYTES_OF_JOB,
    EVENTS_OF_JOB,
    LONGEST_AGENT,
    MOST_EVENTS,
    Collected,
    array_of,
    carried,
    row_id,
)
from services.tracking.proxies import client_address
from services.tracking.service import Tracking, service, store
from services.tracking.shown import CollectedMany, CollectedOne, GifQuery, NewEvents

GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
NEVER_CACHED = {"Cache-Control": "no-store, no-cache, must-revalidate, max-age=0", "Pragma": "no-cache", "Expires": "0"}
MOST_MESSAGE = 300
EVENTS_OF_TURN = 100
"""So many are checked before the event loop has its turn: some milliseconds."""


@dataclass(slots=True)
class Part:
    """Some events of a post, which travel as one job, and where they stood in it."""

    events: list[bytes]
    positions: list[int]


@service.post(
    "/track",
    headers=KeyHeader,
    body=NewEvents,
    answers={202: CollectedOne | CollectedMany},
    problems=(409, 429, 503),
)
async def track(request: web.Request, runtime: Runtime) -> web.Response:
    """Take one event, or an array of up to 1,000."""
    await runtime.admit()
    body = await read_json(request)
    key = request.headers.get("Idempotency-Key")
    job_id = None if key is None else id_of_key(store, key)
    if isinstance(body, list):
        return await _track_many(request, runtime, body, job_id)
    if not isinstance(body, dict):
        raise wrong("body", "send an event, which is an object, or an array of them")
    handle = await _submit(runtime, _collected(request, runtime, [carried(body)]), job_id)
    return _taken(row_id(handle.id, 0))


@service.get("/track.gif", query=GifQuery, answers={200: "image/gif"}, problems=(429, 503))
async def gif(request: web.Request, runtime: Runtime) -> web.Response:
    """Take the event of a page that asks for an image; its answer is one transparent point."""
    url = request.query.get("url") or request.headers.get("Referer")
    if not url:
        raise wrong("url", "give the parameter url, or send a Referer")
    event = carried({"url": _text(url)})
    await runtime.admit()
    await _submit(runtime, _collected(request, runtime, [event]), None)
    return web.Response(body=GIF, content_type="image/gif", headers=NEVER_CACHED)


async def _track_many(request: web.Request, runtime: Runtime, items: list[Any], job_id: str | None) -> web.Response:
    if len(items) > MOST_EVENTS:
        raise Problem(413, f"an array has at most {MOST_EVENTS} events, this one {len(items)}")
    if not items:
        raise wrong("body", "an array has at least one event")
    parts, errors = await _parts(items)
    if not parts:
        named = [(f"{error['index']}.{error['field']}".rstrip("."), error["message"]) for error in errors[:20]]
        raise Problem(422, f"none of the {len(items)} events can be taken", errors=named)
    ids: list[str | None] = [None] * len(items)
    accepted = 0
    answers = await _submit_parts(request, runtime, parts, job_id)
    for part, answer in zip(parts, answers, strict=True):
        if isinstance(answer, Handle):
            accepted += len(part.events)
            for index, position in enumerate(part.positions):
                ids[position] = row_id(answer.id, index)
        else:
            message = f"not taken, send it again: {answer}"[:MOST_MESSAGE]
            errors += [{"index": position, "field": "", "message": message} for position in part.positions]
    if not accepted:
        raise next(answer for answer in answers if not isinstance(answer, Handle))
    errors.sort(key=lambda error: error["index"])
    return json_response({"status": "OK", "accepted": accepted, "tracking_ids": ids, "errors": errors}, 202)


async def _parts(items: list[Any]) -> tuple[list[Part], list[dict[str, Any]]]:
    """The good ones, as many together as one job takes, and what is wrong with the others.

    The same array is always divided in the same way: with an Idempotency-Key each part is found again.
    """
    parts: list[Part] = []
    errors: list[dict[str, Any]] = []
    room = 0
    for position, item in enumerate(items):
        if position % EVENTS_OF_TURN == EVENTS_OF_TURN - 1:
            await asyncio.sleep(0)
        try:
            event = carried(item)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"]))[:MOST_MESSAGE]
            errors.append({"index": position, "field": field, "message": message_of(first)[:MOST_MESSAGE]})
            continue
        if not parts or len(event) > room or len(parts[-1].events) == EVENTS_OF_JOB:
            parts.append(Part([], []))
            room = BYTES_OF_JOB
        room -= len(event)
        parts[-1].events.append(event)
        parts[-1].positions.append(position)
    return parts, errors


async def _submit_parts(
    request: web.Request, runtime: Runtime, parts: list[Part], job_id: str | None
) -> list[Handle[Any] | AioflowError]:
    payloads = [_collected(request, runtime, part.events) for part in parts]
    if job_id is None:
        return await runtime.submit_many(store, payloads)
    # One after the other: another array under the same key must be refused at its first part that differs, and as a
    # whole, since it may have more parts than the first array had.
    answers: list[Handle[Any] | AioflowError] = []
    for number, payload in enumerate(payloads):
        payload["of"] = len(payloads)
        # The first under the id of a single event, so that a key stands for one of them.
        answers.append(await _submit(runtime, payload, f"{job_id}-{number}" if number else job_id))
    return answers


async def _submit(runtime: Runtime, payload: Collected, job_id: str | None) -> Handle[Any]:
    """Submit one job. The same events under the same id are the same job, whenever and by whomever they were sent."""
    try:
        return await runtime.submit(store, payload, id=job_id)
    except IdConflict as conflict:
        before: Collected = orjson.loads((await runtime.inspect(store, conflict.job_id)).payload)
        if [before["events"], before.get("of")] != [payload["events"], payload.get("of")]:
            raise
        # As it was then, so that this receipt, too, is one of the store's.
        return await runtime.submit(store, before, id=job_id)


def _collected(request: web.Request, runtime: Runtime, events: list[bytes]) -> Collected:
    tracking: Tracking = runtime.resources["tracking"]
    agent = request.headers.get("User-Agent")
    return {
        "received_ms": runtime.now_ms(),
        "ip": client_address(request, tracking.settings.trusted_proxies),
        "user_agent": None if agent is None else _text(agent)[:LONGEST_AGENT],
        "events": array_of(events),
    }


def _text(header: str) -> str:
    """Text as UTF-8 can carry it: a header may hold any bytes, save NUL."""
    return header.encode(errors="replace").decode()


def _taken(tracking_id: str) -> web.Response:
    headers = {"Content-Type": "application/json", "Location": f"/track/requests/{tracking_id}"}
    return web.Response(status=202, body=b'{"status":"OK","tracking_id":"%s"}' % tracking_id.encode(), headers=headers)
