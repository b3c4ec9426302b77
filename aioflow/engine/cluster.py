"""Redis Cluster: which node owns a slot, and a wire that sends each pipeline to the node of its keys.

All keys of a service lie in one slot by their `{service.shard}` tag, and every pipeline of the store is of one slot: it
goes to one connection of one node, and what has no key (the proof of a receipt) stands directly behind the writes that
it proves. A command that a node redirects was not run there, so it may be sent on; nothing else is sent twice here.
Carries I6.

While a slot is moved key by key, a script sees only its declared keys guarded by the server, and a key that it empties
itself counts as moved: it could end halfway. So each call of a queue's script names one key more that nothing ever
writes: until the slot stands whole at one node again, the server then answers TRYAGAIN, and runs nothing.
Sources: Redis documentation, "Redis cluster specification"; Valkey, getNodeByQuery.
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
from urllib.parse import urlsplit

from redis import exceptions as driver
from redis.crc import key_slot

from aioflow.engine.keys import no_key
from aioflow.engine.sentinel import HOST, login_of
from aioflow.errors import ConfigError, StoreUnavailable

if TYPE_CHECKING:
    from aioflow.engine.connect import Command, SocketWire

SCHEME = "redis+cluster"
FORM = "redis+cluster://user:password@host:6379,host:6379"
DEFAULT_PORT = 6379
SECONDS = 1.0
"""For one node to say who owns which slot."""
FRESH_SECONDS = 0.1
"""For so long nobody is asked again."""
MOST_ASKED = 8
"""Nodes that are asked for that, one after another."""
MOST_TRIPS = 5
"""Times that a command is sent on to where a node redirects it."""

Address = tuple[str, int]


def parse(url: str) -> tuple[list[Address], dict[str, str]]:
    """The seeds and the login that a URL names. Raises ConfigError, which shows nothing of what may be a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit(f"{SCHEME}:")
    account, _, hosts = parts.netloc.rpartition("@")
    found = [HOST.fullmatch(host) for host in hosts.split(",")]
    seeds = [(host["host"].strip("[]"), int(host["port"] or DEFAULT_PORT)) for host in found if host]
    right = len(seeds) == len(found) and all(0 < port < 65536 for _, port in seeds)
    if not right or parts.scheme != SCHEME or parts.path not in ("", "/", "/0") or parts.query or parts.fragment:
        raise ConfigError(
            f"the URL of redis cannot be read; write {FORM}, without a database (a cluster has 0 alone) and "
            "without a ?option; in a password %40 for an @, %2F for a /, %23 for a #, %3F for a ?"
        )
    return seeds, login_of(account)


@lru_cache(maxsize=10_000)
def slot_of(key: str) -> int:
    """The slot of a key."""
    return int(key_slot(key.encode()))


def tag_of(key: str) -> str:
    """What of a key its slot is made of."""
    start = key.find("{") + 1
    end = key.find("}", start)
    return key[start:end] if start and end > start else key


def key_of(command: Command) -> str | None:
    """The first key of a command that the store sends; None where it has none."""
    match command[0]:
        case "EVALSHA":
            return str(command[3]) if command[2] else None
        case "BLPOP":
            return str(command[1])
        case _:
            return None


def guarded(command: Command, key: str | None) -> Command:
    """A call that is not run while its slot is on the way from one node to another."""
    if key is None or command[0] != "EVALSHA" or (absent := no_key(key)) is None:
        return command
    name, sha, count, *rest = command
    return (name, sha, count + 1, *rest[:count], absent, *rest[count:])


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
            for address in gone:
                await self._wires.pop(address).close()
            for user in self.users:
                await user.retain(self._known)

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
        for wire in self._wires.values():
            await wire.close()


class ClusterWire:
    """Sends pipelines of one slot each, over a wire to the node that owns it; `connect` makes one.

    `seconds` is the deadline of a round trip where its caller sets none.
    """

    def __init__(self, nodes: Nodes, connect: Callable[[Address], SocketWire], seconds: float) -> None:
        self._nodes = nodes
        self._connect = connect
        self._seconds = seconds
        self._wires: dict[Address, SocketWire] = {}
        nodes.users.append(self)

    async def ask(self, commands: Sequence[Command], seconds: float | None = None) -> list[Any]:
        """Send and read, as SocketWire does; commands without a key go along with those before them.

        The deadline is that of each node: a pop that is sent on blocks as long as at first. Raises redis'
        ConnectionError as well where a slot moved between writes and their proof.
        """
        keys = [key_of(command) for command in commands]
        slots = {slot_of(key) for key in keys if key is not None}
        if len(slots) != 1:
            raise driver.ClusterCrossSlotError("a pipeline is of keys of one slot")
        (slot,) = slots
        async with asyncio.timeout(seconds or self._seconds):
            address = await self._nodes.owner(slot)
        sent = list(map(guarded, commands, keys))
        replies: list[Any] = [None] * len(sent)
        left, asking = list(range(len(sent))), False
        for _ in range(MOST_TRIPS):
            trip = [(("ASKING",), sent[index]) if asking and keys[index] else (sent[index],) for index in left]
            answers = iter(await self._trip(address, [command for step in trip for command in step], seconds))
            for index, step in zip(left, trip, strict=True):
                replies[index] = [next(answers) for _ in step][-1]
            left, redirection = redirected(replies, keys, left)
            if redirection is None:
                if any(isinstance(reply, (driver.ClusterDownError, driver.ReadOnlyError)) for reply in replies):
                    self._nodes.doubt(address)
                return replies
            address, asking = self._nodes.told(slot, address, redirection)
        raise driver.TryAgainError(f"slot {slot} is on its way from node to node")

    async def _trip(self, address: Address, commands: list[Command], seconds: float | None) -> list[Any]:
        wire = self._wires.get(address)
        if wire is None:
            wire = self._wires[address] = self._connect(address)
        try:
            return await wire.ask(commands, seconds)
        except StoreUnavailable:
            if self._wires.get(address) is wire:
                raise
            raise driver.ConnectionError(f"{address[0]}:{address[1]} has left the cluster") from None
        except BaseException:
            self._nodes.doubt(address)  # also where its caller would not wait any longer
            raise

    async def retain(self, known: AbstractSet[Address]) -> None:
        """Close the connections to all other nodes."""
        for address in self._wires.keys() - known:
            await self._wires.pop(address).close()

    async def close(self) -> None:
        """As SocketWire's."""
        for wire in list(self._wires.values()):
            await wire.close()


def redirected(
    replies: Sequence[Any], keys: Sequence[str | None], sent: Sequence[int]
) -> tuple[list[int], driver.AskError | None]:
    """Which of the commands that were sent go elsewhere, with what proves them, and the last redirection."""
    moved = [index for index in sent if isinstance(replies[index], driver.AskError)]
    if not moved:
        return [], None
    behind = [index for index in sent if keys[index] is None and index > moved[0]]
    done = [index for index in sent if keys[index] is not None and index not in moved]
    if behind and done and done[0] < behind[-1]:
        # Two nodes would each have to prove a part: only the store may send the writes again, to one.
        raise driver.ConnectionError("its slot moved between writes and their proof")
    return sorted([*moved, *behind]), replies[moved[-1]]
