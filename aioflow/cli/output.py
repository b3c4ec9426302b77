"""What commands print: tables for people on standard output, JSON for programs, one line for what went wrong."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text

WIDE = 1000
"""Columns of what is no terminal: nothing is cut there."""
UNITS = (("d", 86_400), ("h", 3600), ("m", 60))


def console() -> Console:
    """Standard output; colours and a width only where it is a terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


def say(line: str) -> None:
    """A line on standard output, at once: whoever reads it may wait for it."""
    print(line, flush=True)  # noqa: T201 - what the command says


def say_json(document: Any) -> None:
    """A JSON document on a line of standard output."""
    say(orjson.dumps(document).decode())


def warn(line: str) -> None:
    """A line on standard error."""
    print(f"aioflow: {visible(line)}", file=sys.stderr)  # noqa: T201 - what the command says


def one_line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())


def visible(text: str) -> str:
    """Text of others, without what would steer a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)


def cell(text: str) -> Text:
    """Text of others, as it is: no markup."""
    return Text(visible(text))


def span(seconds: float) -> str:
    """A time span in its two largest units: 3d4h, 12m30s, 0.4s."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f}s"
    left = int(seconds)
    for index, (unit, size) in enumerate(UNITS):
        if left >= size:
            lower, smaller = UNITS[index + 1] if index + 1 < len(UNITS) else ("s", 1)
            rest = left % size // smaller
            return f"{left // size}{unit}" + (f"{rest}{lower}" if rest else "")
    return f"{left}s"


def moment(at_ms: int | None) -> str:
    """UTC milliseconds as people read them."""
    if not at_ms:
        return ""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")


def value_of(encoded: bytes | None) -> Any:
    """What JSON says; where it is none, its text."""
    if not encoded:
        return None
    try:
        return orjson.loads(encoded)
    except orjson.JSONDecodeError:
        return encoded.decode(errors="replace")
