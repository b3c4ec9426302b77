"""POSTs JSON over kept connections, one request at a time on each, for less than half of what a ClientSession costs.

Who makes the load must be faster than what it measures. aiohttp's own protocol and parser read the answers; there are
no redirects, cookies or proxies, and no compression is asked for. A request is sent once: one that broke may have been
taken.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from typing import NamedTuple

from aiohttp import ClientError, ServerDisconnectedError
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError
from yarl import URL

KEPT_SECONDS = 15.0
"""How long an idle connection is good for: what lies between may have forgotten it by then."""
IN_BETWEEN = {100, *range(102, 200)}
"""The codes of what is said before the answer, such as 100 Continue."""


class CannotConnect(ClientError):
    """There is no connection, and nothing was sent."""


class Answer(NamedTuple):
    """What a server said."""

    status: int
    body: bytes
    location: str | None


class Poster:
    """Posts to one http or https URL; there are as many connections as there are posts at a time."""

    def __init__(self, url: str, seconds: float) -> None:
        parts = URL(url)
        self._host, self._port = parts.raw_host or "", parts.port or 0
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        user = base64.b64encode(f"{parts.user or ''}:{parts.password or ''}".encode()).decode()
        self._head = (
            f"POST {parts.raw_path_qs} HTTP/1.1\r\nHost: {parts.host_port_subcomponent}\r\nAccept: */*\r\n"
            + (f"Authorization: Basic {user}\r\n" if parts.user or parts.password else "")
            + "User-Agent: aioflow-load\r\nContent-Type: application/json\r\nContent-Length: "
        ).encode()
        self._seconds = seconds
        self._idle: list[tuple[ResponseHandler, float]] = []

    async def post(self, body: bytes) -> Answer:
        """The answer. Raises CannotConnect, TimeoutError where it is not there within `seconds`, and ClientError."""
        async with asyncio.timeout(self._seconds):
            connection = self._take()
            if connection is None:  # one that is idle is false
                connection = await self._open()
            kept = False
            try:
                answer = await self._exchange(connection, body)
                kept = not connection.should_close
            except HttpProcessingError as error:
                raise ClientError(f"the answer is no HTTP that can be read: {error.message}") from error
            finally:
                if kept:
                    self._idle.append((connection, time.monotonic()))
                else:
                    _end(connection)
            return answer

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            _end(self._idle.pop()[0])

    async def _exchange(self, connection: ResponseHandler, body: bytes) -> Answer:
        if connection.transport is None:
            raise ServerDisconnectedError
        connection.transport.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        while True:
            message, content = await connection.read()
            if message.code not in IN_BETWEEN:
                break
        said = content.read_nowait() if content.is_eof() else await content.read()
        return Answer(message.code, said, message.headers.get("Location"))

    def _take(self) -> ResponseHandler | None:
        while self._idle:
            connection, since = self._idle.pop()
            if connection.is_connected() and not connection.should_close and time.monotonic() - since < KEPT_SECONDS:
                return connection
            _end(connection)
        return None

    async def _open(self) -> ResponseHandler:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: ResponseHandler(loop), self._host, self._port, ssl=self._ssl
            )
        except (OSError, UnicodeError) as error:
            raise CannotConnect(f"cannot connect: {error}") from error
        connection.set_response_params(read_until_eof=True)
        return connection


def _end(connection: ResponseHandler) -> None:
    if connection.transport is not None:
        connection.transport.abort()  # what was not sent yet, nobody waits for
