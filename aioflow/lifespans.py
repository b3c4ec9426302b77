"""Enters the services' lifespans at the start and leaves them at the stop, both in one task.

What a lifespan opens, such as a task group, must often be closed by the task that opened it; a runtime may be started
and stopped by two.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from contextvars import Context
from typing import Any

from aioflow.service import Service

log = logging.getLogger(__name__)


class Lifespans:
    """The lifespans of one runtime."""

    def __init__(self) -> None:
        self.resources: dict[str, Any] = {}
        """What each service's lifespan yielded, by the service's name."""
        self._task: asyncio.Task[None] | None = None
        self._entered = asyncio.Event()
        self._leave = asyncio.Event()

    async def enter(
        self,
        services: Iterable[Service],
        runtime: Any,
        ended: Callable[[asyncio.Task[None]], None],
        context: Context,
    ) -> None:
        """Enter them in order, in that context. Raises what a lifespan raises; those before it are left then.

        `ended` is told when they end, also where one of them fails while the runtime runs.
        """
        having = [service for service in services if service.lifespan is not None]
        if not having:
            return
        task = self._task = asyncio.create_task(self._hold(having, runtime), name="aioflow lifespans", context=context)
        waiting = asyncio.create_task(self._entered.wait(), name="aioflow lifespans entered")
        try:
            await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if task.done():
            self._task = None
            task.result()
        task.add_done_callback(ended)

    async def leave(self, seconds: float) -> None:
        """Leave them, last first; after so many seconds they are cancelled. Raises what they raise."""
        task = self._task
        if task is None:
            return
        self._leave.set()
        if not self._entered.is_set():
            task.cancel()
        _, late = await asyncio.wait([task], timeout=seconds)
        if late:
            log.error("the services' lifespans did not end within %g s; cancelled", seconds)
            task.cancel()
            _, stuck = await asyncio.wait([task], timeout=1.0)
            if stuck:
                log.error("the services' lifespans do not end")
                return
        if not task.cancelled():
            task.result()

    async def _hold(self, services: list[Service], runtime: Any) -> None:
        failure: BaseException | None = None
        async with AsyncExitStack() as stack:
            try:
                for service in services:
                    if service.lifespan is not None:
                        self.resources[service.name] = await stack.enter_async_context(service.lifespan(runtime))
            except BaseException as error:  # noqa: BLE001 - raised below; those before it are left in order
                failure = error
            else:
                self._entered.set()
                await self._leave.wait()
        if failure is not None:
            raise failure
