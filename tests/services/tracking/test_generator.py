"""`aioflow load tracking`: what it draws, and that it says when something does not arrive."""

from __future__ import annotations

import asyncio
import os
import sys

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer as TestServer

from services.tracking.generator import Events
from services.tracking.models import EVENT
from services.tracking.service import store
from tests.services.tracking.client import TOKEN, Api
from tests.serving import ROOT


async def load(url: str, *options: str, token: str = TOKEN) -> tuple[int, str, str]:
    """The exit code of the command, and what it says."""
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aioflow", "load", "tracking", "--url", url, *options),
        cwd=ROOT,
        env={**os.environ, "TRACKING_TOKEN": token},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaint = await run.communicate()
    return run.returncode or 0, said.decode(), complaint.decode()


def test_what_is_drawn_depends_on_the_seed_and_is_varied_and_valid() -> None:
    first, again, other = ([Events(seed, lambda: 2e9).draw() for _ in range(3)] for seed in (7, 7, 8))
    assert first == again != other
    drawn = Events(7, lambda: 2e9)
    events = [EVENT.validate_python(drawn.draw()) for _ in range(2000)]
    for name, least in (("url", 200), ("ip", 500), ("user_agent", 40), ("occurred_at", 1900)):
        assert len({event[name] for event in events}) >= least, name  # type: ignore[literal-required]
    assert any(":" in (event.get("ip") or "") for event in events)


async def test_all_that_is_sent_arrives(api: Api) -> None:
    code, said, complaint = await load(api.url, "--jobs", "1500", "--submitters", "20", "--seed", "3", "--json")
    assert code == 0, complaint
    told = orjson.loads(said)
    assert (told["accepted"], told["conservation"]["wrong"]) == (1500, [])
    top = (await api.get("/track/top?by=host"))["top"]
    assert sum(entry["count"] for entry in top) == 1500
    assert len(top) == 3


async def test_what_does_not_arrive_in_time_is_said(api: Api) -> None:
    await api.runtime.pause(store)
    code, said, _ = await load(api.url, "--jobs", "20", "--settle", "0.3", "--json")
    assert code == 1
    assert "20 did not arrive within 0.3 s" in orjson.loads(said)["conservation"]["wrong"][0]


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        ((), "", "set TRACKING_TOKEN"),
        ((), "another token", "answered 401"),
        (("--seed", "x"), TOKEN, "--seed 'x'"),
        (("--workers", "3"), TOKEN, "leave out PAYLOAD"),
    ],
)
async def test_what_cannot_be_asked_or_given_is_one_line(
    api: Api, options: tuple[str, ...], token: str, message: str
) -> None:
    code, _, complaint = await load(api.url, *options, token=token)
    assert (code, complaint.count("\n")) == (2, 1), complaint
    assert message in complaint


@pytest.mark.parametrize(
    "said", [b"hello", b"[]", b'{"requests": 5}', b'{"requests": [5]}', b'{"requests": [{"id": []}]}']
)
async def test_who_is_not_tracking_is_said_in_one_line(said: bytes) -> None:
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(body=said, content_type="application/json")

    async with TestServer(answer) as server:
        code, _, complaint = await load(str(server.make_url("")))
    assert (code, complaint.count("\n")) == (2, 1), complaint
    assert "no list of requests" in complaint
