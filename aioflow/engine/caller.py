"""How a call to Redis is made: driver exceptions become aioflow's, and a call is repeated only where that is harmless.

It must never hide a failure: what did not certainly happen is StoreUnavailable. Carries I9 and I10.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import Any, Self, TypeVar

from redis import exceptions as driver
from redis.asyncio import Redis

from aioflow.engine import scripts, tls
from aioflow.engine.cluster import slot_of, tag_of
from aioflow.engine.cluster_client import ClusterClient
from aioflow.engine.connect import Clients, shown
from aioflow.engine.foreign import WRONG_TYPE, foreign_keys
from aioflow.engine.keys import Queue
from aioflow.engine.line import Line, ServerClock
from aioflow.engine.records import Durability
from aioflow.engine.rights import rights_in
from aioflow.engine.scripts import Script
from aioflow.engine.sentinel import split
from aioflow.engine.wire import ROUND_TRIP_SECONDS, Command, Wire
from aioflow.errors import ConfigError, ProtocolError, StoreUnavailable

T = TypeVar("T")

NOT_SERVING = ("MISCONF", "READONLY", "UNBLOCKED", "BUSY", "LOADING", "MASTERDOWN", "CLUSTERDOWN")
"""What errors begin with by which a server says that it runs nothing now."""
FULL = "max number of clients"
"""What the refusal of one more client begins with."""
REFUSED = ("OOM", "NOREPLICAS", "TRYAGAIN", "WAITAOF")
"""What errors begin with by which a server refuses this one call."""
MOST_CHANNELS = 16
"""Subscriptions, each on a connection of its own: the runtime's channel and those of its services."""


