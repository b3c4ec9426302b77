"""Desks over WebSockets: pushes, decisions, drops, take-overs, and the stop of the runtime."""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Any

import pytest
from aiohttp import WSCloseCode, web

from aioflow.ingress.server import Ingress
from services.moderation.declared import hub_of, service
from services.moderation.socket import NOT_JOINED, REPLACED
from tests.services.moderation.client import ANN, BEN, Api
from tests.services.moderation.conftest import Serving
from tests.serving import bound
from tests.waiting import wait_until


async def test_an_item_is_pushed_decided_and_followed_by_the_next(api: Api) -> None:
    async with api.desk() as ann:
        assert (await api.item("i1")).status == 202
        first = await ann.expect("assignment")
        assert (first["item"], first["content"], first["votes"]) == ("i1", "Buy now!", 0)
        await api.item("i2")
        await ann.decide(first, "reject", reason="an advert")
        told = {message["type"]: message for message in (await ann.next(), await ann.next())}
        assert told["decided"]["outcome"] == "rejected"
        assert told["assignment"]["item"] == "i2"
        assert await api.status("i1") == "rejected"


async def test_what_cannot_be_taken_is_said_and_the_desk_goes_on(api: Api) -> None:
    async with api.desk() as ann:
        for message, status, field in (
            ({"type": "dance"}, 422, "message"),
            ({"type": "decide", "item": "i1", "token": "ab.1", "decision": "maybe"}, 422, "decision"),
            ({"type": "decide", "item": "i1", "token": "ab.1", "decision": "reject"}, 422, "reason"),
            ({"type": "decide", "item": "i1", "token": "ab.1", "decision": "approve"}, 404, None),
            ({"type": "extend", "item": "i1", "token": "ab.1"}, 404, None),
            ({"type": "join", **ANN}, 409, None),
            ([], 422, "message"),
        ):
            await ann.websocket.send_json(message)
            problem = await ann.expect("problem")
            assert problem["status"] == status, (message, problem)
            if field is not None:
                assert problem["errors"][0]["field"] == field
        await ann.websocket.send_str("{")
        assert (await ann.expect("problem"))["status"] == 422
        await ann.websocket.send_bytes(b"\xff")
        assert (await ann.expect("problem"))["status"] == 422
        await api.item()
        await ann.expect("assignment")


async def test_a_problem_is_said_in_the_words_of_http(api: Api) -> None:
    decision = {"token": "ab.1", "decision": "reject"}
    by_http = await api.post("/moderation/items/i1/decisions", decision)
    async with api.desk() as ann:
        await ann.say("decide", item="i1", **decision)
        problem = await ann.expect("problem")
    assert problem["detail"] == by_http.body["detail"] == "reason: it is needed to reject"
    assert problem["errors"] == by_http.body["errors"]


async def test_a_foreign_key_refuses_a_message_and_the_desk_goes_on(api: Api) -> None:
    foreign = api.runtime.key(service, "item:foreign")
    await api.runtime.redis.set(foreign, "no hash")
    async with api.desk() as ann:
        await ann.say("extend", item="foreign", token="ab.1")
        problem = await ann.expect("problem")
        assert (problem["status"], problem["item"]) == (503, "foreign")
        await api.item()
        await ann.expect("assignment")


@pytest.mark.parametrize(
    "message", [{"type": "leave"}, {"type": "join", "name": "ann"}, {"type": "join", **ANN, "level": 9}]
)
async def test_a_first_message_that_is_no_join_ends_it(api: Api, message: dict[str, Any]) -> None:
    async with api.socket() as desk:
        await desk.websocket.send_json(message)
        assert (await desk.expect("problem"))["status"] == 422
        assert await desk.closed() == NOT_JOINED


async def test_a_desk_that_drops_and_comes_back_keeps_its_item(api: Api) -> None:
    async with api.desk() as ann:
        await api.item()
        first = await ann.expect("assignment")
        ann.drop()
    async with api.desk() as again:
        assert (await again.expect("assignment"))["token"] == first["token"]
        await again.decide(first)
        assert (await again.expect("decided"))["outcome"] == "approved"


