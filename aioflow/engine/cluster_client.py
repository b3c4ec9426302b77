"""The driver's client for a Redis Cluster, for plain commands: each goes to the node of its first key.

The driver's own cluster client repeats by itself what may have been run, is another type than its client, and has no
subscriptions; here a command is sent on only where a node redirects it, which runs nothing. What has no key goes to any
node; what would have to ask all of them is refused, but for SCRIPT LOAD, which does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any, TypeVar

from redis import exceptions as driver
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import Connection

from aioflow.engine.cluster import SECONDS, Address, Nodes, slot_of
from aioflow.engine.cluster_wire import MOST_TRIPS

T = TypeVar("T")

OF_ONE_NODE = {
    *("CLIENT", "CONFIG", "DBSIZE", "FLUSHALL", "FLUSHDB", "KEYS", "LASTSAVE", "MULTI", "PUBSUB", "RANDOMKEY", "SCAN"),
    *("SCRIPT", "SHUTDOWN", "SLOWLOG", "WAIT", "WAITAOF", "WATCH"),
}
"""Some node's answer, or what it did, would be a part of what was meant."""
OF_ANY_NODE = {"ACL", "CLUSTER", "COMMAND", "ECHO", "INFO", "PING", "PUBLISH", "ROLE", "TIME"}
FIRST_KEY = {
    **dict.fromkeys(("BITOP", "DEBUG", "OBJECT"), 2),
    **dict.fromkeys(("LMPOP", "ZMPOP", "SINTERCARD", "ZDIFF", "ZINTER", "ZINTERCARD", "ZUNION"), 2),
    **dict.fromkeys(("BLMPOP", "BZMPOP", "EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO"), 3),
}
"""Where it stands, if not first."""


def slot_of_command(command: tuple[Any, ...]) -> int | None:
    """The slot of a command's first key; None where it has none."""
    name = str(command[0]).upper()
    word = name.partition(" ")[0]
    if word in OF_ONE_NODE:
        raise driver.RedisClusterException(f"{name} speaks of one node, and this client of a cluster; ask that node")
    if word in OF_ANY_NODE:
        return None
    if word in ("XREAD", "XREADGROUP"):
        place = [str(word).upper() for word in command].index("STREAMS") + 1
    else:
        place = FIRST_KEY.get(word, 1)
    if len(command) <= place or (word.startswith(("EVAL", "FCALL")) and not int(command[2])):
        return None
    key = command[place]
    return slot_of(key.decode() if isinstance(key, bytes) else str(key))


class ToAnyNode(Connection):
    """A connection to whatever node lets itself be connected to; `nodes` is set by a subclass."""

    nodes: Nodes

    async def _connect(self) -> None:
        failed: Exception = driver.ConnectionError("no node is known")
        for node in self.nodes.candidates():
            self.host, self.port = node
            try:
                async with asyncio.timeout(SECONDS):
                    await super()._connect()  # type: ignore[no-untyped-call]
            except (driver.RedisError, OSError) as error:
                failed = error
                self.nodes.doubt(node)
            else:
                return
        raise failed


