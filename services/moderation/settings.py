"""Settings of moderation, each with its `MODERATION_*` environment variable, checked as a whole."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from aioflow import ConfigError, delivery
from services.moderation.models import MOST_HELD, NAME

TASK = re.compile(r"[a-z][a-z0-9_-]{0,63}\.[a-z][a-z0-9_-]{0,63}")


class ModerationSettings(BaseSettings):
    """Times are in seconds. A variable that is empty counts as unset."""

    model_config = SettingsConfigDict(env_prefix="MODERATION_", env_ignore_empty=True, extra="ignore")

    lock: float = Field(120.0, ge=0.1, le=86_400, description="Seconds until a lock expires that is not extended")
    grace: float = Field(5.0, ge=0, le=3600, description="Seconds until a desk is left whose WebSocket has dropped")
    idle: float = Field(900.0, ge=1, le=86_400, description="Seconds until a desk without a WebSocket is left, unasked")
    holds: int = Field(1, ge=1, le=MOST_HELD, description="Items that a moderator holds at a time, unless they say")
    bound: int = Field(1_000_000, ge=1, description="Items that may be undecided; more are refused")
    content_limit: int = Field(65_536, ge=1, le=1 << 20, description="Bytes of an item's content, as UTF-8")
    keep_days: float = Field(90.0, ge=0.01, le=3660, description="Days that decided items and decisions are kept")
    two_person: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(), description="Categories, separated by commas, in which two moderators must agree"
    )
    results: str | None = Field(None, description="Task, such as ledger.book, that is sent every final decision")
    post_back: str | None = Field(
        None, repr=False, description="URL to which every final decision is delivered, signed"
    )

    @field_validator("two_person", mode="before")
    @classmethod
    def _listed(cls, given: object) -> object:
        return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given

    @field_validator("two_person")
    @classmethod
    def _categories(cls, given: frozenset[str]) -> frozenset[str]:
        wrong = sorted(name for name in given if not re.fullmatch(NAME, name))
        if wrong:
            raise ValueError(f"no such category can be: {', '.join(wrong)}")
        return given

    @field_validator("results")
    @classmethod
    def _task(cls, given: str | None) -> str | None:
        if given is not None and not TASK.fullmatch(given):
            raise ValueError("name a task: service.task")
        return given

    @field_validator("post_back")
    @classmethod
    def _deliverable(cls, given: str | None) -> str | None:
        if given is not None:
            delivery.check_url(given)
        return given

    @property
    def tells(self) -> bool:
        """Whether anybody is told of final decisions."""
        return self.results is not None or self.post_back is not None

    @property
    def lock_ms(self) -> int:
        """How long a lock holds."""
        return round(self.lock * 1000)

    @property
    def grace_ms(self) -> int:
        """How long a desk is kept without its WebSocket."""
        return round(self.grace * 1000)

    @property
    def idle_ms(self) -> int:
        """How long a desk is kept that asks for nothing."""
        return round(self.idle * 1000)

    @property
    def keep_ms(self) -> int:
        """How long records are kept."""
        return round(self.keep_days * 86_400_000)


def load_settings() -> ModerationSettings:
    """Settings from the environment. Raises ConfigError that names every wrong one."""
    try:
        return ModerationSettings()
    except ValidationError as error:
        problems = [_said(str(problem["loc"][0]), problem["msg"], problem["input"]) for problem in error.errors()]
    # Outside the handler: neither the cause nor the context of what is raised holds what may be secret.
    raise ConfigError("wrong settings of moderation: " + "; ".join(problems))


def _said(name: str, message: str, given: object) -> str:
    shown = "" if name == "post_back" else f", got {given!r}"  # the path of a webhook may be its secret
    return f"MODERATION_{name.upper()}: {message}{shown}"
