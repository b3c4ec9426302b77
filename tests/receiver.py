"""A receiver of webhooks: a real server on loopback that answers as it is told and keeps what it got."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_" + "C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


@dataclass
class Got:
    """One request."""

    headers: dict[str, str]
    body: bytes
    path: str

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str = SECRET) -> Any:
        """The data, once the signature has been verified."""
        return Webhook(secret).verify(self.body, self.headers)


Answers = Callable[["Receiver", Got], Any]


@dataclass
class Receiver:
    """What came, and how it is answered: a response, or a function (also async) that makes one."""

    answers: Any = None
    url: str = ""
    port: int = 0
    got: list[Got] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """For handlers that wait; set when the receiver is closed."""

    @property
    def ids(self) -> Counter[str]:
        return Counter(got.id for got in self.got)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        got = Got(headers, await request.read(), request.path_qs)
        self.got.append(got)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer = self.answers
            if callable(answer):
                answer = answer(self, got)
            if asyncio.iscoroutine(answer):
                answer = await answer
        finally:
            self.at_once -= 1
        if isinstance(answer, int):
            answer = web.Response(status=answer)
        return answer or web.Response(status=204)


@asynccontextmanager
async def receiver(answers: Any = None, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Receiver]:
    """A receiver that listens on a free port."""
    made = Receiver(answers)
    application = web.Application(client_max_size=4 << 20)
    application.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        made.port = runner.addresses[0][1]
        made.url = f"http://{host}:{made.port}/hook"
        yield made
    finally:
        made.released.set()
        await runner.cleanup()


@asynccontextmanager
async def raw_receiver(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """The URL of a server that does with each connection what it is told; what is left of it is cancelled."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await answer(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            return  # the client has gone, or the test is over
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
