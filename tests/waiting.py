"""Waiting for a state without sleeping a fixed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

from aioflow import Handle, State

T = TypeVar("T")


@overload
async def wait_until(condition: Callable[[], Awaitable[T]], seconds: float = ...) -> T: ...
@overload
async def wait_until(condition: Callable[[], T], seconds: float = ...) -> T: ...
async def wait_until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Ask again and again until the answer is true, and return it; fail after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        asked = condition()
        answer = await asked if inspect.isawaitable(asked) else asked
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {_said(condition)} (last {answer!r})")
        await asyncio.sleep(0.01)


def _said(condition: Callable[[], Any]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except TypeError:  # a built-in method or a partial has no source
        return repr(condition)


async def in_state(handle: Handle[Any], state: State, seconds: float = 10.0) -> None:
    """Wait until a job is in a state."""

    async def there() -> bool:
        return (await handle.status()).state is state

    await wait_until(there, seconds)
