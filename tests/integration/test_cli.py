"""`aioflow submit`, `status`, `jobs` and `queue` as a user runs them: real processes, a real Valkey, real runtimes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aioflow import Discard, Handle, Job, Retry, Runtime, Service, State
from aioflow.cli import app
from aioflow.cli.given import span_ms
from aioflow.cli.output import span, visible
from aioflow.embedded import EmbeddedServer
from aioflow.engine.keys import Queue
from aioflow.engine.store import Store
from aioflow.errors import ConfigError
from tests.serving import ROOT, Serve
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until

DEMO = """
import asyncio
from contextlib import asynccontextmanager
from pydantic import BaseModel
from aioflow import Discard, Job, Retry, Service

@asynccontextmanager
async def lifespan(runtime):
    raise RuntimeError("a command is no runtime")
    yield

class Order(BaseModel):
    name: str
    count: int = 3

service = Service("demo", lifespan=lifespan)
other = Service("other")

@service.task(bound=100)
async def double(number: int) -> int: ...

@service.task()
async def order(order: Order) -> Order: ...

@service.task()
async def slow() -> None: ...

@other.task()
async def double(number: int) -> int: ...
"""
PROJECT = '[tool.aioflow]\nservices = ["demo:service", "demo:other"]\n'
NOISE = re.compile("Traceback|Task was destroyed|never awaited|never retrieved|Warning|Unclosed|Exception ignored")
NEVER = "00000000000070008000000000000000"


@dataclass
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> Any:
        """The one JSON document on standard output."""
        (line,) = self.lines
        return json.loads(line)

    @property
    def lines(self) -> list[str]:
        """Of standard output."""
        return self.out.splitlines()


class Cli:
    """Runs commands in a project's folder."""

    def __init__(self, folder: Path, redis: str, namespace: str) -> None:
        self.folder = folder
        (folder / "demo.py").write_text(DEMO)
        (folder / "pyproject.toml").write_text(PROJECT)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("AIOFLOW_", "COLUMNS"))}
        self.environment = {
            **clean,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "default",
            "AIOFLOW_REDIS": redis,
            "AIOFLOW_NAMESPACE": namespace,
        }

    async def start(self, *arguments: str, stdin: int = asyncio.subprocess.PIPE) -> asyncio.subprocess.Process:
        """Start one."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aioflow", *arguments),
            cwd=self.folder,
            env=self.environment,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    async def end_of(self, process: asyncio.subprocess.Process, stdin: bytes | None = b"") -> Ended:
        """Wait for its end."""
        try:
            out, err = await asyncio.wait_for(process.communicate(stdin), 20)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        ended = Ended(process.returncode, out.decode(), err.decode())
        assert not NOISE.search(ended.err), ended.err
        return ended

    async def __call__(self, *arguments: str, stdin: bytes = b"") -> Ended:
        return await self.end_of(await self.start(*arguments), stdin)


@pytest.fixture
def cli(tmp_path: Path, valkey: Valkey, namespace: str) -> Cli:
    return Cli(tmp_path, valkey.url, namespace)


class Demo:
    """The tasks of the project, as this process runs them."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.broken = True
        self.service = Service("demo")
        self.double = self.service.task(retry=Retry(attempts=2, base=0))(self._double)
        self.slow = self.service.task(concurrency=5)(self._slow)
        self.order = self.service.task(name="order")(self._order)

    async def _double(self, number: int, job: Job) -> int:
        if number < 0 and self.broken:
            raise ValueError(f"[red]{number}[/red] is \x1b[31mnegative")
        if number == 13 and self.broken:
            raise Discard("unlucky")
        return 2 * number

    async def _slow(self, job: Job) -> None:
        job.progress({"waits": "at the gate"})
        await self.gate.wait()

    async def _order(self, order: dict[str, Any]) -> dict[str, Any]:
        return order


# Names as in the project's file.
Demo._double.__name__, Demo._slow.__name__ = "double", "slow"


@pytest.fixture
def demo() -> Demo:
    return Demo()


@asynccontextmanager
async def running(demo: Demo, cli: Cli, *, workers: bool = True) -> AsyncIterator[Runtime]:
    redis, namespace = cli.environment["AIOFLOW_REDIS"], cli.environment["AIOFLOW_NAMESPACE"]
    async with Runtime([demo.service], redis=redis, namespace=namespace, workers=workers, grace=1) as runtime:
        try:
            yield runtime
        finally:
            demo.gate.set()


