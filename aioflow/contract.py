"""What a route takes and answers, said where it is declared, for the description of the API; nothing is checked by it.

Everything is a type that pydantic knows: a model, a dataclass, a TypedDict, a plain type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from aioflow.errors import ConfigError


class Contract(TypedDict, total=False):
    """What can be said of a route; what follows from its path and its task is not said."""

    query: Any
    """A type whose fields are the parameters of the query."""
    headers: Any
    """A type whose fields are headers, by their aliases where a name has hyphens."""
    body: Any
    """The type of the JSON body."""
    answers: Mapping[int, Any]
    """Per status of success the type of its JSON; a media type, as text, where it is none; None: it has no body.

    Left out, it is 200 with what the function is annotated to return.
    """
    problems: Sequence[int]
    """Statuses of problems, besides those that every route of its kind may answer."""
    bearer: bool
    """Whether it wants a bearer token."""


def check_contract(where: str, given: Contract) -> Contract:
    """The contract of a route, or a ConfigError that names what is no part of one."""
    unknown = sorted(set(given) - set(Contract.__annotations__))
    if unknown:
        known = ", ".join(Contract.__annotations__)
        raise ConfigError(f"{where}: there is no {', '.join(unknown)}; a route is described by {known}")
    statuses = [*given.get("answers", ()), *given.get("problems", ())]
    wrong = [status for status in statuses if not isinstance(status, int) or not 100 <= status <= 599]
    if wrong:
        raise ConfigError(f"{where}: answers and problems go by status, such as 404, not {wrong[0]!r}")
    return given
