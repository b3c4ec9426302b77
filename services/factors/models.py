"""What goes in and out of factors. Numbers travel as decimal strings: they are larger than JSON readers keep exact."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from aioflow import delivery

MOST_DIGITS = 60
MOST_DIVISORS = 10_000
"""Of a number that has more they are counted only."""
DIGITS = re.compile(rf"[1-9][0-9]{{0,{MOST_DIGITS - 1}}}")
WANTED = f"use a whole number from 1 to 10^{MOST_DIGITS} - 1, in decimal digits without leading zeros"


def _digits(given: Any) -> str:
    """A whole number as its decimal digits, so that one number has one spelling."""
    if isinstance(given, int) and not isinstance(given, bool) and 1 <= given < 10**MOST_DIGITS:
        return str(given)
    if isinstance(given, str) and DIGITS.fullmatch(given):
        return given
    raise ValueError(WANTED)


def _deliverable(url: str) -> str:
    delivery.check_url(url)
    return url


class Question(BaseModel):
    """A number to be factorised, and where the answer is to be posted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    number: Annotated[
        str,
        BeforeValidator(_digits),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "pattern": rf"^{DIGITS.pattern}$"},
                    {"type": "integer", "minimum": 1, "exclusiveMaximum": 10**MOST_DIGITS},
                ]
            },
            mode="validation",
        ),
    ]
    post_back_url: str | None = None


class NewQuestion(Question):
    """A question as it comes: to its URL something could be delivered.

    Only here: what was accepted is computed and kept, whatever the settings of deliveries say by then.
    """

    post_back_url: Annotated[str, Field(json_schema_extra={"format": "uri"}), AfterValidator(_deliverable)] | None = (
        None
    )


class PrimePower(BaseModel):
    """A prime, and how often it divides."""

    model_config = ConfigDict(frozen=True)

    prime: str
    power: int


class Answer(BaseModel):
    """The prime factorisation, by prime; the divisors, the least first, or None where there are over 10,000."""

    model_config = ConfigDict(frozen=True)

    tracking_id: str
    number: str
    factors: tuple[PrimePower, ...]
    divisor_count: int
    divisors: tuple[str, ...] | None
