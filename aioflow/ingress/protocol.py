"""The HTTP connection: what aiohttp refuses before a route hears of it is answered as a problem too.

No route sees what the parser refuses, or what is raised before a handler is called. A client's mistake is said to the
client, and to the log at level DEBUG only: whoever can reach the port could fill it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import http_exceptions as refused
from aiohttp import web
from aiohttp.http import HttpProcessingError, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from aioflow.ingress.problems import Problem, problem_of

log = logging.getLogger(__name__)

HEAD_SECONDS = 30.0
"""What the head of a request may take to come: from the connection on, and later from its first bytes on."""


class ProblemProtocol(web.RequestHandler):
    """aiohttp's connection, whose own refusals are problems and whose log holds no client's mistakes."""

    __slots__ = ("_head_timer", "_silent")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As aiohttp's; a connection that does not begin with a request in time is ended."""
        super().connection_made(transport)
        self._silent = True
        self._head_timer: asyncio.TimerHandle | None = self._loop.call_later(HEAD_SECONDS, self._head_is_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        """As aiohttp's."""
        self._stop_timer()
        super().connection_lost(exc)

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """As aiohttp's, but for how it waits for the request in progress.

        aiohttp cancels what it waits with when time is up; a request that ends in that moment trips over it, in its
        last line, and is logged as an unhandled exception.
        """
        self._force_close = True
        if self._request_in_progress:
            ended = self._handler_waiter = self._loop.create_future()
            try:
                await asyncio.wait([ended], timeout=timeout)
            finally:
                self._handler_waiter = None
            self._request_in_progress = False  # it had its time: aiohttp goes on to cancel it, where it has not ended
        await super().shutdown(timeout)

    def data_received(self, data: bytes) -> None:
        """As aiohttp's; where the rest of a body cannot be parsed, whoever reads that body hears of it.

        aiohttp only puts the refusal in line behind the request, whose handler would wait for ever.
        """
        self._silent = False
        waits = self._waiter is not None and not self._waiter.done()
        try:
            super().data_received(data)
        except IndexError:  # yarl's, of a URL such as http://[]@, which is refused as any other that cannot be read
            self._refuse(400, refused.InvalidURLError("the URL cannot be read"))
        if self._messages:
            self._stop_timer()
            self._refuse_other_codings()
        elif waits and self._head_timer is None:  # nothing is being answered: this begins a head, or is part of one
            self._head_timer = self._loop.call_later(HEAD_SECONDS, self._head_is_late)
        if self._current_request is None or not self._messages:
            return
        body = self._current_request.content
        if not isinstance(self._messages[-1][0], RawRequestMessage) and not body.is_eof():
            body.set_exception(web.RequestPayloadError("the body cannot be parsed"))

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        """End a connection on which a head was begun and has not come; one that never said a word is told nothing."""
        self._head_timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._silent:
            self.force_close()
        else:
            self._refuse(408, refused.BadHttpMessage(f"its head did not come within {HEAD_SECONDS:g} s"))

    def _refuse_other_codings(self) -> None:
        """Refuse a message whose body is chunked and more than that: nobody here would undo the rest.

        It ends the connection, as whoever stands before this server may have read another end of that body.
        """
        for place, (message, _) in enumerate(self._messages):
            if not isinstance(message, RawRequestMessage) or not message.chunked:
                continue
            if message.headers.get("Transfer-Encoding", "").lower() != "chunked":
                while len(self._messages) > place:
                    self._messages.pop()
                self._refuse(400, refused.BadHttpMessage("the only Transfer-Encoding known here is chunked"))
                return

    def _refuse(self, status: int, error: HttpProcessingError) -> None:
        """As aiohttp does where its parser refuses."""
        self._messages.append((_ErrInfo(status=status, exc=error, message=error.message), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The problem that stands for what the parser refused, or for what nobody has caught."""
        if isinstance(exc, HttpProcessingError):
            log.debug("refused a request from %s: %s", request.remote, exc.message)
            problem = problem_of_parser(exc) if status == 400 else Problem(status, exc.message)
        elif isinstance(exc, Exception):
            problem = problem_of(exc)
        else:
            problem = Problem(status, message or "the service failed to answer")
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun; it cannot become another")
        response = problem.response()
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """As aiohttp's; an HTTP error that was raised before a route's handler is a problem here."""
        if type(resp) is not web.Response and isinstance(resp, web.HTTPException) and resp.status >= 400:
            resp = problem_of(resp).response()
        if "Upgrade" in request.headers and request.headers["Upgrade"].lower() != "websocket":
            resp.force_close()  # aiohttp has forgotten what came behind it, and would read on in the middle of that
        finished = await super().finish_response(request, resp, start_time)
        if self._messages:
            self._refuse_other_codings()  # of what came behind a request to upgrade
        return finished

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """As aiohttp's, save that the rest of a body which cannot be read is no fault of the service's."""
        error = kw.get("exc_info")
        if isinstance(error, (HttpProcessingError, web.RequestPayloadError)):
            log.debug("closed a connection: its body cannot be read: %s", error)
        else:
            super().log_exception(*args, **kw)


def problem_of_parser(error: HttpProcessingError) -> Problem:
    """The problem that a refusal by the HTTP parser is answered with."""
    # The parser quotes the bytes it stumbled over in the lines after the first.
    reason = error.message.partition("\n")[0].rstrip(":")
    match error:
        case refused.LineTooLong():
            # The parser does not say what it was reading; only a path begins so, save a header here and there.
            if bytes(error.args[0]).startswith(b"/"):
                return Problem(414, f"the path and query have more than {error.args[1]} bytes")
            return Problem(431, f"a header has more than {error.args[1]} bytes")
        case refused.ContentEncodingError():
            return Problem(
                415, "this server cannot read that Content-Encoding", headers={"Accept-Encoding": "gzip, deflate"}
            )
        case refused.InvalidURLError():
            return Problem(400, "the request's URL cannot be read")
        case _ if reason.startswith("Too many headers"):
            return Problem(431, "the request has too many headers")
        case _:
            return Problem(400, f"this is no HTTP request that can be read: {reason}")
