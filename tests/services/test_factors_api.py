"""The factors service as a client sees it: a real runtime, real processes, a real Valkey, behind a real socket."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import aiohttp
import pytest

from aioflow import JobFailed, Retry, Service
from aioflow.engine.keys import Queue
from aioflow.settings import Settings, load_settings
from services.factors import service as factors
from services.factors.compute import compute
from services.factors.models import Question
from services.factors.settings import FactorsSettings
from tests.curl import curl
from tests.primes import check_answer
from tests.services.test_payments_api import Answer, Api, running
from tests.serving import ROOT, Serve
from tests.valkey import Valkey
from tests.waiting import wait_until

JSON = {"Content-Type": "application/json"}
PATH = "/compute_factors"
HOOK = "https://example.com/hook"
HARD = (10**29 + 319) * (10**29 + 379)
"""The product of two primes, which takes ten seconds at least."""


@pytest.fixture
def settings(valkey: Valkey, namespace: str) -> Settings:
    return load_settings(redis=valkey.url, namespace=namespace, body_limit=4608)


@asynccontextmanager
async def served(settings: Settings, *services: Service, workers: bool = True) -> AsyncIterator[Api]:
    """Factors and no deliveries: what is emitted waits."""
    async with running(settings, *(services or (factors,)), workers=workers) as api:
        yield api


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    """Factors, served whole."""
    async with served(settings) as whole:
        yield whole


@pytest.fixture
async def idle(settings: Settings) -> AsyncIterator[Api]:
    """Factors, accepted only."""
    async with served(settings, workers=False) as accepting:
        yield accepting


async def post(api: Api, question: Any, **headers: str) -> Answer:
    """Post a question: JSON, or text as it is written."""
    body = question if isinstance(question, str | bytes) else json.dumps(question)
    return await api.ask("POST", PATH, data=body, headers={**JSON, **headers})


async def get(api: Api, headers: dict[str, str] | None = None, **parameters: str) -> Answer:
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
    return await api.ask("GET", f"{PATH}?{query}", headers=headers or {})


# ---- asking


async def test_a_question_by_either_method_is_answered_and_found_at_its_location(api: Api) -> None:
    number = 2**4 * 3**2 * 10007 * 67280421310721
    for answer in (
        await get(api, number=str(number), headers={"Prefer": "wait=20"}),
        await post(api, {"number": number}, Prefer="wait=20"),
        await post(api, {"number": str(number)}, Prefer="wait=20"),
    ):
        assert answer.status == 200, answer
        assert answer.headers["Preference-Applied"] == "wait=20"
        assert answer.body["status"] == "done"
        check_answer(answer.body["result"], number)
        tracking_id = answer.body["tracking_id"]
        assert answer.body["result"]["tracking_id"] == tracking_id
        assert answer.headers["Location"] == f"{PATH}/{tracking_id}"
        shown = await api.get(answer.headers["Location"])
        assert (shown["status"], shown["number"], shown["attempt"]) == ("done", str(number), 1)
        assert shown["result"] == answer.body["result"]
        assert shown["submitted_at"] <= shown["finished_at"]


async def test_a_question_is_accepted_at_once_and_waits_its_turn(idle: Api) -> None:
    for answer in (await get(idle, number="12"), await post(idle, {"number": "9" * 60})):
        assert answer.status == 202
        tracking_id = answer.body["tracking_id"]
        assert answer.body == {"status": "OK", "tracking_id": tracking_id}
        assert answer.headers["Location"] == f"{PATH}/{tracking_id}"
        shown = await idle.get(answer.headers["Location"])
        assert (shown["status"], shown["attempt"], "result" in shown, "finished_at" in shown) == (
            "queued",
            0,
            False,
            False,
        )
    assert (await get(idle, number="12", headers={"Prefer": "wait=0"})).status == 202


async def test_a_key_gives_one_computation_by_whichever_method_and_spelling(idle: Api) -> None:
    key = {"Idempotency-Key": "one"}
    first = await post(idle, {"number": 12, "post_back_url": HOOK}, **key)
    assert first.status == 202
    assert (await post(idle, {"post_back_url": HOOK, "number": "12"}, **key)).body == first.body
    assert (await get(idle, headers=key, number="12", post_back_url=HOOK)).body == first.body
    for other in ({"number": 13, "post_back_url": HOOK}, {"number": 12}, {"number": 12, "post_back_url": HOOK + "/2"}):
        answer = await post(idle, other, **key)
        assert (answer.status, first.body["tracking_id"] in answer.body["detail"]) == (409, True)
    assert (await idle.runtime.totals(compute))["submitted"] == 1
    assert (await post(idle, {"number": 12}, **{"Idempotency-Key": ""})).status == 400


async def test_what_is_running_and_what_failed_is_shown(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "options", replace(compute.options, timeout=0.5, retry=Retry(attempts=1)))
    async with served(settings) as api:
        place = (await post(api, {"number": HARD})).headers["Location"]

        async def runs() -> bool:
            return bool((await api.get(place))["status"] == "running")

        await wait_until(runs)
        answer = await post(api, {"number": 143}, Prefer="wait=20")  # in another process
        check_answer(answer.body["result"], 143)
        with pytest.raises(JobFailed, match=r"no result within 0\.5 s"):
            await api.runtime.handle(compute, place.rpartition("/")[2]).result(20)
        shown = await api.get(place)
        assert (shown["status"], shown["number"]) == ("dead", str(HARD))
        assert shown["failure"] == {"error": "TimeoutError", "message": "no result within 0.5 s", "attempt": 1}
        check_answer((await get(api, number="12", headers={"Prefer": "wait=20"})).body["result"], 12)


async def test_a_job_that_holds_no_question_is_shown_all_the_same(idle: Api) -> None:
    handle = await idle.runtime.submit(compute, Question(number="12"))
    queue = Queue(idle.runtime.namespace, "factors", "compute")
    await cast("Any", idle.runtime.redis).hset(queue.keys["jobs"], handle.id, b"\nnothing")
    shown = await idle.get(f"{PATH}/{handle.id}")
    assert (shown["status"], shown["number"]) == ("queued", None)


# ---- what is refused


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ("{}", ["number"]),
        ('{"number": 0}', ["number"]),
        ('{"number": -7}', ["number"]),
        ('{"number": 12.0}', ["number"]),
        ('{"number": 1e3}', ["number"]),
        ('{"number": true}', ["number"]),
        ('{"number": null}', ["number"]),
        (f'{{"number": {10**60}}}', ["number"]),
        (f'{{"number": "{10**60}"}}', ["number"]),
        (f'{{"number": {"9" * 4301}}}', ["number"]),
        ('{"number": "+12"}', ["number"]),
        ('{"number": "012"}', ["number"]),
        ('{"number": [12]}', ["number"]),
        ('{"number": 12, "post_back_url": 5}', ["post_back_url"]),
        ('{"number": 12, "post_back_url": ""}', ["post_back_url"]),
        ('{"number": 12, "url": "https://example.com/"}', ["url"]),
        ('{"number": 0, "post_back_url": "https://10.0.0.1/"}', ["number", "post_back_url"]),
        ("[12]", ["body"]),
        ("12", ["body"]),
    ],
)
async def test_a_body_that_is_no_question_is_422_and_its_fields_are_named(
    idle: Api, body: str, fields: list[str]
) -> None:
    answer = await post(idle, body)
    assert (answer.status, answer.fields) == (422, fields)
    assert await idle.stored() == {}


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("", ["number"]),
        ("?number=", ["number"]),
        ("?number=0", ["number"]),
        ("?number=+12", ["number"]),
        ("?number=%2B12", ["number"]),
        ("?number=1e9", ["number"]),
        (f"?number={10**60}", ["number"]),
        ("?number=%D9%A1", ["number"]),
        ("?number=12&number=12", ["number"]),
        ("?number=12&nummer=12", ["nummer"]),
        ("?number=12&post_back_url=", ["post_back_url"]),
        ("?number=12&post_back_url=https%3A%2F%2F10.0.0.1%2F", ["post_back_url"]),
    ],
)
async def test_parameters_that_are_no_question_are_422_and_named(idle: Api, query: str, fields: list[str]) -> None:
    answer = await idle.ask("GET", PATH + query)
    assert (answer.status, answer.fields) == (422, fields)
    assert await idle.stored() == {}


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://example.com/", "scheme"),
        ("https://127.0.0.1/", "loopback"),
        ("https://[::ffff:169.254.169.254]/", "metadata"),
        ("https://192.168.0.1/", "private"),
        ("https://example.com:6379/", "port"),
        ("https://a:b@example.com/", "userinfo"),
        ("https://0x7f.1/", "spelling"),
    ],
)
async def test_a_post_back_that_is_not_allowed_is_422_with_the_rule(idle: Api, url: str, rule: str) -> None:
    answer = await post(idle, {"number": 12, "post_back_url": url})
    assert (answer.status, answer.fields) == (422, ["post_back_url"])
    assert f"({rule}" in answer.body["detail"]
    assert "Value error" not in answer.body["detail"]
    assert await idle.stored() == {}


async def test_what_the_settings_allow_is_taken(idle: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:9000/hook"
    assert (await post(idle, {"number": 12, "post_back_url": url})).status == 422
    monkeypatch.setenv("AIOFLOW_DELIVERY_ALLOW", "127.0.0.1:9000")
    assert (await post(idle, {"number": 12, "post_back_url": url})).status == 202


async def test_wrong_settings_of_deliveries_are_said_where_a_post_back_is_asked_for(
    idle: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOFLOW_DELIVERY_PORTS", "0")
    answer = await post(idle, {"number": 12, "post_back_url": HOOK})
    assert (answer.status, "AIOFLOW_DELIVERY_PORTS" in answer.body["detail"]) == (503, True)
    assert (await post(idle, {"number": 12})).status == 202


async def test_other_refusals(idle: Api) -> None:
    before = await idle.stored()
    assert (await idle.ask("GET", f"{PATH}/0123")).status == 404
    assert (await idle.ask("GET", f"{PATH}/{quote('ü' * 100)}")).status == 404
    assert (await idle.ask("GET", f"{PATH}/")).status == 404
    for method in ("PUT", "DELETE", "PATCH"):
        answer = await idle.ask(method, PATH, data="{}", headers=JSON)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET,POST")
    assert (await post(idle, '{"number": 12')).status == 400
    assert (await post(idle, b"\xff")).status == 400
    assert (await post(idle, {"number": 12, "post_back_url": "\ud800"})).status == 400
    assert (await post(idle, '{"number": ' + "9" * 4000 + "}")).status in {400, 422}
    assert (await post(idle, '{"number": "' + "9" * 5000 + '"}')).status == 413
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = await idle.ask("POST", PATH, data='{"number": 12}', headers={"Content-Type": kind})
        assert answer.status == 415
    assert await idle.stored() == before


async def test_a_full_queue_is_429_until_there_is_room(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "options", replace(compute.options, bound=2))
    async with served(settings, workers=False) as idle:
        key = {"Idempotency-Key": "k"}
        first = await post(idle, {"number": 12}, **key)
        assert (first.status, (await get(idle, number="13")).status) == (202, 202)
        before = await idle.stored()
        for full in (await post(idle, {"number": 14}), await get(idle, number="14")):
            assert (full.status, "factors.compute" in full.body["detail"]) == (429, True)
        assert (await post(idle, {"number": 12}, **key)).body == first.body
        assert await idle.stored() == before
        await idle.runtime.handle(compute, first.body["tracking_id"]).cancel()
        assert (await post(idle, {"number": 14})).status == 202


async def test_without_redis_it_is_503_and_nothing_is_half_written(own_valkey: Valkey, namespace: str) -> None:
    async with served(load_settings(redis=own_valkey.url, namespace=namespace), workers=False) as idle:
        place = (await post(idle, {"number": 12})).headers["Location"]
        before = await idle.stored()
        own_valkey.kill()
        answers = [
            await post(idle, {"number": 13, "post_back_url": HOOK}),
            await get(idle, number="13"),
            await get(idle, number="13", headers={"Prefer": "wait=5"}),
            await idle.ask("GET", place),
        ]
        assert {answer.status for answer in answers} == {503}
        own_valkey.start()
        await idle.back()
        assert await idle.stored() == before


async def test_over_the_memory_budget_nothing_new_is_taken(valkey: Valkey, namespace: str) -> None:
    settings = load_settings(redis=valkey.url, namespace=namespace, memory_budget="1MiB")
    async with served(settings, workers=False) as idle:

        async def refused() -> Answer | None:
            answer = await get(idle, number="12")
            return answer if answer.status == 503 else None

        full = await wait_until(refused)
        assert full is not None
        assert "full" in full.body["detail"]
        assert (await post(idle, {"number": 12})).status == 503


# ---- at work


@pytest.mark.timeout(90)  # two processes are started, and 40 numbers computed by them
async def test_no_more_than_the_cap_at_a_time_and_processes_come_as_work_does(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "options", replace(compute.options, concurrency=2, workers=(0, 2), idle_timeout=0.3))
    async with served(settings) as api:
        (pool,) = api.runtime._pools
        processes = pool._executor._processes
        assert processes is not None
        assert processes._alive == 0, "no question, no process"
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, processes._alive, len(pool.running))
                await asyncio.sleep(0.002)

        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            answers = await asyncio.gather(
                *[get(api, number=str(10**20 + offset), headers={"Prefer": "wait=60"}) for offset in range(40)]
            )
            watching.cancel()
        for offset, answer in enumerate(answers):
            check_answer(answer.body["result"], 10**20 + offset)
        assert most == 2
        await wait_until(lambda: processes._alive == 0)


# ---- what the README says

README = (ROOT / "services" / "factors" / "README.md").read_text()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.mark.timeout(120)  # a process of each kind is started: the server's, its pool's and the receiver's
async def test_the_lines_of_the_readme_print_what_it_says_and_its_receiver_gets_the_answer(tmp_path: Path) -> None:
    commands = re.findall(r"^\$ (curl .+)\n(.+)$", README, re.MULTILINE)
    assert len(commands) == README.count("curl -s")
    port = free_port()
    found = re.search(r"<!-- receiver -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found
    (tmp_path / "receiver.py").write_text(found[1].replace("9000", str(port)))
    serve = Serve(
        *("--data", str(tmp_path / ".aioflow"), "--port", "0"),
        environment={"AIOFLOW_DELIVERY_ALLOW": f"127.0.0.1:{port}"},
    )
    receiving = None
    try:
        await serve.start()
        receiving = await asyncio.create_subprocess_exec(
            sys.executable, "receiver.py", cwd=tmp_path, stdout=asyncio.subprocess.PIPE
        )
        await wait_until(lambda: is_taken(port), 20)
        async with aiohttp.ClientSession() as session:  # the first question waits for the first process of the pool
            there = session.get(f"{serve.url}{PATH}", params={"number": "1"}, headers={"Prefer": "wait=60"})
            async with there as first:
                assert first.status == 200
        for command, printed in commands:
            answer = await curl(command.replace(":9000", f":{port}"), serve.url)
            assert re.fullmatch(re.escape(printed).replace(r"\.\.\.", "[^{}]+?"), answer), (command, answer)
        assert receiving.stdout is not None
        line = await asyncio.wait_for(receiving.stdout.readline(), 20)
        _, number, powers = line.decode().split(maxsplit=2)
        assert (number, "274177" in powers) == ("18446744073709551617", True)
        assert await serve.stop() == 0
    finally:
        serve.close()
        if receiving is not None:
            receiving.send_signal(signal.SIGKILL)
            await receiving.wait()


def is_taken(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def test_the_tables_of_the_readme_are_complete() -> None:
    routes = re.findall(r"^\| `(GET|POST) (/\S+)` \|", README, re.MULTILINE)
    assert sorted(routes) == sorted((route.method, route.path) for route in factors.routes)
    told = re.findall(r"^\| `(FACTORS_\w+)` \| (?:`(\S+)`)? ?\| (.+) \|$", README, re.MULTILINE)
    assert told == [
        (f"FACTORS_{name.upper()}", "" if field.default_factory else str(field.default), field.description)
        for name, field in FactorsSettings.model_fields.items()
    ]
