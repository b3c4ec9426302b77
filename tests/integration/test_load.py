"""`python -m aioflow load` as a user runs it: real processes, a real Valkey, a real `serve`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aioflow.embedded import EmbeddedServer
from aioflow.engine.connect import shown
from aioflow.engine.keys import Queue
from aioflow.engine.store import Store
from aioflow.job import new_id
from tests.serving import ROOT, Serve
from tests.valkey import Valkey
from tests.waiting import wait_until

DEMO = """
import asyncio
from contextlib import asynccontextmanager
from aioflow import Discard, Job, Service

@asynccontextmanager
async def lifespan(runtime):
    yield runtime

service = Service("demo", lifespan=lifespan)

@service.task()
async def double(number: int) -> int:
    return 2 * number

@service.task()
async def nothing() -> None:
    pass

@service.task()
async def fail_the_runtime(job: Job) -> None:
    job.resources.failed.set()

@service.task()
async def refuse() -> None:
    raise Discard("never")

@service.task(concurrency=1)
async def slow() -> None:
    await asyncio.sleep(0.05)
"""
DEMO_SERVICE = ("--service", "demo:service")
PAYMENT = '{"payer_id": "ann", "recipient_id": "bob", "amount": 1250}'
SURE = {
    "PAYMENTS_SIMULATED_ERROR_RATE": "0",
    "PAYMENTS_SIMULATED_INSUFFICIENT_RATE": "0",
    "PAYMENTS_SIMULATED_LATENCY": "0",
}
NOISE = re.compile("Traceback|Task was destroyed|never awaited|never retrieved|Warning|Unclosed|Exception ignored")


@dataclass
class Ended:
    """What the command left behind."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> Any:
        """The one JSON object on standard output."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


class Load:
    """Runs the command in a folder that holds the demo service."""

    def __init__(self, folder: Path, namespace: str) -> None:
        self.folder = folder
        (folder / "demo.py").write_text(DEMO)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("AIOFLOW_", "PAYMENTS_"))}
        self._environment = {
            **clean,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "default",
            "AIOFLOW_NAMESPACE": namespace,
        }

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start it."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aioflow", "load", *arguments),
            cwd=self.folder,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C goes to a process group; ours must not get it
        )

    async def end_of(self, process: asyncio.subprocess.Process, stdin: bytes = b"") -> Ended:
        """Wait for its end."""
        try:
            out, err = await asyncio.wait_for(process.communicate(stdin), 25)
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
def load(tmp_path: Path, namespace: str) -> Load:
    return Load(tmp_path, namespace)


@pytest.fixture
def totals(store: Store, namespace: str) -> Callable[[str], Any]:
    """Reads the counters of a task of the demo service."""

    async def read(task: str) -> dict[bytes, bytes]:
        counters: Any = await store.redis.hgetall(Queue(namespace, "demo", task).keys["totals"])
        return dict(counters)

    return read


# ---- in process


async def test_a_closed_loop_submits_runs_and_accounts_for_all(load: Load, valkey: Valkey) -> None:
    ended = await load("demo.double", "21", *DEMO_SERVICE, "--redis", valkey.url, "--jobs", "300")
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert "300 submits" in ended.out
    assert "100 submitters, closed loop" in ended.out
    assert "conservation holds: 300 accepted = 300 done, 0 dead, still queued: none, 0 missing" in ended.out
    assert re.search(r"p50 .*p90 .*p99 .*p99\.9 .*max", ended.out)
    assert "█" in ended.out


async def test_the_json_object_has_every_figure(load: Load, valkey: Valkey) -> None:
    ended = await load("demo.double", "21", *DEMO_SERVICE, "--redis", valkey.url, "--jobs", "200", "--json")
    assert ended.code == 0, ended.err
    told = ended.told
    latencies, conservation = told.pop("latency_ms"), told.pop("conservation")
    assert set(latencies) == {"submit", "start", "end_to_end"}
    for latency in latencies.values():
        assert latency.pop("count") == 200
        assert latency.pop("resolution") in {0.001, 1.0}
        assert list(latency) == ["p50", "p90", "p99", "p99.9", "max"]
        assert list(latency.values()) == sorted(latency.values())
    assert conservation == {
        "checked": True,
        "holds": True,
        "accepted": 200,
        "done": 200,
        "dead": 0,
        "kept": 0,
        "queued": {},
        "missing": 0,
        "missing_ids": [],
        "unchecked": 0,
        "totals": {"submitted": 200, "done": 200},
        "wrong": [],
    }
    assert told.pop("elapsed_s") > 0
    assert all(value > 0 for value in told.pop("throughput").values())
    assert told == {
        "task": "demo.double",
        "target": f"in process, redis {shown(valkey.url)}, receipts mean memory",
        "loop": "closed",
        "submitters": 100,
        "rate": None,
        "interrupted": False,
        "submits": 200,
        "accepted": 200,
        "refused": 0,
        "failed": {},
        "backlog": None,
        "notes": [],
    }


async def test_it_ends_after_the_seconds_and_needs_no_server_for_memory(load: Load) -> None:
    arguments = ("--redis", "memory:", "--seconds", "0.5", "--submitters", "5", "--json")
    told = (await load("demo.nothing", *DEMO_SERVICE, *arguments)).told
    assert told["elapsed_s"] >= 0.5
    assert told["conservation"]["done"] == told["accepted"] == told["submits"] > 0


async def test_dead_jobs_are_accounted_for(load: Load, valkey: Valkey) -> None:
    ended = await load("demo.refuse", *DEMO_SERVICE, "--redis", valkey.url, "--jobs", "20", "--json")
    assert (ended.code, ended.told["conservation"]["dead"]) == (0, 20)


async def test_jobs_that_nobody_runs_are_still_queued(load: Load, valkey: Valkey) -> None:
    arguments = ("--redis", valkey.url, "--no-workers", "--settle", "0", "--jobs", "30", "--json")
    ended = await load("demo.nothing", *DEMO_SERVICE, *arguments)
    assert ended.code == 0
    assert (ended.told["conservation"]["queued"], ended.told["conservation"]["done"]) == ({"ready": 30}, 0)


async def test_the_payload_may_come_from_standard_input(load: Load, valkey: Valkey) -> None:
    arguments = ("--redis", valkey.url, "--jobs", "5", "--json")
    ended = await load("demo.double", "-", *DEMO_SERVICE, *arguments, stdin=b" 21\n")
    assert (ended.code, ended.told["conservation"]["done"]) == (0, 5)


async def test_an_open_loop_counts_from_when_a_submit_was_due(load: Load, valkey: Valkey) -> None:
    """20 jobs are due within 190 ms and run one after the other, 50 ms each: the last ends 810 ms after it was due."""
    arguments = ("--redis", valkey.url, "--rate", "100", "--jobs", "20", "--json")
    ended = await load("demo.slow", *DEMO_SERVICE, *arguments)
    told = ended.told
    assert (ended.code, told["loop"], told["rate"]) == (0, "open", 100.0)
    assert told["latency_ms"]["end_to_end"]["max"] >= 780
    assert told["latency_ms"]["start"]["max"] >= 730


@pytest.mark.parametrize("what", ["state", "record"])
async def test_a_job_that_vanishes_is_named(
    load: Load, valkey: Valkey, store: Store, namespace: str, what: str
) -> None:
    keys = Queue(namespace, "demo", "nothing").keys
    process = await load.start(
        "demo.nothing", *DEMO_SERVICE, "--redis", valkey.url, "--no-workers", "--jobs", "30", "--json"
    )

    async def all_there() -> bool:
        return bool(await store.redis.zcard(keys["ready"]) == 30)

    await wait_until(all_there)
    ((victim, _),) = await store.page(keys["open"], 0, 2**42, 1, None)
    if what == "state":
        await store.redis.zrem(keys["ready"], victim)
    else:
        lost: Any = store.redis.hdel(keys["jobs"], victim)
        await lost
    process.send_signal(signal.SIGINT)
    ended = await load.end_of(process)
    conservation = ended.told["conservation"]
    assert ended.code == 1
    assert (conservation["holds"], conservation["missing"], conservation["missing_ids"]) == (False, 1, [victim])
    assert conservation["queued"] == {"ready": 29}
    assert victim in conservation["wrong"][0]


async def test_counters_below_the_receipts_are_wrong(load: Load, valkey: Valkey, store: Store, namespace: str) -> None:
    keys = Queue(namespace, "demo", "nothing").keys
    process = await load.start(
        "demo.nothing", *DEMO_SERVICE, "--redis", valkey.url, "--no-workers", "--jobs", "10", "--json"
    )

    async def all_there() -> bool:
        return bool(await store.redis.zcard(keys["ready"]) == 10)

    await wait_until(all_there)
    await store.redis.hincrby(keys["totals"], "submitted", -1)
    process.send_signal(signal.SIGINT)
    ended = await load.end_of(process)
    assert ended.code == 1
    assert ended.told["conservation"]["wrong"] == ["the queue counts 9 submits, and 10 were receipted"]


async def test_ctrl_c_stops_submitting_and_reports(load: Load, valkey: Valkey, totals: Callable[[str], Any]) -> None:
    process = await load.start(
        "demo.nothing", *DEMO_SERVICE, "--redis", valkey.url, "--seconds", "600", "--submitters", "5", "--json"
    )

    async def some_done() -> bool:
        return b"done" in await totals("nothing")

    await wait_until(some_done)
    process.send_signal(signal.SIGINT)
    ended = await load.end_of(process)
    told, conservation = ended.told, ended.told["conservation"]
    assert (ended.code, told["interrupted"], conservation["holds"]) == (130, True, True)
    assert told["accepted"] == conservation["done"] + sum(conservation["queued"].values())


async def test_ctrl_c_reaches_a_submitter_that_waits_for_its_time(load: Load, valkey: Valkey, totals: Any) -> None:
    process = await load.start(
        "demo.nothing", *DEMO_SERVICE, "--redis", valkey.url, "--rate", "0.001", "--jobs", "2", "--json"
    )

    async def first_done() -> bool:
        return bool((await totals("nothing")).get(b"done") == b"1")

    await wait_until(first_done)
    process.send_signal(signal.SIGINT)
    ended = await load.end_of(process)
    assert (ended.code, ended.told["submits"], ended.told["backlog"]["unsent"]) == (130, 1, 0)


async def test_a_runtime_that_fails_ends_it(load: Load, valkey: Valkey) -> None:
    arguments = ("--redis", valkey.url, "--seconds", "600", "--submitters", "1", "--json")
    ended = await load("demo.fail_the_runtime", *DEMO_SERVICE, *arguments)
    assert ended.code == 1
    assert ended.told["conservation"]["wrong"] == ["the runtime failed; its log says why"]


async def test_others_may_use_the_same_queue(load: Load, valkey: Valkey, totals: Callable[[str], Any]) -> None:
    arguments = ("demo.nothing", *DEMO_SERVICE, "--redis", valkey.url, "--json")
    first = await load.start(*arguments, "--seconds", "600", "--submitters", "5")

    async def some_done() -> bool:
        return b"done" in await totals("nothing")

    await wait_until(some_done)
    other = await load(*arguments, "--jobs", "50", "--submitters", "2")
    first.send_signal(signal.SIGINT)
    ended = await load.end_of(first)
    assert (other.code, ended.code) == (0, 130)
    assert ended.told["conservation"]["holds"]
    assert re.fullmatch(r"\d+ more jobs were submitted to this queue meanwhile", ended.told["notes"][0])


async def test_embedded_is_attached_to(load: Load) -> None:
    data = load.folder / "data"
    server = EmbeddedServer(data)
    await server.start()
    try:
        arguments = ("--redis", "embedded:", "--data", str(data), "--jobs", "20", "--json")
        ended = await load("demo.nothing", *DEMO_SERVICE, *arguments)
        assert server.owner
    finally:
        assert await server.stop()
    assert (ended.code, ended.told["conservation"]["done"]) == (0, 20)
    assert "receipts mean fsync" in ended.told["target"]


# ---- over HTTP


class Stub:
    """An ingress that answers as a test says: its statuses in turn, each after a delay."""

    def __init__(self) -> None:
        self.statuses = [202]
        self.delay = 0.0
        self.gone = 0
        self.has_location = True
        self.asked = 0
        self._ids: list[str] = []
        self.url = ""

    async def post(self, request: web.Request) -> web.Response:
        """Take a job, or do not."""
        await request.read()
        await asyncio.sleep(self.delay)
        status = self.statuses[self.asked % len(self.statuses)]
        self.asked += 1
        if status != 202:
            return web.json_response({"detail": "no"}, status=status)
        self._ids.append(new_id() if len(self._ids) % 2 else f"order-{len(self._ids)}")
        headers = {"Location": f"/jobs/{self._ids[-1]}"} if self.has_location else {}
        return web.json_response({"tracking_id": self._ids[-1]}, status=202, headers=headers)

    async def get(self, request: web.Request) -> web.Response:
        """Show a job, unless it is one of the first, which are gone."""
        known = request.match_info["id"] in self._ids[self.gone :]
        return web.json_response({}, status=200 if known else 404)


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    made = Stub()
    app = web.Application()
    app.router.add_post("/jobs", made.post)
    app.router.add_get("/jobs/{id}", made.get)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jobs"
    yield made
    await runner.cleanup()


async def test_payments_are_accounted_for_by_their_locations_or_their_records(
    load: Load, valkey: Valkey, namespace: str
) -> None:
    environment = {**SURE, "AIOFLOW_NAMESPACE": namespace}
    serve = Serve("services.payments:service", "--redis", valkey.url, "--port", "0", environment=environment)
    try:
        await serve.start()
        arguments = ("payments.charge", PAYMENT, "--url", f"{serve.url}/payments", "--jobs", "50", "--json")
        by_location = await load(*arguments)
        by_record = await load(*arguments, "--redis", valkey.url)
        assert await serve.stop() == 0
    finally:
        serve.close()
    assert (by_location.code, by_record.code) == (0, 0)
    assert by_location.told["conservation"]["kept"] == 50
    assert by_location.told["latency_ms"]["submit"]["count"] == 50
    assert by_location.told["latency_ms"]["end_to_end"]["count"] == 0
    assert by_record.told["conservation"]["done"] == 50
    assert by_record.told["conservation"]["totals"] == {"submitted": 50, "done": 50}
    assert by_record.told["latency_ms"]["end_to_end"]["count"] == 50


async def test_a_location_that_is_gone_is_a_missing_job(load: Load, stub: Stub) -> None:
    stub.gone = 12
    ended = await load("demo.nothing", "--url", stub.url, "--jobs", "20")
    assert ended.code == 1
    assert "conservation wrong: 20 accepted = 0 done, 0 dead, 8 kept, still queued: none, 12 missing" in ended.out
    (listed,) = re.findall("wrong: 12 accepted jobs are missing: (.*), ...\n", ended.out)
    assert len(listed.split(", ")) == 10
    assert "order-0" in listed


async def test_what_is_refused_and_what_fails_is_counted(load: Load, stub: Stub) -> None:
    stub.statuses = [202, 503, 429, 500, 422]
    ended = await load("demo.nothing", "--url", stub.url, "--jobs", "20", "--json")
    told = ended.told
    assert ended.code == 0
    assert (told["submits"], told["accepted"], told["refused"]) == (20, 4, 8)
    assert told["failed"] == {"500": 4, "422": 4}
    assert told["latency_ms"]["submit"]["count"] == 4


async def test_slow_answers_cannot_hide_in_an_open_loop(load: Load, stub: Stub) -> None:
    """10 submits are due within 90 ms and one submitter gets an answer each 50 ms: the last is 410 ms late."""
    stub.delay, stub.has_location = 0.05, False
    arguments = ("--url", stub.url, "--submitters", "1", "--rate", "100", "--jobs", "10", "--json")
    ended = await load("demo.nothing", *arguments)
    told = ended.told
    assert told["latency_ms"]["submit"]["max"] >= 395
    assert told["backlog"]["most"] >= 3
    assert told["backlog"]["unsent"] == 0
    assert (ended.code, told["conservation"]["checked"], told["conservation"]["holds"]) == (1, False, None)
    assert "give --redis" in told["notes"][0]


async def test_submits_that_were_due_and_never_sent_are_said(load: Load, stub: Stub) -> None:
    stub.delay = 0.05
    arguments = ("--url", stub.url, "--submitters", "1", "--rate", "200", "--seconds", "0.4", "--json")
    told = (await load("demo.nothing", *arguments)).told
    assert told["submits"] + told["backlog"]["unsent"] == 80
    assert told["backlog"]["unsent"] >= 70
    assert any("never was" in note for note in told["notes"])


async def test_nothing_accepted_is_no_success(load: Load, stub: Stub) -> None:
    stub.statuses = [503]
    ended = await load("demo.nothing", "--url", stub.url, "--jobs", "3", "--json")
    assert (ended.code, ended.told["accepted"], ended.told["refused"]) == (1, 0, 3)


# ---- bad input

MEMORY = (*DEMO_SERVICE, "--redis", "memory:")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("demo.nope", *MEMORY), "there is no task 'demo.nope'; there are demo.double"),
        (("demo.double", "{", *MEMORY), "the payload is not JSON"),
        (("demo.double", '"x"', *MEMORY), "the payload does not fit demo.double: it: Input should be a valid integer"),
        (("demo.nothing", "1", *MEMORY), "demo.nothing takes no payload"),
        (("demo.nothing", *MEMORY, "--jobs", "x", "--settle", "-1"), "--jobs: .*--settle: "),
        (("demo.nothing", *MEMORY, "--jobs", "1", "--seconds", "1"), "--jobs or --seconds, not both"),
        (("demo.nothing", *MEMORY, "--workers", "0"), "AIOFLOW_WORKERS"),
        (("demo.nothing",), "no service is named"),
        (("demo.nothing", *DEMO_SERVICE), "no embedded server runs over .*/.aioflow: start `python -m aioflow serve`"),
        (("demo.nothing", *DEMO_SERVICE, "--redis", "unix:///nowhere"), "redis is away"),
        (("demo.nothing", "--url", "ftp://example.org"), "write http://host:port/path"),
        (("demo.nothing", "--url", "http://127.0.0.1:9/jobs"), "POST http://127.0.0.1:9/jobs: cannot connect"),
        (("demo.nothing", "--url", "http://127.0.0.1:9", "--no-workers"), "leave them out with --url"),
        (("demo.nothing", "--url", "http://127.0.0.1:9", "--redis", "memory:"), "seen by its own process only"),
        (("nothing", "--url", "http://127.0.0.1:9", "--redis", "unix:///nowhere"), "write service.task"),
    ],
)
async def test_bad_input_is_one_line(load: Load, arguments: tuple[str, ...], said: str) -> None:
    ended = await load(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert re.fullmatch(f"aioflow: [^\n]*{said}[^\n]*\n", ended.err), ended.err
    assert not (load.folder / ".aioflow").exists()


async def test_a_first_answer_that_all_others_would_get_ends_it(load: Load, stub: Stub) -> None:
    stub.statuses = [422]
    ended = await load("demo.nothing", "--url", stub.url, "--jobs", "50")
    assert (ended.code, stub.asked) == (2, 1)
    assert re.fullmatch(r"aioflow: POST \S+ answered 422: .*\n", ended.err)


async def test_a_service_brings_its_own_generator(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from collections.abc import AsyncIterator, Sequence\n"
        "from contextlib import asynccontextmanager\n"
        "from aioflow import Service\n"
        "from aioflow.load import Load, LoadOptions, Seen\n"
        "service, plain = Service('own'), Service('plain')\n"
        "class Place:\n"
        "    batch, arrive, can_tell = 10, True, True\n"
        "    def __init__(self) -> None:\n"
        "        self.taken: list[str] = []\n"
        "    async def submit(self) -> str:\n"
        "        self.taken.append(f'item-{len(self.taken)}')\n"
        "        return self.taken[-1]\n"
        "    async def look(self, ids: Sequence[str]) -> list[Seen | None]:\n"
        "        return [Seen('awaited' if job_id == 'item-7' else 'done') for job_id in ids]\n"
        "    async def totals(self) -> None: ...\n"
        "    async def synchronize(self) -> None: ...\n"
        "@service.load\n"
        "@asynccontextmanager\n"
        "async def generate(options: LoadOptions) -> AsyncIterator[Load]:\n"
        "    place = Place()\n"
        "    yield Load(f'{options.url} seed {options.seed}', place, place)\n"
    )

    async def run(*words: str) -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aioflow", "load", *words, "--service", "own:service", "--service", "own:plain"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complaint = await process.communicate()
        return process.returncode, said.decode(), complaint.decode()

    code, said, _ = await run("own", "--jobs", "5", "--json", "--seed", "3")
    assert (code, json.loads(said)["target"]) == (0, "http://127.0.0.1:8080 seed 3")
    code, said, _ = await run("own", "--jobs", "9", "--json", "--settle", "0")
    assert (code, json.loads(said)["conservation"]["wrong"]) == (1, ["1 did not arrive within 0 s, such as item-7"])
    for words, message in (
        (("plain",), "service plain has no load generator of its own"),
        (("other",), "there is no task 'other'"),
        (("own", "5"), "own makes its own payloads"),
        (("own.task", "--seed", "1"), "--seed is for a service's own generator"),
    ):
        code, _, complaint = await run(*words)
        assert (code, complaint.count("\n")) == (2, 1)
        assert message in complaint
