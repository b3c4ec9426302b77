"""A Redis Cluster: its URL, its slots, and which node owns which of them.

That is asked of any node that answers, when nothing is known yet, when a node in doubt is the owner of what is wanted,
and never more often than ten times a second: calls to a node that is away would ask each time. What a node says itself
when it redirects (MOVED) is taken at once.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl

from redis import exceptions as driver
from redis.crc import key_slot

from aioflow.engine import tls
from aioflow.engine.sentinel import HOST, login_of, split
from aioflow.errors import ConfigError

if TYPE_CHECKING:
    from aioflow.engine.wire import SocketWire

SCHEMES = ("redis+cluster", "rediss+cluster")
"""The second over TLS."""
FORM = "redis+cluster://user:password@host:6379,host:6379"
DEFAULT_PORT = 6379
SECONDS = 1.0
"""For one node to say who owns which slot."""
FRESH_SECONDS = 0.1
"""For so long nobody is asked again."""
MOST_ASKED = 8
"""Nodes that are asked for that, one after another."""

Address = tuple[str, int]


def parse(url: str) -> tuple[list[Address], dict[str, str], dict[str, Any] | None]:
    """The seeds and the login that a URL names, and how to do TLS; None: not at all.

    Raises ConfigError, which shows nothing of what may be a password.
    """
    parts = split(url)
    account, _, hosts = parts.netloc.rpartition("@")
    found = [HOST.fullmatch(host) for host in hosts.split(",")]
    seeds = [(host["host"].strip("[]"), int(host["port"] or DEFAULT_PORT)) for host in found if host]
    right = len(seeds) == len(found) and all(0 < port < 65536 for _, port in seeds)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    over_tls = parts.scheme == SCHEMES[1]
    more = options.keys() - (tls.OPTIONS if over_tls else {}) or (parts.query and not options) or parts.fragment
    if not right or parts.scheme not in SCHEMES or parts.path not in ("", "/", "/0") or more:
        raise ConfigError(
            f"the URL of redis cannot be read; write {FORM}, without a database (a cluster has 0 alone) and "
            "without a ?option (but for those of TLS behind rediss+cluster://); in a password %40 for an @, "
            "%2F for a /, %23 for a #, %3F for a ?"
        )
    if wrong := tls.wrong_options(options, tls.OPTIONS):
        raise ConfigError(f"the URL of redis: {'; '.join(wrong)}")
    return seeds, login_of(account), tls.arguments_of(options) if over_tls else None


@lru_cache(maxsize=10_000)
def slot_of(key: str) -> int:
    """The slot of a key."""
    return int(key_slot(key.encode()))


def tag_of(key: str) -> str:
    """What of a key its slot is made of."""
    start = key.find("{") + 1
    end = key.find("}", start)
    return key[start:end] if start and end > start else key


class User(Protocol):
    """Whoever holds connections to nodes."""

    async def retain(self, known: AbstractSet[Address]) -> None: ...


class Nodes:
    """The nodes of a cluster, and which of them owns which slot, as last heard; one of each store.

    `connect` gives a wire to a node, on which it is asked. `users` close what they hold of a node that is gone.
    """

    def __init__(self, seeds: Sequence[Address], connect: Callable[[Address], SocketWire]) -> None:
        self._seeds = list(seeds)
        self._connect = connect
        self._wires: dict[Address, SocketWire] = {}
        self._ranges: list[tuple[int, int, Address]] = []  # first and last slot; in order
        self._moved: dict[int, Address] = {}  # since those were heard
        self._known: set[Address] = set()
        self._doubted: set[Address] = set()
        self._heard_at = -math.inf
        self._refreshing = asyncio.Lock()
        self.users: list[User] = []

    def __repr__(self) -> str:
        return f"<Nodes known={sorted(self._known)} doubted={sorted(self._doubted)}>"

    async def owner(self, slot: int) -> Address:
        """The node that owns a slot. Raises redis' errors where nobody says so."""
        address = self._owner(slot)
        if address is None or address in self._doubted:
            await self._refresh()
            address = self._owner(slot)
        if address is None:
            raise driver.ClusterDownError(f"no node of the cluster serves slot {slot}")
        return address

    def _owner(self, slot: int) -> Address | None:
        if slot in self._moved:
            return self._moved[slot]
        index = bisect_right(self._ranges, slot, key=itemgetter(0)) - 1
        if index < 0 or slot > self._ranges[index][1]:
            return None
        return self._ranges[index][2]

    async def primaries(self) -> list[Address]:
        """Every node that owns slots."""
        if not self._ranges or self._doubted:
            await self._refresh()
        return sorted({address for *_, address in self._ranges} | set(self._moved.values()))

    def doubt(self, address: Address) -> None:
        """A node did not answer, or does not serve: who owns its slots is asked before anything is sent there."""
        self._doubted.add(address)

    def told(self, slot: int, by: Address, error: driver.AskError) -> tuple[Address, bool]:
        """Where a node says that a command is to be sent instead, and whether by ASKING, this once."""
        address = (error.host or by[0], error.port)
        if not isinstance(error, driver.MovedError):
            return address, True
        self._moved[slot] = address
        self._known.add(address)
        self._doubted.add(by)  # its other slots may have moved as well
        return address, False

    def candidates(self) -> list[Address]:
        """Nodes to ask, whoever answers: at random, those in doubt and the seeds last."""
        known = random.sample(sorted(self._known), len(self._known))
        known.sort(key=self._doubted.__contains__)
        return list(dict.fromkeys([*known, *self._seeds]))[:MOST_ASKED]

    async def _refresh(self) -> None:
        """Ask, unless it was heard just now: while a node is away, every call to it would ask."""
        async with self._refreshing:
            if time.monotonic() < self._heard_at + FRESH_SECONDS:
                return
            self._take(*await self._ask())
            gone = self._wires.keys() - self._known - set(self._seeds)
            closing = [self._wires.pop(address).close() for address in gone]
            await asyncio.gather(*closing, *(user.retain(self._known) for user in self.users))

    def _take(self, by: Address, ranges: Sequence[Any]) -> None:
        known: set[Address] = set()
        owned: list[tuple[int, int, Address]] = []
        for first, last, *nodes in ranges:
            # A node that does not know how it is reached is where it was asked.
            addresses = [((host or by[0].encode()).decode(), port) for host, port, *_ in nodes]
            known.update(addresses)
            owned.append((first, last, addresses[0]))
        self._ranges, self._known = sorted(owned), known
        self._moved.clear()
        self._doubted.clear()
        self._heard_at = time.monotonic()

    async def _ask(self) -> tuple[Address, Sequence[Any]]:
        failed: Exception = driver.ConnectionError("no node is known")
        for address in self.candidates():
            wire = self._wires.get(address)
            if wire is None:
                wire = self._wires[address] = self._connect(address)
            try:
                (answer,) = await wire.ask([("CLUSTER", "SLOTS")], SECONDS)
            except (driver.RedisError, OSError) as error:
                failed = error
                continue
            if isinstance(answer, driver.NoPermissionError):
                raise answer
            if isinstance(answer, Exception):
                if "cluster support disabled" in str(answer):
                    raise ConfigError(f"redis at {address[0]}:{address[1]} is no node of a cluster; use redis://")
                failed = answer
            elif answer:
                return address, answer
        reason = str(failed) or f"no answer within {SECONDS:g} s"
        raise driver.ConnectionError(f"no node of the cluster says who owns which slot ({reason})") from failed

    async def close(self) -> None:
        """Close its connections."""
        await asyncio.gather(*(wire.close() for wire in self._wires.values()))
