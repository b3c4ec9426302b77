"""The channel of one runtime: results it waits for, and cancels of jobs that it runs.

Messages are lost while the line is down, so nothing rests on them alone: after every (re)connection those who wait ask
anew, and a cancel is heard by the next renewal of the lease.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from redis import exceptions as driver

from aioflow.engine.store import Store
from aioflow.engine.wire import ROUND_TRIP_SECONDS
from aioflow.errors import ConfigError, ProtocolError, StoreUnavailable

log = logging.getLogger(__name__)

SILENCE_SECONDS = 5.0
"""After so long without a message the line is asked whether it lives; after as long again it counts as lost."""
PATIENCE = 6
"""So many times as long where nobody waits for a result: a cancel is heard by the next renewal as well."""


class Inbox:
    """Listens on a channel.

    `take` says who takes which kind of message, `connected` is awaited after a connection, `urgent` says whether
    somebody waits for a message.
    """

    def __init__(
        self,
        store: Store,
        channel: str,
        take: Mapping[bytes, Callable[[bytes], None]],
        connected: Callable[[], Awaitable[None]],
        urgent: Callable[[], bool],
        *,
        at_once: bool = False,
    ) -> None:
        self.channel = channel
        self._store = store
        self._take = take
        self._connected = connected
        self._urgent = urgent
        self.subscribed = asyncio.Event()
        self.wanted = asyncio.Event()
        """Set by whoever needs the channel; without it no connection is made."""
        if at_once:
            self.wanted.set()

    def __repr__(self) -> str:
        return f"<Inbox {self.channel} subscribed={self.subscribed.is_set()}>"

    async def run(self) -> None:
        """Listen until cancelled."""
        await self.wanted.wait()
        while True:
            try:
                await self._listen()
            except driver.NoPermissionError as error:
                raise ConfigError(f"redis refuses the channel {self.channel} to this user: {error}") from error
            except (driver.RedisError, OSError, StoreUnavailable, ProtocolError) as error:
                self.subscribed.clear()
                if not isinstance(error, (StoreUnavailable, ProtocolError)):
                    error = self._store.lost(error)
                await self._store.line.setback(error, f"the channel {self.channel}")

    async def _listen(self) -> None:
        pubsub = self._store.pubsub()
        asked, silent = False, 0
        sent = time.monotonic()
        try:
            async with asyncio.timeout(ROUND_TRIP_SECONDS):
                await pubsub.subscribe(self.channel)
            while True:
                message = await pubsub.get_message(timeout=SILENCE_SECONDS)
                if message is None:
                    # A peer that vanished says nothing, ever: whoever only listens must ask.
                    if asked:
                        raise driver.TimeoutError(f"no answer on the channel {self.channel}")
                    silent += 1
                    if self._urgent() or silent >= PATIENCE:
                        asked = True
                        await pubsub.ping()
                    continue
                asked, silent = False, 0
                if message["type"] == "message":
                    self._hear(message["data"])
                elif message["type"] == "subscribe":
                    self._store.line.up(sent)
                    await self._connected()
                    self.subscribed.set()
        finally:
            await pubsub.aclose()

    def _hear(self, message: bytes) -> None:
        kind, _, rest = message.partition(b"\n")
        try:
            self._take[kind](rest)
        except (KeyError, ValueError):
            log.warning("a message on %s is none of ours: %r", self.channel, message[:80])
