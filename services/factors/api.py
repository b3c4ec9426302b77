"""The routes: a question by GET or POST, and what became of it."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web
from pydantic import ValidationError

from aioflow import JobInfo, Problem, ProtocolError, Runtime, State
from aioflow.web import format_time, json_body, wrong
from services.factors.compute import compute, service
from services.factors.models import WANTED, NewQuestion, Question
from services.factors.shown import QuestionState

__all__ = ["service"]

SHOWN_OF_FAILURE = ("error", "message", "attempt")
"""A traceback and the name of a worker are for the log, not for clients."""


async def from_query(request: web.Request, _: Runtime) -> NewQuestion:
    """The question in the parameters of a URL."""
    twice = sorted(name for name in set(request.query) if len(request.query.getall(name)) > 1)
    if twice:
        said = [(name, "say it once") for name in twice]
        raise Problem(422, "; ".join(f"{name}: {message}" for name, message in said), errors=said)
    return NewQuestion.model_validate(dict(request.query))


async def from_body(request: web.Request, _: Runtime) -> NewQuestion:
    """The question in a JSON body."""
    body = await json_body(request)
    try:
        return NewQuestion.model_validate_json(body)
    except ValidationError as error:
        # It is JSON all the same, and there is no other number in a question.
        if "number out of range" in str(error.errors(include_input=False)[0].get("ctx")):
            raise wrong("number", WANTED) from error
        raise


service.get("/compute_factors", submits=compute, before=from_query, location="/compute_factors/{id}", query=NewQuestion)
service.post("/compute_factors", submits=compute, before=from_body, location="/compute_factors/{id}", body=NewQuestion)


@service.get("/compute_factors/{tracking_id}", answers={200: QuestionState}, problems=(503,))
async def one(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """One question: its state, its times, and its answer once there is one."""
    return _of_job(await runtime.inspect(compute, request.match_info["tracking_id"]))


def _of_job(info: JobInfo) -> dict[str, Any]:
    waits = info.state in (State.SCHEDULED, State.READY)
    shown: dict[str, Any] = {"tracking_id": info.id, "status": "queued" if waits else info.state.value}
    shown |= {"number": _number(info.payload), "attempt": info.attempt, "submitted_at": format_time(info.submitted_ms)}
    if info.state in (State.DONE, State.DEAD):
        shown["finished_at"] = format_time(info.at_ms)
    if info.state is State.DONE and info.result is not None:
        shown["result"] = _object(info)
    elif info.state is State.DEAD and info.result is not None:
        failure = _object(info)
        shown["failure"] = {name: failure[name] for name in SHOWN_OF_FAILURE if name in failure}
    return shown


def _object(info: JobInfo) -> dict[str, Any]:
    """A result, or a failure. Raises ProtocolError where it is none of ours."""
    try:
        held = orjson.loads(info.result or b"")
    except orjson.JSONDecodeError:
        held = None
    if not isinstance(held, dict):
        raise ProtocolError(f"what the results of {compute.full_name} hold of {info.id} is not aioflow's")
    return held


def _number(payload: bytes) -> str | None:
    """None where the record is gone, or holds no question: whoever wrote it did not come through this API."""
    try:
        return Question.model_validate_json(payload).number
    except ValidationError:
        return None