async def some_dead(runtime: Runtime, demo: Demo, count: int) -> list[Handle[int]]:
    made = [await runtime.submit(demo.double, -1 - index, id=f"bad-{index}") for index in range(count)]
    for handle in made:
        await in_state(handle, State.DEAD)
    return made


# ---- submit


async def test_submit_prints_the_id_of_a_job_that_is_there(cli: Cli, demo: Demo) -> None:
    async with running(demo, cli, workers=False) as runtime:
        ended = await cli("submit", "demo.double", "21")
        assert (ended.code, ended.err) == (0, "")
        (job_id,) = ended.lines
        job = await runtime.inspect(demo.double, job_id)
        assert (job.state, job.payload) == (State.READY, b"21")


async def test_submit_waits_for_the_result(cli: Cli, demo: Demo) -> None:
    async with running(demo, cli):
        plain, as_json = await asyncio.gather(
            cli("submit", "demo.double", "-", "--wait", "10", stdin=b"21\n"),
            cli("submit", "demo.order", '{"name": "ann"}', "--wait", "10", "--json"),
        )
    assert (plain.code, plain.lines[1:]) == (0, ["42"])
    told = as_json.told
    assert re.fullmatch("[0-9a-f]{32}", told.pop("id"))
    assert told == {
        "task": "demo.order",
        "created": True,
        "durability": "memory",
        "state": "done",
        "result": {"name": "ann", "count": 3},
    }


async def test_submit_says_how_a_job_failed_and_that_one_goes_on(cli: Cli, demo: Demo) -> None:
    async with running(demo, cli):
        plain, as_json, late = await asyncio.gather(
            cli("submit", "--id", "a", "--wait", "10", "demo.double", "--", "-7"),
            cli("submit", "demo.double", "13", "--id", "b", "--wait", "10", "--json"),
            cli("submit", "demo.slow", "--id", "c", "--wait", "200ms"),
        )
    assert (plain.code, plain.lines) == (1, ["a"])
    assert plain.err == "aioflow: job a is dead: ValueError: [red]-7[/red] is \\x1b[31mnegative\n"
    assert (as_json.code, as_json.told["state"], as_json.told["message"]) == (1, "dead", "unlucky")
    assert (late.code, late.lines) == (3, ["c"])
    assert late.err == "aioflow: job c did not finish within 0.2 s; it goes on, ask again\n"


async def test_submit_takes_the_options_of_a_job(cli: Cli, demo: Demo, store: Store, namespace: str) -> None:
    keys = Queue(namespace, "demo", "double").keys
    delayed, timed, first = await asyncio.gather(
        cli("submit", "demo.double", "1", "--delay", "1h"),
        cli("submit", "demo.double", "2", "--at", "2050-01-01T00:00:00+01:00"),
        cli("submit", "demo.double", "3", "--priority", "0", "--durability", "memory", "--id", "mine"),
    )
    assert (delayed.code, timed.code, first.code) == (0, 0, 0)
    (due_ms,) = [score for member, score in await scores(store, keys["scheduled"]) if member == delayed.lines[0]]
    now_ms = int((await store.redis.time())[0]) * 1000
    assert 3_590_000 < due_ms - now_ms < 3_602_000
    assert (timed.lines[0], 2_524_604_400_000) in await scores(store, keys["scheduled"])
    ((mine, place),) = await scores(store, keys["ready"])
    assert (mine, place < 2**42) == ("mine", True)
    # A command declares nothing: the bound in its file is not written.
    assert not await store.redis.exists(keys["config"])


async def scores(store: Store, key: str) -> list[tuple[str, int]]:
    entries: Any = await store.redis.zrange(key, 0, -1, withscores=True)
    return [(member.decode(), int(score)) for member, score in entries]


async def test_a_repeated_id_is_the_same_job_or_a_refusal(cli: Cli) -> None:
    assert (await cli("submit", "demo.double", "1", "--id", "x")).code == 0
    again, other = await asyncio.gather(
        cli("submit", "demo.double", "1", "--id", "x"), cli("submit", "demo.double", "2", "--id", "x")
    )
    assert (again.code, again.lines) == (0, ["x"])
    assert "had been accepted before" in again.err
    assert (other.code, other.out) == (1, "")
    assert "another payload" in other.err


