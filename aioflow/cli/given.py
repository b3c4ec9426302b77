"""Reads what a command line gives: payloads, numbers, spans, times. What is wrong with them is a ConfigError."""

from __future__ import annotations

import re
import sys
from datetime import datetime
from typing import Any

import orjson
from pydantic import ValidationError

from aioflow.errors import ConfigError
from aioflow.service import Task

SPAN = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d)?", re.ASCII)
SPAN_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def read_payload(given: str) -> bytes:
    """The payload's bytes. Raises ConfigError where they are no JSON."""
    body = sys.stdin.buffer.read() if given == "-" else given.encode(errors="surrogateescape")
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"the payload is not JSON: {error}") from error
    return body


def check_payload(task: Task[Any, Any], body: bytes) -> None:
    """Raise ConfigError where the payload does not fit the task."""
    adapter = task.signature.payload
    if adapter is None:
        if orjson.loads(body) is not None:
            raise ConfigError(f"{task.full_name} takes no payload")
        return
    try:
        adapter.validate_json(body)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"the payload does not fit {task.full_name}: {'; '.join(problems)}") from error


def span_ms(text: str, option: str) -> int:
    """A time span such as 30, 10m, 1.5h in milliseconds; a bare number is seconds. Raises ConfigError."""
    found = SPAN.fullmatch(text)
    if not found:
        raise ConfigError(
            f"{option} {text!r}: write a number and ms, s, m, h or d, such as 10m; without, it is seconds"
        )
    return int(float(found[1]) * SPAN_SECONDS[found[2] or "s"] * 1000)


def number_of(text: str, option: str, least: int, most: int) -> int:
    """A whole number. Raises ConfigError."""
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII) or not least <= int(text) <= most:
        raise ConfigError(f"{option} {text!r}: write a whole number from {least} to {most}")
    return int(text)


def time_of(text: str, option: str) -> datetime:
    """A time with its zone. Raises ConfigError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ConfigError(f"{option} {text!r}: write a time with its zone, such as 2030-01-31T09:00:00Z or +02:00")
    return found
