"""Payloads are data, never code; and no effect, script or emitted job reaches a key outside its service."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from aioflow import AioflowError, Job, Runtime, Service
from aioflow.commit import Effect
from aioflow.engine import scripts
from aioflow.engine.keys import Queue
from aioflow.engine.records import Settlement
from aioflow.engine.store import Store
from tests.cluster import Cluster
from tests.conftest import Clock
from tests.integration.scripts.state import start
from tests.serving import ROOT
from tests.valkey import Valkey

# ---- payloads are data

SOURCES = sorted([*(ROOT / "aioflow").rglob("*.py"), *(ROOT / "services").rglob("*.py"), ROOT / "pytest_aioflow.py"])
CODE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "yaml", "code", "codeop", "jsonpickle"}
CODE_CALLS = {"eval", "exec", "compile", "__import__"}
SHELLS = {"system", "popen"}
OWN_PROCESSES = ROOT / "aioflow" / "engine" / "processes.py"
"""Pickles between a runtime and the processes that it has started, over a pipe that nobody else has an end of."""


def code_in(source: str) -> Iterator[str]:
    """What could make code of data: imports, and calls by their bare names."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                yield from (name.name for name in names if name.name.partition(".")[0] in CODE_MODULES)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in CODE_MODULES:
                yield module
            case ast.Call(func=ast.Name(id=name)) if name in CODE_CALLS:
                yield f"{name}()"
            case ast.Call(func=ast.Attribute(attr=name, value=ast.Name(id="os"))) if name in SHELLS:
                yield f"os.{name}()"
            case ast.keyword(arg="shell", value=ast.Constant(value=True)):
                yield "shell=True"


def test_nothing_makes_code_of_data() -> None:
    assert len(SOURCES) > 100
    found = {path: set(code_in(path.read_text())) for path in SOURCES}
    assert {path: names for path, names in found.items() if names} == {OWN_PROCESSES: {"pickle"}}
    for path in scripts.script_root().rglob("*.lua"):
        assert not re.search(r"\b(loadstring|load|dofile|require)\s*\(", path.read_text()), path


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from marshal import loads", "import yaml.loader", "eval('1')", "x = exec(y)"),
        *("os.system(x)", "run(x, shell=True)"),
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert list(code_in(source))


async def test_a_payload_that_looks_like_code_is_a_text(valkey: Valkey, namespace: str) -> None:
    service = Service("demo")

    @service.task()
    async def echo(text: str) -> str:
        return text

    texts = [
        "__import__('os').abort()",
        "cos\nsystem\n(S'x'\ntR.",
        "{{7*7}}",
        "!!python/object/apply:os.abort []",
        "${x}",
    ]
    async with Runtime([service], redis=valkey.url, namespace=namespace) as runtime:
        for text in texts:
            assert await (await runtime.submit(echo, text)).result(5) == text


# ---- effects stay in their service

NAMES = [
    *("..", "../x", "../../mine", "x:../y", "}:q:work:jobs", "{other.0}:d:x", "}:1:{other.0}:d:x", "{}", "{", "}"),
    *("*", "\n", "\0", " ", "mine", ":", "::q:work:ready", "größer", "x" * 5000),
]
TASKS = ["..", "other.work", "work:jobs", "}:q:work", "{other.0}", "WORK", "", "\n"]


async def keys_of(client: Redis) -> set[str]:
    return {key.decode(errors="replace") async for key in client.scan_iter(count=1000)}


@pytest.fixture
async def admin(own_valkey: Valkey) -> Any:
    """Sees all keys of a server that has nothing else."""
    async with Redis.from_url(own_valkey.admin_url, protocol=2) as client:
        await client.set("mine", "untouched")
        await client.hset("other:1:{demo.0}:d:x", "f", "untouched")
        yield client


