"""Keeps one runtime on the list of its namespace's, and obeys the orders that are left for it there.

A beat says what the runtime does and hears its orders. It comes every few seconds, seldom in a large fleet, and at once
when the channel calls, after a reconnection, and when an order has been obeyed, so that whoever gave it sees that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from aioflow.engine.fleet import Fleet
from aioflow.errors import ProtocolError, StoreUnavailable

log = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
BEAT_SECONDS_OF_A_FLEET = 2.0
"""Per runtime: together they send a beat every two seconds at most."""
MISSED = 4
"""Beats after which a runtime is forgotten, and a minute at least."""


class Roster:
    """The beats of one runtime. `about` says what it does, `obey` takes (name, value) of an order."""

    def __init__(
        self,
        fleet: Fleet,
        runtime_id: str,
        about: Callable[[], Mapping[str, Any]],
        obey: Callable[[str, str], None],
    ) -> None:
        self.wanted = asyncio.Event()
        """Set it for a beat at once."""
        self._fleet = fleet
        self._id = runtime_id
        self._about = about
        self._obey = obey
        self._obeyed: dict[str, str] = {}
        self._period = BEAT_SECONDS
        self._leaving = False

    def __repr__(self) -> str:
        return f"<Roster {self._id} every={self._period:g}s obeyed={self._obeyed}>"

    async def run(self) -> None:
        """Beat until cancelled, or told to leave."""
        while not self._leaving:
            self.wanted.clear()
            try:
                obeyed = await self._beat()
            except (StoreUnavailable, ProtocolError) as error:
                await self._fleet.store.line.setback(error, "the list of runtimes")
                continue
            if not obeyed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._period):
                        await self.wanted.wait()
        # From here, so that no beat can follow.
        with contextlib.suppress(StoreUnavailable, ProtocolError):  # it is forgotten when it is silent for long
            await self._fleet.leave(self._id)

    def leave(self) -> None:
        """Take the runtime off the list; `run` returns once that is done."""
        self._leaving = True
        self.wanted.set()

    async def _beat(self) -> bool:
        """Whether there was an order to obey."""
        gone_ms = int(max(60.0, MISSED * self._period) * 1000)
        runtimes, orders = await self._fleet.beat(self._id, self._about(), gone_ms)
        self._period = max(BEAT_SECONDS, BEAT_SECONDS_OF_A_FLEET * runtimes)
        fresh = {name: value for name, value in orders.items() if self._obeyed.get(name) != value}
        for name, value in fresh.items():
            self._obeyed[name] = value
            try:
                self._obey(name, value)
            except (KeyError, ValueError):
                log.warning("an order that cannot be obeyed: %s %s", name, value)
        return bool(fresh)
