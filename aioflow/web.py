"""What routes of one's own are written with: parameters, bodies, idempotency keys, answers and problems.

Names only; they are made in `aioflow.ingress`.
"""

from aioflow.ingress.app import body_of, id_of_key, json_response
from aioflow.ingress.problems import Problem
from aioflow.ingress.queries import (
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
    "Problem",
    "body_of",
    "format_time",
    "id_of_key",
    "json_response",
    "parse_time",
    "read_choice",
    "read_page",
    "read_range",
    "read_seconds",
    "read_time",
    "refuse_unknown",
    "wrong",
]
