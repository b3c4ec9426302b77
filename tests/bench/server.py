"""A Valkey on a TCP port, where any client finds it."""

from __future__ import annotations

import socket
from typing import Any

from redis.asyncio import Redis

from tests.valkey import Valkey


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A Valkey on a TCP port, and what it says of itself."""

    def __init__(self, *, fsync: bool = False) -> None:
        self.port = free_port()
        self.valkey = Valkey(fsync=fsync, arguments=("--port", str(self.port)))
        self.url = f"redis://127.0.0.1:{self.port}/0"

    async def empty(self) -> None:
        """Forget everything."""
        async with Redis.from_url(self.url) as redis:
            await redis.execute_command("FLUSHALL", "SYNC")  # or its memory is still being freed when it is measured

    async def settings(self) -> dict[Any, Any]:
        """What may matter to speed."""
        names = (
            "appendonly", "appendfsync", "io-threads", "maxmemory", "maxmemory-policy", "save",
            "hash-max-listpack-entries", "zset-max-listpack-entries",
        )  # fmt: skip
        async with Redis.from_url(self.url, decode_responses=True) as redis:
            found: dict[Any, Any] = await redis.config_get(*names)
        return found

    async def spent(self) -> dict[str, float]:
        """Its counters."""
        async with Redis.from_url(self.url) as redis:
            told = await redis.info("all")
        return {
            "commands": told["total_commands_processed"],
            "reads": told["total_reads_processed"],
            "bytes": told["total_net_input_bytes"] + told["total_net_output_bytes"],
            "cpu_us": 1e6 * (told["used_cpu_user"] + told["used_cpu_sys"]),
            "memory": told["used_memory"],
        }
