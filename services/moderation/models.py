"""What goes in and out of moderation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic.config import JsonDict

LEVELS = 5
MOST_HELD = 10
MOST_SKILLS = 32
"""Categories times languages of one moderator: what a desk looks at in one call is bounded by it."""
NAME = r"^[a-z0-9][a-z0-9_.-]{0,63}$"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("use printable characters only")
    return value


def _sendable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("use text that can be written as UTF-8") from None
    return value


def _moment(value: object) -> object:
    """Only RFC 3339: a number would leave open whether it counts seconds or milliseconds."""
    if not isinstance(value, str) or "T" not in value.upper():
        raise ValueError("use RFC 3339 with a zone, such as 2026-01-31T12:00:00Z")
    return value


def _after_epoch(value: datetime) -> datetime:
    if value < EPOCH:
        raise ValueError("use a time after 1970")
    return value


PRINTABLE: JsonDict = {"format": "printable"}
ItemId = Annotated[str, Field(min_length=1, max_length=200, json_schema_extra=PRINTABLE), AfterValidator(_printable)]
PersonId = Annotated[str, Field(min_length=1, max_length=128, json_schema_extra=PRINTABLE), AfterValidator(_printable)]
Name = Annotated[str, Field(pattern=NAME)]
LOCK_ID = r"^[0-9a-f]{1,32}\.[0-9]{1,16}$"
Token = Annotated[str, Field(pattern=LOCK_ID)]
Level = Annotated[int, Field(ge=1, le=LEVELS)]
Moment = Annotated[AwareDatetime, BeforeValidator(_moment), AfterValidator(_after_epoch), Field(strict=False)]


class Strict(BaseModel):
    """What a client sends: nothing is converted, nothing unknown is passed over."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Item(Strict):
    """What is to be moderated. `submitted_at` says since when it waits; left out or in the future, it is now."""

    id: ItemId
    content: Annotated[str, AfterValidator(_sendable)]
    category: Name
    language: Name
    author: PersonId
    priority: Annotated[int, Field(ge=0, le=9)] = 4
    level: Level = 1
    submitted_at: Moment | None = None

    @property
    def skill(self) -> str:
        """What a moderator must know."""
        return f"{self.category}:{self.language}"

    @property
    def submitted_ms(self) -> int:
        """UTC ms; 0 where it is not said."""
        return 0 if self.submitted_at is None else max(1, (self.submitted_at - EPOCH) // timedelta(milliseconds=1))


class Moderator(Strict):
    """Who moderates what, up to which level; `holds` is how many items at a time, None: as the settings say."""

    name: PersonId
    categories: Annotated[list[Name], Field(min_length=1, max_length=MOST_SKILLS)]
    languages: Annotated[list[Name], Field(min_length=1, max_length=MOST_SKILLS)]
    level: Level = 1
    holds: Annotated[int, Field(ge=1, le=MOST_HELD)] | None = None

    @field_validator("languages")
    @classmethod
    def _bounded(cls, languages: list[str], info: ValidationInfo) -> list[str]:
        skills = len(set(languages)) * len(set(info.data.get("categories", ())))
        if skills > MOST_SKILLS:
            raise ValueError(f"categories times languages are {skills}, at most {MOST_SKILLS} may be")
        return languages

    @property
    def skills(self) -> list[str]:
        """Each category with each language, once."""
        return sorted({f"{category}:{language}" for category in self.categories for language in self.languages})


class Choice(StrEnum):
    """What a moderator may decide."""

    APPROVE = "approve"
    REJECT = "reject"
    ESCALATE = "escalate"
    SKIP = "skip"


class Outcome(StrEnum):
    """What came of a decision."""

    APPROVED = "approved"
    REJECTED = "rejected"
    VOTED = "voted"
    """A second moderator must agree."""
    ESCALATED = "escalated"
    SKIPPED = "skipped"


class Decision(Strict):
    """A decision under a lock: `reason` is needed to reject, `level` to escalate."""

    token: Token
    decision: Annotated[Choice, Field(strict=False)]
    reason: Annotated[
        Annotated[str, Field(max_length=1000), AfterValidator(_sendable)] | None, Field(validate_default=True)
    ] = None
    level: Annotated[Level | None, Field(validate_default=True)] = None

    @field_validator("reason")
    @classmethod
    def _said(cls, reason: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("decision") is Choice.REJECT and not (reason and reason.strip()):
            raise ValueError("it is needed to reject")
        return reason

    @field_validator("level")
    @classmethod
    def _asked_for(cls, level: int | None, info: ValidationInfo) -> int | None:
        if "decision" in info.data and (info.data["decision"] is Choice.ESCALATE) != (level is not None):
            raise ValueError("it is needed to escalate, and for nothing else")
        return level


class Extension(Strict):
    """A wish for more time under a lock."""

    token: Token


class Ask(Strict):
    """A wish for the next item."""

    moderator: PersonId


class Join(Moderator):
    """The first message of a WebSocket."""

    type: Literal["join"]


class Decide(Decision):
    """A decision by WebSocket."""

    type: Literal["decide"]
    item: ItemId


class Extend(Extension):
    """An extension by WebSocket."""

    type: Literal["extend"]
    item: ItemId


class Leave(Strict):
    """The end of a session by WebSocket: what is held goes back at once."""

    type: Literal["leave"]
