"""Looking names up: the system's resolver, whose slowness is the tests' to decide."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from aioflow.delivery import names
from aioflow.delivery.names import Resolver
from tests.waiting import wait_until


class System:
    """`socket.getaddrinfo`, which answers for names that begin with "slow" when it is told to."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.go_on = threading.Event()

    def __call__(self, host: str, *_: Any, **__: Any) -> list[Any]:
        self.asked[host] += 1
        if host.startswith("slow"):
            self.go_on.wait(20)
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 0))
        return [address, address]


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    made = System()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.go_on.set()


async def no_lookup_left(resolver: Resolver) -> None:
    await wait_until(lambda: "looking up 0" in repr(resolver))


async def test_localhost_is_this_machine() -> None:
    found = await Resolver().resolve("localhost", 443, socket.AddressFamily(socket.AF_UNSPEC))
    assert {entry["host"] for entry in found} <= {"127.0.0.1", "::1"}
    assert {entry["port"] for entry in found} == {443}
    with pytest.raises(OSError, match=r"label|known|No address|failure|resolution"):
        await Resolver().resolve("a" * 70 + ".example")


async def test_all_that_ask_for_a_name_wait_for_one_lookup(system: System) -> None:
    resolver = Resolver()
    asking = [asyncio.create_task(resolver.resolve("slow.example", port)) for port in range(1, 20)]
    await wait_until(lambda: system.asked["slow.example"])
    asking[0].cancel()  # and the others get their answer
    await asyncio.wait([asking[0]])
    system.go_on.set()
    answers = await asyncio.gather(*asking[1:])
    assert [[(entry["host"], entry["port"]) for entry in answer] for answer in answers] == [
        [("93.184.216.34", port)] for port in range(2, 20)
    ]
    assert system.asked["slow.example"] == 1
    await resolver.resolve("slow.example")
    assert system.asked["slow.example"] == 2, "nothing is remembered"


async def test_slow_names_hold_up_no_other(system: System) -> None:
    resolver = Resolver()
    slow = [asyncio.create_task(resolver.resolve(f"slow-{number}.example")) for number in range(50)]
    await wait_until(lambda: len(system.asked) == 50)
    assert await asyncio.wait_for(resolver.resolve("fast.example"), 5)
    system.go_on.set()
    await asyncio.gather(*slow)


async def test_threads_are_bounded_and_who_gives_up_leaves_nothing_behind(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver()
    asking = [asyncio.create_task(resolver.resolve(f"slow-{number}.example")) for number in range(80)]
    await wait_until(lambda: len(system.asked) == names.MOST_LOOKUPS)
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    assert len(system.asked) == names.MOST_LOOKUPS
    system.go_on.set()
    await no_lookup_left(resolver)
    assert await resolver.resolve("fast.example")


async def test_an_error_is_everybodys_own(system: System) -> None:
    resolver = Resolver()
    asking = [asyncio.create_task(resolver.resolve("slow.invalid")) for _ in range(3)]
    await wait_until(lambda: system.asked["slow.invalid"])
    system.go_on.set()
    errors = await asyncio.gather(*asking, return_exceptions=True)
    assert [str(error) for error in errors] == [f"[Errno {socket.EAI_NONAME}] Name or service not known"] * 3
    assert len({id(error) for error in errors}) == 3


async def test_a_thread_that_cannot_start_is_an_error_of_that_attempt_alone(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver()

    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", no_more)
        for _ in range(2 * names.MOST_LOOKUPS):
            with pytest.raises(OSError, match="new thread"):
                async with asyncio.timeout(5):
                    await resolver.resolve("www.example", 443)
    assert [found["port"] for found in await resolver.resolve("www.example", 443)] == [443]
    await no_lookup_left(resolver)
