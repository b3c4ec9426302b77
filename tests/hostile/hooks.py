"""What schemathesis must be told of our routes: a text format of ours, ids that exist, and which 422s are in order."""

from __future__ import annotations

import json
from typing import Any

import schemathesis
from hypothesis import strategies as st

from services.factors.models import WANTED
from tests.hostile.known import IDS

PRINTABLE = st.characters(exclude_categories=("C", "Zl", "Zp", "Zs"), include_characters=" ")
schemathesis.openapi.format("printable", st.text(PRINTABLE, min_size=1))

RULES = (
    "it lies before since",
    "of them; use a wider one, or a shorter range",
    "use one that an answer had, as it was",
    "it belongs to sort=",
    "is not one that a page gave",
    "use one of moderator, category, outcome at a time",
    "a class is a category, a language and a level",
    "it is needed to escalate, and for nothing else",
    "it is needed to reject",
    "categories times languages are",
    "give the parameter url, or send a Referer",
    "the URL is refused",  # by rules of the deliveries' settings
    "at most 200",  # ids in one parameter
    "events can be taken",  # those of a post are taken or refused each by itself
    "use a time after 1970",
    "use a time from 1970",
    "use epoch seconds, or RFC 3339",  # a leap second, or a year that is none
    "bytes of JSON",  # properties all in all
)
"""What a client is told where it breaks a rule that no JSON Schema can say."""
WHOLE = ("Input should be a valid integer", WANTED)
"""To JSON Schema 3.0 is a whole number; what is sent as 3.0 is refused."""


@schemathesis.hook
def before_call(_: Any, case: Any, kwargs: Any) -> None:
    """Ask for what exists in some of the cases that fit, since no drawn id ever would."""
    del kwargs
    meta = case.meta
    known = IDS.get(case.operation.path)
    if known is None or meta is None or not meta.generation.mode.is_positive or meta.phase.name.value == "stateful":
        return
    name, value = known
    if len(str(case.path_parameters.get(name))) % 2:
        case.path_parameters[name] = value


@schemathesis.check
def refused_for_a_reason(_: Any, response: Any, case: Any) -> bool | None:
    """A request that fits the description is refused for a rule that the description cannot say, and for no other."""
    if response.status_code != 422 or case.meta is None or not case.meta.generation.mode.is_positive:
        return None
    problem = response.json()
    for message in [error["message"] for error in problem.get("errors", [])] or [problem["detail"]]:
        if message in WHOLE and ".0" in json.dumps(case.body):
            continue
        assert any(rule in message for rule in RULES) or any(rule in problem["detail"] for rule in RULES), (
            f"a request that fits the description is refused: {problem['detail']}"
        )
    return None