async def test_a_desk_that_drops_gives_its_item_back_after_the_grace_and_not_before(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODERATION_GRACE", "1.5")
    async with serving() as api, api.desk(**BEN) as ben:
        async with api.desk() as ann:
            await api.item(author="ben")  # so that it is ann's
            await ann.expect("assignment")
            dropped = time.monotonic()
            ann.drop()
        await wait_until(lambda: hub_of(api.runtime).count == 1)
        assert await api.status() == "locked"

        async def waiting() -> bool:
            return await api.status() == "waiting"

        await wait_until(waiting)
        assert 1.4 < time.monotonic() - dropped < 4.0
        assert not ben.websocket.closed
        desks = (await api.get("/moderation/desks"))["desks"]
        assert [desk["moderator"] for desk in desks] == ["ben"]


async def test_whoever_joins_again_takes_the_desk_over(api: Api) -> None:
    async with api.desk() as first:
        await api.item()
        held = await first.expect("assignment")
        async with api.desk() as second:
            assert (await second.expect("assignment"))["token"] == held["token"]
            assert await first.closed() == REPLACED
            await second.decide(held)
            await second.expect("decided")
            await api.item("i2")
            await second.expect("assignment")


async def test_a_desk_that_leaves_gives_back_at_once(api: Api) -> None:
    async with api.desk() as ann, api.desk(**BEN) as ben:
        await api.item()
        await ann.expect("assignment")
        await ann.say("leave")
        assert await ann.closed() == WSCloseCode.OK
        assert (await ben.expect("assignment"))["item"] == "i1"


async def test_a_lock_that_expires_is_said_to_who_held_it(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODERATION_LOCK", "0.5")
    async with serving() as api, api.desk() as ann, api.desk(**BEN) as ben:
        await api.item()
        held = await ann.expect("assignment")
        assert (await ben.expect("assignment", 3))["item"] == "i1"
        assert (await ann.expect("lost"))["token"] == held["token"]
        await ann.decide(held)
        assert (await ann.expect("problem"))["status"] == 409


async def test_an_extension_moves_the_deadline(api: Api) -> None:
    async with api.desk() as ann:
        await api.item()
        held = await ann.expect("assignment")

        async def moved() -> bool:  # at the first time, where a millisecond has gone by
            await ann.say("extend", item="i1", token=held["token"])
            return bool((await ann.expect("extended"))["expires_at"] > held["expires_at"])

        await wait_until(moved)


async def test_a_message_that_is_lost_is_made_up_for_by_the_next_beat(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with api.desk() as ann:
        hub = hub_of(api.runtime)
        await wait_until(lambda: all(watch.version for watches in hub._watches.values() for watch in watches))
        monkeypatch.setattr(hub.board, "nonce", "elsewhere")  # of tokens
        monkeypatch.setattr(hub, "_heard", lambda moderator: None)
        # The desk's home is moved, so that the message goes where nobody listens.
        await api.runtime.redis.hset(api.runtime.key(api.runtime.services["moderation"], "desk:ann"), "home", "nobody")
        await api.item()
        assert (await ann.expect("assignment", 3))["item"] == "i1"


async def test_two_processes_serve_one_line(serving: Serving) -> None:
    async with serving() as one, serving() as other, one.desk() as ann, other.desk(**BEN) as ben:
        await other.item("i1")
        await other.item("i2")
        first, second = await ann.expect("assignment"), await ben.expect("assignment")
        assert (first["item"], second["item"]) == ("i1", "i2")


async def test_the_stop_ends_open_websockets_in_good_order_and_soon(serving: Serving) -> None:
    async with serving() as api, api.desk() as ann, api.desk(**BEN) as ben:
        await api.item()
        await ann.expect("assignment")
        began = time.monotonic()
        api.runtime.stop_waiting()
        closing = asyncio.create_task(api.ingress.close())
        for desk in (ann, ben):
            assert await desk.closed() == WSCloseCode.GOING_AWAY
        await closing
        assert time.monotonic() - began < 1.0


async def test_a_stop_is_not_the_end_of_a_handler_but_of_its_messages() -> None:
    """Of a peer that leaves the end of the connection to the server, as RFC 6455 has it (7.1.1)."""
    heard: list[str] = []

    async def listen(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        try:
            heard.extend([message.data async for message in websocket])
            heard.append("the end")
        except BaseException as error:
            heard.append(repr(error))
            raise
        return websocket

    application = web.Application()
    application.router.add_get("/", listen)
    ingress, listener = Ingress(application), bound()
    await ingress.open(listener)
    reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
    writer.write(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    closing = asyncio.create_task(ingress.close())
    kind, size, code = struct.unpack("!BBH", await reader.readexactly(4))
    assert (kind, code) == (0x88, WSCloseCode.GOING_AWAY)
    await reader.readexactly(size - 2)
    mask = bytes(4)
    writer.write(b"\x81\x82" + mask + b"hi" + b"\x88\x82" + mask + struct.pack("!H", code))
    assert await reader.read() == b"", "the connection ends, and nothing is said after the close"
    assert heard == ["hi", "the end"], "before the stop goes on"
    await closing
    writer.close()


async def test_a_process_that_was_away_too_long_opens_its_desks_again(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as api, api.desk() as ann:
        assert await hub_of(api.runtime).board.leave("ann")  # as a tick of another process would
        await api.item()
        assert (await ann.expect("assignment", 3))["item"] == "i1"
