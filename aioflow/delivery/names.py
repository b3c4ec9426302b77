"""Looks names up without ever holding up others: the system's resolver, in daemon threads, one a name.

A lookup cannot be cancelled, and a receiver whose name servers are slow could fill the threads of the event loop's own
pool, which aiohttp's resolver shares with everybody. Here all that ask for a name wait for the same thread, and what a
lookup takes comes out of the time of those attempts alone. A daemon thread does not keep the process alive.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

log = logging.getLogger(__name__)

MOST_LOOKUPS = 64
"""Threads; who comes later waits, within the time of the attempt."""

Looked = list[tuple[int, str]] | OSError
"""(family, address) of each, or why there are none."""


class Resolver(AbstractResolver):
    """The system's resolver, for one event loop."""

    def __init__(self) -> None:
        self._under_way: dict[tuple[str, int], asyncio.Future[Looked]] = {}
        self._slots = asyncio.Semaphore(MOST_LOOKUPS)

    def __repr__(self) -> str:
        return f"<Resolver looking up {len(self._under_way)}>"

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """All addresses of a name. Raises OSError. Cancelled, the lookup goes on for the others who wait for it."""
        looked = await asyncio.shield(await self._lookup(host, family))
        if isinstance(looked, OSError):
            raise OSError(looked.errno, looked.strerror) from looked
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for kind, address in looked
        ]

    async def close(self) -> None:
        """Nothing is held: threads end with their lookups."""

    async def _lookup(self, host: str, family: int) -> asyncio.Future[Looked]:
        key = (host, family)
        if key not in self._under_way:
            await self._slots.acquire()
            if key in self._under_way:  # another came first while this one waited
                self._slots.release()
            else:
                return self._start(key)
        return self._under_way[key]

    def _start(self, key: tuple[str, int]) -> asyncio.Future[Looked]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Looked] = loop.create_future()
        self._under_way[key] = done

        def tell(looked: Looked) -> None:
            del self._under_way[key]
            self._slots.release()
            done.set_result(looked)

        def work() -> None:
            looked = look_up(*key)
            try:
                loop.call_soon_threadsafe(tell, looked)
            except RuntimeError:
                log.debug("the name %s was looked up after the event loop had ended", key[0])

        try:
            threading.Thread(target=work, name=f"aioflow name {key[0]}", daemon=True).start()
        except RuntimeError as error:  # no thread can be had; whoever asks later tries again
            tell(OSError(errno.EAGAIN, str(error)))
        return done


def look_up(host: str, family: int) -> Looked:
    """Ask the system; blocks."""
    try:
        found: list[Any] = socket.getaddrinfo(host, None, family=family, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except UnicodeError as error:  # of a label that is too long
        return OSError(socket.EAI_NONAME, str(error))
    return list(dict.fromkeys((kind, address[0]) for kind, _, _, _, address in found))
