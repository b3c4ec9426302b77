"""How every Redis key of aioflow is spelled; no other file spells one.

Engine keys are `<namespace>:1:{<service>.<shard>}:q:<task>:<part>`, a service's own data
`<namespace>:1:{<service>.<shard>}:d:<name>[:<key>]`. The braces keep a service's shard in one Cluster slot; `1` is the
layout version. The list of a namespace's runtimes lies below `<namespace>:1:{fleet}:`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from aioflow.errors import ConfigError

LAYOUT = 1
NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}")

PARTS = {
    "scheduled": "zset",
    "ready": "zset",
    "running": "zset",
    "started": "zset",
    "done": "zset",
    "dead": "zset",
    "open": "zset",
    "jobs": "hash",
    "results": "hash",
    "claims": "hash",
    "history": "hash",
    "progress": "hash",
    "waiters": "hash",
    "cancels": "zset",
    "config": "hash",
    "totals": "hash",
    "runners": "zset",
    "outbox": "stream",
    "seen": "hash",
    "bell": "list",
}


def check_namespace(namespace: str) -> str:
    """Return the namespace, or raise ConfigError: it may not hold what separates the parts of a key."""
    if not NAMESPACE.fullmatch(namespace):
        raise ConfigError(f"namespace {namespace!r}: use 1 to 64 letters, digits, '_', '.' or '-'")
    return namespace


def shard_prefix(namespace: str, service: str, shard: int = 0) -> str:
    """What all keys of one shard of a service begin with."""
    return f"{namespace}:{LAYOUT}:{{{service}.{shard}}}"


def data_key(namespace: str, service: str, name: str) -> str:
    """A service's own key, where its effects land; `name` is what an effect names."""
    return f"{shard_prefix(namespace, service)}:d:{name}"


def runtime_channels(namespace: str) -> str:
    """What a runtime's id follows in the name of the channel on which it hears of results and orders."""
    return f"{namespace}:{LAYOUT}:runtime:"


def fleet_key(namespace: str, part: str, runtime_id: str) -> str:
    """A key of the list of runtimes: `seen` and `about` are of all, `orders` of one."""
    key = f"{namespace}:{LAYOUT}:{{fleet}}:{part}"
    return f"{key}:{runtime_id}" if part == "orders" else key


def no_key(key: str) -> str | None:
    """In the slot of a queue's key, one that nothing ever writes; None for a key that is no queue's."""
    shard, mark, _ = key.partition("}:q:")
    return f"{shard}{mark}" if mark else None


def no_data_key(namespace: str, service: str) -> str:
    """In the slot of a service's own keys, one that nothing ever writes."""
    return f"{shard_prefix(namespace, service)}:d"


@dataclass(frozen=True, slots=True, eq=False)
class Queue:
    """One task in one shard of one service, and the names of its keys; a runtime makes each once."""

    namespace: str
    service: str
    task: str
    keys: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        prefix = f"{shard_prefix(self.namespace, self.service)}:q:{self.task}"
        object.__setattr__(self, "keys", {part: f"{prefix}:{part}" for part in PARTS})

    @property
    def name(self) -> str:
        """`service.task`, as users and logs say it."""
        return f"{self.service}.{self.task}"
