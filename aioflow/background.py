"""A runtime in a thread of its own, for synchronous programs: `with Runtime([payments], workers=False): ...`."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Protocol


class Startable(Protocol):
    """A runtime."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Background:
    """Runs the loop of one runtime in a daemon thread, from `start` to `stop`."""

    def __init__(self, runtime: Startable) -> None:
        self._runtime = runtime
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="aioflow runtime", daemon=True)

    def start(self) -> None:
        """Return once the runtime has started. Raises what kept it from starting."""
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self) -> None:
        """Drain the runtime and end the thread. Raises what the runtime's stop raises."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self._failure = error
        self._started.set()

    async def _live(self) -> Any:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        await self._runtime.start()
        self._started.set()
        try:
            await self._stop.wait()
        finally:
            await self._runtime.stop()
