"""How full the server's memory is, asked when somebody wants to know, once a second at most."""

from __future__ import annotations

import asyncio
import time

from aioflow.engine.store import Store
from aioflow.errors import ProtocolError, StoreUnavailable

FRESH_SECONDS = 1.0


class MemoryGauge:
    """used_memory as a share of maxmemory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._share = 0.0
        self._asked_at = -FRESH_SECONDS
        self._asking = asyncio.Lock()

    async def share(self) -> float:
        """0 to 1 and more, a second old at most; 0 where no maxmemory is set. Raises nothing: submits say the rest."""
        if time.monotonic() - self._asked_at > FRESH_SECONDS:
            async with self._asking:
                if time.monotonic() - self._asked_at > FRESH_SECONDS:
                    try:
                        self._share = await self._store.memory_share()
                    except (StoreUnavailable, ProtocolError):
                        self._share = 0.0  # a server that is away says so by itself
                    self._asked_at = time.monotonic()
        return self._share