async def test_whatever_an_effect_names_it_stays_below_its_services_prefix(
    own_valkey: Valkey, admin: Redis, namespace: str
) -> None:
    service = Service("demo")

    @service.task()
    async def work(name: str, job: Job) -> None:
        job.commit.set(name, "x")
        job.commit.hset(f"{name}.hash", "f", "x")
        job.commit.sadd(f"{name}.set", "x")
        job.commit.delete(f"{name}.gone")

    before = await keys_of(admin)
    async with Runtime([service], redis=own_valkey.url, namespace=namespace) as runtime:
        for name in NAMES:
            await (await runtime.submit(work, name)).result(5)
    made = await keys_of(admin) - before
    shard = f"{namespace}:1:{{demo.0}}:"
    foreign = {
        key for key in made if not key.startswith((f"{shard}q:work:", f"{shard}d:", f"{namespace}:1:{{fleet}}:"))
    }
    assert foreign == set()
    own = {key for key in made if key.startswith(f"{shard}d:")}
    assert own == {f"{shard}d:{name}{end}" for name in NAMES for end in ("", ".hash", ".set")}
    assert {key_slot(key.encode()) for key in own} == {key_slot(shard.encode())}, "braces in a name move no key"
    assert await admin.get("mine") == b"untouched"
    assert await admin.hgetall("other:1:{demo.0}:d:x") == {b"f": b"untouched"}


@pytest.mark.parametrize("name", TASKS)
async def test_a_job_is_submitted_into_queues_of_its_service_alone(
    clocked: Store, queue: Queue, clock: Clock, name: str
) -> None:
    """Past all that `job.commit` checks: the call of the script as somebody might make it by hand."""
    await start(clocked, queue, "a")
    before: Any = await clocked.redis.keys(f"{queue.namespace}:*")
    effect = Effect("submit", name, ("id", b"\nnull", "5", "0"))
    (answer,) = await clocked.settle(queue, [Settlement("a", "r.1", "done", b"null", effects=(effect,))])
    assert isinstance(answer, str)
    assert "there is no such task" in answer
    after: Any = await clocked.redis.keys(f"{queue.namespace}:*")
    assert {key.rpartition(b":")[0] for key in after} == {key.rpartition(b":")[0] for key in before}


async def test_a_services_script_is_given_keys_of_its_service_alone(
    own_valkey: Valkey, admin: Redis, namespace: str, tmp_path: Path
) -> None:
    (tmp_path / "put.lua").write_text("return redis.call('SET', KEYS[1], ARGV[1])\n")
    service = Service("demo")
    put = service.script(tmp_path / "put.lua")
    before = await keys_of(admin)
    async with Runtime([service], redis=own_valkey.url, namespace=namespace, workers=False):
        for name in NAMES:
            await put([name], ["x"])
    assert await keys_of(admin) - before == {f"{namespace}:1:{{demo.0}}:d:{name}" for name in NAMES}
    assert await admin.get("mine") == b"untouched"


async def test_in_a_cluster_a_name_leads_to_no_other_slot(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    """A script that builds a key of another service by itself is refused where its node has not that slot."""
    (tmp_path / "put.lua").write_text("return redis.call('SET', KEYS[1], ARGV[1])\n")
    (tmp_path / "steal.lua").write_text("return redis.call('HSET', ARGV[1], 'f', 'x')\n")
    service = Service("demo")
    put, steal = service.script(tmp_path / "put.lua"), service.script(tmp_path / "steal.lua")
    shard = f"{namespace}:1:{{demo.0}}:"
    async with Runtime([service], redis=cluster.url, namespace=namespace, workers=False) as runtime:
        for name in NAMES:
            await put([name], ["x"])
            assert runtime.key(service, name) == f"{shard}d:{name}"
        elsewhere = next(name for name in map("s{}".format, range(100)) if away(cluster, shard, name, namespace))
        with pytest.raises(AioflowError):
            await steal(["x"], [f"{namespace}:1:{{{elsewhere}.0}}:d:x"])


def away(cluster: Cluster, shard: str, name: str, namespace: str) -> bool:
    """Whether another node has the slot of another service."""
    slots = [key_slot(key.encode()) for key in (shard, f"{namespace}:1:{{{name}.0}}:d:x")]
    return [node.owns(slots[0]) for node in cluster.nodes] != [node.owns(slots[1]) for node in cluster.nodes]
