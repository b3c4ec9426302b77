"""Sends pipelines to a cluster: each to one connection of the node that owns the slot of its keys.

All keys of a service lie in one slot by their `{service.shard}` tag, and every pipeline of the store is of one slot;
what has no key, the proof of a receipt, stands directly behind the writes that it proves. A command that a node
redirects was not run there, so it may be sent on; nothing else is sent twice here. Carries I6.

While a slot is moved key by key, a script sees only its declared keys guarded by the server, and a key that it empties
itself counts as moved: it could end halfway. So each call of a queue's script names one key more that nothing ever
writes: until the slot stands whole at one node again, the server then answers TRYAGAIN, and runs nothing.
Sources: Redis documentation, "Redis cluster specification"; Valkey, getNodeByQuery.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from redis import exceptions as driver

from aioflow.engine.cluster import Address, Nodes, slot_of
from aioflow.engine.keys import no_key
from aioflow.errors import StoreUnavailable

if TYPE_CHECKING:
    from aioflow.engine.wire import Command, SocketWire

MOST_TRIPS = 5
"""Times that a command is sent on to where a node redirects it."""


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

        Those that stand first, the loading of a script, go along with those behind them.

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
        await asyncio.gather(*(self._wires.pop(address).close() for address in self._wires.keys() - known))

    async def close(self) -> None:
        """As SocketWire's."""
        await asyncio.gather(*(wire.close() for wire in self._wires.values()))


def redirected(
    replies: Sequence[Any], keys: Sequence[str | None], sent: Sequence[int]
) -> tuple[list[int], driver.AskError | None]:
    """Which of the commands that were sent go elsewhere, with what proves them, and the last redirection."""
    moved = [index for index in sent if isinstance(replies[index], driver.AskError)]
    if not moved:
        return [], None
    first = next(index for index, key in enumerate(keys) if key is not None)
    ahead = [index for index in sent if index < first]  # a script is loaded wherever it is called
    behind = [index for index in sent if keys[index] is None and index > moved[0]]
    done = [index for index in sent if keys[index] is not None and index not in moved]
    if behind and done and done[0] < behind[-1]:
        # Two nodes would each have to prove a part: only the store may send the writes again, to one.
        raise driver.ConnectionError("its slot moved between writes and their proof")
    return sorted([*ahead, *moved, *behind]), replies[moved[-1]]
