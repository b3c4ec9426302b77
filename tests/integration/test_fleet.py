"""The list of runtimes, orders to them from elsewhere, and workers that come and go."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aioflow import ConfigError, Runtime, Service, State
from aioflow.engine import roster
from aioflow.engine.fleet import RuntimeInfo, info_of
from aioflow.errors import ProtocolError
from tests.integration.test_cli import Cli
from tests.serving import Serve
from tests.valkey import Valkey
from tests.waiting import in_state, wait_until


class Demo:
    """A service whose handlers wait at a gate."""

    def __init__(self, **options: Any) -> None:
        self.service = Service("demo")
        self.gate = asyncio.Event()
        self.running = 0
        self.most = 0

        @self.service.task(**options)
        async def work() -> None:
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await self.gate.wait()
            finally:
                self.running -= 1

        self.work = work

    def runs(self, number: int) -> bool:
        return self.running == number


@pytest.fixture
def cli(tmp_path: Path, valkey: Valkey, namespace: str) -> Cli:
    return Cli(tmp_path, valkey.url, namespace)


def all_have(runtimes: Sequence[Runtime], concurrency: int) -> bool:
    return all(pool.concurrency == concurrency for runtime in runtimes for pool in runtime._pools)


def said_in(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return text in caplog.text


async def listed(runtime: Runtime) -> dict[str, RuntimeInfo]:
    _, live = await runtime.fleet().list()
    return {info.id: info for info in live}


@asynccontextmanager
async def several(demo: Demo, valkey: Valkey, namespace: str, number: int) -> AsyncIterator[list[Runtime]]:
    """So many runtimes of the same service, all of them on the list."""
    async with AsyncExitStack() as stack:
        runtimes = [
            await stack.enter_async_context(Runtime([demo.service], redis=valkey.url, namespace=namespace))
            for _ in range(number)
        ]

        async def all_listed() -> bool:
            return len(await listed(runtimes[0])) == number

        await wait_until(all_listed)
        try:
            yield runtimes
        finally:
            demo.gate.set()


# ---- the list


async def test_a_runtime_says_what_it_does_and_leaves_the_list_in_order(
    valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(roster, "BEAT_SECONDS_OF_A_FLEET", 0.0)
    demo = Demo(concurrency=3)
    async with Runtime([], redis=valkey.url, namespace=namespace) as observer:
        assert await listed(observer) == {}, "one that runs no jobs is not listed"
        async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
            for _ in range(5):
                await runtime.submit(demo.work)

            async def busy() -> RuntimeInfo | None:
                info = (await listed(observer)).get(runtime.id)
                return info if info and info.load == (3, 3) else None

            info = await wait_until(busy)
            assert info is not None
            assert (info.pid, info.state, info.tasks) == (os.getpid(), "running", {"demo.work": (3, 3)})
            assert abs(info.started_ms - time.time() * 1000) < 60_000
            assert info.started_ms <= info.beat_ms
            demo.gate.set()
        assert await listed(observer) == {}
        assert await valkey_keys(observer, namespace, "fleet") == []


async def valkey_keys(runtime: Runtime, namespace: str, part: str) -> list[bytes]:
    return [key async for key in runtime.redis.scan_iter(f"{namespace}:1:{{{part}}}*")]


async def test_a_runtime_that_was_killed_is_forgotten(valkey: Valkey, namespace: str) -> None:
    serve = Serve(
        "services.payments:service", "--port", "0", "--redis", valkey.url, "--no-workers",
        environment={"AIOFLOW_NAMESPACE": namespace},
    )  # fmt: skip
    await serve.start()
    try:
        async with Runtime([], redis=valkey.url, namespace=namespace, workers=False) as observer:

            async def there() -> dict[str, RuntimeInfo]:
                return await listed(observer)

            (info,) = (await wait_until(there)).values()
            assert serve.process is not None
            assert (info.pid, info.tasks) == (serve.process.pid, {}), "a serve is listed, also without workers"
            serve.kill()
            assert info.id in await listed(observer)
            await observer.fleet().beat("another", {}, gone_ms=1)
            assert await raw_list(observer) == ["another"]
    finally:
        serve.close()


async def raw_list(runtime: Runtime) -> list[str]:
    seen: Any = await runtime.redis.zrange(f"{runtime.namespace}:1:{{fleet}}:seen", 0, -1)
    return [name.decode() for name in seen]


def test_a_record_that_is_none_of_ours_is_named() -> None:
    for about in (b"", b"[]", b"{}", b'{"host":"h","pid":1,"state":"x","started_ms":1,"tasks":{"a":1}}'):
        with pytest.raises(ProtocolError, match="the record of runtime abc is none of ours"):
            info_of("abc", 1, about)


# ---- orders


async def test_an_order_is_obeyed_within_a_second(valkey: Valkey, namespace: str) -> None:
    demo = Demo(concurrency=2)
    async with several(demo, valkey, namespace, 2) as (one, two):
        handles = [await one.submit(demo.work) for _ in range(8)]
        await wait_until(lambda: demo.running == 4)
        for wanted, expected in ((3, 6), (1, 6), (4, 8)):
            began = time.monotonic()
            for runtime in (one, two):
                assert await one.fleet().order(runtime.id, "scale demo.work", f"{wanted} {wanted}")
            await wait_until(partial(all_have, (one, two), wanted))
            assert time.monotonic() - began < 1.0
            await wait_until(partial(demo.runs, expected))
        demo.gate.set()
        await asyncio.gather(*[handle.result(10) for handle in handles])


async def test_an_order_that_the_channel_lost_is_found_by_the_next_beat(
    valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(roster, "BEAT_SECONDS_OF_A_FLEET", 0.0)
    demo = Demo(concurrency=2)
    async with several(demo, valkey, namespace, 1) as (runtime,):
        await runtime.redis.hset(f"{namespace}:1:{{fleet}}:orders:{runtime.id}", "scale demo.work", "5 x")
        await wait_until(lambda: runtime._pools[0].concurrency == 5)
        runtime.scale(1)
        assert runtime._pools[0].concurrency == 6
        beats = await wait_for_beats(runtime, 2)
        assert beats, "it goes on"
        assert runtime._pools[0].concurrency == 6, "an order is obeyed once"
        assert await runtime.fleet().order(runtime.id, "scale demo.work", "5 y")
        await wait_until(lambda: runtime._pools[0].concurrency == 5)


async def wait_for_beats(runtime: Runtime, number: int) -> bool:
    for _ in range(number):
        before = (await listed(runtime))[runtime.id].beat_ms

        async def later(before: int = before) -> bool:
            return (await listed(runtime))[runtime.id].beat_ms > before

        await wait_until(later)
    return True


async def test_a_quiet_runtime_starts_no_more_jobs_and_is_ready(valkey: Valkey, namespace: str) -> None:
    demo = Demo(concurrency=1)
    async with several(demo, valkey, namespace, 2) as (one, two):
        first = await one.submit(demo.work)
        await in_state(first, State.RUNNING)
        holder, other = (one, two) if one._pools[0].running else (two, one)
        assert await one.fleet().order(other.id, "quiet", "1 x")

        async def is_quiet() -> bool:
            return (await listed(one))[other.id].state == "quiet"

        await wait_until(is_quiet)
        second = await one.submit(demo.work)
        assert await other.ready() is None
        demo.gate.set()
        await asyncio.gather(first.result(10), second.result(10))
        assert holder._pools[0].concurrency == 1
        workers = {(await handle.status()).token.partition(".")[0] for handle in (first, second)}
        assert workers == {holder.id}


async def test_a_runtime_of_a_program_stops_itself_when_it_is_ordered_to(valkey: Valkey, namespace: str) -> None:
    demo = Demo()
    demo.gate.set()
    async with Runtime([], redis=valkey.url, namespace=namespace, workers=False) as observer:
        runtime = Runtime([demo.service], redis=valkey.url, namespace=namespace)
        await runtime.start()
        await wait_until(lambda: runtime._roster is not None)

        async def there() -> bool:
            return runtime.id in await listed(observer)

        await wait_until(there)
        assert await observer.fleet().order(runtime.id, "stop", "1 x")
        await wait_until(runtime.is_stopping)
        await runtime.stop()
        assert await listed(observer) == {}
        assert not await observer.fleet().order(runtime.id, "stop", "1 y"), "it is gone"


async def test_what_is_no_order_is_said_and_harms_nothing(
    valkey: Valkey, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    demo = Demo()
    async with several(demo, valkey, namespace, 1) as (runtime,):
        for name, value in (("dance", "1 x"), ("scale demo.other", "1 x"), ("scale demo.work", "many x")):
            await runtime.fleet().order(runtime.id, name, value)
            await wait_until(partial(said_in, caplog, f"an order that cannot be obeyed: {name}"))
        demo.gate.set()
        await (await runtime.submit(demo.work)).result(10)


async def test_a_large_fleet_beats_seldom(valkey: Valkey, namespace: str) -> None:
    demo = Demo()
    async with Runtime([], redis=valkey.url, namespace=namespace, workers=False) as observer:
        for number in range(99):
            await observer.fleet().beat(f"other{number}", {}, 60_000)
        async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
            await wait_until(lambda: runtime._roster is not None and runtime._roster._period == 200.0)


# ---- the commands


async def test_the_commands(cli: Cli, valkey: Valkey, namespace: str) -> None:
    demo = Demo(concurrency=4)
    async with several(demo, valkey, namespace, 3) as runtimes:
        ids = {runtime.id for runtime in runtimes}
        ended = await cli("runtimes", "--json")
        assert ended.code == 0
        assert {info["id"] for info in ended.told["runtimes"]} == ids
        assert all(info["tasks"] == {"demo.work": {"running": 0, "concurrency": 4}} for info in ended.told["runtimes"])
        shown = (await cli("runtimes")).out
        assert all(f"{runtime.id}" in shown for runtime in runtimes)
        assert "demo.work 0/4" in shown

        ended = await cli("scale", "demo.work", "7", "--total")
        assert ended.code == 0, ended.err
        assert sorted(runtime._pools[0].concurrency for runtime in runtimes) == [2, 2, 3]
        ended = await cli("scale", "demo.work", "1", "--total", "--json")
        assert [line.count('"obeyed":true') for line in ended.lines] == [1, 1, 1]
        assert sorted(runtime._pools[0].concurrency for runtime in runtimes) == [0, 0, 1]
        assert (await cli("scale", "demo.work", "5", "--runtime", runtimes[0].id)).code == 0
        assert runtimes[0]._pools[0].concurrency == 5

        assert (await cli("quiet", "--runtime", runtimes[1].id)).code == 0
        assert [runtime._pools[0].quiet for runtime in runtimes] == [False, True, False]
        ended = await cli("stop", "--runtime", runtimes[2].id, "--runtime", runtimes[1].id)
        assert ended.code == 0, ended.err
        assert [runtime.is_stopping() for runtime in runtimes] == [False, True, True]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        pytest.param(("stop",), 2, "name the runtimes by --runtime ID, or give --all", id="nothing named"),
        pytest.param(("stop", "--all", "--runtime", "x"), 2, "or give --all", id="both"),
        pytest.param(("quiet", "--runtime", "nobody"), 2, "not on the list of runtimes: nobody", id="unknown"),
        pytest.param(("stop", "--all"), 1, "there is no runtime on the list", id="nobody"),
        pytest.param(("scale", "demo.work", "3"), 1, "no runtime on the list runs demo.work", id="no such task"),
    ],
)
async def test_orders_to_nobody(cli: Cli, arguments: tuple[str, ...], code: int, said: str) -> None:
    ended = await cli(*arguments)
    assert (ended.code, said in ended.err) == (code, True), ended.err


async def test_a_runtime_that_does_not_hear_is_said(cli: Cli, valkey: Valkey, namespace: str) -> None:
    async with Runtime([], redis=valkey.url, namespace=namespace, workers=False) as observer:
        about = {"host": "h", "pid": 1, "state": "running", "started_ms": 1, "tasks": {"demo.work": [0, 1]}}
        await observer.fleet().beat("deaf", about, 60_000)
        ended = await cli("stop", "--runtime", "deaf", "--wait", "0.2")
        assert (ended.code, ended.lines) == (3, ["deaf stop: not heard of yet"])


async def test_serve_ends_by_an_order_as_by_a_signal(cli: Cli, valkey: Valkey, namespace: str) -> None:
    serves = [
        Serve(
            "services.payments:service",
            "--port",
            "0",
            "--redis",
            valkey.url,
            environment={"AIOFLOW_NAMESPACE": namespace},
        )
        for _ in range(2)
    ]
    try:
        for serve in serves:
            await serve.start()

        async def both() -> bool:
            return len((await cli("runtimes", "--json")).told["runtimes"]) == 2

        await wait_until(both, 20)
        assert (await cli("stop", "--all")).code == 0
        for serve in serves:
            assert serve.process is not None
            assert await asyncio.to_thread(serve.process.wait, 20) == 0
            assert "order: stop" in serve.said
        assert (await cli("runtimes", "--json")).told["runtimes"] == []
    finally:
        for serve in serves:
            serve.close()


# ---- workers that come and go


async def test_workers_come_as_work_does_and_sign_off(
    valkey: Valkey, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aioflow.engine.crew")
    demo = Demo(workers=(1, 3), idle_timeout=0.1)
    async with Runtime([demo.service], redis=valkey.url, namespace=namespace) as runtime:
        crew = runtime._pools[0]._crew
        assert crew is not None
        assert crew.alive == 1
        handles = [await runtime.submit(demo.work) for _ in range(5)]
        await wait_until(lambda: demo.running == 3)
        assert crew.alive == 3
        demo.gate.set()
        await asyncio.gather(*[handle.result(10) for handle in handles])
        assert demo.most == 3
        await wait_until(lambda: crew.alive == 1)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "demo.work: a worker comes, 2 are there",
        "demo.work: a worker comes, 3 are there",
        "demo.work: a worker signs off, idle for 0.1 s; 2 are there",
        "demo.work: a worker signs off, idle for 0.1 s; 1 are there",
    ]


def test_workers_are_checked() -> None:
    service = Service("demo")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"workers": (3, 2)}, r"workers=\(3, 2\) is no \(min, max\)"),
        ({"workers": (-1, 2)}, "is no"),
        ({"workers": (0, 0)}, "concurrency=0"),
        ({"workers": (0, 2), "concurrency": 2}, "not both"),
        ({"idle_timeout": 0.0}, "idle_timeout=0.0"),
    ]
    for options, named in wrong:
        with pytest.raises(ConfigError, match=named):
            service.task(**options)


async def test_signals_scale(valkey: Valkey, namespace: str, cli: Cli) -> None:
    serve = Serve(
        "services.payments:service", "--port", "0", "--redis", valkey.url, "--workers", "2",
        environment={"AIOFLOW_NAMESPACE": namespace},
    )  # fmt: skip
    await serve.start()
    try:
        assert serve.process is not None
        for number, cap in ((signal.SIGTTIN, 3), (signal.SIGTTOU, 2)):
            serve.process.send_signal(number)

            async def scaled(cap: int = cap) -> bool:
                (info,) = (await cli("runtimes", "--json")).told["runtimes"]
                return bool(info["concurrency"] == cap)

            await wait_until(scaled, 20)
    finally:
        serve.close()
