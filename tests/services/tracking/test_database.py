"""The database behind tracking: each event once, rows that are refused, outages, and the change to another one.

PostgreSQL is a real one; it is stopped and started under load.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import BigInteger, Connection, inspect

from aioflow import ConfigError, JobFailed
from aioflow.settings import Settings
from services.tracking.database import Database, DatabaseAway, mapped
from services.tracking.models import array_of, row_id
from services.tracking.rows import Row, rows_of
from services.tracking.service import Tracking, store
from services.tracking.settings import TrackingSettings
from services.tracking.settings import load_settings as load_tracking
from services.tracking.store import insert, statement
from services.tracking.table import requests
from tests.postgres import Postgres
from tests.services.tracking.client import BEARER, EVENT, TOKEN, Api, serving
from tests.serving import ROOT, Serve
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """One server for all tests here; whoever stops it starts it again."""
    server = Postgres()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The same over either database."""
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        monkeypatch.setenv("TRACKING_DATABASE", server.new_database())
    return settings


async def count(api: Api) -> int:
    """How many rows there are."""
    answer = await api.get("/track/top?by=host&limit=1000")
    return sum(entry["count"] for entry in answer["top"])


# ---- each once


async def test_either_database_answers_alike(either: Settings) -> None:
    async with serving(either) as api:
        ids = (
            await api.post([{"url": f"https://h.example/{n % 2}?q=ü", "ip": f"192.0.2.{n}"} for n in range(5)])
        ).body["tracking_ids"]
        await api.settled()
        page = await api.get("/track/requests?limit=2&sort=occurred_at&q=Q%3D%C3%BC")
        rest = await api.get(f"/track/requests?sort=occurred_at&q=q%3D&cursor={page['cursor']}")
        assert [row["id"] for row in page["requests"] + rest["requests"]] == ids
        assert (await api.get("/track/top?by=path"))["top"] == [
            {"value": "/0", "count": 3, "unique_ips": 3},
            {"value": "/1", "count": 2, "unique_ips": 2},
        ]
        assert (await api.get("/track/stats"))["buckets"][0]["count"] == 5
        path = f"/track/requests/{ids[0]}"
        changed = await api.ask("PATCH", path, BEARER, json={"ip": None})
        assert (changed.status, changed.body["ip"]) == (200, None)
        assert (await api.ask("DELETE", path)).status == 204
        assert (await api.ask("DELETE", path)).status == 404


async def test_a_batch_that_is_repeated_inserts_nothing_twice(either: Settings) -> None:
    async with serving(either) as api:
        tracking: Tracking = api.runtime.resources["tracking"]
        rows = rows_of(
            "a-job",
            {
                "received_ms": 1,
                "ip": None,
                "user_agent": None,
                "events": array_of([b'{"url":"https://h.example"}'] * 3),
            },
        )
        for _ in range(2):
            assert await insert(tracking.database, rows) == {}
        assert await count(api) == 3


