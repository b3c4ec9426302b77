"""Makes Redis clients: no driver retries, a deadline on every round trip, a name on every connection.

redis-py repeats commands by itself (an EVAL whose reply was lost ran twice), so every client is made here with that
switched off; only the store repeats, and only what a script's header allows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from hiredis import pack_command
from redis import exceptions as driver
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from aioflow.errors import ConfigError

ROUND_TRIP_SECONDS = 5.0
"""A server that is silent for longer counts as away."""
SCHEMES = ("redis", "rediss", "unix")


Command = tuple[Any, ...]
"""str, bytes and int."""


class PromptWrites(AbstractConnection):
    """Makes a connection's writes honour every cancellation.

    redis-py waits for a write by asyncio.wait_for, which on Python 3.11 loses a cancellation that comes in the moment
    the write ends (CPython issue 86296): a loop that is being stopped would go on for ever.
    """

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """As the driver's, under asyncio.timeout."""
        if self.socket_timeout is None:
            return await super().send_packed_command(command, check_health)
        seconds, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(seconds):
                await super().send_packed_command(command, check_health)
        except TimeoutError:
            raise driver.TimeoutError("Timeout writing to socket") from None
        finally:
            self.socket_timeout = seconds


class Wire(Protocol):
    """Sends commands as one pipeline and returns their replies; an error reply is an item of the list."""

    async def ask(self, commands: Sequence[Command], seconds: float | None = None) -> list[Any]: ...


@dataclass(slots=True)
class Breaks:
    """How often a connection of one store has broken; shared by its wires."""

    count: int = 0


class SocketWire:
    """A few connections of its own, for the hot path.

    The driver's client packs argument by argument in Python, checks the connection and keeps metrics at each call; a
    batch packed by hiredis and written as it is costs a third of that. One deadline covers the whole round trip.
    """

    def __init__(self, pool: BlockingConnectionPool, connections: int, breaks: Breaks) -> None:
        self._pool = pool
        self._breaks = breaks
        self._idle: deque[tuple[int, AbstractConnection]] = deque()
        self._free = asyncio.Semaphore(connections)

    async def ask(self, commands: Sequence[Command], seconds: float | None = None) -> list[Any]:
        """Send and read. Raises driver errors of the connection, and TimeoutError past the deadline."""
        async with asyncio.timeout(seconds or ROUND_TRIP_SECONDS), self._free:
            connection = await self._take()
            made_after = self._breaks.count
            try:
                if not connection.is_connected:
                    await connection.connect()
                await connection.send_packed_command(
                    [pack_command(command) for command in commands], check_health=False
                )
                replies = [await self._reply(connection) for _ in commands]
            except BaseException as error:
                # A reply may still be on its way: this connection is of no use any more.
                await connection.disconnect(nowait=True)
                if isinstance(error, driver.ConnectionError):
                    self._breaks.count += 1
                raise
            self._idle.append((made_after, connection))
            return replies

    async def _take(self) -> AbstractConnection:
        # What broke one connection has most often broken all: those from before it are not tried.
        while self._idle:
            made_after, connection = self._idle.pop()
            if made_after == self._breaks.count:
                return connection
            await connection.disconnect(nowait=True)
        made: AbstractConnection = self._pool.make_connection()
        return made

    @staticmethod
    async def _reply(connection: AbstractConnection) -> Any:
        try:
            return await connection.read_response(disable_decoding=True)
        except driver.ResponseError as error:
            return error

    async def close(self) -> None:
        """Close the idle connections; nothing may be under way."""
        while self._idle:
            await self._idle.pop()[1].disconnect()


class ClientWire:
    """The same over a client, for fakeredis."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def ask(self, commands: Sequence[Command], seconds: float | None = None) -> list[Any]:
        """Send and read."""
        async with asyncio.timeout(seconds or ROUND_TRIP_SECONDS):
            return await self._ask(commands)

    async def _ask(self, commands: Sequence[Command]) -> list[Any]:
        if len(commands) == 1:
            try:
                return [await self._client.execute_command(*commands[0])]
            except driver.ResponseError as error:
                return [error]
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies


class Clients:
    """The Redis clients of one store; each purpose has its own connections, so that none waits behind another."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._made: list[Redis] = []
        self._wires: list[SocketWire] = []
        self._breaks = Breaks()
        self.in_memory = url == "memory:"
        if self.in_memory:
            try:
                from fakeredis import FakeServer
            except ImportError:
                raise ConfigError("redis memory: needs fakeredis; pip install 'aioflow[memory]'") from None
            self._server = FakeServer(server_type="valkey")
        elif scheme_of(url) not in SCHEMES:
            raise ConfigError(f"redis {shown(url)!r}: use redis://, rediss://, unix://, embedded: or memory:")

    def make(self, connections: int, *, blocking: bool = False) -> Redis:
        """A client over at most so many connections; `blocking` for commands that set their own deadline."""
        if self.in_memory:
            from fakeredis import FakeAsyncRedis

            client: Redis = FakeAsyncRedis(server=self._server, retry=no_retry(), socket_timeout=None)
        else:
            client = Redis.from_pool(self._pool(connections, None if blocking else ROUND_TRIP_SECONDS))
        self._made.append(client)
        return client

    def wire(self, connections: int) -> Wire:
        """What scripts are sent over: at most so many round trips at a time."""
        if self.in_memory:
            return ClientWire(self.make(connections, blocking=True))
        wire = SocketWire(self._pool(connections, None), connections, self._breaks)
        self._wires.append(wire)
        return wire

    def _pool(self, connections: int, timeout: float | None) -> BlockingConnectionPool:
        try:
            pool = BlockingConnectionPool.from_url(
                self._url,
                max_connections=connections,
                timeout=ROUND_TRIP_SECONDS,
                socket_timeout=timeout,
                socket_connect_timeout=ROUND_TRIP_SECONDS,
                client_name=self._name,
                protocol=2,
                retry=no_retry(),
                maint_notifications_config=MaintNotificationsConfig(enabled=False),
            )
        except ValueError as error:
            raise ConfigError(f"redis {shown(self._url)!r}: {error}") from error
        made = pool.connection_class
        pool.connection_class = type(f"Prompt{made.__name__}", (PromptWrites, made), {})
        return pool

    async def close(self) -> None:
        """Close every connection of every client and wire."""
        if self.in_memory and self._made:
            # A pop that was abandoned lives on in fakeredis until it is over.
            for peer in await self._made[0].client_list():
                await self._made[0].client_unblock(int(peer["id"]))
        for wire in self._wires:
            await wire.close()
        for client in self._made:
            await client.aclose(close_connection_pool=True)


def no_retry() -> Retry:
    """The driver's retry policy: none."""
    return Retry(NoBackoff(), 0)


def scheme_of(url: str) -> str:
    """The scheme of a URL. Raises ConfigError, which does not show what may hold a password."""
    try:
        return urlsplit(url).scheme
    except ValueError as error:
        raise ConfigError(f"the URL of redis cannot be read: {error}") from error


def shown(url: str) -> str:
    """A URL as it may be printed: without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username or ''}:***@{host}").geturl()
