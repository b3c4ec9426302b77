"""What the routes take and show, for the description of the API."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from aioflow.web import PageQuery, RangeQuery, Seconds
from services.moderation.models import Choice, Level, Outcome


class LineQuery(PageQuery, total=False):
    """A page of the line; of one class, if category, language and level are given."""

    category: str
    language: str
    level: Annotated[int, Field(ge=1, le=5)]


class OverdueQuery(PageQuery, total=False):
    """A page of what has been undecided for long."""

    older_than: Seconds


class DesksQuery(PageQuery, total=False):
    """A page of desks."""

    state: Literal["all", "waiting"]


class DecisionsQuery(RangeQuery, PageQuery, total=False):
    """A page of decisions: of all, or of one moderator, category or outcome."""

    moderator: str
    category: str
    outcome: Outcome


class Taken(TypedDict):
    """An item was taken, or was known."""

    status: Literal["accepted", "known"]
    id: str


class Assignment(TypedDict):
    """An item that a desk holds, and the token to decide it under."""

    item: str
    token: str
    content: str
    category: str
    language: str
    author: str
    priority: int
    level: int
    votes: int
    assigned_at: datetime
    expires_at: datetime


class Assignments(TypedDict):
    """What a desk holds, longest held first."""

    moderator: str
    assignments: list[Assignment]


class Joined(Assignments):
    """A desk was opened."""

    status: Literal["joined"]


class Left(TypedDict):
    """A desk was closed."""

    status: Literal["left"]
    moderator: str


class Extended(TypedDict):
    """The new deadline of a lock."""

    status: Literal["extended"]
    item: str
    expires_at: datetime


class Vote(TypedDict):
    """One of two persons' decisions."""

    decision: Choice
    moderator: str


class DecisionRecord(TypedDict):
    """A decision: who, what, when, and how long it took."""

    token: str
    item: str
    moderator: str
    decision: Choice
    outcome: Outcome
    category: str
    language: str
    level: int
    assigned_at: datetime
    decided_at: datetime
    took_seconds: float
    reason: NotRequired[str]
    to_level: NotRequired[int]
    votes: NotRequired[list[Vote]]


class ShownItem(TypedDict):
    """An item without its content."""

    id: str
    status: str
    category: str
    language: str
    level: Level
    priority: int
    author: str
    submitted_at: datetime
    votes: int
    skips: int
    moderator: NotRequired[str]
    assigned_at: NotRequired[datetime]
    decided_at: NotRequired[datetime]


class WholeItem(ShownItem):
    """An item with its content."""

    content: str
    expires_at: NotRequired[datetime]
    decision: NotRequired[DecisionRecord]


class UndecidedItem(ShownItem):
    """An item, and for how long it has been undecided."""

    waiting_seconds: float


class ItemInLine(UndecidedItem):
    """An item and its place, from 1."""

    place: int


class LockedItem(UndecidedItem):
    """An item that is held."""

    expires_at: datetime


class Line(TypedDict):
    """A page of a line, and how long it is."""

    items: list[ItemInLine]
    count: int
    cursor: str | None


class Overdue(TypedDict):
    """A page, and how many there are in all."""

    items: list[UndecidedItem]
    count: int
    cursor: str | None


class Locks(TypedDict):
    """A page of items that are held."""

    locks: list[LockedItem]
    cursor: str | None


class ShownDesk(TypedDict):
    """A moderator's session."""

    moderator: str
    categories: list[str]
    languages: list[str]
    level: int
    holds: int
    held: int
    connected: bool
    waiting: bool
    place: NotRequired[int]
    waiting_since: NotRequired[datetime]
    waiting_seconds: NotRequired[float]


class Desks(TypedDict):
    """A page of desks."""

    desks: list[ShownDesk]
    cursor: str | None


class Decisions(TypedDict):
    """A page of decisions."""

    decisions: list[DecisionRecord]
    cursor: str | None


class CountOfItems(TypedDict):
    """How many items there are."""

    open: int
    waiting: int
    locked: int


class CountOfModerators(TypedDict):
    """How many moderators there are."""

    joined: int
    waiting: int


class Counts(TypedDict):
    """How many decisions had each outcome, and how much is there now."""

    outcomes: dict[Outcome, int]
    items: CountOfItems
    moderators: CountOfModerators
