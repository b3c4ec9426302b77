"""Which key it was: Redis says that a key holds the wrong kind of value, but not which one.

Asked only after such an error, of the keys that the refused calls name.
"""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from aioflow.engine.scripts import Script
from aioflow.engine.wire import Command

WRONG_TYPE = "WRONGTYPE"
MOST_KEYS = 100


async def foreign_keys(server: Redis, script: Script, commands: Sequence[Command]) -> str:
    """The keys of some calls of a script that hold another type than its header says; empty where none can be named.

    Raises the driver's errors where the server cannot be asked.
    """
    wanted: dict[str, str] = {}
    for command in commands:
        if command[0] == "EVALSHA":
            keys = command[3 : 3 + int(command[2])]
            wanted |= {str(key): kind for key, (_, kind) in zip(keys, script.keys, strict=False)}
    names = list(wanted)[:MOST_KEYS]
    pipeline = server.pipeline(transaction=False)
    for name in names:
        pipeline.type(name)
    found = [kind.decode() for kind in await pipeline.execute()]
    return "; ".join(
        f"{name} holds a {kind}, not a {wanted[name]}"
        for name, kind in zip(names, found, strict=True)
        if kind not in (wanted[name], "none")
    )
