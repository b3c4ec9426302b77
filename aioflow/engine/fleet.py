"""The runtimes of a namespace: who is there, and orders to them; a typed call per script of lua/fleet.

An order is what is wanted of a runtime from now on, not an event: it is kept with the runtime's record. The channel
only says that there is one; whoever missed that finds it with the next beat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from aioflow.engine import scripts
from aioflow.engine.keys import fleet_key, runtime_channels
from aioflow.engine.store import Store
from aioflow.errors import ProtocolError

MOST_RUNTIMES = 1000


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What a runtime said of itself with its last beat. Times are the server's UTC milliseconds."""

    id: str
    beat_ms: int
    host: str
    pid: int
    state: str
    """ "running", "quiet" (it starts no more jobs) or "stopping"."""
    started_ms: int
    tasks: Mapping[str, tuple[int, int]]
    """By "service.task": how many jobs run, and how many may."""

    @property
    def load(self) -> tuple[int, int]:
        """How many jobs run, and how many may, over all tasks."""
        return sum(running for running, _ in self.tasks.values()), sum(most for _, most in self.tasks.values())


class Fleet:
    """The calls. Every method raises StoreUnavailable and ProtocolError."""

    def __init__(self, store: Store, namespace: str) -> None:
        self.store = store.part(fleet_key(namespace, "seen", ""))
        self._namespace = namespace

    async def beat(self, runtime_id: str, about: Mapping[str, Any], gone_ms: int) -> tuple[int, dict[str, str]]:
        """Note that a runtime lives; (how many there are, its orders by name). May be repeated."""
        words = ("0", runtime_id, orjson.dumps(about), str(gone_ms))
        _, runtimes, *orders = await self._call("beat", runtime_id, *words)
        return runtimes, {name.decode(): value.decode() for name, value in zip(orders[::2], orders[1::2], strict=True)}

    async def leave(self, runtime_id: str) -> None:
        """Forget a runtime. May be repeated."""
        await self._call("leave", runtime_id, runtime_id)

    async def list(self) -> tuple[int, list[RuntimeInfo]]:
        """(now in UTC ms, the runtimes), at most 1,000 of them."""
        now_ms, *rows = await self._call("list", "", "0", str(MOST_RUNTIMES))
        found = zip(rows[::3], rows[1::3], rows[2::3], strict=True)
        return now_ms, [info_of(runtime_id.decode(), int(float(beat)), about) for runtime_id, beat, about in found]

    async def order(self, runtime_id: str, name: str, value: str) -> bool:
        """Leave an order, under a value that was not used before; False where there is no such runtime."""
        channel = runtime_channels(self._namespace) + runtime_id
        return bool(await self._call("order", runtime_id, runtime_id, channel, name, value))

    async def _call(self, name: str, runtime_id: str, *words: str | bytes) -> Any:
        script = scripts.load(f"fleet/{name}", plain=self.store.in_memory)
        keys = [fleet_key(self._namespace, key, runtime_id) for key, _ in script.keys]
        return await self.store.run_script(script, keys, words)


def info_of(runtime_id: str, beat_ms: int, about: bytes) -> RuntimeInfo:
    """What a beat said. Raises ProtocolError where it is none of ours."""
    try:
        told = orjson.loads(about)
        return RuntimeInfo(
            runtime_id,
            beat_ms,
            str(told["host"]),
            int(told["pid"]),
            str(told["state"]),
            int(told["started_ms"]),
            {str(task): (int(running), int(most)) for task, (running, most) in told["tasks"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"the record of runtime {runtime_id} is none of ours: {about[:200]!r}") from error