async def test_a_row_that_is_refused_fails_its_own_job_and_no_other_event(
    postgres: Postgres, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.new_database()
    monkeypatch.setenv("TRACKING_DATABASE", url)
    async with serving(settings) as api:
        await api.row(await api.track())
        rule = "ALTER TABLE requests ADD CONSTRAINT no_evil CHECK (host <> 'evil.example')"
        await asyncio.to_thread(postgres.run, rule, url)
        evil = {"url": "https://evil.example/"}
        ids = (await api.post([EVENT] * 7 + [evil] + [EVENT] * 12)).body["tracking_ids"]
        alone = await asyncio.gather(*(api.track() for _ in range(30)), api.track(**evil))
        await api.settled()
        assert await count(api) == 1 + 19 + 30
        for tracking_id, of in ((ids[0], row_id(ids[7].partition(".")[0], 7)), (alone[-1], alone[-1])):
            with pytest.raises(JobFailed, match="the database refuses 1 of its events") as failed:
                await api.runtime.handle(store, tracking_id.partition(".")[0]).result(5)
            assert of in failed.value.message
            assert "no_evil" in failed.value.message
        assert (await api.runtime.sizes(store)).dead == 2


@pytest.mark.parametrize("events", ["no", "[{}]", '[{"url": "x"}]', '[{"url": "https://h.example", "x": 1}]'])
async def test_a_job_that_holds_no_events_fails_alone(settings: Settings, events: str) -> None:
    collected = {"received_ms": 1, "ip": None, "user_agent": None, "events": events}
    async with serving(settings) as api:
        odd = await api.runtime.submit(store, collected)
        await asyncio.gather(*(api.track() for _ in range(5)))
        with pytest.raises(JobFailed, match="it holds no events"):
            await odd.result(10)
        await api.settled()
        assert await count(api) == 5


@pytest.mark.parametrize("is_sqlite", [True, False])
def test_the_statement_takes_the_fields_of_a_row_in_order(is_sqlite: bool) -> None:
    columns = statement(is_sqlite).partition("(")[2].partition(")")[0]
    assert columns.split(", ") == list(Row._fields)


# ---- away


async def submit_events(api: Api, stop: asyncio.Event, submitters: int = 2) -> int:
    """Post until the stop; how many were accepted."""

    async def submit() -> int:
        accepted = 0
        while not stop.is_set():
            await api.track()
            answer = await api.post([EVENT] * 20)
            assert answer.status == 202
            accepted += 1 + answer.body["accepted"]
        return accepted

    return sum(await asyncio.gather(*(submit() for _ in range(submitters))))


@pytest.mark.timeout(60)
async def test_a_database_that_is_stopped_under_load_gets_every_event_once(
    postgres: Postgres, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKING_DATABASE", postgres.new_database())
    async with serving(settings) as api:
        stop = asyncio.Event()
        load = asyncio.create_task(submit_events(api, stop))

        async def some() -> bool:
            return await count(api) > 100

        async def piled_up() -> bool:
            return (await api.runtime.sizes(store)).open > 700

        await wait_until(some, 20)
        await asyncio.to_thread(postgres.stop)
        try:
            await wait_until(piled_up, 30)
            answer = await api.ask("GET", "/track/stats")
            assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
            assert (await api.ask("DELETE", "/track/requests/x")).status == 503
        finally:
            await asyncio.to_thread(postgres.start)
        before = await count(api)
        stop.set()
        accepted = await load
        await wait_until(lambda: _over(api), 30)
        sizes = await api.runtime.sizes(store)
        assert (sizes.open, sizes.dead) == (0, 0)
        assert await count(api) == accepted > before
        done = [entry[0] for entry in (await api.runtime.jobs_page(store, "done", limit=500)).entries]
        statuses = await api.runtime.inspect_many(store, done)
        assert {status.failures for status in statuses if status is not None} == {0}, "an outage costs no attempt"


async def _over(api: Api) -> bool:
    return (await api.runtime.sizes(store)).open == 0


async def test_with_the_database_away_at_the_start_all_comes_up_and_goes_on_when_it_is_there(
    postgres: Postgres, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKING_DATABASE", postgres.new_database())
    await asyncio.to_thread(postgres.stop)
    try:
        async with serving(settings) as api:
            tracking_id = await api.track()
            assert (await api.ask("GET", "/track/stats")).status == 503
            await asyncio.to_thread(postgres.start)
            assert (await api.row(tracking_id))["host"] == "example.org"
            assert (await api.runtime.handle(store, tracking_id.partition(".")[0]).status()).failures == 0
    finally:
        await asyncio.to_thread(postgres.start)


async def test_many_that_start_at_once_make_one_table(either: Settings) -> None:
    url = load_tracking().url(either.data)
    databases = [Database(url, 5) for _ in range(8)]

    async def ask(database: Database) -> None:
        async with database.writing() as connection:
            await connection.exec_driver_sql("SELECT count(*) FROM requests")

    try:
        await asyncio.gather(*map(ask, databases))
    finally:
        for database in databases:
            await database.close()


async def test_migrations_make_the_table_that_the_statements_mean(either: Settings) -> None:
    database = Database(load_tracking().url(either.data), 5)

    def made(connection: Connection) -> list[tuple[str, bool, bool]]:
        columns = inspect(connection).get_columns("requests")
        return [(column["name"], column["nullable"], isinstance(column["type"], BigInteger)) for column in columns]

    try:
        async with database.writing() as connection:
            assert await connection.run_sync(made) == [
                (column.name, column.nullable, isinstance(column.type, BigInteger)) for column in requests.columns
            ]
    finally:
        await database.close()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_file_that_cannot_be_opened_is_away_and_no_thread_complains(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}", 10)  # a folder
    try:
        for _ in range(20):
            with pytest.raises(DatabaseAway, match="unable to open"):
                async with database.writing():
                    pass
    finally:
        await database.close()


async def test_who_waits_for_another_writer_of_sqlite_gives_up_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'events.sqlite3'}", 10)
    try:
        async with database.writing():
            monkeypatch.setattr("services.tracking.database.STATEMENT_SECONDS", 0.05)
            with pytest.raises(DatabaseAway, match="TimeoutError"):
                async with asyncio.timeout(5), database.writing():
                    pytest.fail("two write at once")
        async with database.writing() as connection:
            assert not connection.closed
    finally:
        await database.close()


def test_a_server_whose_words_are_not_utf_8_is_away_and_no_row_is_refused() -> None:
    """As asyncpg raises it where a server that starts up says so in its own encoding."""
    with pytest.raises(DatabaseAway), mapped():
        b"Das Datenbanksystem f\xe4hrt hoch".decode()


# ---- processes


async def post_until(url: str, stop: asyncio.Event) -> int:
    async with aiohttp.ClientSession() as session:
        return await submit_events(Api(url, session), stop)


def environment(settings: Settings, database: str = "") -> dict[str, str]:
    """What the processes of a test are given."""
    return {
        "AIOFLOW_REDIS": settings.redis,
        "AIOFLOW_NAMESPACE": settings.namespace,
        "AIOFLOW_DATA": str(settings.data),
        "TRACKING_TOKEN": TOKEN,
        "TRACKING_DATABASE": database,
    }


async def processed(url: str, accepted: int) -> None:
    """Return once exactly so many rows are in the table."""
    async with aiohttp.ClientSession() as session:
        api = Api(url, session)

        async def all_there() -> bool:
            return await count(api) >= accepted

        await wait_until(all_there, 40)
        assert await count(api) == accepted


@pytest.mark.timeout(90)
async def test_a_processor_that_is_killed_under_load_loses_and_doubles_nothing(settings: Settings) -> None:
    store_options = environment(settings)
    collecting = Serve("services.tracking:service", "--no-workers", "--port", "0", environment=store_options)
    processing = Serve("tests.services.hurried_tracking:service", "--no-ingress", environment=store_options)
    try:
        await asyncio.gather(collecting.start(), processing.start())
        stop = asyncio.Event()
        load = asyncio.create_task(post_until(collecting.url, stop))
        async with aiohttp.ClientSession() as session:
            api = Api(collecting.url, session)
            for kill in range(3):

                async def more(least: int = 500 * (kill + 1)) -> bool:
                    return await count(api) > least

                await wait_until(more, 30)
                processing.kill()
                await processing.start()
        stop.set()
        await processed(collecting.url, await load)
        assert await processing.stop() == 0
        assert await collecting.stop() == 0
    finally:
        collecting.close()
        processing.close()


@pytest.mark.timeout(90)
async def test_sqlite_is_swapped_for_postgresql_by_restarting_the_processor(
    settings: Settings, postgres: Postgres
) -> None:
    url = postgres.new_database()
    collecting = Serve("services.tracking:service", "--no-workers", "--port", "0", environment=environment(settings))
    first = Serve("services.tracking:service", "--no-ingress", environment=environment(settings))
    second = Serve("services.tracking:service", "--port", "0", environment=environment(settings, url))
    try:
        await asyncio.gather(collecting.start(), first.start())
        stop = asyncio.Event()
        load = asyncio.create_task(post_until(collecting.url, stop))
        async with aiohttp.ClientSession() as session:
            old, new = Api(collecting.url, session), Api("", session)

            async def enough(api: Api) -> bool:
                return await count(api) > 300

            await wait_until(lambda: enough(old), 30)
            assert await first.stop() == 0
            in_sqlite = await count(old)
            await second.start()
            new.url = second.url
            await wait_until(lambda: enough(new), 30)
        stop.set()
        await processed(second.url, await load - in_sqlite)
        await asyncio.gather(second.stop(), collecting.stop())
    finally:
        for process in (collecting, first, second):
            process.close()


IMPORTS = """
import sys
import aioflow, services.tracking
from aioflow.cli import app
print([name for name in ("sqlalchemy", "alembic", "aiosqlite", "asyncpg", "ua_parser") if name in sys.modules])
"""


def test_hosting_tracking_imports_nothing_of_the_database() -> None:
    said = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


async def test_collecting_alone_opens_nothing_of_the_database(settings: Settings) -> None:
    collecting = Serve("services.tracking:service", "--no-workers", "--port", "0", environment=environment(settings))
    try:
        await collecting.start()
        async with aiohttp.ClientSession() as session:
            await Api(collecting.url, session).track()
        assert collecting.process is not None
        maps = Path(f"/proc/{collecting.process.pid}/maps")
        if maps.exists():
            assert "sqlalchemy" not in maps.read_text()
        assert not list(settings.data.glob("tracking*"))
        assert await collecting.stop() == 0
    finally:
        collecting.close()


# ---- settings


def test_urls_get_their_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TrackingSettings().url(tmp_path) == f"sqlite+aiosqlite:///{tmp_path}/tracking.sqlite3"
    for given, found in (
        ("sqlite:///x.db", "sqlite+aiosqlite:///x.db"),
        ("postgres://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql+psycopg://h/d", "postgresql+asyncpg://h/d"),
    ):
        monkeypatch.setenv("TRACKING_DATABASE", given)
        assert load_tracking().url(tmp_path) == found


@pytest.mark.parametrize(
    "database",
    ["mysql://u:hidden@h/d", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///?hidden", "sqlite:///hidden/"],
)
def test_wrong_settings_are_named_together_and_secrets_are_not_said(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("DATABASE", database),
        ("TOKEN", "hidden"),
        ("TRUSTED_PROXIES", "10.0.0.0/8,x"),
        ("QUERY_SECONDS", "0"),
    ):
        monkeypatch.setenv(f"TRACKING_{name}", value)
    with pytest.raises(ConfigError) as caught:
        load_tracking()
    for name in ("TRACKING_DATABASE", "TRACKING_TOKEN", "TRACKING_TRUSTED_PROXIES", "TRACKING_QUERY_SECONDS"):
        assert name in str(caught.value)
    assert "hidden" not in str(caught.value)


async def test_a_package_that_is_missing_is_said_with_its_extra(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.tracking.settings.NEEDED", ("no_such_package",))
    with pytest.raises(ConfigError, match=r"no_such_package.*aioflow\[tracking\]"):
        async with serving(settings):
            pass
