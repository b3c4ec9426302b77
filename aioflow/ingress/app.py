"""The aiohttp application over a runtime: the services' routes, /healthz, /readyz and /openapi.json.

A route that submits answers 202 only when the job is as durable as the runtime promises. The same `Idempotency-Key`
gives the same job; `Prefer: wait=SECONDS` (RFC 7240) answers 200 with the result where it comes in time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import orjson
from aiohttp import web

from aioflow.errors import AioflowError, ConfigError, JobFailed
from aioflow.ingress.answers import JSON, JsonAnswer, json_response
from aioflow.ingress.openapi import PATH, openapi
from aioflow.ingress.problems import Problem, problem_of
from aioflow.job import Handle
from aioflow.service import Route, Service, Task
from aioflow.settings import Settings

WAIT = re.compile(r"(?:^|[,;\s])wait=([0-9]{1,6})(?:$|[,;\s])", re.IGNORECASE)
BODY_SECONDS = 60.0
"""What a body may take to come."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RuntimeApi(Protocol):
    """What the ingress needs from a runtime."""

    @property
    def settings(self) -> Settings: ...

    @property
    def services(self) -> dict[str, Service]: ...

    @property
    def closing(self) -> asyncio.Event: ...

    async def admit(self) -> None: ...

    async def ready(self) -> str | None: ...

    async def submit(self, task: Task[Any, Any], payload: Any = None, *, id: str | None = None) -> Handle[Any]: ...

    async def submit_json(self, task: Task[Any, Any], body: bytes, *, job_id: str | None = None) -> Handle[Any]: ...


def make_app(runtime: RuntimeApi) -> web.Application:
    """The application that answers for every service of a started runtime. Raises ConfigError for a wrong route."""
    app = web.Application(client_max_size=runtime.settings.body_limit)
    for service in runtime.services.values():
        for route in service.routes:
            try:
                app.router.add_route(route.method, route.path, answer_problems(_handler(route, runtime)))
            except (ValueError, RuntimeError) as error:
                raise ConfigError(f"service {service.name}, route {route.method} {route.path}: {error}") from error
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", answer_problems(_readyz(runtime)))
    app.router.add_get(PATH, answer_problems(_described(runtime)))
    return app