class Caller:
    """The connections of one store, and whether the server is there.

    `clock` replaces the server's time, in UTC ms; only tests pass one. `quiet` leaves it to another store of the same
    runtime to say that the server is away.
    """

    def __init__(
        self, url: str, *, name: str, queues: int = 1, clock: Callable[[], int] | None = None, quiet: bool = False
    ) -> None:
        self._clients = Clients(url, name)
        self._clock = clock
        # Claims, settles and renewals of each queue may be under way at once, beside the ingress' reads.
        self._wire = self._clients.wire(4 * queues + 8)
        self._receipt_wires: dict[Durability, Wire] = {}
        self._slot: int | None = None
        self._parts: dict[int, Self] = {}
        self.redis: Redis = self._clients.make(16)
        self._bells = self._clients.wire(queues)
        self._listener: Redis = self._clients.make(MOST_CHANNELS)
        self.in_memory = self._clients.in_memory
        self.has_parts = self._clients.nodes is not None
        """Whether `part` gives another one than this."""
        self.clock = clock if isinstance(clock, ServerClock) else ServerClock()
        self._shown = shown(url)
        self.user = split(url).netloc.rpartition("@")[0].partition(":")[0] or "default"
        """As whom it connects, as the server's ACL names it."""
        self.line = Line(self._shown, quiet=quiet)
        self._plain = self.in_memory  # fakeredis takes no shebang line

    def part(self, of: Queue | str) -> Self:
        """Whom to ask about a queue, or a key: itself; in a cluster one for its slot, with its own line and clock.

        So one node that is away, or whose clock is off, is nothing to the queues on the others.
        """
        if not self.has_parts:
            return self
        key = of if isinstance(of, str) else of.keys["jobs"]
        slot = slot_of(key)
        part = self._parts.get(slot)
        if part is None:
            part = self._parts[slot] = copy(self)
            part._slot, part._receipt_wires = slot, {}  # noqa: SLF001 - another of this class
            part.line = Line(f"{self._shown} (slot {slot}, of {tag_of(key)})", quiet=self.line.quiet)
            if not isinstance(self._clock, ServerClock):
                part.clock = ServerClock()
        return part

    async def _server(self) -> Redis:
        """A client of the server that holds this part's queues."""
        if self._slot is None or not isinstance(self.redis, ClusterClient):
            return self.redis
        return await self.redis.of_slot(self._slot)

    async def _servers(self) -> list[Redis]:
        """A client of each server that may hold queues."""
        return await self.redis.primaries() if isinstance(self.redis, ClusterClient) else [self.redis]

    async def close(self) -> None:
        """Close all connections; a call that is under way hears StoreUnavailable."""
        self.line.quiet = True  # what breaks now is no outage
        for part in self._parts.values():
            part.line.quiet = True
        await self._clients.close()

    async def _call(self, name: str, queue: Queue, *words: str | bytes) -> Any:
        """Run a script that takes the time and answers it first."""
        script = scripts.load(name, plain=self._plain)
        sent = time.monotonic()
        (reply,) = await self._ask(script, [evalsha(script, queue, (self._clock_word(), *words))], self._wire)
        self.clock.hear(reply[0], sent)
        return reply

    def _clock_word(self) -> str:
        return "0" if self._clock is None else str(self._clock())

    async def _ask(
        self, script: Script, commands: list[Command], wire: Wire, *, again: list[Command] | None = None
    ) -> list[Any]:
        """Send a script's calls; load it where the server does not know it.

        Where the line broke, they are sent once more, or what `again` has in their place.
        """
        load: list[Command] = []
        repeated = False
        while True:
            sent = time.monotonic()
            try:
                replies = await wire.ask([*load, *(again if repeated and again is not None else commands)])
                raise_refusal(replies)
            except driver.NoScriptError as error:
                if load:
                    raise self._mapped(error, script.name) from error
                # Nothing was run, so this counts as no repeat; a server that came back knows no script. It is loaded in
                # the same breath: while a failover goes on, another connection may lead to another server.
                load = [("SCRIPT", "LOAD", script.source)]
            except driver.ConnectionError as error:
                # Most often a kept connection that the server has closed since. A busy server is not asked twice.
                if repeated or not script.may_repeat or isinstance(error, driver.BusyLoadingError):
                    raise self.lost(error) from error
                repeated = True
                self.line.broke()
            except (driver.RedisError, OSError) as error:
                raise await self._refusal(error, script, commands) from error
            else:
                self.line.served(sent)
                return replies[len(load) :]

    async def _command(self, send: Callable[[], Awaitable[T]], key: str = "") -> T:
        sent = time.monotonic()
        try:
            reply = await send()
        except (driver.RedisError, OSError, TimeoutError) as error:
            raise self._mapped(error, f"a command on {key}" if key else "a command") from error
        self.line.up(sent)
        return reply

    async def _refusal(self, error: BaseException, script: Script, commands: Sequence[Command]) -> Exception:
        """As `_mapped`; where a key holds another type than it should, that key is named."""
        mapped = self._mapped(error, script.name)
        if not isinstance(mapped, ProtocolError) or WRONG_TYPE not in str(error):
            return mapped
        try:
            named = await foreign_keys(await self._server(), script, commands)
        except (driver.RedisError, OSError):
            return mapped  # the refusal is what happened; that the server has gone since, the next call says
        return ProtocolError(f"{script.name} met what is not aioflow's: {named}") if named else mapped

    def _mapped(self, error: BaseException, what: str) -> Exception:
        # A cluster's node says it in other words than the driver knows.
        if isinstance(error, driver.ResponseError) and not str(error).startswith(FULL):
            code = str(error).partition(" ")[0]
            if code in NOT_SERVING or isinstance(error, (driver.ReadOnlyError, driver.ClusterDownError)):
                self.line.refused(error)
                return StoreUnavailable(f"redis cannot serve now: {error}")
            if code in REFUSED or isinstance(
                error, (driver.OutOfMemoryError, driver.TryAgainError, driver.NoScriptError)
            ):
                return StoreUnavailable(f"redis cannot serve now: {error}")
            if isinstance(error, driver.NoPermissionError) or "ACL failure in script" in str(error):
                lacking = rights_in(str(error))
                mend = f"; ACL SETUSER {self.user} {' '.join(lacking)}" if lacking else ""
                return ConfigError(f"redis refuses {what} to this user: {error}{mend}; the README has the whole line")
            return ProtocolError(f"{what} failed in redis: {error}")
        if isinstance(error.__cause__, driver.NoPermissionError):
            # The driver says so of what it sends to each new connection, as if the server were away.
            return self._mapped(error.__cause__, what)
        return self.lost(error)

    def lost(self, error: BaseException) -> StoreUnavailable:
        """Take note that the line broke; what to raise."""
        reason = tls.reason_of(error) or f"no answer within {ROUND_TRIP_SECONDS:g} s"
        self.line.down(error if str(error) == reason else OSError(reason))
        return StoreUnavailable(f"redis is away: {reason}")


def raise_refusal(replies: list[Any]) -> None:
    """Raise the first of the replies that is an error."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def evalsha(script: Script, queue: Queue, words: Sequence[str | bytes]) -> Command:
    """The call of a script on a queue's keys."""
    keys = [queue.keys[key] for key, _ in script.keys]
    return ("EVALSHA", script.sha, len(keys), *keys, *words)
