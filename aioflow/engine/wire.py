"""Round trips to Redis: a batch of commands goes out as one write, and its replies come back together.

The driver makes each connection (its URL, TLS, its user, Sentinels); from then on the hot path speaks over it by
itself. The driver's client packs argument by argument in Python, reads reply by reply from a stream and keeps metrics
at each call: that costs three times as much.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from hiredis import Reader, pack_command
from redis import exceptions as driver
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection

from aioflow.errors import StoreUnavailable

T = TypeVar("T")

ROUND_TRIP_SECONDS = 5.0
"""A server that is silent for longer counts as away."""
WHOLE = 0.9
"""The part of a round trip's seconds that an answer was waited for at least; the connection may have taken the rest."""

CLOSED = "the server closed the connection"

Command = tuple[Any, ...]
"""str, bytes and int."""


class Wire(Protocol):
    """Sends commands as one pipeline and returns their replies; an error reply is an item of the list."""

    async def ask(self, commands: Sequence[Command], seconds: float | None = None) -> list[Any]: ...


@dataclass(slots=True)
class Breaks:
    """How often a connection of one store has broken; shared by its wires and its clients.

    What broke one connection has most often broken all: those from before it are not used again.
    """

    count: int = 0

    def note(self, error: BaseException, made_after: int, waited: float = 0.0) -> None:
        """Take note of what a connection met; `made_after` is the count when it was made.

        That it leads to a replica by now counts as well: the name of the host, or the Sentinels, may say where the
        primary is. So does a peer that said nothing for a whole round trip, as one that has vanished; `waited` seconds
        that are fewer are its caller's impatience.
        """
        silent = isinstance(error, TimeoutError) and waited > WHOLE * ROUND_TRIP_SECONDS
        broken = isinstance(error, (driver.ConnectionError, driver.TimeoutError, driver.ReadOnlyError))
        if made_after == self.count and (silent or broken):
            self.count += 1  # of a connection from before another break it is no news


class Conversation(asyncio.Protocol):
    """One connection of the driver's, taken over once it is made: a batch of commands at a time, and its replies.

    The deadline of a batch is watched by a timer that is set anew only when it rings: one of its own for each batch
    would cost more than its write.
    """

    def __init__(self, connection: AbstractConnection, made_after: int) -> None:
        self.connection = connection
        self.made_after = made_after
        """How many connections of the store had broken before it was made."""
        self._loop = asyncio.get_running_loop()
        writer: Any = connection._writer  # noqa: SLF001 - the driver lends it to nobody
        self._transport = writer.transport
        self._driver = self._transport.get_protocol()  # which waits for the end of the connection when it is closed
        self._reader = Reader(protocolError=driver.InvalidResponse, replyError=connection._parser.parse_error)  # noqa: SLF001
        self.lost = self._transport.is_closing()
        self._answer: asyncio.Future[list[Any]] | None = None
        self._replies: list[Any] = []
        self._asked = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
        self._transport.set_protocol(self)

    def __repr__(self) -> str:
        return f"<Conversation asked={self._asked} heard={len(self._replies)} lost={self.lost}>"

    async def ask(self, packed: bytes, count: int, until: float) -> list[Any]:
        """Send so many commands and read, until then by time.monotonic().

        Whatever it raises, or cancelled: it is of no use any more.

        Raises the driver's ConnectionError and InvalidResponse, and TimeoutError past the deadline.
        """
        if self.lost:
            raise driver.ConnectionError(CLOSED)
        self._answer = self._loop.create_future()
        self._asked = count
        self._due = until
        if self._timer is None or until < self._rings_at:
            self._set_timer(until)
        self._transport.write(packed)
        replies = await self._answer
        self._answer = None
        self._replies = []
        for reply in replies:
            if isinstance(reply, driver.ConnectionError):
                raise reply
        return replies

    def end(self, error: Exception) -> None:
        """Whoever waits for replies hears this instead."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    async def close(self, *, nowait: bool = True) -> None:
        """Close the connection, at once: over TLS the goodbye of a peer that stands still would take its time."""
        if self._timer is not None:
            self._timer.cancel()
        if self._answer is not None and not self._answer.cancel() and not self._answer.cancelled():
            self._answer.exception()  # heard, or asyncio would complain of one that came beside a cancellation
        self._transport.abort()
        await self.connection.disconnect(nowait=nowait)

    def data_received(self, data: bytes) -> None:
        """As asyncio.Protocol's."""
        if self._answer is None or self._answer.done():
            self.lost = True
            self._transport.abort()  # nobody asked for it, and it must not answer what is asked next
            return
        replies = self._replies
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:  # RESP2 has no booleans
                replies.append(reply)
        except Exception as error:  # noqa: BLE001 - the driver's classes of errors raise what they like
            self.end(driver.InvalidResponse(f"the answer cannot be read: {error!r}"))
            return
        if len(replies) > self._asked or (len(replies) == self._asked and self._reader.has_data()):
            self.end(driver.InvalidResponse("more replies came than commands were sent"))
        elif len(replies) == self._asked:
            self._answer.set_result(replies)

    def connection_lost(self, error: Exception | None) -> None:
        """As asyncio.Protocol's."""
        self.lost = True
        if self._timer is not None:
            self._timer.cancel()
        lost = driver.ConnectionError(str(error) if error else CLOSED)
        lost.__cause__ = error
        self.end(lost)
        self._driver.connection_lost(error)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = at
        self._timer = self._loop.call_later(at - time.monotonic(), self._look_at_deadline)

    def _look_at_deadline(self) -> None:
        self._timer = None
        if self._answer is None:
            return
        if time.monotonic() < self._due:
            self._set_timer(self._due)
        else:
            self.end(TimeoutError())


