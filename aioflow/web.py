"""What routes of one's own are written with: parameters, bodies, idempotency keys, answers and problems.

Names only; they are made in `aioflow.ingress`.
"""

from aioflow.ingress.answers import json_response
from aioflow.ingress.app import id_of_key, json_body, read_json, read_wait
from aioflow.ingress.openapi import openapi
from aioflow.ingress.problems import Problem, message_of
from aioflow.ingress.queries import (
    KeyHeader,
    PageQuery,
    PreferHeader,
    RangeQuery,
    Seconds,
    Time,
    format_time,
    parse_time,
    read_choice,
    read_page,
    read_range,
    read_seconds,
    read_time,
    refuse_unknown,
    wrong,
)

__all__ = [
    "KeyHeader",
    "PageQuery",
    "PreferHeader",
    "Problem",
    "RangeQuery",
    "Seconds",
    "Time",
    "format_time",
    "id_of_key",
    "json_body",
    "json_response",
    "message_of",
    "openapi",
    "parse_time",
    "read_choice",
    "read_json",
    "read_page",
    "read_range",
    "read_seconds",
    "read_time",
    "read_wait",
    "refuse_unknown",
    "wrong",
]
