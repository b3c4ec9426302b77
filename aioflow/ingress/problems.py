"""Errors as application/problem+json (RFC 9457): what was wrong and where, never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web
from pydantic import ValidationError

from aioflow.errors import (
    AioflowError,
    CodecError,
    IdConflict,
    NotFound,
    QueueFull,
    StoreUnavailable,
)

log = logging.getLogger(__name__)

TITLES = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    409: "Conflict",
    413: "Body too large",
    414: "URI too long",
    415: "Unsupported media type",
    417: "Expectation failed",
    422: "Unprocessable content",
    429: "Too many requests",
    431: "Header too large",
    500: "Internal error",
    503: "Service unavailable",
}
RETRY_SECONDS = {429: 1, 503: 2}
MOST_ERRORS = 20
"""Errors that one answer names: a body of a megabyte can hold 100,000 of them."""
LONGEST_FIELD = 200


class Problem(Exception):
    """Raise it in a route to answer with a problem; `errors` are (field, message)."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: list[tuple[str, str]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors or []
        self.headers = headers or {}

    def response(self) -> web.Response:
        """The HTTP answer."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": _sendable(self.detail),
        }
        if self.errors:
            body["errors"] = [
                {"field": _sendable(field), "message": _sendable(message)} for field, message in self.errors
            ]
        headers = {"Content-Type": "application/problem+json", **self.headers}
        if self.status in RETRY_SECONDS:
            headers.setdefault("Retry-After", str(RETRY_SECONDS[self.status]))
        return web.Response(status=self.status, body=orjson.dumps(body), headers=headers)


def problem_of(error: Exception) -> Problem:
    """The problem that an exception of a route is answered with."""
    match error:
        case Problem():
            return error
        case ValidationError():
            return _validation_problem(error)
        case IdConflict():
            return Problem(409, str(error))
        case NotFound():
            return Problem(404, str(error))
        case QueueFull():
            return Problem(429, str(error))
        case StoreUnavailable():
            return Problem(503, str(error))
        case CodecError():
            return Problem(413 if "has at most" in str(error) else 422, str(error))
        case web.HTTPRequestEntityTooLarge():
            return Problem(413, "the body is larger than this server takes")
        case web.RequestPayloadError():
            return Problem(400, "the body cannot be read as its Content-Encoding or Transfer-Encoding says")
        case web.HTTPException():
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            details = {
                404: "there is nothing at this path",
                405: f"use {headers.get('Allow')} here",
                417: "the only Expect that this server knows is 100-continue",
            }
            return Problem(error.status, details.get(error.status, error.reason), headers=headers)
        case AioflowError():
            log.error("a route failed: %s", error, exc_info=error)
            return Problem(503, f"this service cannot answer now: {error}")
        case _:
            log.error("a route failed: %r", error, exc_info=error)
            return Problem(500, "the service failed to answer; its log says why")


def _validation_problem(error: ValidationError) -> Problem:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    errors = [
        (".".join(str(part) for part in item["loc"])[:LONGEST_FIELD] or "body", message_of(item))
        for item in found[:MOST_ERRORS]
    ]
    if {item["type"] for item in found} <= {"json_invalid"}:
        return Problem(400, f"the body is not JSON: {errors[0][1]}")
    named = "; ".join(f"{field}: {message}" for field, message in errors)
    more = f"; and {len(found) - len(errors)} more" if len(found) > len(errors) else ""
    return Problem(422, named + more, errors=errors)


def message_of(error: Mapping[str, Any]) -> str:
    """What one of pydantic's errors says to a client: a validator's own words, not that it raised a ValueError."""
    message: str = error["msg"]
    return message.removeprefix("Value error, ") if error["type"] == "value_error" else message


def _sendable(text: str) -> str:
    """Text as UTF-8 can carry it: what came in a header may hold bytes that are none."""
    return text.encode(errors="replace").decode()
