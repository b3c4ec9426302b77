"""How the drain rate and the memory grow with what waits."""

from __future__ import annotations

from tests.bench.environments import System
from tests.bench.server import Server

SUBMITTERS = 200
WINDOW = 10_000
"""Jobs that are drained per depth and turn."""
DEPTHS = (10_000, 100_000, 1_000_000)
TURNS = 15


async def grown(ours: System, most: int) -> dict[str, list[float]]:
    """Drain rates and bytes per waiting job by depth; the depths take turns, on a server each."""
    found: dict[str, list[float]] = {}
    servers = {depth: Server() for depth in DEPTHS if depth <= most}
    try:
        for depth, server in servers.items():
            server.valkey.start()
            before = await server.spent()
            await ours.run("submit", server.url, jobs=depth, submitters=SUBMITTERS, size=16)
            memory = ((await server.spent())["memory"] - before["memory"]) / depth
            found[f"bytes of a waiting job among {depth:,}"] = [memory]
        for _ in range(TURNS):
            for depth, server in servers.items():
                drained = await ours.run("drain", server.url, jobs=WINDOW, concurrency=100, wait_ms=0)
                found.setdefault(f"drain, jobs/s, {depth:,} waiting", []).append(drained["rate"])
                await ours.run("submit", server.url, jobs=WINDOW, submitters=SUBMITTERS, size=16)
    finally:
        for server in servers.values():
            server.valkey.close()
    return found
