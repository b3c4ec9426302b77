"""Nothing secret comes out: what is started, refused, broken or shown with marked secrets is searched for the mark."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aioflow import ConfigError, Runtime, StoreUnavailable
from aioflow.delivery.settings import load_settings as delivery_settings
from aioflow.engine.connect import Clients
from aioflow.engine.store import Store
from aioflow.settings import load_settings
from services.moderation.settings import load_settings as moderation_settings
from services.payments.settings import load_settings as payments_settings
from services.tracking.database import Database
from services.tracking.settings import load_settings as tracking_settings
from tests.serving import Serve
from tests.valkey import Valkey
from tests.waiting import wait_until

MARK = "S3CR3T"
WEBHOOK = "whsec_" + base64.b64encode(f"{MARK} of the webhooks of a test".encode()).decode()
MARKS = (MARK, WEBHOOK.removeprefix("whsec_"), base64.b64encode(MARK.encode()).decode()[:7])
SERVICES = (
    "services.payments:service",
    "services.tracking:service",
    "services.moderation:service",
    "aioflow.delivery:service",
)
TOKEN = f"{MARK}-token"
SECRETS = {
    "AIOFLOW_DELIVERY_SECRETS": WEBHOOK,
    "TRACKING_TOKEN": TOKEN,
    "PAYMENTS_GATEWAY_URL": f"http://bank:{MARK}@127.0.0.1:9/charge",
    "MODERATION_POST_BACK": f"https://hooks.example.org/{MARK}",
}


def search(said: str) -> None:
    """Fail where a secret stands in what came out."""
    found = [line for line in said.splitlines() if any(mark in line for mark in MARKS)]
    assert not found, found


def all_of(error: BaseException) -> str:
    """An error, and the traceback that a program would print of it, with whatever it came of."""
    told, one = ["".join(traceback.format_exception(error)), repr(error)], error
    while one.__context__ is not None:
        one = one.__context__
        told += [repr(one), str(one)]
    return "\n".join(told)


@pytest.fixture
async def locked() -> AsyncIterator[Valkey]:
    """A server with a marked password."""
    server = Valkey(arguments=("--requirepass", MARK))
    server.start()
    yield server
    server.close()


class Aioflow:
    """Runs `aioflow` with marked secrets, and keeps all that comes out."""

    def __init__(self, namespace: str, folder: Path) -> None:
        self.environment = {**SECRETS, "AIOFLOW_NAMESPACE": namespace, "AIOFLOW_LOG_FORMAT": "json"}
        self.environment["TRACKING_DATABASE"] = f"postgresql://ann:{MARK}@127.0.0.1:9/tracking"
        self.folder = folder

    async def refused(self, redis: str, **more: str) -> str:
        """What `serve` says that cannot start."""
        serve = Serve(*SERVICES, "--port", "0", environment={**self.environment, "AIOFLOW_REDIS": redis, **more})
        try:
            serve.spawn()
            assert serve.process is not None
            assert await asyncio.to_thread(serve.process.wait, 25) == 2, serve.said
            return serve.said
        finally:
            serve.close()


@pytest.fixture
def aioflow(namespace: str, tmp_path: Path) -> Aioflow:
    return Aioflow(namespace, tmp_path)


async def run(environment: dict[str, str], *arguments: str) -> str:
    """What a command says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aioflow", *arguments),
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 25)
    return out.decode()


async def asked(url: str) -> str:
    """All answers of some requests, with their headers."""
    said = []
    async with aiohttp.ClientSession() as session:
        for path, token in (
            *(
                ("/readyz", ""),
                ("/healthz", ""),
                ("/metrics", ""),
                ("/openapi.json", ""),
                ("/payments?status=dead", ""),
            ),
            *(
                ("/track/stats", f"{TOKEN}x"),
                ("/track/stats", ""),
                ("/track/stats", TOKEN),
                ("/moderation/items/x", ""),
            ),
        ):
            async with session.get(url + path, headers={"Authorization": f"Bearer {token}"}) as answer:
                said.append(f"{answer.status} {answer.headers} {await answer.text()}")
    assert any(answer.startswith("401 ") for answer in said)
    return "\n".join(said)


async def test_a_runtime_with_secrets_says_none_of_them_whatever_happens(locked: Valkey, aioflow: Aioflow) -> None:
    redis = locked.admin_url.replace("://", f"://:{MARK}@")
    environment = {**aioflow.environment, "AIOFLOW_REDIS": redis}
    serve = Serve(*SERVICES, "--port", "0", environment=environment)
    try:
        await serve.start()
        async with aiohttp.ClientSession() as session:  # its gateway is not there: the job fails again and again
            payment = {"payer_id": "a", "recipient_id": "b", "amount": 1}
            async with session.post(f"{serve.url}/payments", json=payment) as answer:
                assert answer.status < 300
        said = [await asked(serve.url)]
        arguments = [("--service", service) for service in SERVICES[:1]]
        said += await asyncio.gather(
            run(environment, "runtimes"),
            run(environment, "status", *arguments[0]),
            run(environment, "jobs", "list", *arguments[0], "--json"),
        )
        locked.kill()
        await wait_until(lambda: "away" in serve.said)
        said.append(await asked(serve.url))
        await serve.stop()
        said.append(serve.said)
    finally:
        serve.close()
    search("\n".join(said))


