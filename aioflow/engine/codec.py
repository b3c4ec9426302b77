"""Payloads and results as bytes: a header line, a newline, JSON. The one place where a type meets the wire.

The header line is empty today; it is where metadata of a job will travel. Values are checked against the declared
type when they are written and again when they are read.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from aioflow.errors import CodecError

PAYLOAD_LIMIT = 1 << 20
"""Bytes of one payload or result."""
NOTHING = b"null"


def encode_payload(adapter: TypeAdapter[Any] | None, payload: Any, what: str) -> bytes:
    """The envelope of a payload. Raises CodecError where it does not fit the declared type."""
    if adapter is None:
        if payload is not None:
            raise CodecError(f"submit {what} takes no payload, got a {type(payload).__name__}")
        return b"\n" + NOTHING
    try:
        encoded = _encode(adapter, adapter.validator.validate_python(payload))
    except (ValidationError, PydanticSerializationError, ValueError) as error:
        raise CodecError(f"submit {what}: the payload does not fit its type: {error}") from error
    return seal(encoded, what)


def _encode(adapter: TypeAdapter[Any], value: Any) -> bytes:
    """JSON that has been read back: what is written is what a reader will accept, also of a mutated model."""
    encoded: bytes = adapter.serializer.to_json(value, warnings=False)
    adapter.validator.validate_json(encoded)
    return encoded


def seal(payload: bytes, what: str) -> bytes:
    """The envelope of JSON that has been validated. Raises CodecError where it is too large."""
    if len(payload) > PAYLOAD_LIMIT:
        raise CodecError(f"submit {what}: a payload has at most {PAYLOAD_LIMIT} bytes, this one {len(payload)}")
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


def encode_result(adapter: TypeAdapter[Any], result: Any) -> bytes:
    """A handler's result as JSON. Raises CodecError where it does not fit the declared type or is too large."""
    try:
        encoded = _encode(adapter, result)
    except (ValidationError, PydanticSerializationError, ValueError) as error:
        raise CodecError(f"the result does not fit its type: {error}") from error
    if len(encoded) > PAYLOAD_LIMIT:
        raise CodecError(f"a result has at most {PAYLOAD_LIMIT} bytes, this one {len(encoded)}")
    return encoded


def decode_result(adapter: TypeAdapter[Any], result: bytes) -> Any:
    """A result from its JSON. Raises CodecError where it no longer fits the declared type."""
    try:
        return adapter.validate_json(result)
    except ValidationError as error:
        raise CodecError(f"the result does not fit its type: {error}") from error


def encode_failure(error: str, message: str) -> bytes:
    """What the record of a dead job says."""
    return json.dumps({"error": error[:200], "message": message[:10_000]}).encode(errors="replace")


def decode_failure(result: bytes) -> tuple[str, str]:
    """(error, message) of a dead job."""
    failure = json.loads(result)
    return str(failure["error"]), str(failure["message"])