async def test_a_full_queue_refuses(cli: Cli, store: Store, namespace: str) -> None:
    await store.redis.hset(Queue(namespace, "demo", "double").keys["config"], "bound", "1")
    assert (await cli("submit", "demo.double", "1")).code == 0
    refused = await cli("submit", "demo.double", "1")
    assert (refused.code, refused.out) == (1, "")
    assert "its bound of" in refused.err


# ---- status


async def test_status_shows_every_queue(cli: Cli, demo: Demo) -> None:
    async with running(demo, cli) as runtime:
        for _ in range(7):
            await demo.slow.submit()
        await demo.double.submit(1, delay=60)
        await some_dead(runtime, demo, 2)
        await (await demo.double.submit(4)).result(10)
        await runtime.pause(demo.order)
        shown, as_json = await asyncio.gather(cli("status"), cli("status", "demo.slow", "demo.double", "--json"))
    assert (shown.code, shown.err) == (0, "")
    head, double, order, slow, other = (line.split() for line in shown.lines)
    assert head == ["task", "ready", "running", "scheduled", "done", "dead", "oldest", "done/s", "runtimes"]
    assert [double[at] for at in (0, 1, 2, 3, 4, 5, 8)] == ["demo.double", "0", "0", "1", "1", "2", "1"]
    assert slow[:6] == ["demo.slow", "2", "5", "0", "0", "0"]
    assert order[-1] == "paused"
    assert other[0] == "other.double"
    rows = {row["task"]: row for row in as_json.told["tasks"]}
    assert list(rows) == ["demo.slow", "demo.double"]
    slow_row = rows["demo.slow"]
    assert (slow_row["open"], slow_row["runtimes"], slow_row["paused"], slow_row["warning"]) == (7, 1, False, None)
    assert 0 <= slow_row["oldest_s"] < 60
    assert rows["demo.double"]["totals"]["submitted"] == 4


async def test_status_measures_the_rate(cli: Cli, demo: Demo) -> None:
    stop = False

    async def load() -> None:
        while not stop:
            await (await demo.double.submit(1)).result(10)
            await asyncio.sleep(0.02)

    async with running(demo, cli):
        loading = asyncio.create_task(load())
        told = (await cli("status", "demo.double", "--json")).told
        stop = True
        await loading
    assert 1 < told["tasks"][0]["done_per_s"] < 60


async def test_status_warns_of_jobs_that_nobody_runs(cli: Cli, store: Store, namespace: str) -> None:
    await cli("submit", "demo.double", "1")
    # One that was killed is still noted, for a while.
    now_ms = int((await store.redis.time())[0]) * 1000
    await store.redis.zadd(Queue(namespace, "demo", "double").keys["runners"], {"gone": now_ms - 60_000})
    ended = await cli("status")
    assert ended.code == 0
    assert "warning: demo.double has no live runtime, unfinished jobs: 1" in ended.lines
    assert ended.out.count("warning") == 1


async def test_status_is_watched_until_ctrl_c(cli: Cli) -> None:
    process = await cli.start("status", "demo.double", "--watch", "--json")
    assert process.stdout is not None
    rows = [json.loads(await asyncio.wait_for(process.stdout.readline(), 10)) for _ in range(2)]
    assert 800 < rows[1]["now_ms"] - rows[0]["now_ms"] < 5000
    process.send_signal(signal.SIGINT)
    ended = await cli.end_of(process)
    assert (ended.code, ended.err) == (0, "")