async def test_what_cannot_start_says_none_of_them(locked: Valkey, aioflow: Aioflow) -> None:
    wrong = locked.admin_url.replace("://", f"://:{MARK}-wrong@")
    good = locked.admin_url.replace("://", f"://:{MARK}@")
    said = await asyncio.gather(
        aioflow.refused(wrong),
        aioflow.refused(f"redis://ann:{MARK}@127.0.0.1:9/0"),
        aioflow.refused(
            f"redis+cluster://ann:{MARK}@127.0.0.1:9?x={MARK}", PAYMENTS_GATEWAY_URL=f"http://u:{MARK}@h:x/"
        ),
        aioflow.refused(
            good, TRACKING_DATABASE=f"mysql://ann:{MARK}@host/db", AIOFLOW_DELIVERY_SECRETS=f"whsec_{MARK}"
        ),
    )
    assert all("Traceback" not in one for one in said)
    search("\n".join(said))


@pytest.mark.parametrize(
    "url",
    [
        *(
            f"{scheme}://ann:{MARK}@127.0.0.1:9{end}"
            for scheme in ("redis", "rediss", "redis+cluster")
            for end in ("",)
        ),
        f"redis+sentinel://ann:{MARK}@127.0.0.1:9/main?sentinel_password={MARK}",
        f"unix://ann:{MARK}@/nowhere/socket",
    ],
)
async def test_a_server_that_is_away_and_what_a_program_would_print(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    runtime = Runtime([], redis=url)
    with pytest.raises(StoreUnavailable) as away:
        await runtime.start()
    store, clients = Store(url, name="test"), Clients(url, "test")
    shown = [repr(runtime), repr(runtime.settings), str(runtime.settings), repr(store), repr(store.line), repr(clients)]
    shown += [repr(store.redis), repr(store.redis.connection_pool), repr(store.redis.connection_pool.make_connection())]
    await clients.close()
    await store.close()
    search("\n".join([all_of(away.value), caplog.text, *shown]))


@pytest.mark.parametrize(
    ("name", "given", "load"),
    [
        ("AIOFLOW_DELIVERY_SECRETS", f"whsec_{MARK}", delivery_settings),
        ("AIOFLOW_DELIVERY_SECRETS", MARK, delivery_settings),
        ("PAYMENTS_GATEWAY_URL", f"http://ann:{MARK}@host:99999/", payments_settings),
        ("PAYMENTS_GATEWAY_URL", f"ftp://ann:{MARK}@host/", payments_settings),
        ("MODERATION_POST_BACK", f"https://10.0.0.1/{MARK}", moderation_settings),
        ("MODERATION_POST_BACK", f"https://ann:{MARK}@host/", moderation_settings),
        ("TRACKING_DATABASE", f"mysql://ann:{MARK}@host/db", tracking_settings),
        ("TRACKING_DATABASE", f"postgresql://ann:word@host:{MARK}/db", tracking_settings),
        ("TRACKING_DATABASE", f"postgresql://ann:[{MARK}@host/db", tracking_settings),
        ("TRACKING_DATABASE", MARK, tracking_settings),
        ("TRACKING_TOKEN", "S3CR3T", tracking_settings),
    ],
)
def test_a_setting_that_is_wrong_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, given: str, load: Callable[[], Any]
) -> None:
    monkeypatch.setenv(name, given)
    with pytest.raises(ConfigError, match=name) as wrong:
        load()
    search(all_of(wrong.value))


def test_settings_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOFLOW_REDIS", f"redis://ann:{MARK}@host")
    monkeypatch.setenv("TRACKING_DATABASE", f"postgresql://ann:{MARK}@host/db")
    monkeypatch.setenv("MODERATION_POST_BACK", f"https://example.org/{MARK}")
    monkeypatch.setenv("PAYMENTS_GATEWAY_URL", SECRETS["PAYMENTS_GATEWAY_URL"])
    monkeypatch.setenv("TRACKING_TOKEN", TOKEN)
    monkeypatch.setenv("AIOFLOW_DELIVERY_SECRETS", WEBHOOK)
    every = [load_settings(), delivery_settings(), payments_settings(), moderation_settings(), tracking_settings()]
    search("\n".join(f"{settings!r} {settings}" for settings in every))


@pytest.mark.parametrize("end", [f"ann:{MARK}:x@host:1/db", f"ann:{MARK}/x@127.0.0.1:9/db", f"[::1{MARK}@/db"])
async def test_a_database_that_cannot_be_opened(end: str, caplog: pytest.LogCaptureFixture) -> None:
    database = Database(f"postgresql+asyncpg://{end}", 1.0)
    with pytest.raises(Exception, match=r".") as failed:
        await database.reading(lambda connection: connection.close())
    search("\n".join([str(failed.value), repr(failed.value), repr(database), caplog.text]))
    await database.close()
