"""What the routes take and show, for the description of the API."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from aioflow.web import PageQuery, RangeQuery
from services.tracking.models import MOST_EVENTS, Event, Url

Column = Literal["url", "host", "path", "ip", "browser", "os", "referrer"]
Bucket = Literal["minute", "hour", "day"]
Text = Annotated[str, Field(min_length=1, max_length=2048, pattern=r"^[^\x00]*$")]


class GifQuery(TypedDict, total=False):
    """Where the image stands; without, a Referer says it."""

    url: Url


class StatsQuery(RangeQuery, total=False):
    """Of which time, in which steps; without, of the last 60 minutes, 24 hours or 30 days."""

    bucket: Bucket


class TopQuery(RangeQuery):
    """What is counted."""

    by: Column


class TopPageQuery(TopQuery, total=False):
    """How many of the most frequent."""

    limit: Annotated[int, Field(ge=1, le=1000)]


class ListQuery(RangeQuery, PageQuery, total=False):
    """Which requests: exact filters, `q` for text to be found, `ids` for some of them."""

    sort: Literal["-occurred_at", "occurred_at", "-received_at", "received_at"]
    q: Text
    ids: Annotated[str, Field(description="up to 200, with commas between them", min_length=1, pattern=r"^[^\x00]*$")]
    url: Text
    host: Text
    path: Text
    ip: Text
    browser: Text
    os: Text
    referrer: Text


NewEvents = Event | Annotated[list[Event | Any], Field(min_length=1, max_length=MOST_EVENTS)]
"""A post: one event, or an array, of which the good ones are taken."""


class BadEvent(TypedDict):
    """An event of an array that was not taken."""

    index: int
    field: str
    message: str


class CollectedOne(TypedDict):
    """An event was taken."""

    status: Literal["OK"]
    tracking_id: str


class CollectedMany(TypedDict):
    """The events of an array, each in its place: its id, or null."""

    status: Literal["OK"]
    accepted: int
    tracking_ids: list[str | None]
    errors: list[BadEvent]


class StatsOfBucket(TypedDict):
    """What begins at `start`."""

    start: datetime
    count: int
    unique_ips: int


class Stats(TypedDict):
    """Counts, in all and in steps; steps without a request are left out."""

    since: datetime
    until: datetime
    bucket: Bucket
    count: int
    unique_ips: int
    buckets: list[StatsOfBucket]


class Counted(TypedDict):
    """How often a value was there."""

    value: str
    count: int
    unique_ips: int


class Top(TypedDict):
    """The most frequent values."""

    by: Column
    top: list[Counted]


class Request(TypedDict):
    """A row of the table."""

    id: str
    received_at: datetime
    occurred_at: datetime
    url: str
    properties: dict[str, Any] | None


class Requests(TypedDict):
    """A page; without a cursor it is the last."""

    requests: list[Request]
    cursor: str | None