async def test_a_watch_outlives_the_server(cli: Cli, own_valkey: Valkey) -> None:
    cli.environment["AIOFLOW_REDIS"] = own_valkey.url
    process = await cli.start("status", "demo.double", "--watch", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    await asyncio.wait_for(process.stdout.readline(), 10)
    await asyncio.to_thread(own_valkey.kill)
    assert b"aioflow: redis is away" in await asyncio.wait_for(process.stderr.readline(), 10)
    await asyncio.to_thread(own_valkey.start)
    assert json.loads(await asyncio.wait_for(process.stdout.readline(), 10))["tasks"]
    process.send_signal(signal.SIGINT)
    assert (await cli.end_of(process)).code == 0


# ---- jobs list and show


async def test_jobs_are_listed_by_state_in_their_order(cli: Cli, demo: Demo) -> None:
    async with running(demo, cli, workers=False) as runtime:
        for name, priority in (("b", 4), ("c", 9), ("a", 0)):
            await runtime.submit(demo.double, 1, id=name, priority=priority)
        await runtime.submit(demo.double, 1, id="later", delay=3600)
        await runtime.submit(demo.double, 1, id="soon", delay=60)
        answers = await asyncio.gather(
            cli("jobs", "list", "--json"),
            cli("jobs", "list", "--state", "ready", "--json"),
            cli("jobs", "list", "--state", "ready", "--newer", "1h", "--json"),
            cli("jobs", "list", "--state", "scheduled", "--json"),
            cli("jobs", "list", "--state", "scheduled", "--newer", "1h", "--json"),
            cli("jobs", "list", "--older", "1h", "--json"),
        )
    assert [ended.code for ended in answers] == [0] * 6
    listed = [[json.loads(line)["id"] for line in ended.lines] for ended in answers]
    assert [sorted(listed[0]), *listed[1:]] == [
        ["a", "b", "c", "later", "soon"],
        ["a", "b", "c"],
        ["a", "b", "c"],
        ["soon", "later"],
        ["later", "soon"],
        [],
    ]
    row = json.loads(answers[3].lines[0])
    assert row["due_ms"] - row["submitted_ms"] == 60_000
    assert (row["task"], row["state"], row["attempt"], row["error"]) == ("demo.double", "scheduled", 0, None)


async def test_dead_jobs_are_found_by_their_error_over_many_pages(cli: Cli, demo: Demo) -> None:
    async with running(demo, cli) as runtime:
        many = await runtime.submit_many(demo.double, [13] * 250, ids=[f"job-{index}" for index in range(250)])
        await some_dead(runtime, demo, 3)
        await in_state(many[-1], State.DEAD) if isinstance(many[-1], Handle) else None
        everything, some, few, none = await asyncio.gather(
            cli("jobs", "list", "--state", "dead", "--limit", "1000", "--json"),
            cli("jobs", "list", "--error", "IS \x1b[31mneg"),
            cli("jobs", "list", "--task", "demo.double", "--error", "unlucky", "--limit", "120", "--json"),
            cli("jobs", "list", "--error", "nothing says so", "--json"),
        )
    assert len({json.loads(line)["id"] for line in everything.lines}) == 253
    assert everything.err == ""
    assert [line.split()[0] for line in some.lines] == ["id", "bad-0", "bad-1", "bad-2"]
    assert "ValueError: [red]-1[/red] is \\x1b[31mnegative" in some.lines[1]
    assert len(few.lines) == 120
    assert "there may be more" in few.err
    assert (none.code, none.out, none.err) == (0, "", "")


async def test_a_reader_that_has_enough_is_no_error(cli: Cli, demo: Demo) -> None:
    async with running(demo, cli, workers=False) as runtime:
        await runtime.submit_many(demo.double, [1] * 3000)
        process = await cli.start("jobs", "list", "--limit", "3000", "--json")
        assert process.stdout is not None
        await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]
        assert process.stderr is not None
        assert await process.stderr.read() == b""
        assert await asyncio.wait_for(process.wait(), 10) in {0, 1}


async def test_a_job_is_shown_with_all_that_is_kept(cli: Cli, demo: Demo) -> None:
    async with running(demo, cli) as runtime:
        await some_dead(runtime, demo, 1)
        done = await runtime.submit(demo.double, 4)
        await done.result(10)
        slow = await runtime.submit(demo.slow)

        async def progressed() -> bool:
            return (await slow.status()).progress is not None

        await wait_until(progressed)
        dead, shown, other, held = await asyncio.gather(
            cli("jobs", "show", "bad-0", "--json"),
            cli("jobs", "show", "bad-0", "--task", "demo.double"),
            cli("jobs", "show", done.id, "--json"),
            cli("jobs", "show", slow.id, "--json"),
        )
    told = dead.told
    assert (told["task"], told["state"], told["payload"], told["attempt"]) == ("demo.double", "dead", -1, 2)
    assert told["error"] == "ValueError: [red]-1[/red] is \x1b[31mnegative"
    (first,) = told["history"]
    assert (first["attempt"], told["failure"]["attempt"]) == (1, 2)
    assert "in _double" in first["traceback"]
    assert "in _double" in told["failure"]["traceback"]
    assert told["submitted_ms"] <= first["at_ms"] <= told["started_ms"] <= told["ended_ms"]
    assert shown.code == 0
    assert shown.out.count("Traceback (most recent call last)") == 2
    assert shown.out.count("[red]-1[/red] is \\x1b[31mnegative") >= 2
    assert re.search(r"^state +dead", shown.out, re.MULTILINE)
    assert (held.told["state"], held.told["progress"]) == ("running", {"waits": "at the gate"})
    assert 0 < held.told["lease_until_ms"] - held.told["started_ms"] < 60_000
    assert (other.told["result"], other.told["failure"], other.told["history"]) == (8, None, [])


