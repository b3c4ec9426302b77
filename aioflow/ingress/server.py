"""An application that answers on a socket."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from aiohttp import web

from aioflow.ingress.protocol import ProblemProtocol

LAST_ANSWERS_SECONDS = 0.5
"""What requests in flight get to be answered once nothing new is accepted."""
BACKLOG = 1024
HOW: dict[str, Any] = {"access_log": None}


class Ingress:
    """Serves an application until it is closed."""

    def __init__(self, application: web.Application) -> None:
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
        """Accept nothing more, let requests in flight be answered, and close all connections."""
        if self._listening is not None:
            self._listening.close()
        await self._runner.cleanup()
