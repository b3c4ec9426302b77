"""The README's ACL line: it is enough for what aioflow does, for no more, and what is missing is said at the start."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from aioflow import Job, Runtime, Service, State
from aioflow.engine import rights, scripts
from aioflow.engine.keys import data_key
from aioflow.engine.store import Store
from aioflow.errors import ConfigError
from tests import acl
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until

PASSWORD = "of-this-test"


@pytest.fixture
def server() -> Iterator[Valkey]:
    """A server that gives receipts of fsync, of this test's own."""
    made = Valkey(fsync=True, arguments=("--enable-debug-command", "yes"))
    made.start()
    yield made
    made.close()


@pytest.fixture
async def admin(server: Valkey) -> AsyncIterator[Redis]:
    """The default user, who may do all; `worker` is the user of the README's line, word by word."""
    async with Redis.from_url(server.admin_url, protocol=2) as client:
        words = acl.words("aioflow", PASSWORD)
        await client.execute_command("ACL", "SETUSER", "worker", "reset", *words[1:])
        yield client


@pytest.fixture
def url(server: Valkey, admin: Redis) -> str:
    """Where aioflow connects as that user."""
    return server.admin_url.replace("://", f"://worker:{PASSWORD}@")


@pytest.fixture
def service() -> Service:
    made = Service("demo")
    greeted = made.timeline("greeted", keep="1d")

    @made.task()
    async def greet(name: str, job: Job) -> str:
        job.commit.record(greeted[name], job.id)
        job.commit.set("last", name)
        job.commit.hincrby("counts", name, 1)
        job.commit.sadd("names", name)
        job.commit.submit("demo.note", name)
        return f"Hello, {name}!"

    @made.task()
    async def note(name: str) -> None: ...

    @made.task()
    async def wait(name: str) -> None: ...

    return made


async def test_the_line_of_the_readme_is_the_codes(server: Valkey) -> None:
    assert acl.readme_line() == rights.acl_line("aioflow", "PASSWORD")
    assert acl.words() == rights.acl_line("*", acl.PASSWORD).split()[1:], "and what the suite runs under"


async def test_the_line_allows_what_the_scripts_call_and_little_else() -> None:
    """Each command of the line has a caller: a script, or the few that the driver and the plain reads send."""
    called = {"publish"}
    for path in scripts.script_root().rglob("*.lua"):
        text = path.read_text()
        called |= {name.lower() for name in re.findall(r"redis\.call\(\s*'([A-Z]+)'", text)}
        called |= {name.lower() for name in re.findall(r"\b(?:write|[a-z_]*line)\('([A-Z]+)'", text)}
    called |= {"zrem", "hset", "hdel", "hincrby", "sadd", "srem", "set"}  # effects, by name
    plain = {*rights.CONNECTION, *rights.OPTIONAL, "blpop", "subscribe", "xdel", "xrange"}
    allowed = {word[1:] for word in acl.words() if word.startswith("+")}
    assert allowed - plain - called == set(), "without a caller"
    assert called - allowed == set(), "called, and not allowed"


async def test_a_job_from_its_submit_to_its_result_with_the_line_alone(
    server: Valkey, admin: Redis, url: str, service: Service
) -> None:
    async with Runtime([service], redis=url) as runtime:
        assert runtime.durability == "fsync"
        handle = await runtime.submit("demo.greet", "Ann")
        assert await handle.result(5) == "Hello, Ann!"
        later = await runtime.submit("demo.wait", "Bob", delay=600)
        await later.cancel()
        await in_state(later, State.DEAD)
        other = await runtime.submit("demo.greet", "Eve")
        assert await other.result(5) == "Hello, Eve!"

        async def noted() -> bool:
            return (await runtime.redis.zcard("aioflow:1:{demo.0}:q:note:done")) == 2

        await wait_until(noted)
    refusals: Any = await admin.execute_command("ACL", "LOG")
    assert refusals == [], "nothing was even tried that is not allowed"