async def test_a_job_is_looked_for_in_every_task(cli: Cli) -> None:
    await asyncio.gather(*(cli("submit", task, "1", "--id", "x") for task in ("demo.double", "other.double")))
    await cli("submit", "other.double", "1", "--id", "y")
    both, one, named, none = await asyncio.gather(
        cli("jobs", "show", "x"),
        cli("jobs", "show", "y", "--json"),
        cli("jobs", "show", "x", "--task", "other.double", "--json"),
        cli("jobs", "show", NEVER),
    )
    assert (both.code, both.err) == (
        2,
        "aioflow: demo.double and other.double both have a job x: say which by --task\n",
    )
    assert (one.told["task"], named.told["task"]) == ("other.double", "other.double")
    assert (none.code, none.out) == (1, "")
    assert "no record of a job" in none.err


# ---- jobs retry and cancel


async def test_dead_jobs_are_retried_by_their_ids(cli: Cli, demo: Demo) -> None:
    async with running(demo, cli) as runtime:
        bad = await some_dead(runtime, demo, 2)
        done = await runtime.submit(demo.double, 4)
        await done.result(10)
        demo.broken = False
        ended = await cli("jobs", "retry", bad[0].id, done.id, NEVER)
        assert (ended.code, ended.lines) == (1, ["bad-0 retried"])
        assert set(ended.err.splitlines()) == {
            f"aioflow: cannot retry {NEVER}: there is no such job",
            f"aioflow: cannot retry {done.id}: it is done, not dead",
        }
        assert await bad[0].result(10) == -2
        as_json = await cli("jobs", "retry", bad[1].id, bad[1].id, bad[0].id, "--json")
        assert (as_json.code, as_json.told) == (1, {"retried": 1, "refused": {"bad-0": "it is done, not dead"}})


async def test_dead_jobs_are_retried_by_filters_and_once(cli: Cli, demo: Demo) -> None:
    async with running(demo, cli) as runtime:
        ids = [f"job-{index}" for index in range(1200)]
        for handle in await runtime.submit_many(demo.double, [13] * 1200, ids=ids):
            assert isinstance(handle, Handle)
        await some_dead(runtime, demo, 2)

        async def all_dead() -> bool:
            return (await runtime.sizes(demo.double)).dead == 1202

        await wait_until(all_dead)
        none = await cli("jobs", "retry", "--all", "--yes", "--older", "1h")
        assert (none.code, none.lines) == (0, ["0 retried"])
        # They die again at once, behind the walk.
        ended = await cli("jobs", "retry", "--all", "--error", "unlucky", "--task", "demo.double", "--yes", "--json")
        assert (ended.code, ended.told) == (0, {"retried": 1200})
        await wait_until(all_dead)
        assert (await runtime.totals(demo.double))["requeued"] == 1200


async def test_jobs_are_cancelled_by_their_ids_and_by_filters(cli: Cli, demo: Demo) -> None:
    async with running(demo, cli) as runtime:
        started = [await runtime.submit(demo.slow, id=f"slow-{index}") for index in range(5)]
        for handle in started:
            await in_state(handle, State.RUNNING)
        waiting = [await runtime.submit(demo.slow, id=f"wait-{index}") for index in range(3)]
        later = await runtime.submit(demo.double, 1, id="later", delay=60)
        ended = await cli("jobs", "cancel", "wait-0", "slow-0", NEVER)
        assert ended.code == 1
        assert set(ended.lines) == {"wait-0 cancelled", "slow-0 asked to stop"}
        await in_state(started[0], State.DEAD)
        finished = await cli("jobs", "cancel", "slow-0")
        assert (finished.code, finished.err) == (1, "aioflow: cannot cancel slow-0: it is dead\n")
        scheduled = await cli("jobs", "cancel", "--all", "--state", "scheduled", "--yes")
        assert (scheduled.code, scheduled.lines) == (0, ["1 cancelled, 0 asked to stop"])
        await in_state(later, State.DEAD)
        rest = await cli("jobs", "cancel", "--all", "--task", "demo.slow", "--yes", "--json")
        # One that waited may have been started in the place of the first.
        assert sum(rest.told.values()) == 6
        for handle in (*started, *waiting):
            await in_state(handle, State.DEAD)
        assert (await runtime.totals(demo.slow)).get("done", 0) == 0


