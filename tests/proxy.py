"""A TCP proxy between a client and a Valkey that delays, stalls, cuts, half-closes, refuses, and drops replies."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests import acl


@dataclass
class Loss:
    """Replies to lose: each request that holds `mark` reaches the server, its reply does not reach the client."""

    mark: bytes
    times: int
    cut: bool
    server_answered: asyncio.Event
    half: bool = False
    """Whether the connection is half-closed then."""


@dataclass
class Strike:
    """What becomes of the `at`-th request of all connections from now on, of those that hold `mark`."""

    at: int
    reply: bool
    """Whether it reaches the server, and its reply is lost; else it is lost itself. The connection is cut."""
    mark: bytes = b""
    half: bool = False
    """Whether it is half-closed in the place of the reply, and not cut."""
    seen: int = 0

    @property
    def happened(self) -> bool:
        """Whether there was such a request."""
        return self.seen >= self.at

    def comes(self, request: bytes) -> bool:
        """Count a request; whether it is the one."""
        if self.mark not in request:
            return False
        self.seen += 1
        return self.seen == self.at


class Link:
    """One connection of a client, and the proxy's own to the server."""

    def __init__(self, proxy: Proxy, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.client = client
        self.server = server
        self.losing: Loss | None = None
        self.last = b""
        """The last that the client sent."""
        self.mute = False
        """Whether replies vanish, while the connection stays."""

    def cut(self) -> None:
        """Break both sides, without a goodbye."""
        for writer in (self.client, self.server):
            writer.transport.abort()

    def half_close(self) -> None:
        """End what the client reads, in order; what it writes still reaches the server."""
        self.mute = True
        if not self.client.is_closing():
            self.client.write_eof()


class Proxy:
    """Listens on a TCP port and forwards to a unix socket. What it does to the traffic may be changed at any time."""

    def __init__(self, server: Path) -> None:
        self._server = server
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._losses: list[Loss] = []
        self._strike: Strike | None = None
        self._hold_at: tuple[bytes, bool, asyncio.Event] | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.links: set[Link] = set()
        self.delay = 0.0
        """Seconds by which every chunk is late, in both directions."""
        self.refusing = False
        """Whether new connections are closed at once."""
        self.lost = 0
        """How many replies `lose_reply` has lost."""

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def url(self) -> str:
        """What a client connects to."""
        assert self._listener is not None
        return acl.of_user(f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}")

    @property
    def is_losing(self) -> bool:
        """Whether a reply is still to be lost."""
        return any(loss.times > 0 for loss in self._losses)

    def cut(self) -> None:
        """Break every connection."""
        for link in list(self.links):
            link.cut()

    def half_close(self) -> None:
        """End what clients read from now on, on every connection."""
        for link in self.links:
            link.half_close()

    def stall(self) -> None:
        """From now on nothing gets through; connections stay open, and new ones are accepted."""
        self._flowing.clear()

    def flow(self) -> None:
        """What was held back goes on."""
        self._flowing.set()

    def lose_reply(self, mark: bytes, times: int = 1, *, cut: bool = True) -> asyncio.Event:
        """Lose the replies to the next requests that hold `mark`, once the server has answered.

        The connection is cut then, or else says nothing ever more. The event says that the server has answered the
        first.
        """
        loss = Loss(mark, times, cut, asyncio.Event())
        self._losses.append(loss)
        return loss.server_answered

    def strike(self, at: int, *, reply: bool, mark: bytes = b"", half: bool = False) -> Strike:
        """Cut the connection of the `at`-th request from now on, before it is sent or before its `reply` arrives.

        A request is what a client writes at once: a command, or a batch of them. Another strike takes its place.
        """
        self._strike = Strike(at, reply, mark, half)
        return self._strike

    def hold(self, mark: bytes, *, reply: bool) -> asyncio.Event:
        """From the next request that holds `mark`, or from its `reply` on, nothing gets through until `flow`.

        The event says that it has come so far.
        """
        self._hold_at = (mark, reply, asyncio.Event())
        return self._hold_at[2]

    def _holds(self, request: bytes, *, reply: bool) -> None:
        """Stall where this request, or its reply, is what `hold` waits for."""
        if self._hold_at is not None:
            mark, of_reply, came = self._hold_at
            if mark in request and of_reply == reply:
                self._hold_at = None
                came.set()
                self.stall()

    async def _accept(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if self.refusing:
            to_client.transport.abort()
            return
        try:
            from_server, to_server = await asyncio.open_unix_connection(str(self._server))
        except OSError:
            to_client.transport.abort()
            return
        link = Link(self, to_client, to_server)
        self.links.add(link)
        for pump in (self._requests(link, from_client), self._replies(link, from_server)):
            task = asyncio.create_task(pump, name="proxy")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _requests(self, link: Link, from_client: asyncio.StreamReader) -> None:
        tail = b""
        with contextlib.suppress(OSError):
            while chunk := await from_client.read(1 << 16):
                self._holds(chunk, reply=False)
                await self._hold()
                if self._strike is not None and self._strike.comes(chunk):
                    if not self._strike.reply:
                        break
                    link.losing = Loss(b"", 0, not self._strike.half, asyncio.Event(), self._strike.half)
                link.last, window = chunk, tail + chunk
                tail = window[-64:]
                for loss in self._losses:
                    if loss.times > 0 and loss.mark in window:
                        loss.times -= 1
                        self.lost += 1
                        link.losing = loss
                        tail = b""
                link.server.write(chunk)
                await link.server.drain()
        self._end(link)

    async def _replies(self, link: Link, from_server: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while chunk := await from_server.read(1 << 16):
                if link.losing is not None:
                    link.losing.server_answered.set()
                    if link.losing.cut:
                        break
                    if link.losing.half:
                        link.half_close()
                    link.mute = True
                self._holds(link.last, reply=True)
                await self._hold()
                if link.mute:
                    continue
                link.client.write(chunk)
                await link.client.drain()
        self._end(link)

    async def _hold(self) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
        await self._flowing.wait()

    def _end(self, link: Link) -> None:
        link.cut()
        self.links.discard(link)
