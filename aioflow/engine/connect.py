"""Makes Redis clients: no driver retries, a deadline on every round trip, a name on every connection.

redis-py repeats commands by itself (an EVAL whose reply was lost ran twice), so every client is made here with that
switched off; only the store repeats, and only what a script's header allows.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from redis import exceptions as driver
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from aioflow.engine import cluster, sentinel, tls
from aioflow.engine.cluster_client import ClusterClient, ToAnyNode
from aioflow.engine.cluster_wire import ClusterWire
from aioflow.engine.wire import ROUND_TRIP_SECONDS, Breaks, ClientWire, SocketWire, Wire, stopped
from aioflow.errors import ConfigError

SCHEMES = ("redis", "rediss", "unix", *sentinel.SCHEMES, *cluster.SCHEMES)
GOODBYE_SECONDS = 1.0
"""For a peer to end a connection of TLS as well."""
OPTIONS = {"db": "a number"}
"""What a URL's query may set, and to what, beside what `tls` says."""


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


class Kept(AbstractConnection):
    """A connection that a client keeps as a wire does: it is made anew once one of the store's has broken since.

    Or a store whose server has become a replica, and leaves its connections open, would speak to two servers at a time.
    A subscription moves with its next PING, and subscribes again. `breaks` is set by a subclass.
    """

    breaks: Breaks
    _made_after = 0
    _greets = False

    def _connection_arguments(self) -> Mapping[str, Any]:
        """As the driver's. TLS would wait half a minute for the goodbye of a peer that stands still."""
        arguments = super()._connection_arguments()  # type: ignore[misc]
        return {**arguments, "ssl_shutdown_timeout": GOODBYE_SECONDS} if "ssl" in arguments else arguments

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """As the driver's, which asks for it before each use."""
        if self.is_connected and self._made_after != self.breaks.count:
            await self.disconnect(nowait=True)
        if not self.is_connected:
            self._made_after = self.breaks.count
        greets, self._greets = self._greets, True
        try:
            await super().connect_check_health(check_health, retry_socket_connect)
        finally:
            self._greets = greets

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """As the driver's."""
        try:
            return await super().read_response(*args, **options)
        except driver.RedisError as error:
            if not self._greets:  # one that is not let in, as by a full server, says nothing of those that are
                self.breaks.note(error, self._made_after)
            raise


def kept(breaks: Breaks, *bases: type[AbstractConnection], **more: Any) -> type[AbstractConnection]:
    """A class of connections, with more attributes."""
    return type(f"Kept{bases[0].__name__}", (PromptWrites, Kept, *bases), {"breaks": breaks, **more})


class Clients:
    """The Redis clients of one store; each purpose has its own connections, so that none waits behind another."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._made: list[Redis] = []
        self._wires: list[SocketWire | ClusterWire] = []
        self._breaks = Breaks()
        self._finder: sentinel.Finder | None = None
        self.nodes: cluster.Nodes | None = None
        """Those of a cluster."""
        self._login: dict[str, Any] = {}
        self._tls: dict[str, Any] | None = None
        self._node_breaks: defaultdict[cluster.Address, Breaks] = defaultdict(Breaks)
        self._closed = False
        self.in_memory = url == "memory:"
        if self.in_memory:
            try:
                from fakeredis import FakeServer
            except ImportError:
                raise ConfigError("redis memory: needs fakeredis; pip install 'aioflow[memory]'") from None
            self._server = FakeServer(server_type="valkey")
        else:
            check_url(url)
            if url.startswith(sentinel.SCHEMES):
                self._finder = sentinel.Finder(sentinel.parse(url), no_retry())
            elif url.startswith(cluster.SCHEMES):
                seeds, self._login, self._tls = cluster.parse(url)
                self.nodes = cluster.Nodes(seeds, partial(self._node_wire, 1))

    def make(self, connections: int) -> Redis:
        """A client over at most so many connections."""
        if self.in_memory:
            from fakeredis import FakeAsyncRedis

            client: Redis = FakeAsyncRedis(server=self._server, retry=no_retry(), socket_timeout=None)
        elif self.nodes is not None:
            any_node = kept(self._breaks, ToAnyNode, tls.connection(self._tls), nodes=self.nodes)
            options = {**self._login, **(self._tls or {}), **self._options(connections, ROUND_TRIP_SECONDS)}
            client = ClusterClient(
                BlockingConnectionPool(connection_class=any_node, **options),
                self.nodes,
                lambda node: Redis.from_pool(self._node_pool(node, connections, ROUND_TRIP_SECONDS)),
            )
        else:
            client = Redis.from_pool(self._pool(connections, ROUND_TRIP_SECONDS))
        self._made.append(client)
        return client

    def wire(self, connections: int) -> Wire:
        """What scripts are sent over: at most so many round trips at a time."""
        if self.in_memory:
            return ClientWire(self.make(connections))
        wire: SocketWire | ClusterWire
        if self.nodes is not None:
            wire = ClusterWire(self.nodes, partial(self._node_wire, connections), ROUND_TRIP_SECONDS)
        else:
            wire = SocketWire(self._pool(connections, None), connections, self._breaks)
        self._wires.append(wire)
        return wire

    def _node_wire(self, connections: int, node: cluster.Address) -> SocketWire:
        return SocketWire(self._node_pool(node, connections, None), connections, self._node_breaks[node])

    def _node_pool(self, node: cluster.Address, connections: int, timeout: float | None) -> BlockingConnectionPool:
        if self._closed:
            raise stopped()
        to_node = kept(self._node_breaks[node], tls.connection(self._tls))
        host, port = node
        options = {**self._login, **(self._tls or {}), **self._options(connections, timeout)}
        return BlockingConnectionPool(connection_class=to_node, host=host, port=port, **options)

    def _options(self, connections: int, timeout: float | None) -> dict[str, Any]:
        return {
            "max_connections": connections,
            "timeout": ROUND_TRIP_SECONDS,
            "socket_timeout": timeout,
            "socket_connect_timeout": ROUND_TRIP_SECONDS,
            "client_name": self._name,
            "protocol": 2,
            "retry": no_retry(),
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }

    def _pool(self, connections: int, timeout: float | None) -> BlockingConnectionPool:
        options = self._options(connections, timeout)
        if self._finder is not None:
            place = sentinel.parse(self._url)
            found = kept(self._breaks, sentinel.ToPrimary, tls.connection(place.tls), finder=self._finder)
            return BlockingConnectionPool(connection_class=found, **place.server, **(place.tls or {}), **options)
        try:
            pool = BlockingConnectionPool.from_url(self._url, **options)
        except ValueError as error:
            raise ConfigError(f"redis {shown(self._url)!r}: {error}") from error
        pool.connection_class = kept(self._breaks, pool.connection_class)
        return pool

    async def close(self) -> None:
        """Close every connection of every client and wire."""
        if self.in_memory and self._made:
            # A pop that was abandoned lives on in fakeredis until it is over.
            for peer in await self._made[0].client_list():
                await self._made[0].client_unblock(int(peer["id"]))
        self._closed = True
        for wire in self._wires:
            await wire.close()
        if self.nodes is not None:
            await self.nodes.close()
        # That a peer does not end its side of a connection keeps none of the others open.
        await asyncio.gather(
            *(client.aclose(close_connection_pool=True) for client in self._made), return_exceptions=True
        )
        if self._finder is not None:
            await self._finder.close()


def no_retry() -> Retry:
    """The driver's retry policy: none."""
    return Retry(NoBackoff(), 0)


