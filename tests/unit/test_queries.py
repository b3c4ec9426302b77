"""Query parameters of routes: what is taken, and what is refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from aioflow.web import (
    Problem,
    format_time,
    parse_time,
    read_choice,
    read_page,
    read_range,
    read_seconds,
    refuse_unknown,
)

T0 = 1_767_225_600_000  # 2026-01-01T00:00:00Z


def asked(query: str) -> web.Request:
    """A request with this query."""
    return make_mocked_request("GET", f"/?{query}")


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("1767225600", T0),
        ("1767225600.2509", T0 + 250),
        ("2026-01-01T00:00:00Z", T0),
        ("2026-01-01t01:00:00.2509+01:00", T0 + 250),
        ("1900-01-01T00:00:00Z", 0),
        ("9999999999", 2**42),
        ("9999-01-01T00:00:00Z", 2**42),
    ],
)
def test_a_time_is_epoch_seconds_or_rfc_3339(text: str, at_ms: int) -> None:
    assert parse_time(text) == at_ms


@pytest.mark.parametrize("text", ["", "-1", "1e3", "2026-01-01", "2026-01-01T00:00:00", "١٢٣", "yesterday", "nan"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="RFC 3339 with a zone"):
        parse_time(text)


def test_a_time_is_written_as_it_is_read() -> None:
    assert format_time(T0 + 7) == "2026-01-01T00:00:00.007Z"
    assert parse_time(format_time(T0 + 7)) == T0 + 7
    assert parse_time(format_time(2**42)) == 2**42


def test_what_is_read() -> None:
    assert read_range(asked("")) == (0, 2**42)
    assert read_range(asked("since=1&until=2026-01-01T01:00:00+01:00")) == (1000, T0)  # the + is unescaped
    assert read_page(asked("")) == (100, None)
    assert read_page(asked("limit=7&cursor=x")) == (7, "x")
    assert read_seconds(asked("age=1.5"), "age", 3) == 1.5
    assert read_seconds(asked(""), "age", 3) == 3
    assert read_choice(asked("by=ip"), "by", ("url", "ip")) == "ip"
    assert read_choice(asked(""), "by", ("url", "ip"), "url") == "url"
    refuse_unknown(asked("by=ip"), ("by",))


@pytest.mark.parametrize(
    ("query", "read", "field"),
    [
        ("since=x", read_range, "since"),
        ("since=2&until=1", read_range, "until"),
        ("limit=0", read_page, "limit"),
        ("limit=1001", read_page, "limit"),
        ("limit=1.5", read_page, "limit"),
        ("limit=" + "9" * 5000, read_page, "limit"),
        ("age=-1", lambda request: read_seconds(request, "age", 1), "age"),
        ("", lambda request: read_choice(request, "by", ("ip",)), "by"),
        ("by=x", lambda request: read_choice(request, "by", ("ip",)), "by"),
        ("buy=x", lambda request: refuse_unknown(request, ("by",)), "buy"),
        ("by=x&by=x", lambda request: refuse_unknown(request, ("by",)), "by"),
    ],
)
def test_what_is_wrong_is_a_422_that_names_it(query: str, read: Callable[[web.Request], Any], field: str) -> None:
    with pytest.raises(Problem) as caught:
        read(asked(query))
    assert (caught.value.status, [name for name, _ in caught.value.errors]) == (422, [field])
