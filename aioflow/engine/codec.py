"""Payloads and results as bytes: a header line, a newline, JSON. The one place where a type meets the wire.

The header line is empty today; it is where metadata of a job will travel. Values are checked against the declared
type when they are written and again when they are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from aioflow.errors import CodecError, ConfigError
from aioflow.job import Failure, new_id
from aioflow.policy import PAYLOAD_LIMIT
from aioflow.service import FULL_NAME, Task

NOTHING = b"null"
MOST_TRACEBACK = 4000
"""Characters, the last ones: they say where it happened."""


def encode_payload(task: Task[Any, Any], payload: Any) -> bytes:
    """The envelope of a payload. Raises CodecError where it does not fit the declared type, or is too large."""
    adapter = task.signature.payload
    if adapter is None:
        if payload is not None:
            raise CodecError(f"submit {task.full_name} takes no payload, got a {type(payload).__name__}")
        return b"\n" + NOTHING
    try:
        encoded = _encode(adapter, adapter.validator.validate_python(payload))
    except ValueError as error:
        raise CodecError(f"submit {task.full_name}: the payload does not fit its type: {error}") from error
    return seal(encoded, task.full_name, task.options.payload_limit)


def encode_emit(known: Callable[[str], Task[Any, Any] | None]) -> Callable[[Any, Any], tuple[str, str, bytes]]:
    """What makes (new id, full name, envelope) of a task, or of the name of one, and a payload.

    A payload of a task that is not known here is checked by whoever claims it.
    """

    def encode(task: Any, payload: Any) -> tuple[str, str, bytes]:
        found = task if isinstance(task, Task) else known(task)
        if found is not None:
            return new_id(), found.full_name, encode_payload(found, payload)
        if not isinstance(task, str) or not FULL_NAME.fullmatch(task):
            raise ConfigError(f"job.commit.submit: {task!r} is no task and no name such as ledger.book")
        try:
            return new_id(), task, seal(to_json(payload), task)
        except ValueError as error:
            raise CodecError(f"submit {task}: the payload cannot be written as JSON: {error}") from error

    return encode


def _encode(adapter: TypeAdapter[Any], value: Any) -> bytes:
    """JSON that has been read back: what is written is what a reader will accept, also of a mutated model."""
    encoded: bytes = adapter.serializer.to_json(value, warnings=False)
    adapter.validator.validate_json(encoded)
    return encoded


def seal(payload: bytes, what: str, limit: int = PAYLOAD_LIMIT) -> bytes:
    """The envelope of JSON that has been validated. Raises CodecError where it is too large."""
    if len(payload) > limit:
        raise CodecError(f"submit {what}: a payload has at most {limit} bytes (payload_limit), this one {len(payload)}")
    return b"\n" + payload


def payload_of(envelope: bytes) -> bytes:
    """The JSON in an envelope."""
    return envelope.partition(b"\n")[2]


def decode_payload(adapter: TypeAdapter[Any] | None, envelope: bytes | None) -> Any:
    """The payload in an envelope. Raises CodecError where it no longer fits the declared type."""
    if envelope is None:
        raise CodecError("the record of this job is missing")
    if adapter is None:
        return None
    try:
        return adapter.validator.validate_json(payload_of(envelope))
    except ValidationError as error:
        raise CodecError(f"the payload no longer fits its type: {error}") from error
    except Exception as error:
        raise CodecError(f"the payload cannot be checked: {type(error).__qualname__}: {error}") from error


def encode_result(task: Task[Any, Any], result: Any) -> bytes:
    """A handler's result as JSON. Raises CodecError where it does not fit the declared type or is too large."""
    try:
        encoded = _encode(task.signature.result, result)
    except ValueError as error:
        raise CodecError(f"the result does not fit its type: {error}") from error
    except Exception as error:
        raise CodecError(f"the result cannot be checked: {type(error).__qualname__}: {error}") from error
    limit = task.options.payload_limit
    if len(encoded) > limit:
        raise CodecError(f"a result has at most {limit} bytes (payload_limit), this one {len(encoded)}")
    return encoded


def decode_result(adapter: TypeAdapter[Any], result: bytes) -> Any:
    """A result from its JSON. Raises CodecError where it no longer fits the declared type."""
    try:
        return adapter.validate_json(result)
    except ValidationError as error:
        raise CodecError(f"the result does not fit its type: {error}") from error


def encode_failure(failure: Failure) -> bytes:
    """What the record of a failed attempt says; never a line break."""
    told = {
        "error": failure.error[:200],
        "message": failure.message[:10_000],
        "traceback": failure.traceback[-MOST_TRACEBACK:],
        "attempt": failure.attempt,
        "worker": failure.worker,
    }
    return json.dumps({name: value for name, value in told.items() if value}).encode(errors="replace")


def decode_failure(line: bytes) -> Failure:
    """How an attempt failed, from its JSON, or from a line of a history: the UTC ms of its end, a space, the JSON."""
    at_ms, _, after = line.partition(b" ")
    try:
        told = json.loads(after if at_ms.isdigit() else line)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        told = {"error": "ProtocolError", "message": f"a record that is none of ours: {line[:200]!r}"}
    return Failure(
        error=str(told.get("error", "")),
        message=str(told.get("message", "")),
        traceback=str(told.get("traceback", "")),
        attempt=attempt if isinstance(attempt := told.get("attempt"), int) else 0,
        worker=str(told.get("worker", "")),
        at_ms=int(at_ms) if at_ms.isdigit() else None,
    )