async def test_bulk_is_confirmed_by_whoever_sits_there(cli: Cli, demo: Demo) -> None:
    async with running(demo, cli, workers=False) as runtime:
        await runtime.submit_many(demo.double, [1] * 3)
        answers = ((b"n\n", 1, ""), (b"\n", 1, ""), (b"\x04", 1, ""), (b"y\n", 0, "3 cancelled, 0 asked to stop\n"))
        for answer, code, out in answers:
            master, slave = pty.openpty()
            try:
                process = await cli.start("jobs", "cancel", "--all", stdin=slave)
                os.write(master, answer)
                ended = await cli.end_of(process, None)
            finally:
                os.close(master)
                os.close(slave)
            assert (ended.code, ended.out) == (code, out)
            assert "cancel 3 open jobs of demo.double, demo.order, demo.slow, other.double? [y/N]" in ended.err


# ---- queue


async def test_queues_are_paused_and_resumed(cli: Cli, demo: Demo) -> None:
    async with running(demo, cli) as runtime:
        paused = await cli("queue", "pause", "demo.double", "demo.slow")
        assert (paused.code, paused.lines) == (0, ["demo.double paused", "demo.slow paused"])
        handle = await runtime.submit(demo.double, 4)
        again = await cli("queue", "pause", "demo.double", "--json")
        assert (again.code, again.told) == (0, {"task": "demo.double", "paused": True, "changed": False})
        assert (await handle.status()).state is State.READY
        resumed = await cli("queue", "resume", "--all")
        assert resumed.code == 0
        assert resumed.lines == [
            "demo.double running",
            "demo.order was already running",
            "demo.slow running",
            "other.double was already running",
        ]
        assert await handle.result(10) == 8


# ---- the embedded server


async def test_commands_attach_to_the_embedded_server_and_leave_it(cli: Cli) -> None:
    cli.environment["AIOFLOW_REDIS"] = "embedded:"
    server = EmbeddedServer(cli.folder / ".aioflow")
    await server.start()
    try:
        submitted = await cli("submit", "demo.double", "1", "--json")
        listed = await cli("jobs", "list", "--json")
        assert server.owner
    finally:
        assert await server.stop()
    assert (submitted.code, submitted.told["durability"]) == (0, "fsync")
    assert listed.told["id"] == submitted.told["id"]
    gone = await cli("status")
    assert (gone.code, gone.out) == (2, "")


async def test_a_command_that_is_attached_does_not_keep_the_server_running(cli: Cli) -> None:
    """The last runtime to leave stops the server, whoever looks on."""
    (cli.folder / "demo.py").write_text(DEMO.replace(", lifespan=lifespan", ""))
    cli.environment["AIOFLOW_REDIS"] = "embedded:"
    serve = Serve("--no-ingress", environment=cli.environment, cwd=cli.folder)
    try:
        await serve.start()
        process = await cli.start("status", "--watch", "--json")
        assert process.stdout is not None
        row = json.loads(await asyncio.wait_for(process.stdout.readline(), 10))
        assert [task["runtimes"] for task in row["tasks"]] == [1] * 4
        assert await serve.stop() == 0
        with pytest.raises(ConfigError, match="no embedded server runs"):
            await EmbeddedServer(cli.folder / ".aioflow").attach()
        process.send_signal(signal.SIGINT)
        assert (await cli.end_of(process)).code == 0
    finally:
        serve.close()