FORBIDDEN = [
    ("GET", "mine"),
    ("HGET", "aioflow:2:x", "f"),
    ("SET", "mine", "x"),
    ("EVAL", "return redis.call('HGET', 'mine', 'x')", "0"),
    ("HGET", "mine", "f"),
    ("DEL", "mine"),
    ("PUBLISH", "mine", "x"),
    ("SUBSCRIBE", "mine"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "SET", "appendonly", "no"),
    ("DEBUG", "SLEEP", "0"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("RANDOMKEY",),
    ("SHUTDOWN",),
    ("REPLICAOF", "NO", "ONE"),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "worker", "+@all"),
    ("MODULE", "LIST"),
    ("FUNCTION", "LIST"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("SCRIPT", "FLUSH"),
    ("MONITOR",),
    ("SAVE",),
    ("MIGRATE", "127.0.0.1", "1", "aioflow:1:x", "0", "1"),
    ("RESTORE", "aioflow:1:x", "0", "x"),
    ("RENAME", "aioflow:1:x", "mine"),
    ("COPY", "aioflow:1:x", "mine"),
    ("SORT", "aioflow:1:x", "STORE", "mine"),
]


async def test_the_user_can_do_nothing_beside_it(admin: Redis, url: str) -> None:
    await admin.set("mine", "untouched")
    async with Redis.from_url(url, protocol=2) as worker:
        for command in FORBIDDEN:
            with pytest.raises(NoPermissionError):
                await worker.execute_command(*command)
        sha = await worker.script_load("return redis.call('SET', 'mine', 'changed')")
        with pytest.raises(Exception, match="ACL failure in script"):
            await worker.evalsha(sha, 0)
    assert await admin.get("mine") == b"untouched"


def lacking(word: str) -> list[str]:
    """What is to be said to the server's ACL so that a word of the line does not count."""
    return ["resetkeys"] if word[0] == "~" else ["resetchannels"] if word[0] == "&" else [f"-{word[1:]}"]


async def test_every_right_that_is_missing_is_named_at_the_start_with_what_mends_it(
    server: Valkey, admin: Redis, url: str, service: Service
) -> None:
    words = acl.words("aioflow", PASSWORD)
    optional = {f"+{name}" for name in rights.OPTIONAL}
    for word in words[words.index("on") + 2 :]:
        if word in optional or word == "-@all":
            continue
        await admin.execute_command("ACL", "SETUSER", "worker", *lacking(word))
        with pytest.raises(ConfigError) as refused:
            async with Runtime([service], redis=url, durability="memory"):
                raise AssertionError(f"it started without {word}")
        told = str(refused.value)
        assert f"ACL SETUSER worker {'' if word[0] != '&' else '+publish +subscribe '}{word}" in told, told
        assert PASSWORD not in told
        await admin.execute_command("ACL", "SETUSER", "worker", word)
    async with Runtime([service], redis=url) as runtime:
        assert runtime.durability == "fsync"


async def test_all_that_is_missing_is_said_at_once(admin: Redis, url: str, service: Service) -> None:
    await admin.execute_command("ACL", "SETUSER", "worker", "-zadd", "-blpop", "-time")
    with pytest.raises(
        ConfigError, match=re.escape("ACL SETUSER worker +time +zadd +blpop, also in its configuration")
    ):
        await Runtime([service], redis=url).start()


async def test_a_pattern_that_leaves_out_a_part_of_the_keys_is_noticed(
    admin: Redis, url: str, service: Service
) -> None:
    for pattern in ("~aioflow:1:{demo.0}:*", "~aioflow:1:*:q:*", "%R~aioflow:1:*"):
        await admin.execute_command("ACL", "SETUSER", "worker", "resetkeys", pattern)
        with pytest.raises(ConfigError, match=re.escape("ACL SETUSER worker ~aioflow:1:*, also")):
            await Runtime([service], redis=url).start()


async def test_what_is_optional_is_missed_only_by_who_asks_for_it(admin: Redis, url: str, service: Service) -> None:
    names = [f"-{name}" for name in rights.OPTIONAL]
    await admin.execute_command("ACL", "SETUSER", "worker", *names)
    async with Runtime([service], redis=url) as runtime:
        assert runtime.durability == "memory"
        assert await (await runtime.submit("demo.greet", "Ann")).result(5) == "Hello, Ann!"
    for durability, missing in (("fsync", "CONFIG GET"), ("replicated:1", "ACL SETUSER worker +wait")):
        with pytest.raises(ConfigError, match=re.escape(missing)):
            await Runtime([service], redis=url, durability=durability).start()
    with pytest.raises(ConfigError, match=re.escape("ACL SETUSER worker +select")):
        await Runtime([service], redis=f"{url}?db=1").start()


async def test_a_right_that_is_taken_away_later_is_named_as_well(admin: Redis, url: str) -> None:
    store = Store(url, name="aioflow:test")
    key = data_key("aioflow", "demo", "x")
    assert await store.count(key, 0, 1) == 0
    await admin.execute_command("ACL", "SETUSER", "worker", "-zcount")
    with pytest.raises(ConfigError, match=re.escape("ACL SETUSER worker +zcount")):
        await store.count(key, 0, 1)
    await admin.execute_command("ACL", "SETUSER", "worker", "+zcount", "resetkeys")
    with pytest.raises(ConfigError, match=re.escape("ACL SETUSER worker ~NAMESPACE:1:*")):
        await store.count(key, 0, 1)
    await store.close()
