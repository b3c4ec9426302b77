"""A store that fails, or stands still, at the k-th call of a chosen method: what runtimes have for the kit's walks.

A fault belongs to one runtime, by its store's name; its lease keeper has a store of the same name in a thread of its
own, so that a fault is counted under a lock and told to the runtime's loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, ClassVar

from redis import exceptions as driver

from aioflow.engine.store import Store
from tests.waiting import wait_until

METHODS = (
    "submit", "claim", "expose", "settle", "renew", "release", "promote", "reap", "relay", "outbox", "forget",
    "await_result", "cancel", "wait_bell",
)  # fmt: skip
"""The calls of the core path."""


class Kind(Enum):
    """What happens at the call."""

    LOST = "the connection is lost before anything is sent"
    UNANSWERED = "it is done, and the answer is lost"
    CANCELLED_BEFORE = "whoever waits is cancelled before it is sent"
    CANCELLED_AFTER = "whoever waits is cancelled when it is done, before it is answered"
    STOPPED_BEFORE = "the runtime is stopped, and it is never sent"
    STOPPED_AFTER = "it is done, the runtime is stopped, and it is never answered"


@dataclass(eq=False)
class Fault:
    """One fault, at the `at`-th call of a method from now on. `act` runs on the runtime's loop; `over` ends a pause."""

    method: str
    at: int
    kind: Kind
    act: Callable[[], object] = lambda: None
    over: Callable[[], bool] = lambda: True
    seen: int = 0
    happened: bool = False
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __repr__(self) -> str:
        return f"{self.method} {self.at}: {self.kind.value}"

    def comes(self, method: str) -> bool:
        """Count a call; whether it is the one."""
        if method != self.method:
            return False
        with self.lock:
            self.seen += 1
            self.happened = self.seen >= self.at
            return self.seen == self.at

    async def strike(self, store: Store, send: Callable[[], Any]) -> Any:
        """Make the call as the fault has it."""
        before = self.kind in {Kind.LOST, Kind.CANCELLED_BEFORE, Kind.STOPPED_BEFORE}
        answer = None if before else await send()
        if self.kind in {Kind.LOST, Kind.UNANSWERED}:
            raise store.lost(driver.ConnectionError("cut by a test"))
        self.loop.call_soon_threadsafe(self.act)
        await wait_until(self.over, 5)
        return await send() if before else answer


class FaultyStore(Store):
    """A store whose calls may be struck."""

    faults: ClassVar[dict[str, Fault]] = {}
    """By the store's name."""

    def __init__(self, url: str, *, name: str, **options: Any) -> None:
        super().__init__(url, name=name, **options)
        self.name = name


def _struck(method: str) -> Callable[..., Any]:
    async def call(self: FaultyStore, *arguments: Any, **options: Any) -> Any:
        send = partial(getattr(Store, method), self, *arguments, **options)
        fault = self.faults.get(self.name)
        if fault is None or not fault.comes(method):
            return await send()
        return await fault.strike(self, send)

    return call


for _method in METHODS:
    setattr(FaultyStore, _method, _struck(_method))