class ClusterClient(Redis):
    """Sends each command to the node of its first key; `connect` makes a client of one node.

    `pool` connects to any node: for what has no key, and for subscriptions, since what one publishes is heard at all.
    """

    def __init__(self, pool: BlockingConnectionPool, nodes: Nodes, connect: Callable[[Address], Redis]) -> None:
        super().__init__(connection_pool=pool)
        self._nodes = nodes
        self._connect_to = connect
        self._clients: dict[Address, Redis] = {}
        nodes.users.append(self)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As the driver's. Raises RedisClusterException for what no one node can answer."""
        if args[0] == "SCRIPT LOAD":
            return await self._load(args[1])
        slot = slot_of_command(args)
        if slot is None:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

        async def send(client: Redis, asking: bool) -> Any:
            if not asking:
                return await client.execute_command(*args, **options)
            pipeline = client.pipeline(transaction=False)
            pipeline.execute_command("ASKING")
            pipeline.execute_command(*args, **options)
            return (await pipeline.execute())[1]

        return await self.routed(slot, send)

    async def routed(self, slot: int, send: Callable[[Redis, bool], Awaitable[T]]) -> T:
        """Send to the node of a slot, and on to where it redirects; `send` takes a client and whether by ASKING."""
        address, asking = await self._nodes.owner(slot), False
        for _ in range(MOST_TRIPS):
            try:
                return await send(self._client(address), asking)
            except driver.AskError as error:
                address, asking = self._nodes.told(slot, address, error)
            except driver.ResponseError as error:
                if isinstance(error, driver.ClusterDownError):
                    self._nodes.doubt(address)
                raise
            except BaseException:
                self._nodes.doubt(address)  # also where its caller would not wait any longer
                raise
        raise driver.TryAgainError(f"slot {slot} is on its way from node to node")

    async def of_slot(self, slot: int) -> Redis:
        """A client of the node that owns a slot."""
        return self._client(await self._nodes.owner(slot))

    async def primaries(self) -> list[Redis]:
        """A client of each node that owns slots."""
        return [self._client(address) for address in await self._nodes.primaries()]

    async def _load(self, script: str) -> Any:
        # A node that is away is told by NOSCRIPT of whoever calls the script there next.
        primaries = await self.primaries()
        answers = await asyncio.gather(*(node.script_load(script) for node in primaries), return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        if len(failed) == len(answers):
            raise failed[0]
        return next(answer for answer in answers if not isinstance(answer, BaseException))

    def _client(self, address: Address) -> Redis:
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = self._connect_to(address)
        return client

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:  # noqa: ARG002 - the driver's
        """As the driver's; a transaction is of keys of one slot, and watches nothing."""
        return ClusterPipeline(self, transaction)

    async def retain(self, known: AbstractSet[Address]) -> None:
        """Close the connections to all other nodes."""
        gone = [self._clients.pop(address) for address in self._clients.keys() - known]
        await asyncio.gather(*(client.aclose(close_connection_pool=True) for client in gone), return_exceptions=True)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all connections."""
        await self.retain(frozenset())
        await super().aclose(close_connection_pool)


class ClusterPipeline(Pipeline):
    """A pipeline for each slot, one after another; what has no key goes along with what stands before it."""

    def __init__(self, cluster: ClusterClient, transaction: bool) -> None:
        super().__init__(cluster.connection_pool, cluster.response_callbacks, transaction, None)
        self._cluster = cluster

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:  # noqa: ARG002 - the driver's
        """WATCH is of one connection."""
        raise driver.RedisClusterException("a pipeline of a cluster watches nothing; use a script")

    async def load_scripts(self) -> None:
        """To all nodes."""
        for script in self.scripts:
            script.sha = await self._cluster.script_load(script.script)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """As the driver's."""
        try:
            commands: list[Any] = list(self.command_stack)
            if self.scripts:
                await self.load_scripts()
            replies: list[Any] = [None] * len(commands)
            for slot, some in self._by_slot().items():
                answers = await self._cluster.routed(slot, partial(self._send, [commands[index] for index in some]))
                for index, answer in zip(some, answers, strict=True):
                    replies[index] = answer
            for index, reply in enumerate(replies):
                if isinstance(reply, driver.AskError):
                    replies[index] = await self._again(*commands[index])
            if raise_on_error:
                self.raise_first_error(commands, replies)
            return replies
        finally:
            await self.reset()  # type: ignore[no-untyped-call]

    def _by_slot(self) -> dict[int, list[int]]:
        slots = [slot_of_command(args) for args, _ in self.command_stack]
        last = next((slot for slot in slots if slot is not None), 0)
        found: dict[int, list[int]] = {}
        for index, slot in enumerate(slots):
            last = last if slot is None else slot
            found.setdefault(last, []).append(index)
        if self.is_transaction and len(found) > 1:
            raise driver.RedisClusterException("a transaction of a cluster is of keys of one slot, of one service")
        return found

    async def _send(self, commands: list[Any], client: Redis, asking: bool) -> list[Any]:
        if asking:
            raise driver.TryAgainError("a transaction, while its slot is on its way to another node")
        pipeline = client.pipeline(transaction=self.is_transaction)
        for args, options in commands:
            pipeline.execute_command(*args, **options)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    async def _again(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        try:
            return await self._cluster.execute_command(*args, **options)
        except driver.ResponseError as error:
            return error