def answer_problems(handler: Handler) -> Handler:
    """Every exception of a handler becomes a problem response, save the redirects that aiohttp raises.

    A middleware would cost each request more calls; where no handler is found, ProblemProtocol answers.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except Exception as error:  # the last stop before the client
            if isinstance(error, web.HTTPException) and error.status < 400:
                raise
            if isinstance(error, ConnectionError) and (request.transport is None or request.transport.is_closing()):
                return Problem(400, "the connection ended before the answer").response()  # nobody's fault, or to read
            return problem_of(error).response()

    return answer


async def healthz(_: web.Request) -> web.Response:
    """The process is up."""
    return JsonAnswer(body=b'{"status":"up"}', headers=JSON)


def _readyz(runtime: RuntimeApi) -> Handler:
    async def readyz(_: web.Request) -> web.Response:
        wrong = await runtime.ready()
        if wrong is not None:
            raise Problem(503, wrong)
        return JsonAnswer(body=b'{"status":"ready"}', headers=JSON)

    return readyz


def _described(runtime: RuntimeApi) -> Handler:
    told = b""

    async def described(_: web.Request) -> web.Response:
        nonlocal told
        # Made when it is asked for, and in a thread: a tenth of a second for some dozen routes. Bounds may have more
        # than the 64 bits that orjson writes.
        told = told or await asyncio.to_thread(lambda: json.dumps(openapi(runtime.services.values())).encode())
        return JsonAnswer(body=told, headers=JSON)

    return described


def _handler(route: Route, runtime: RuntimeApi) -> Handler:
    if route.submits is not None:
        return Submission(route.submits, route.location, runtime, route.before).answer
    function = route.handler
    if function is None:
        raise AssertionError(f"route {route.path} has neither a handler nor a task")

    async def answer(request: web.Request) -> web.StreamResponse:
        answered = await function(request, runtime)
        if answered is None and route.method == "DELETE":
            return web.Response(status=204)
        return answered if isinstance(answered, web.StreamResponse) else json_response(answered)

    return answer


class Submission:
    """A route whose body is a task's payload, or of which `before` makes one."""

    def __init__(
        self,
        task: Task[Any, Any],
        location: str | None,
        runtime: RuntimeApi,
        before: Callable[..., Awaitable[Any]] | None = None,
    ) -> None:
        self._task = task
        self._before = before
        self._location = location
        self._runtime = runtime
        self._longest_wait = runtime.settings.longest_wait
        self._longest_body = runtime.settings.body_limit

    async def answer(self, request: web.Request) -> web.Response:
        """Take the body, submit, and answer with the receipt or, where waited for, with the result."""
        given = request.headers
        if self._before is None and given.get("Content-Type") != "application/json":  # as most say; parsing it costs
            refuse_other_types(request)
        runtime = self._runtime
        await runtime.admit()
        key = given.get("Idempotency-Key")
        job_id = None if key is None else id_of_key(self._task, key)
        wait = read_wait(request, self._longest_wait)
        if self._before is None:
            content = request.content
            # With its headers, as most do; nobody has read it yet.
            came = content.is_eof() and not content.at_eof() and content.exception() is None
            body = content.read_nowait() if came else await body_of(request)
            if len(body) > self._longest_body:
                raise web.HTTPRequestEntityTooLarge(self._longest_body, len(body))
            handle = await runtime.submit_json(self._task, body, job_id=job_id)
        else:
            handle = await runtime.submit(self._task, await self._before(request, runtime), id=job_id)
        headers = dict(JSON)
        if self._location is not None:
            headers["Location"] = self._location.replace("{id}", handle.id)
        if wait is not None and not runtime.closing.is_set():  # its answer has to be out before the stop
            outcome = await self._outcome(handle, wait)
            if outcome is not None:
                headers["Preference-Applied"] = f"wait={wait:g}"
                return JsonAnswer(status=200, body=outcome, headers=headers)
        # An id is hex here, or printable ASCII that needs no escapes.
        return JsonAnswer(
            status=202, body=b'{"status":"OK","tracking_id":"' + handle.id.encode() + b'"}', headers=headers
        )

    async def _outcome(self, handle: Handle[Any], seconds: float) -> bytes | None:
        """None where it cannot be had in time: what was accepted stays accepted, even if Redis goes away now."""
        try:
            result = await handle.result(timeout=seconds)
        except JobFailed as failure:
            told = {"status": "dead", "tracking_id": handle.id, "error": failure.error, "message": failure.message}
            return orjson.dumps(told)
        except AioflowError:
            return None
        encoded = self._task.signature.result.dump_json(result)
        return b'{"status":"done","tracking_id":"' + handle.id.encode() + b'","result":' + encoded + b"}"


def refuse_other_types(request: web.Request) -> None:
    """Raise a Problem unless the body is said to be JSON."""
    if request.content_type != "application/json":
        raise Problem(415, f"send application/json, not {request.headers.get('Content-Type', 'a body without a type')}")


async def json_body(request: web.Request) -> bytes:
    """The body of a request that says that it is JSON, unparsed: for `before` functions and routes of one's own.

    Raises what is answered with 415 where it says otherwise, 413 where it is over the limit, 408 where it is late.
    """
    refuse_other_types(request)
    return await body_of(request)


async def read_json(request: web.Request) -> Any:
    """The body of a request that says that it is JSON, parsed. Raises as `json_body`, and a 400 where it is none."""
    body = await json_body(request)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, f"the body is not JSON: {error}") from error


def read_wait(request: web.Request, longest: float) -> float | None:
    """The seconds of `Prefer: wait=SECONDS` (RFC 7240), at most `longest`; None without it."""
    asked = request.headers.getall("Prefer", None)
    found = None if asked is None else WAIT.search(",".join(asked))
    return None if found is None else min(float(found[1]), longest)


async def body_of(request: web.Request) -> bytes:
    """The body. A client that goes away in its middle is no fault of the service's, and nobody reads the answer.

    Raises what is answered with 408 where it does not come: whoever can reach the port could hold any number of them.
    """
    try:
        if request.content.is_eof():  # it came with its headers, as most do: a timeout costs a tenth of a request
            return await request.read()
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError as error:
        raise Problem(408, f"the body did not come within {BODY_SECONDS:g} s") from error
    except ConnectionError as error:
        raise Problem(400, "the connection ended before the body did") from error


def id_of_key(task: Task[Any, Any], key: str) -> str:
    """The job id that an Idempotency-Key stands for: the same key gives the same job of the same task."""
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise Problem(400, "Idempotency-Key: send 1 to 255 printable ASCII characters")
    return hashlib.blake2b(f"{task.full_name}\n{key}".encode(), digest_size=16).hexdigest()
