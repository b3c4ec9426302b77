"""Admission by memory: asks how full the server is when somebody wants to add to it, once a second at most."""

from __future__ import annotations

import asyncio
import logging
import time

from aioflow.engine.records import NO_EVICTION
from aioflow.engine.store import Store
from aioflow.errors import ConfigError, ProtocolError, StoreUnavailable

log = logging.getLogger(__name__)

FRESH_SECONDS = 1.0


class MemoryGauge:
    """Refuses above `watermark`, a share of the server's maxmemory or, where that is 0, of `budget` bytes (0: none)."""

    def __init__(self, store: Store, watermark: float, budget: int) -> None:
        self._store = store
        self._watermark = watermark
        self._budget = budget
        self._share = 0.0
        self._refused = 0  # since it is above the watermark
        self._asked_at = -FRESH_SECONDS
        self._asking = asyncio.Lock()

    async def check_eviction(self) -> None:
        """Raise ConfigError where the server may forget what it has accepted."""
        policy = (await self._store.memory()).policy
        if policy != NO_EVICTION:
            raise ConfigError(
                f"redis may evict accepted jobs: its maxmemory-policy is {policy}; CONFIG SET maxmemory-policy "
                f"{NO_EVICTION}, also in its configuration file, or take the risk by AIOFLOW_ALLOW_EVICTION=true "
                "(serve --allow-eviction)"
            )

    async def admit(self) -> None:
        """Raise StoreUnavailable above the watermark, as it was a second ago at most."""
        if time.monotonic() - self._asked_at > FRESH_SECONDS:
            await self._ask()
        if self._share > self._watermark:
            self._refused += 1
            # A limit that was lowered below what is in use would read as thousands of percent.
            raise StoreUnavailable(f"redis is {min(self._share, 1.0):.0%} full; nothing new is taken for now")

    async def _ask(self) -> None:
        async with self._asking:
            if time.monotonic() - self._asked_at <= FRESH_SECONDS:
                return
            before = self._share
            try:
                memory = await self._store.memory()
            except (StoreUnavailable, ProtocolError):
                self._share = 0.0  # a server that is away says so by itself
            else:
                limit = memory.limit or self._budget
                self._share = memory.used / limit if limit else 0.0
                self._tell(before, f"{memory.used:,} of {limit:,} bytes")
            self._asked_at = time.monotonic()

    def _tell(self, before: float, use: str) -> None:
        if self._share > self._watermark >= before:
            log.warning("redis is above the watermark of %.0f%% (%s): new jobs are refused", self._watermark * 100, use)
        elif before > self._watermark >= self._share:
            log.info("redis is below the watermark again (%s): %d new jobs had been refused", use, self._refused)
            self._refused = 0
