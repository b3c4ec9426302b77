"""The HTTP connection: what aiohttp refuses before a route hears of it is answered as a problem too.

The application's middleware sees neither what the parser refuses nor what is raised before a handler is called. A
client's mistake is said to the client, and to the log at level DEBUG only: whoever can reach the port could fill it.
"""

from __future__ import annotations

import logging
from typing import Any

from aiohttp import http_exceptions as refused
from aiohttp import web
from aiohttp.http import HttpProcessingError, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from aioflow.ingress.problems import Problem, problem_of

log = logging.getLogger(__name__)


class ProblemProtocol(web.RequestHandler):
    """aiohttp's connection, whose own refusals are problems and whose log holds no client's mistakes."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        """As aiohttp's; where the rest of a body cannot be parsed, whoever reads that body hears of it.

        aiohttp only puts the refusal in line behind the request, whose handler would wait for ever.
        """
        try:
            super().data_received(data)
        except IndexError:  # yarl's, of a URL such as http://[]@, which is refused as any other that cannot be read
            self._refuse(refused.InvalidURLError("the URL cannot be read"))
        if self._current_request is None or not self._messages:
            return
        body = self._current_request.content
        if not isinstance(self._messages[-1][0], RawRequestMessage) and not body.is_eof():
            body.set_exception(web.RequestPayloadError("the body cannot be parsed"))

    def _refuse(self, error: HttpProcessingError) -> None:
        """As aiohttp does where its parser refuses."""
        self._messages.append((_ErrInfo(status=400, exc=error, message=error.message), EMPTY_PAYLOAD))
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
            problem = problem_of_parser(exc)
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
        """As aiohttp's; an HTTP error that was raised before the middleware is a problem here."""
        if isinstance(resp, web.HTTPException) and resp.status >= 400:
            resp = problem_of(resp).response()
        return await super().finish_response(request, resp, start_time)

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