class SocketWire:
    """At most so many connections of its own; a deadline covers the whole round trip, the wait for one included."""

    def __init__(self, pool: BlockingConnectionPool, connections: int, breaks: Breaks) -> None:
        self._pool = pool
        self._breaks = breaks
        self._idle: deque[Conversation] = deque()
        self._asking: set[Conversation] = set()
        self._connections = connections
        self._free = connections
        self._waiting: deque[asyncio.Future[None]] = deque()  # first come, first served; empty where any is free
        self._deadlines: set[asyncio.Timeout] = set()  # of those who have no connection yet
        self._closed = False

    async def ask(self, commands: Sequence[Command], seconds: float | None = None) -> list[Any]:
        """Send and read.

        Raises driver errors of the connection, TimeoutError past the deadline, and StoreUnavailable once closed.
        """
        if self._closed:
            raise stopped()
        packed = b"".join([pack_command(command) for command in commands])
        until = time.monotonic() + (seconds or ROUND_TRIP_SECONDS)
        if self._free:
            self._free -= 1
        else:
            await self._within(until, self._turn())
        try:
            return await self._ask(packed, len(commands), until)
        finally:
            self._release()

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._release()  # the turn had come
            raise

    def _release(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    async def _ask(self, packed: bytes, count: int, until: float) -> list[Any]:
        conversation = await self._take()
        if conversation is None:
            conversation = await self._within(until, self._connect())
        if self._closed:
            await conversation.close()
            raise stopped()
        self._asking.add(conversation)
        asked = time.monotonic()
        try:
            replies = await conversation.ask(packed, count, until)
        except BaseException as error:
            # A reply may still be on its way: this connection is of no use any more.
            await conversation.close()
            self._breaks.note(error, conversation.made_after, time.monotonic() - asked)
            raise
        finally:
            self._asking.discard(conversation)
        for reply in replies:
            if isinstance(reply, driver.ReadOnlyError):
                self._breaks.note(reply, conversation.made_after)
        if self._closed:
            await conversation.close()
        else:
            self._idle.append(conversation)
        return replies

    async def _take(self) -> Conversation | None:
        while self._idle:
            conversation = self._idle.pop()
            if conversation.made_after == self._breaks.count and not conversation.lost:
                return conversation
            await conversation.close()
        return None

    async def _connect(self) -> Conversation:
        if self._closed:
            raise stopped()
        made_after = self._breaks.count
        connection = self._pool.make_connection()
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return Conversation(connection, made_after)

    async def _within(self, until: float, step: Awaitable[T]) -> T:
        deadline = asyncio.timeout(until - time.monotonic())
        self._deadlines.add(deadline)
        try:
            async with deadline:
                return await step
        except TimeoutError:
            if self._closed:
                raise stopped() from None
            raise
        finally:
            self._deadlines.discard(deadline)

    async def close(self) -> None:
        """End the calls that are under way, which hear what later ones do, and close every connection."""
        if self._closed:
            return
        self._closed = True
        for conversation in self._asking:
            conversation.end(stopped())
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(0.0)
        idle = list(self._idle)
        self._idle.clear()
        await asyncio.gather(*(conversation.close(nowait=False) for conversation in idle), return_exceptions=True)
        for _ in range(self._connections):
            if self._free:
                self._free -= 1
            else:
                await self._turn()


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


def stopped() -> StoreUnavailable:
    """What a call hears that comes after the end."""
    return StoreUnavailable("the runtime has stopped; nothing is sent to redis any more")
