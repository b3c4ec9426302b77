"""A service's own Lua: where its keys lie, what it includes, when it is sent again, and what its errors become."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aioflow import ConfigError, Job, JobFailed, Retry, Runtime, Service, StoreUnavailable
from aioflow.engine import scripts
from aioflow.errors import ProtocolError
from aioflow.service import ServiceScript
from tests.proxy import Proxy
from tests.valkey import Valkey

Write = Callable[..., Path]

COUNT = "return redis.call('HINCRBY', KEYS[1], 'n', ARGV[1] or 1)"


@pytest.fixture
def service() -> Service:
    return Service("demo")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file and say where it lies."""

    def put(name: str, *lines: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        return path

    return put


@pytest.fixture(params=["valkey", "memory:"])
def redis_url(request: pytest.FixtureRequest, valkey: Valkey) -> str:
    return valkey.url if request.param == "valkey" else "memory:"


def mark(script: ServiceScript) -> bytes:
    """What marks its calls on the wire."""
    return scripts.load_file(script.path).sha.encode()


async def test_its_keys_lie_below_the_services_prefix_whatever_their_names(
    redis_url: str, namespace: str, service: Service, write: Write
) -> None:
    put = service.script(write("put.lua", "redis.call('SET', KEYS[1], ARGV[1])", "return KEYS"))
    async with Runtime([service], redis=redis_url, namespace=namespace, workers=False) as runtime:
        for name in ("stock", "a:b", "}:q:work:jobs", "{other.0}:d:x", "größer", " "):
            (key,) = await put([name], ["1"])
            assert key.decode() == runtime.key(service, name) == f"{namespace}:1:{{demo.0}}:d:{name}"
            assert await runtime.redis.get(key) == b"1"


async def test_arguments_and_answers_are_what_redis_makes_of_them(
    redis_url: str, namespace: str, service: Service, write: Write
) -> None:
    echo = service.script(write("echo.lua", "return {#KEYS, ARGV, false, 7, 'x'}"))
    nothing = service.script(write("nothing.lua", "return nil"))
    async with Runtime([service], redis=redis_url, namespace=namespace, workers=False):
        answer = await echo([], ["text", b"\x00\xff", 5, -2.5, 2**53, 0.1])
        assert answer == [0, [b"text", b"\x00\xff", b"5", b"-2.5", b"9007199254740992", b"0.1"], None, 7, b"x"]
        assert await nothing() is None


async def test_effects_and_scripts_see_the_same_keys_and_a_handler_runs_them(
    redis_url: str, namespace: str, service: Service, write: Write
) -> None:
    read = service.script(write("read.lua", "return redis.call('HGETALL', KEYS[1])"))

    @service.task()
    async def work(number: int, job: Job) -> int:
        job.commit.hset("seen", "number", str(number))
        return len(await read(["seen"]))

    async with Runtime([service], redis=redis_url, namespace=namespace):
        assert await (await work.submit(3)).result(5) == 0, "effects land with the acknowledgement"
        assert await (await work.submit(4)).result(5) == 2
        assert await read(["seen"]) == [b"number", b"4"]


async def test_a_file_is_found_beside_the_module_that_names_it(
    valkey: Valkey, namespace: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lua" / "include").mkdir(parents=True)
    (tmp_path / "lua" / "include" / "twice.lua").write_text("local function twice(number)\n  return 2 * number\nend\n")
    write("lua/double.lua", "--@include twice", "return twice(tonumber(ARGV[1]))")
    module = write(
        "shop.py",
        "from aioflow import Service",
        "service = Service('demo')",
        "double = service.script('lua/double.lua')",
    )
    monkeypatch.chdir("/")
    spec = importlib.util.spec_from_file_location("shop_of_a_test", module)
    assert spec is not None
    assert spec.loader is not None
    shop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shop)
    async with Runtime([shop.service], redis=valkey.url, namespace=namespace, workers=False):
        assert await shop.double(args=[21]) == 42


async def test_what_is_missing_is_said_early_and_by_name(
    valkey: Valkey, namespace: str, service: Service, write: Write, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"service demo: there is no script {tmp_path}/nowhere\.lua"):
        service.script(tmp_path / "nowhere.lua")
    with pytest.raises(ConfigError, match="there is no script"):
        service.script(tmp_path)
    with pytest.raises(ConfigError, match=rf"no script {Path(__file__).parent}/beside\.lua"):
        service.script("beside.lua")
    incomplete = service.script(write("incomplete.lua", "--@include absent", "return 1"))
    gone = service.script(write("gone.lua", "return 1"))
    gone.path.unlink()
    count = service.script(write("count.lua", COUNT))
    with pytest.raises(ConfigError, match="no live runtime"):
        await count(["n"])
    async with Runtime([service], redis=valkey.url, namespace=namespace, workers=False):
        with pytest.raises(ConfigError, match=r"absent\.lua"):
            await incomplete()
        with pytest.raises(ConfigError, match=r"gone\.lua"):
            await gone()


async def test_with_two_runtimes_a_handler_runs_it_on_its_own(valkey: Valkey, namespace: str, write: Write) -> None:
    service = Service("demo")
    count = service.script(write("count.lua", COUNT))

    @service.task()
    async def work() -> int:
        return int(await count(["n"]))

    async with (
        Runtime([service], redis=valkey.url, namespace=f"{namespace}a") as first,
        Runtime([service], redis=valkey.url, namespace=f"{namespace}b") as second,
    ):
        assert [await (await first.submit(work)).result(5) for _ in range(3)] == [1, 2, 3]
        assert await (await second.submit(work)).result(5) == 1
        with pytest.raises(ConfigError, match="2 live runtimes"):
            await count(["n"])


@pytest.mark.parametrize(
    ("header", "repeats"),
    [
        ("-- Repeat: same answer", True),
        ("-- Repeat: no second effect", True),
        ("-- Repeat: no second effect but one lease", False),
        ("-- Repeat: never", False),
        ("--Repeat: same answer", False),
        ("-- counts.", False),
    ],
)
async def test_after_a_lost_reply_it_is_sent_again_only_where_its_header_allows(
    valkey: Valkey, namespace: str, service: Service, write: Write, header: str, repeats: bool
) -> None:
    count = service.script(write("count.lua", "#!lua", "-- count: counts how often it ran.", header, COUNT))
    async with (
        Proxy(valkey.socket) as proxy,
        Runtime([service], redis=proxy.url, namespace=namespace, workers=False),
    ):
        assert await count(["n"]) == 1
        proxy.lose_reply(mark(count))
        if repeats:
            assert await count(["n"]) == 3, "it ran, and ran again"
        else:
            with pytest.raises(StoreUnavailable):
                await count(["n"])
        proxy.lose_reply(mark(count), times=2)
        with pytest.raises(StoreUnavailable):
            await count(["n"])
        if not repeats:
            proxy.cut()
            with pytest.raises(StoreUnavailable):
                await count(["n"])  # the second of the lost ones
        expected = 6 if repeats else 5
        assert await count(["n"], [1]) == expected


async def test_a_server_that_forgot_it_is_told_again_and_it_runs_once(
    own_valkey: Valkey, namespace: str, service: Service, write: Write
) -> None:
    count = service.script(write("count.lua", COUNT))
    async with Runtime([service], redis=own_valkey.url, namespace=namespace) as runtime:
        for number in range(1, 4):
            await runtime.redis.script_flush()
            assert await count(["n"]) == number
        own_valkey.kill()
        own_valkey.start()
        assert await eventually_counts(count) == 4, "an fsynced count, and a server that knows no script"


async def eventually_counts(count: ServiceScript) -> int:
    """The answer once the server is back."""
    for _ in range(100):
        try:
            return int(await count(["n"]))
        except StoreUnavailable:
            continue
    raise AssertionError("the server did not come back")


async def test_an_error_in_it_is_named_and_breaks_nothing_else(
    redis_url: str, namespace: str, service: Service, write: Write
) -> None:
    wrong = {
        "refuses.lua": ("return redis.error_reply('SOLD out of ink')", "SOLD out of ink"),
        "fails.lua": ("return nil + 1", "arithmetic"),
        "calls.lua": ("return redis.call('HINCRBY', KEYS[1], 'n', 'x')", "WRONGTYPE|wrong kind|not an integer"),
        "grammar.lua": ("return return", "unexpected|expected|near"),
    }
    count = service.script(write("count.lua", COUNT))

    @service.task(retry=Retry(attempts=1))
    async def work() -> None:
        await service.script(write("handler.lua", "error('in the script')"))()

    async with Runtime([service], redis=redis_url, namespace=namespace) as runtime:
        await runtime.redis.hset(runtime.key(service, "hash"), "a", "1")
        for name, (body, message) in wrong.items():
            script = service.script(write(name, body))
            with pytest.raises(ProtocolError, match=message) as error:
                await script(["hash"])
            assert error.value.__cause__ is not None
        with pytest.raises(JobFailed, match=r"ProtocolError.*in the script"):
            await (await work.submit()).result(5)
        assert await count(["n"]) == 1
        assert not runtime.failed.is_set()


async def test_at_maxmemory_it_is_refused_unless_it_says_that_it_may_run(
    own_valkey: Valkey, namespace: str, service: Service, write: Write
) -> None:
    adds = service.script(write("adds.lua", "#!lua", COUNT))
    frees = service.script(write("frees.lua", "#!lua flags=allow-oom", "return redis.call('DEL', KEYS[1])"))
    async with Runtime([service], redis=own_valkey.url, namespace=namespace, workers=False) as runtime:
        assert await adds(["n"]) == 1
        await runtime.redis.config_set("maxmemory", "1mb")
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            await adds(["n"])
        assert await frees(["n"]) == 1
        await runtime.redis.config_set("maxmemory", "0")
        assert await adds(["n"]) == 1


@pytest.mark.parametrize("line", ["--@include my-part", "-- @include leaf", "  --@include leaf", "--@include nested"])
async def test_an_include_that_is_not_resolved_is_no_comment(
    namespace: str, service: Service, write: Write, line: str
) -> None:
    write("include/leaf.lua", "local function leaf() return 1 end")
    write("include/nested.lua", "--@include leaf")
    script = service.script(write("outer.lua", line, "return 1"))
    async with Runtime([service], redis="memory:", namespace=namespace, workers=False):
        with pytest.raises(ConfigError, match="includes nothing: write --@include NAME"):
            await script(["key"])


async def test_a_script_is_utf8_and_what_is_none_is_said(namespace: str, service: Service, tmp_path: Path) -> None:
    (tmp_path / "latin.lua").write_bytes("return 'größer'".encode("latin-1"))
    script = service.script(tmp_path / "latin.lua")
    async with Runtime([service], redis="memory:", namespace=namespace, workers=False):
        with pytest.raises(ConfigError, match=r"latin\.lua.*utf-8"):
            await script(["key"])


async def test_includes_and_a_shebang_work_in_memory_as_well(
    redis_url: str, namespace: str, service: Service, write: Write, tmp_path: Path
) -> None:
    write("include/first.lua", "local one = 1")
    write("include/second.lua", "local two = one + 1")
    both = service.script(
        write("both.lua", "#!lua flags=allow-oom", "--@include first", "--@include second", "return one + two")
    )
    async with Runtime([service], redis=redis_url, namespace=namespace, workers=False):
        assert await both() == 3
        answers: list[Any] = [await both() for _ in range(3)]
        assert answers == [3, 3, 3]
