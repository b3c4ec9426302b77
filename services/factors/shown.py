"""What the query shows, for the description of the API."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from services.factors.models import Answer


class Failure(TypedDict, total=False):
    """How a computation failed."""

    error: str
    message: str
    attempt: int


class QuestionState(TypedDict):
    """A question as its job tells it; `number` is null where its record is gone."""

    tracking_id: str
    status: Literal["queued", "running", "done", "dead"]
    number: str | None
    attempt: int
    submitted_at: datetime
    finished_at: NotRequired[datetime]
    result: NotRequired[Answer]
    failure: NotRequired[Failure]