# ---- bad input, help, completion


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    """A command that runs in this process sends its logs where the runner's standard error was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("submit demo.nope", 2, "there is no task 'demo.nope'; there are demo.double, demo.order"),
        ("submit demo.double {", 2, "the payload is not JSON"),
        ('submit demo.double "x"', 2, "the payload does not fit demo.double: it: Input should be a valid integer"),
        ("submit demo.double 1 --delay soon", 2, "--delay 'soon': write a number and ms, s, m, h or d"),
        ("submit demo.double 1 --at 2030-01-01T00:00", 2, "--at .*: write a time with its zone"),
        ("submit demo.double 1 --at 2030-01-01T00:00Z --delay 1", 2, "stands alone"),
        ("submit demo.double 1 --priority 10", 2, "--priority '10': write a whole number from 0 to 9"),
        ("submit demo.double 1 --durability never", 2, "durability='never'"),
        ("submit demo.double 1 --durability fsync", 2, "needs a server with appendonly yes"),
        ("submit demo.double 1 --id a\tb", 2, "job id"),
        ("submit demo.double 1 --redis unix:///nowhere", 3, "redis is away"),
        ("status --redis memory:", 2, "seen by its own process only"),
        ("status --redis http://x", 2, "use redis://"),
        ("status --redis embedded:", 2, r"no embedded server runs over .*/\.aioflow: start `python -m aioflow serve`"),
        ("status --namespace a:b", 2, "namespace 'a:b'"),
        ("status --service demo:nope", 2, "demo has no Service named nope"),
        ("jobs list --error x --state done", 2, "--error looks at dead jobs, and --state says done"),
        ("jobs list --limit 0", 2, "--limit '0': write a whole number from 1 to 100000"),
        ("jobs list --older 2h --newer 1h", 2, "no job is older than 2h and newer than 1h"),
        ("jobs retry", 2, "name the jobs to retry by their ids, or give --all"),
        ("jobs retry x --all", 2, "or give --all"),
        ("jobs retry x --older 1h", 2, "--older cannot be given with ids"),
        ("jobs retry --all", 2, "nobody can be asked whether to retry all of them: give --yes"),
        ("jobs cancel --all --state done", 2, "only unfinished jobs can be cancelled"),
        ("queue pause", 2, "name the tasks, or give --all"),
        ("queue pause demo.nope", 2, "there is no task"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, logs_as_before: None, arguments: str, code: int, said: str
) -> None:
    monkeypatch.chdir(cli.folder)
    monkeypatch.syspath_prepend(cli.folder)
    monkeypatch.delitem(sys.modules, "demo", raising=False)
    for name in ("AIOFLOW_REDIS", "AIOFLOW_NAMESPACE"):
        monkeypatch.setenv(name, cli.environment[name])
    ended = CliRunner().invoke(app, arguments.split(" "))
    assert (ended.exit_code, ended.stdout) == (code, "")
    assert re.fullmatch(f"aioflow: [^\n]*{said}[^\n]*\n", ended.stderr), ended.stderr
    assert not (cli.folder / ".aioflow").exists()


@pytest.mark.parametrize(
    "command", ["submit", "status", "jobs list", "jobs show", "jobs retry", "jobs cancel", "queue pause", "serve"]
)
def test_help_says_where_services_come_from_and_what_exit_codes_mean(command: str) -> None:
    ended = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert ended.exit_code == 0
    assert "default: [tool.aioflow] services" in ended.stdout
    assert "Exit codes: 0" in ended.stdout or command == "serve"


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("submit demo.d", ["demo.double"]),
        ("status other", ["other.double"]),
        ("queue pause demo.", ["demo.double", "demo.order", "demo.slow"]),
        ("jobs list --task ", ["demo.double", "demo.order", "demo.slow", "other.double"]),
        ("submit --service demo:other ", ["other.double"]),
        ("submit --service nowhere:at_all ", []),
        ("jobs list --state d", ["done", "dead"]),
        ("load demo.s", ["demo.slow"]),
    ],
)
async def test_a_shell_completes(cli: Cli, words: str, completed: list[str]) -> None:
    line = f"aioflow {words}"
    cli.environment |= {
        "_AIOFLOW_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    ended = await cli()
    assert (ended.err, [name for name in ended.lines if name]) == ("", completed)


def test_spans_are_read_and_shown() -> None:
    read = {"30": 30_000, "250ms": 250, "1.5h": 5_400_000, "10m": 600_000, "2d": 172_800_000}
    assert {text: span_ms(text, "--older") for text in read} == read
    shown = {0.04: "0.0s", 9.96: "10.0s", 59.9: "59s", 60: "1m", 750: "12m30s", 7260: "2h1m", 277_000: "3d4h"}
    assert {seconds: span(seconds) for seconds in shown} == shown
    assert visible("a\x1b[0m\tb\u202e\n") == "a\\x1b[0m\tb\\u202e\n"
