"""The description of the routes as OpenAPI 3.1: of their paths, their tasks, and what is said where they are declared.

A submit needs nothing said: its task's payload and result are its body and its answer. A 500 is never described, since
it is never meant. WebSockets are beyond OpenAPI: of such a route only the handshake can be told.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from aioflow.contract import Contract
from aioflow.errors import ConfigError
from aioflow.ingress.problems import RETRY_SECONDS, TITLES
from aioflow.ingress.queries import KeyHeader, PreferHeader
from aioflow.ingress.schemas import Json, Schemas, fields_of
from aioflow.service import Route, Service

PATH = "/openapi.json"
ANY_ROUTE = (400, 408, 414, 417, 431)
"""What any request may be answered with, since it may be none that can be read, or come too slowly."""
WITH_BODY = (413, 415, 422)
SUBMITS = (409, 429, 503)
TEXT: Json = {"type": "string"}
ACCEPTED: Json = {
    "type": "object",
    "properties": {"status": {"const": "OK"}, "tracking_id": TEXT},
    "required": ["status", "tracking_id"],
}
DEAD: Json = {
    "type": "object",
    "properties": {"status": {"const": "dead"}, "tracking_id": TEXT, "error": TEXT, "message": TEXT},
    "required": ["status", "tracking_id", "error", "message"],
}
PROBLEM: Json = {
    "type": "object",
    "description": "RFC 9457",
    "properties": {
        "type": TEXT,
        "title": TEXT,
        "status": {"type": "integer"},
        "detail": TEXT,
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": TEXT, "message": TEXT},
                "required": ["field", "message"],
            },
        },
    },
    "required": ["type", "title", "status", "detail"],
}


@dataclass(slots=True)
class _Making:
    """A description that is being made."""

    schemas: Schemas = field(default_factory=Schemas)
    paths: dict[str, Json] = field(default_factory=dict)
    parameters: list[tuple[list[Json], str, Json]] = field(default_factory=list)
    """Of an operation: where its parameters go, whether they are its query or its headers, and the schema of them."""
    names: set[str] = field(default_factory=set)
    problems: set[int] = field(default_factory=set)
    bearer: bool = False


def openapi(services: Iterable[Service]) -> Json:
    """The OpenAPI 3.1 description of what these services answer, and of the framework's own routes.

    As `GET /openapi.json` has it. Raises ConfigError where a type cannot be described.
    """
    listed = list(services)
    making = _Making()
    for service in listed:
        for route in service.routes:
            _add(making, route, service.name, _told_by(route))
    for path, handler, problems in (("/healthz", _healthz, ()), ("/readyz", _readyz, (503,)), (PATH, _openapi, ())):
        contract: Contract = {"problems": problems}
        for method in ("GET", "HEAD"):
            _add(making, Route(method, path, handler, None, None, None, contract), "aioflow", handler)
    named = making.schemas.fill()
    for parameters, where, schema in making.parameters:
        parameters.extend(_parameters(where, *fields_of(schema, named)))
    components: Json = {
        "schemas": {**named, "Accepted": ACCEPTED, "Dead": DEAD, "Problem": PROBLEM},
        "responses": {str(status): _problem(status) for status in sorted(making.problems)},
    }
    if making.bearer:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    title = ", ".join(sorted(service.name for service in listed))
    info = {"title": title, "version": importlib.metadata.version("aioflow")}
    return {"openapi": "3.1.0", "info": info, "paths": making.paths, "components": components}


async def _healthz() -> dict[str, str]:
    """The process is up."""
    return {"status": "up"}


async def _readyz() -> dict[str, str]:
    """Redis answers, and jobs are claimed."""
    return {"status": "ready"}


async def _openapi() -> dict[str, Any]:
    """This description."""
    return {}


def _told_by(route: Route) -> Callable[..., Any]:
    function = route.handler if route.submits is None else route.submits.handler
    if function is None:
        raise AssertionError(f"route {route.path} has neither a handler nor a task")
    return function


def _add(making: _Making, route: Route, service: str, function: Callable[..., Any]) -> None:
    """One operation."""
    where = f"service {service}, route {route.method} {route.path}"
    info = _resource(route, where).get_info()
    path: str = info.get("path") or info["formatter"]
    names = list(info["pattern"].groupindex) if "pattern" in info else []
    contract = route.contract
    operation: Json = {
        "operationId": _name(making, f"{service}.{function.__name__.strip('_')}", route.method),
        "tags": [service],
    }
    if told := inspect.getdoc(function):
        operation["summary"] = " ".join(told.partition("\n\n")[0].split())
    parameters: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
    ]
    taken = [("query", contract.get("query")), ("header", contract.get("headers"))]
    if route.submits is not None:
        taken += [("header", KeyHeader), ("header", PreferHeader)]
    for place, kind in taken:
        if kind is not None:
            making.parameters.append((parameters, place, making.schemas.of(kind, "validation", where)))
    problems = {*ANY_ROUTE, *contract.get("problems", ()), *((404,) if names else ())}
    if "query" in contract or "headers" in contract:
        problems.add(422)
    body = _body(making, route, where)
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
        problems.update(WITH_BODY)
    if route.submits is not None:
        problems.update(SUBMITS)
    if contract.get("bearer"):
        making.bearer = True
        operation["security"] = [{"bearer": []}]
        problems.update((401, 403))
    making.problems |= problems
    operation["parameters"] = parameters
    answers = _answers(making, route, function, where)
    told_problems = {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(problems)}
    if route.method == "HEAD":
        answers, told_problems = ({code: {"description": ""} for code in told} for told in (answers, told_problems))
    operation["responses"] = {**answers, **told_problems}
    making.paths.setdefault(path, {}).setdefault(route.method.lower(), operation)


def _resource(route: Route, where: str) -> web.Resource:
    try:
        return web.UrlDispatcher().add_resource(route.path)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _name(making: _Making, name: str, method: str) -> str:
    """A name that no other operation has."""
    if name in making.names:
        name = f"{name}.{method.lower()}"
    while name in making.names:
        name += "_"
    making.names.add(name)
    return name


def _body(making: _Making, route: Route, where: str) -> Json | None:
    """The schema of the JSON body; None where there is none."""
    if (kind := route.contract.get("body")) is not None:
        return making.schemas.of(kind, "validation", where)
    if route.submits is None or route.before is not None:
        return None
    payload = route.submits.signature.payload
    return {} if payload is None else making.schemas.of(payload, "validation", where)


def _answers(making: _Making, route: Route, function: Callable[..., Any], where: str) -> Json:
    """The answers that are no problems."""
    told: dict[str, Json] = {}
    for status, kind in _declared(route, function).items():
        answer: Json = {"description": "" if kind is not None else "without a body"}
        if isinstance(kind, str):
            answer["content"] = {kind: {}}
        elif kind is not None:
            answer["content"] = {"application/json": {"schema": making.schemas.of(kind, "serialization", where)}}
        told[str(status)] = answer
    if route.submits is None:
        return told
    result = making.schemas.of(route.submits.signature.result, "serialization", where)
    done = {
        "type": "object",
        "properties": {"status": {"const": "done"}, "tracking_id": TEXT, "result": result},
        "required": ["status", "tracking_id", "result"],
    }
    headers = {} if route.location is None else {"headers": {"Location": {"schema": TEXT}}}
    finished = {"oneOf": [done, {"$ref": "#/components/schemas/Dead"}]}
    accepted = {"$ref": "#/components/schemas/Accepted"}
    return {
        "200": {
            "description": "with Prefer: wait=SECONDS, where the job has finished in that time",
            "content": {"application/json": {"schema": finished}},
            **headers,
        },
        "202": {
            "description": "accepted, as durable as promised",
            "content": {"application/json": {"schema": accepted}},
            **headers,
        },
        **told,
    }


def _declared(route: Route, function: Callable[..., Any]) -> dict[int, Any]:
    """What the route says of its answers; else 200 with what its function is annotated to return."""
    if "answers" in route.contract or route.submits is not None:
        return dict(route.contract.get("answers", {}))
    try:
        returned = typing.get_type_hints(function, include_extras=True).get("return", Any)
    except NameError:  # it names what is there for type checkers only
        returned = Any
    if route.method == "DELETE" and returned is type(None):
        return {204: None}
    if inspect.isclass(returned) and issubclass(returned, web.StreamResponse):
        returned = Any
    return {200: returned}


def _parameters(where: str, properties: dict[str, Json], required: set[str]) -> list[Json]:
    """The parameters that a type's fields are."""
    parameters = []
    for name, schema in properties.items():
        told = {key: value for key, value in schema.items() if key != "description"}
        parameter = {"name": name, "in": where, "required": name in required, "schema": told}
        if "description" in schema:
            parameter["description"] = schema["description"]
        parameters.append(parameter)
    return parameters


def _problem(status: int) -> Json:
    """The answer that is a problem of this status."""
    schema = {"$ref": "#/components/schemas/Problem"}
    answer: Json = {
        "description": TITLES.get(status, "Error"),
        "content": {"application/problem+json": {"schema": schema}},
    }
    if status in RETRY_SECONDS:
        answer["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return answer
