"""Waiting for a state without sleeping a fixed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def wait_until(condition: Callable[[], T | Awaitable[T]], seconds: float = 10.0) -> T:
    """Ask again and again until the answer is true, and return it; fail after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        asked = condition()
        answer: T = await asked if inspect.isawaitable(asked) else asked
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {inspect.getsource(condition).strip()} (last {answer!r})")
        await asyncio.sleep(0.01)