def check_url(url: str) -> None:
    """Raise ConfigError, with all that is wrong, unless a URL says where the server is and only what it may say.

    The driver lets a query set any argument of its connections, wins by it over ours, and passes over what it cannot
    read. Nothing is shown of what may be a password.
    """
    if url.startswith(sentinel.SCHEMES):
        sentinel.parse(url)
        return
    if url.startswith(cluster.SCHEMES):
        cluster.parse(url)
        return
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ConfigError(
            "the URL of redis cannot be read; write redis://user:password@host:6379/0, and %40 for an @ in a password, "
            "%2F for a /, %23 for a #, %3F for a ?"
        ) from None
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f"redis {shown(url)!r}: use redis://, rediss://, unix://, redis+sentinel://, redis+cluster:// (over TLS "
            "rediss+sentinel://, rediss+cluster://), embedded: or memory:"
        )
    wrong = _wrong_place(parts) or _wrong_options(parts)
    if wrong:
        raise ConfigError(f"the URL of redis: {'; '.join(wrong)}")


def _wrong_place(parts: SplitResult) -> list[str]:
    if parts.scheme == "unix":
        right = parts.path.startswith("/") and not parts.netloc.rpartition("@")[2]
        return [] if right else ["a unix:// URL needs the socket's absolute path: unix:///run/valkey.sock"]
    if "@" in parts.path + parts.query + parts.fragment:
        return ["an @ follows the host; in a password write %2F for a /, %3F for a ? and %23 for a #"]
    wrong = ["port 0 is none"] if parts.port == 0 else []
    if re.fullmatch(r"(/[0-9]*)?", parts.path) is None:
        wrong.append(f"the database {parts.path.removeprefix('/')!r} is no number")
    return wrong


def _wrong_options(parts: SplitResult) -> list[str]:
    allowed = {**OPTIONS, **tls.OPTIONS} if parts.scheme == "rediss" else OPTIONS
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    given = dict(pairs)
    wrong = ["a # has no meaning here"] if parts.fragment else []
    if unknown := sorted(given.keys() - allowed):
        takes = f"a {parts.scheme}:// URL takes {', '.join(allowed)}, and user:password@ before the host"
        wrong.append(f"{', '.join(unknown)} cannot be set; {takes}")
    wrong += tls.wrong_options(given, allowed)
    if len(pairs) > len(given) or ("db" in given and parts.scheme != "unix" and parts.path.strip("/")):
        wrong.append("something is set twice")
    return wrong


def shown(url: str) -> str:
    """A URL as it may be printed: without its password, also where what is given is no URL."""
    url = re.sub("(?<=sentinel_password=)[^&#]+", "***", url)
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    account, at, place = rest.rpartition("@")  # the last one: a password may hold another
    user, colon, _ = account.partition(":")
    return f"{scheme}{mark}{user}:***{at}{place}" if at and colon else url
