"""What comes in: an event as it is posted, and the jobs that carry events to the table.

An event is checked where it is posted, and travels as what that came to. Its job holds the events as text, which is
read where rows are made of it, in a thread: the event loop never walks through them. Sizes are bounded here: an event
has less than 56 KiB of JSON.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Annotated, Any, NotRequired

import orjson
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, WithJsonSchema, with_config
from typing_extensions import TypedDict

from aioflow.web import parse_time

MOST_EVENTS = 1000
"""In one post."""
EVENTS_OF_JOB = 200
"""An array travels as jobs of so many: what a process holds at a time is so many times its concurrency."""
BYTES_OF_JOB = 256 << 10
"""Of events; as text in JSON they are twice as many at the most, which is half of what a payload may have."""
REMEMBERED_ADDRESSES = 20_000
LONGEST_URL = 2048
LONGEST_AGENT = 512
MOST_PROPERTIES = 50
LONGEST_NAME = 64
LONGEST_VALUE = 1000
BYTES_OF_PROPERTIES = 16 << 10
LARGEST_NUMBER = 2**53 - 1
FARTHEST_SECONDS = 4_398_046_511
"""2^42 ms, in the year 2109."""

URL_PATTERN = (
    r"^[A-Za-z][A-Za-z0-9+.\-]{0,31}://(?:[^/?#@\x00-\x20\x7f]*@)?"
    r"(\[[0-9A-Fa-f:.]+\]|[^/?#@:\[\]\x00-\x20\x7f]+)(?::[0-9]{0,5})?((?:/[^?#\x00-\x1f\x7f]*)?)(?:[?#][^\x00-\x1f\x7f]*)?$"
)
URL = re.compile(URL_PATTERN)


def _url(value: str) -> str:
    if not URL.fullmatch(value):
        raise ValueError("use an absolute URL with a host, such as https://example.org/path")
    return value


@lru_cache(REMEMBERED_ADDRESSES)
def address_of(value: str) -> str:
    """An IP address in its usual form; an IPv4 one that is mapped into IPv6 is that IPv4 address. Raises ValueError."""
    if "%" in value:
        raise ValueError("use an IP address without a zone")
    try:
        address = ip_address(value)
    except ValueError:
        raise ValueError("use an IPv4 or IPv6 address") from None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def moment_of(value: str | float) -> int:
    """Epoch seconds or RFC 3339 in UTC ms. Raises ValueError, also where it is out of bounds: it is to be kept."""
    if isinstance(value, str):
        at_ms = parse_time(value, bounded=False)
        seconds = at_ms / 1000
    else:
        at_ms, seconds = None, value
    if not 0 <= seconds <= FARTHEST_SECONDS:
        raise ValueError("use a time from 1970, which is 0 epoch seconds, to the year 2109")
    # A double of that size has microseconds and not much more: the nearest one, then cut.
    return round(seconds * 1_000_000) // 1000 if at_ms is None else at_ms


def _moment(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("use epoch seconds, or RFC 3339 with a zone, such as 2026-01-31T12:00:00Z")  # noqa: TRY004
    return moment_of(value)


def _properties(value: dict[str, Any]) -> str:
    for name, held in value.items():
        if not 1 <= len(name) <= LONGEST_NAME or "\x00" in name:
            raise ValueError(f"{name[:80]!r}: a name has 1 to {LONGEST_NAME} characters")
        match held:
            case str():
                good = len(held) <= LONGEST_VALUE and "\x00" not in held
            case int():
                good = -LARGEST_NUMBER <= held <= LARGEST_NUMBER
            case float():
                good = math.isfinite(held)
            case _:
                good = held is None
        if not good:
            raise ValueError(
                f"{name!r}: use text of up to {LONGEST_VALUE} characters without NUL, true, false, null or a number; "
                f"whole ones within 2^53"
            )
    written = orjson.dumps(value)
    if len(written) > BYTES_OF_PROPERTIES:
        raise ValueError(f"they have at most {BYTES_OF_PROPERTIES} bytes of JSON")
    return written.decode()


STRICT = ConfigDict(strict=True, extra="forbid")
NO_NUL = r"^[^\x00]*$"
Url = Annotated[
    str, Field(min_length=1, max_length=LONGEST_URL, json_schema_extra={"pattern": URL_PATTERN}), AfterValidator(_url)
]
Referrer = Annotated[str, Field(max_length=LONGEST_URL, pattern=NO_NUL)]
Agent = Annotated[str, Field(max_length=LONGEST_AGENT, pattern=NO_NUL)]
Address = Annotated[
    str,
    Field(max_length=64),
    AfterValidator(address_of),
    WithJsonSchema({"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}),
]
Moment = Annotated[
    Any,
    AfterValidator(_moment),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": FARTHEST_SECONDS},
                {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$"},
                {"type": "string", "format": "date-time"},
            ]
        }
    ),
]
Properties = Annotated[
    dict[str, Any],
    Field(max_length=MOST_PROPERTIES),
    AfterValidator(_properties),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MOST_PROPERTIES,
            "propertyNames": {"minLength": 1, "maxLength": LONGEST_NAME, "pattern": NO_NUL},
            "additionalProperties": {
                "anyOf": [
                    {"type": "string", "maxLength": LONGEST_VALUE, "pattern": NO_NUL},
                    {"type": "integer", "minimum": -LARGEST_NUMBER, "maximum": LARGEST_NUMBER},
                    {"type": ["number", "boolean", "null"]},
                ]
            },
        }
    ),
]


@with_config(STRICT)
class Event(TypedDict):
    """One event; what is not said comes from the request that brought it.

    Once checked, `occurred_at` is in UTC ms, and `properties` are JSON as text.
    """

    url: Url
    ip: NotRequired[Address | None]
    user_agent: NotRequired[Agent | None]
    occurred_at: NotRequired[Moment | None]
    referrer: NotRequired[Referrer | None]
    properties: NotRequired[Properties | None]


@with_config(ConfigDict(**STRICT, json_schema_extra={"minProperties": 1}))
class Change(TypedDict, total=False):
    """What of a request in the table is to be another; null takes it away."""

    url: Url
    ip: Address | None
    user_agent: Agent | None
    occurred_at: Moment
    referrer: Referrer | None
    properties: Properties | None


@with_config(STRICT)
class Carried(TypedDict):
    """An event that has been checked, as its job holds it; what it does not have was not said."""

    url: Annotated[str, Field(max_length=LONGEST_URL)]
    ip: NotRequired[str]
    user_agent: NotRequired[str]
    occurred_ms: NotRequired[Annotated[int, Field(ge=0, le=LARGEST_NUMBER)]]
    referrer: NotRequired[str]
    properties: NotRequired[str]


class Collected(TypedDict):
    """The payload of a job: events of one post, and what is known of that post."""

    received_ms: int
    ip: str | None
    user_agent: str | None
    events: str
    """A JSON array of `Carried`."""
    of: NotRequired[int]
    """Into how many jobs the post was divided, where it may be repeated."""


EVENT: TypeAdapter[Event] = TypeAdapter(Event)
CHANGE: TypeAdapter[Change] = TypeAdapter(Change)
EVENTS: TypeAdapter[list[Carried]] = TypeAdapter(list[Carried])
CARRIED_AS = {"occurred_at": "occurred_ms"}


def carried(posted: Any) -> bytes:
    """An event, as its job carries it, of what was posted. Raises pydantic.ValidationError."""
    event = EVENT.validate_python(posted)
    return orjson.dumps({CARRIED_AS.get(name, name): value for name, value in event.items() if value is not None})


def array_of(events: Sequence[bytes]) -> str:
    """The events of a job as text."""
    return (b"[" + b",".join(events) + b"]").decode()


def row_id(job_id: str, index: int) -> str:
    """The key of a job's event in the table; also its tracking id."""
    return f"{job_id}.{index}"
