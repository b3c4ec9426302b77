"""`python -m aioflow serve` as a user starts and stops it: real processes, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from redis.asyncio import Redis

from aioflow import ConfigError, Runtime, Service, State
from aioflow.cli.find import find_services
from aioflow.cli.serve import Server, bind
from aioflow.settings import load_settings
from services.payments.api import charge
from services.payments.api import service as payments
from tests.receiver import SECRET
from tests.valkey import Valkey
from tests.waiting import wait_until

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent.parent
PAYMENT = {"payer_id": "alice", "recipient_id": "shop", "amount": 1250}
SURE = {
    "PAYMENTS_SIMULATED_ERROR_RATE": "0",
    "PAYMENTS_SIMULATED_INSUFFICIENT_RATE": "0",
    "PAYMENTS_SIMULATED_LATENCY": "0",
}
"""The simulated gateway answers success, at once."""
GREETING = re.compile(
    r"aioflow serves (?P<services>.+) (?:on (?P<url>http://\S+)|without ingress), redis (?P<redis>.+)\n"
)
NOISE = re.compile("Traceback|Task was destroyed|never awaited|ResourceWarning|Unclosed|Exception ignored")


async def eventually(condition: Callable[[], Awaitable[T | None]], seconds: float = 10.0) -> T:
    """What the condition answers once it answers something true."""
    asked: Callable[[], Any] = condition
    answer: T = await wait_until(asked, seconds)
    return answer


class Serve:
    """One serving process; what it says goes to files, so that no pipe fills up."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], environment: Mapping[str, str], cwd: Path) -> None:
        self._out, self._err = (Path(tempfile.mkstemp(dir=folder)[1]) for _ in range(2))
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("AIOFLOW_", "PAYMENTS_"))}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "aioflow", "serve", *arguments],
                cwd=cwd,
                env={**clean, "PYTHONPATH": str(ROOT), "AIOFLOW_DELIVERY_SECRETS": SECRET, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # a terminal's Ctrl-C goes to a process group; ours must not get it
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    async def greeting(self) -> re.Match[str]:
        """The line by which it says that it serves."""

        async def said() -> re.Match[str] | None:
            assert self.process.poll() is None, self.err
            return GREETING.fullmatch(self.out)

        return await eventually(said, 20)

    async def url(self) -> str:
        """Where it listens."""
        return (await self.greeting())["url"]

    async def ended(self, seconds: float = 15.0) -> int:
        """Its exit code."""
        await wait_until(lambda: self.process.poll() is not None, seconds)
        return self.process.returncode

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return await self.ended()

    def close(self) -> None:
        """End it whatever its state."""
        self.process.kill()
        self.process.wait()


Starter = Callable[..., Serve]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Starts serving processes, with Python's development mode on, and ends those that still run."""
    started: list[Serve] = []

    def make(*arguments: str, cwd: Path = ROOT, **environment: str) -> Serve:
        started.append(Serve(tmp_path, arguments, {"PYTHONDEVMODE": "1", **environment}, cwd))
        return started[-1]

    yield make
    for serve in started:
        serve.close()


@pytest.fixture
def silent_gateway() -> Iterator[dict[str, str]]:
    """Settings of a gateway that takes connections and answers nobody: a payment runs until it is stopped."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield {"PAYMENTS_GATEWAY_URL": url, "PAYMENTS_GATEWAY_TIMEOUT": "60"}


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


async def got(session: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
    async with session.get(url) as answer:
        return answer.status, await answer.json(content_type=None)


async def paid(session: aiohttp.ClientSession, url: str, **headers: str) -> tuple[int, Any]:
    async with session.post(f"{url}/payments", json=PAYMENT, headers=headers) as answer:
        return answer.status, await answer.json()


async def reached(session: aiohttp.ClientSession, url: str, tracking_id: str, status: str) -> None:
    async def has_it() -> bool:
        return bool((await got(session, f"{url}/payments/{tracking_id}"))[1]["status"] == status)

    await eventually(has_it)


# ---- serving


async def test_it_says_where_it_listens_and_serves_until_sigterm(
    start: Starter, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    serve = start("--redis", "memory:", "--port", "0", "--pid-file", str(pid_file), "--log-format", "json", **SURE)
    said = await serve.greeting()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", said["url"])
    assert (said["services"], said["redis"]) == (
        "delivery, factors, moderation, payments, tracking",
        "memory:, receipts mean memory",
    )
    assert pid_file.read_text() == f"{serve.process.pid}\n"
    assert await got(session, f"{said['url']}/healthz") == (200, {"status": "up"})
    assert await got(session, f"{said['url']}/readyz") == (200, {"status": "ready"})
    status, body = await paid(session, said["url"], Prefer="wait=10")
    assert (status, body["result"]["outcome"]) == (200, "success")
    item = {"id": "i1", "content": "x", "category": "spam", "language": "en", "author": "zoe"}
    async with session.post(f"{said['url']}/moderation/items", json=item) as answer:
        assert (answer.status, await answer.json()) == (202, {"status": "accepted", "id": "i1"})
    assert (await got(session, f"{said['url']}/moderation/items/i1"))[1]["status"] == "waiting"
    assert await serve.stop() == 0
    assert not pid_file.exists()
    assert GREETING.fullmatch(serve.out)
    lines = [json.loads(line) for line in serve.err.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    assert all(line["time"].endswith("+00:00") for line in lines)
    assert any("SIGTERM" in line["message"] for line in lines)
    assert not NOISE.search(serve.err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM])
async def test_a_signal_ends_it_in_order(
    start: Starter, session: aiohttp.ClientSession, valkey: Valkey, namespace: str, number: signal.Signals
) -> None:
    serve = start("--redis", valkey.url, "--port", "0", AIOFLOW_NAMESPACE=namespace, **SURE)
    url = await serve.url()
    _, receipt = await paid(session, url)
    await reached(session, url, receipt["tracking_id"], "success")
    assert await serve.stop(number) == 0
    assert number.name in serve.err
    assert not NOISE.search(serve.err)


async def test_at_the_end_of_the_grace_period_running_payments_go_back_in_line(
    start: Starter, session: aiohttp.ClientSession, valkey: Valkey, namespace: str, silent_gateway: dict[str, str]
) -> None:
    serve = start("--redis", valkey.url, "--port", "0", "--grace", "0.2", AIOFLOW_NAMESPACE=namespace, **silent_gateway)
    url = await serve.url()
    ids = [(await paid(session, url))[1]["tracking_id"] for _ in range(5)]
    for tracking_id in ids:
        await reached(session, url, tracking_id, "running")
    asked = time.monotonic()
    assert await serve.stop() == 0
    assert time.monotonic() - asked < 2.2
    assert not NOISE.search(serve.err)
    async with Runtime([payments], redis=valkey.url, namespace=namespace, workers=False) as runtime:
        jobs = await runtime.inspect_many(charge, ids)
        assert [job and job.state for job in jobs] == [State.READY] * 5


async def test_a_second_signal_ends_it_at_once_and_the_lease_keeps_its_payment(
    start: Starter, session: aiohttp.ClientSession, valkey: Valkey, namespace: str, silent_gateway: dict[str, str]
) -> None:
    serve = start("--redis", valkey.url, "--port", "0", "--grace", "60", AIOFLOW_NAMESPACE=namespace, **silent_gateway)
    url = await serve.url()
    _, receipt = await paid(session, url)
    await reached(session, url, receipt["tracking_id"], "running")
    serve.process.send_signal(signal.SIGTERM)
    await wait_until(lambda: "SIGTERM" in serve.err)
    serve.process.send_signal(signal.SIGINT)
    assert await serve.ended(2.0) == 1
    assert "second signal" in serve.err
    async with Runtime([payments], redis=valkey.url, namespace=namespace, workers=False) as runtime:
        assert (await runtime.inspect(charge, receipt["tracking_id"])).state is State.RUNNING


async def test_a_signal_that_comes_twice_at_once_is_one(start: Starter, valkey: Valkey, namespace: str) -> None:
    """As from `timeout`, which signals its child and then its group."""
    serve = start("--redis", valkey.url, "--port", "0", AIOFLOW_NAMESPACE=namespace)
    await serve.greeting()
    serve.process.send_signal(signal.SIGTERM)
    serve.process.send_signal(signal.SIGTERM)
    assert await serve.ended(5.0) == 0
    assert "second signal" not in serve.err


async def test_serve_listens_where_it_is_told(start: Starter, session: aiohttp.ClientSession, valkey: Valkey) -> None:
    serve = start("--redis", valkey.url, "--host", "127.0.0.2", "--port", "0", "--no-workers")
    url = await serve.url()
    assert url.startswith("http://127.0.0.2:")
    assert (await got(session, f"{url}/healthz"))[0] == 200
    with pytest.raises(aiohttp.ClientConnectorError):
        await got(session, f"{url.replace('127.0.0.2', '127.0.0.1')}/healthz")
    assert await serve.stop() == 0


async def test_one_process_accepts_and_another_works(
    start: Starter, session: aiohttp.ClientSession, valkey: Valkey, namespace: str
) -> None:
    shared = {"AIOFLOW_NAMESPACE": namespace, "AIOFLOW_REDIS": valkey.url, **SURE}
    front = start("--no-workers", "--port", "0", **shared)
    url = await front.url()
    status, receipt = await paid(session, url)
    assert status == 202
    assert (await got(session, f"{url}/payments/{receipt['tracking_id']}"))[1]["status"] == "queued"
    assert (await got(session, f"{url}/readyz"))[0] == 200
    assert (await paid(session, url, Prefer="wait=0"))[0] == 202
    back = start("services.payments:service", "--no-ingress", "--workers", "3", **shared)
    said = await back.greeting()
    assert (said["services"], said["url"]) == ("payments", None)
    await reached(session, url, receipt["tracking_id"], "success")
    assert (await paid(session, url, Prefer="wait=10"))[0] == 200
    assert [await back.stop(), await front.stop()] == [0, 0]
    assert not NOISE.search(back.err + front.err)


async def test_a_project_of_the_users_own_is_served_from_its_folder(
    start: Starter, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.aioflow]\nservices = ["greetings:service"]\n')
    (tmp_path / "greetings.py").write_text(
        "from aioflow import Service\n"
        "service = Service('greetings')\n"
        "@service.task()\n"
        "async def greet(name: str) -> str:\n"
        "    return f'hello {name}'\n"
        "service.post('/greetings', submits=greet)\n"
    )
    serve = start("--redis", "memory:", "--port", "0", cwd=tmp_path)
    said = await serve.greeting()
    assert said["services"] == "greetings"
    async with session.post(f"{said['url']}/greetings", json="you", headers={"Prefer": "wait=10"}) as answer:
        assert (await answer.json())["result"] == "hello you"
    assert await serve.stop() == 0


# ---- the embedded server


@pytest.fixture
def runtime_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="aio", dir="/tmp"))  # short, as a login's is: the socket lies in it
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data folder; no server may be left in it."""
    folder = tmp_path / "data"
    yield folder
    left = servers(folder)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "the test left servers running"


def servers(folder: Path) -> set[int]:
    """The server processes that work in a folder."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == folder and (process / "comm").read_text().startswith("valkey"):
                found.add(int(process.name))
    return found


async def test_two_serves_on_one_data_folder_share_its_server_and_the_last_one_stops_it(
    start: Starter, session: aiohttp.ClientSession, data: Path, runtime_folder: Path
) -> None:
    environment = {"XDG_RUNTIME_DIR": str(runtime_folder), **SURE}
    first = start("--data", str(data), "--port", "0", **environment)
    said = await first.greeting()
    assert said["redis"] == f"embedded: (data in {data}), receipts mean fsync"
    second = start("--data", str(data), "--port", "0", **environment)
    other = await second.url()
    assert other != said["url"]
    (server,) = servers(data)
    _, receipt = await paid(session, said["url"], Prefer="wait=10")
    assert (await got(session, f"{other}/payments/{receipt['tracking_id']}"))[1]["status"] == "success"
    assert await first.stop() == 0
    assert servers(data) == {server}
    assert await got(session, f"{other}/readyz") == (200, {"status": "ready"})
    assert (await paid(session, other, Prefer="wait=10"))[0] == 200
    os.killpg(second.process.pid, signal.SIGINT)  # Ctrl-C: every process of the group
    assert await second.ended() == 0
    assert servers(data) == set()
    assert not NOISE.search(first.err + second.err)


async def test_a_frozen_server_does_not_hold_the_exit(
    start: Starter, session: aiohttp.ClientSession, data: Path, runtime_folder: Path
) -> None:
    environment = {"XDG_RUNTIME_DIR": str(runtime_folder), **SURE}
    frozen = start("--data", str(data), "--port", "0", "--grace", "2", **environment)
    url = await frozen.url()
    _, receipt = await paid(session, url, Prefer="wait=10")
    (server,) = servers(data)
    os.kill(server, signal.SIGSTOP)
    body = json.dumps(PAYMENT).encode()
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
        client.sendall(b"POST /payments HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        client.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        assert (await got(session, f"{url}/healthz"))[0] == 200  # and it has read what came before
        asked = time.monotonic()
        assert await frozen.stop() == 0
        assert time.monotonic() - asked < 8
    assert f"{data} does not answer and is left running" in frozen.err
    assert not NOISE.search(frozen.err)

    os.kill(server, signal.SIGCONT)
    following = start("--data", str(data), "--port", "0", **environment)
    url = await following.url()
    assert servers(data) == {server}
    assert (await got(session, f"{url}/payments/{receipt['tracking_id']}"))[1]["status"] == "success"
    assert await following.stop() == 0
    assert servers(data) == set()


# ---- not starting


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def refused(serve: Serve) -> str:
    """The one line by which it says why it does not start."""
    assert await serve.ended() == 2, serve.err
    assert serve.out == ""
    assert re.fullmatch(r"aioflow: [^\n]+\n", serve.err), serve.err
    return serve.err


@pytest.fixture
def refuse(tmp_path: Path) -> Iterator[Starter]:
    """Starts processes as a user does: without the development mode, which makes an import slower."""
    started: list[Serve] = []

    def make(*arguments: str, cwd: Path = ROOT, **environment: str) -> Serve:
        started.append(Serve(tmp_path, ("--port", "0", *arguments), environment, cwd))
        return started[-1]

    yield make
    for serve in started:
        serve.close()


async def test_a_taken_port_is_said_in_a_line(refuse: Starter, taken_port: int) -> None:
    said = await refused(refuse("--redis", "memory:", "--port", str(taken_port)))
    assert f"127.0.0.1:{taken_port}" in said
    assert "in use" in said


async def test_an_unreachable_redis_is_said_in_a_line(refuse: Starter, tmp_path: Path) -> None:
    assert "nothing-here" in await refused(refuse("--redis", f"unix://{tmp_path}/nothing-here"))


async def test_a_url_that_is_none_is_said_in_a_line(refuse: Starter) -> None:
    said = await refused(refuse("--redis", "redis://:secret@[::1"))
    assert "redis" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("end", "named"),
    [
        ("?foo=bar&protocol=3&decode_responses=True", "decode_responses, foo, protocol cannot be set"),
        ("?db=abc", "db='abc'"),
        ("?db=9999", "DB index"),
    ],
)
async def test_a_url_that_sets_what_it_cannot_is_said_in_a_line(
    refuse: Starter, valkey: Valkey, end: str, named: str
) -> None:
    assert named in await refused(refuse("--redis", valkey.url + end))


async def test_a_user_who_may_not_run_scripts_is_said_in_a_line(refuse: Starter, own_valkey: Valkey) -> None:
    async with Redis.from_url(own_valkey.admin_url, protocol=2) as admin:
        await admin.execute_command("ACL", "SETUSER", "u", "on", ">secret", "~*", "&*", "+@all", "-evalsha")
    said = await refused(refuse("--redis", own_valkey.admin_url.replace("unix://", "unix://u:secret@")))
    assert "evalsha" in said
    assert "secret" not in said


async def test_all_wrong_settings_are_said_in_one_line(refuse: Starter) -> None:
    said = await refused(refuse("--port", "http", "--grace", "-1", AIOFLOW_WORKERS="0", AIOFLOW_BODY_LIMIT="1k"))
    assert all(name in said for name in ("AIOFLOW_PORT", "AIOFLOW_GRACE", "AIOFLOW_WORKERS", "AIOFLOW_BODY_LIMIT"))


async def test_settings_that_do_not_go_together_are_said_in_a_line(refuse: Starter, valkey: Valkey) -> None:
    idle = refuse("--no-workers", "--no-ingress")
    volatile = refuse("--redis", valkey.url, AIOFLOW_DURABILITY="fsync")
    assert "nothing to do" in await refused(idle)
    assert "appendfsync" in await refused(volatile)


async def test_a_wrong_setting_of_a_service_is_said_in_a_line(refuse: Starter) -> None:
    assert "PAYMENTS_GATEWAY_URL" in await refused(refuse("--redis", "memory:", PAYMENTS_GATEWAY_URL="gateway"))


async def test_deliveries_that_could_not_be_signed_are_said_in_a_line(refuse: Starter, valkey: Valkey) -> None:
    said = await refused(refuse("--redis", valkey.url, AIOFLOW_DELIVERY_SECRETS=""))
    assert "set AIOFLOW_DELIVERY_SECRETS" in said


async def test_a_service_that_is_not_there_is_said_in_a_line(refuse: Starter) -> None:
    no_module, no_service = refuse("nowhere:service"), refuse("services.payments.api:charge")
    assert "nowhere:service" in await refused(no_module)
    assert "services.payments.api:charge" in await refused(no_service)


@pytest.mark.parametrize(
    ("body", "place", "error"),
    [
        ("import os\nraise ValueError('two\\nlines')\n", "broken.py:2", "ValueError: two lines"),
        ("x = 1\ndef f(:\n", "broken.py:2", "SyntaxError"),
        ("import other\n", "other.py:1", "ZeroDivisionError"),
        ("import json\n\njson.loads('{')\n", "broken.py:3", "JSONDecodeError"),
        ("from aioflow import Nothing\n", "broken.py:1", "ImportError"),
        ("from aioflow import Service\nService(1, 2, 3)\n", "broken.py:2", "TypeError"),
    ],
)
async def test_a_service_that_cannot_be_imported_is_said_in_a_line(
    refuse: Starter, tmp_path: Path, body: str, place: str, error: str
) -> None:
    (tmp_path / "broken.py").write_text(body)
    (tmp_path / "other.py").write_text("1 / 0\n")
    said = await refused(refuse("broken:service", "--redis", "memory:", cwd=tmp_path))
    assert f"{tmp_path}/{place}: {error}" in said


async def test_a_project_that_cannot_be_read_is_said_in_a_line(refuse: Starter, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pyproject.toml").write_text("[tool.aioflow\n")
    none, broken = refuse(cwd=tmp_path), refuse(cwd=tmp_path / "broken")
    assert "no pyproject.toml" in await refused(none)
    assert "pyproject.toml cannot be read" in await refused(broken)


async def test_a_pid_file_that_cannot_be_written_is_said_in_a_line(refuse: Starter, tmp_path: Path) -> None:
    assert "pid file" in await refused(refuse("--redis", "memory:", "--pid-file", str(tmp_path / "none" / "pid")))


@pytest.mark.parametrize(
    "project",
    [
        *("", "tool = 1", "[tool]\naioflow = 'x'", "[tool.aioflow]", "[tool.aioflow]\nservices = 'a:b'"),
        *("[tool.aioflow]\nservices = []", "[tool.aioflow]\nservices = [1]"),
    ],
)
def test_a_project_that_names_no_services_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text(project)
    with pytest.raises(ConfigError, match="names no services"):
        find_services([])


@pytest.mark.parametrize(
    "name", ["payments", ":service", "services.payments:", ".api:service", "a b:c", "services..x:y", ""]
)
def test_a_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="module:attribute"):
        find_services([name])


@pytest.mark.parametrize("host", ["256.1.1.1", "a..b", "192.0.2.1"])
def test_an_address_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {re.escape(host)}:0: ."):
        bind(load_settings(host=host, port=0))


async def test_a_port_that_another_takes_meanwhile_is_refused(tmp_path: Path) -> None:
    """Both have bound it; only one can listen."""
    free = bind(load_settings(port=0))
    settings = load_settings(port=free.getsockname()[1], redis="memory:")
    listener = bind(settings)
    free.listen()
    pid_file = tmp_path / "pid"
    with free, pytest.raises(ConfigError, match="cannot listen"):
        await Server([Service("empty")], settings, listener, workers=False, pid_file=pid_file).run()
    assert not pid_file.exists()


async def test_a_pid_file_that_another_process_has_taken_over_is_left_alone(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    settings = load_settings(port=0, redis="memory:")
    server = Server([Service("empty")], settings, bind(settings), workers=False, pid_file=pid_file)
    serving = asyncio.create_task(server.run())
    await wait_until(pid_file.exists)
    pid_file.write_text("1\n")
    server._stop.set()
    assert await serving == 0
    assert pid_file.read_text() == "1\n"
