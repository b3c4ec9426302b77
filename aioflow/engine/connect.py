"""Makes Redis clients: no driver retries, a deadline on every round trip, a name on every connection.

redis-py repeats commands by itself (an EVAL whose reply was lost ran twice), so every client is made here with that
switched off; only the store repeats, and only what a script's header allows.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from aioflow.errors import ConfigError

ROUND_TRIP_SECONDS = 5.0
"""A server that is silent for longer counts as away."""
SCHEMES = ("redis", "rediss", "unix")


class Clients:
    """The Redis clients of one store; each purpose has its own connections, so that none waits behind another."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._made: list[Redis] = []
        self.in_memory = url == "memory:"
        if self.in_memory:
            try:
                from fakeredis import FakeServer
            except ImportError:
                raise ConfigError("redis memory: needs fakeredis; pip install 'aioflow[memory]'") from None
            self._server = FakeServer(server_type="valkey")
        elif urlsplit(url).scheme not in SCHEMES:
            raise ConfigError(f"redis {shown(url)!r}: use redis://, rediss://, unix://, embedded: or memory:")

    def make(self, connections: int, *, blocking: bool = False) -> Redis:
        """A client over at most so many connections; `blocking` for commands that set their own deadline."""
        if self.in_memory:
            from fakeredis import FakeAsyncRedis

            client: Redis = FakeAsyncRedis(server=self._server, retry=no_retry())
        else:
            try:
                pool = BlockingConnectionPool.from_url(
                    self._url,
                    max_connections=connections,
                    timeout=ROUND_TRIP_SECONDS,
                    socket_timeout=None if blocking else ROUND_TRIP_SECONDS,
                    socket_connect_timeout=ROUND_TRIP_SECONDS,
                    client_name=self._name,
                    protocol=2,
                    retry=no_retry(),
                    maint_notifications_config=MaintNotificationsConfig(enabled=False),
                )
            except ValueError as error:
                raise ConfigError(f"redis {shown(self._url)!r}: {error}") from error
            client = Redis.from_pool(pool)
        self._made.append(client)
        return client

    async def close(self) -> None:
        """Close every connection of every client."""
        for client in self._made:
            await client.aclose(close_connection_pool=True)


def no_retry() -> Retry:
    """The driver's retry policy: none."""
    return Retry(NoBackoff(), 0)


def shown(url: str) -> str:
    """A URL as it may be printed: without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username or ''}:***@{host}").geturl()
