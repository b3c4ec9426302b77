"""An application that answers on a socket."""

from __future__ import annotations

import asyncio
import logging
import socket
import weakref
from typing import Any

from aiohttp import WSCloseCode, web

from aioflow.ingress.protocol import ProblemProtocol

LAST_ANSWERS_SECONDS = 0.5
"""What requests in flight get to be answered once nothing new is accepted."""
CLOSE_SECONDS = 1.0
"""What it may take to tell the peer of an open WebSocket that it is closed."""
BACKLOG = 1024
HOW: dict[str, Any] = {"access_log": None}
SWITCHING = 101
"""The status of a WebSocket; asked first, since the class of a response is an abstract one and costs more to ask."""


log = logging.getLogger(__name__)


class Ingress:
    """Serves an application until it is closed."""

    def __init__(self, application: web.Application) -> None:
        self._sockets: weakref.WeakSet[web.WebSocketResponse] = weakref.WeakSet()
        application.on_response_prepare.append(self._note)
        self._runner = web.AppRunner(application, handle_signals=False, shutdown_timeout=LAST_ANSWERS_SECONDS)
        self._listening: asyncio.Server | None = None

    async def open(self, listener: socket.socket) -> None:
        """Accept connections. Raises OSError where another process listens there already."""
        await self._runner.setup()
        manager = self._runner.server
        if manager is None:
            raise AssertionError("a runner that is set up has a server")
        loop = asyncio.get_running_loop()
        try:
            # Not by a site of aiohttp's, which knows no other protocol than aiohttp's own.
            self._listening = await loop.create_server(
                lambda: ProblemProtocol(manager, loop=loop, **HOW), sock=listener, backlog=BACKLOG
            )
        except OSError:
            await self._runner.cleanup()
            raise

    async def close(self) -> None:
        """Accept nothing more, let requests in flight be answered, and close all connections.

        WebSockets are told that the server goes away (1001); their handlers see the end of their messages.
        """
        if self._listening is not None:
            self._listening.close()
        closing = [asyncio.create_task(self._end(each), name="aioflow websocket close") for each in self._sockets]
        if closing:
            await asyncio.wait(closing)
            # aiohttp reads nothing more from now on: their handlers would not hear the answers.
            handlers = [each.task for each in self._sockets if each.task is not None]
            if handlers:
                await asyncio.wait(handlers, timeout=LAST_ANSWERS_SECONDS)
        await self._runner.cleanup()

    async def _note(self, _: web.Request, response: web.StreamResponse) -> None:
        if response.status == SWITCHING and isinstance(response, web.WebSocketResponse):
            self._sockets.add(response)

    @staticmethod
    async def _end(websocket: web.WebSocketResponse) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                code, why = WSCloseCode.GOING_AWAY, b"the server stops"
                if websocket._writer is not None and websocket._waiting:  # noqa: SLF001
                    # Its close() would end the connection under the handler that receives, before the peer has
                    # answered, and the peer may see one that was lost. That handler hears the answer.
                    websocket._set_closed()  # noqa: SLF001 - or that answer would be answered again
                    await websocket._writer.close(code, why)  # noqa: SLF001
                else:
                    await websocket.close(code=code, message=why)
        except (TimeoutError, OSError, RuntimeError) as error:
            log.debug("a websocket was not closed in good order: %r", error)
