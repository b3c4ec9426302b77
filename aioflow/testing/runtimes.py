"""A runtime of a test's own: its own Redis or at least its own keys, and a short grace period."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from aioflow.engine.clock import Clock
from aioflow.runtime import Runtime
from aioflow.service import Service
from aioflow.testing.valkey import PrivateValkey

GRACE_SECONDS = 1.0


@asynccontextmanager
async def fresh_runtime(
    services: Service | Sequence[Service],
    *,
    redis: str = "memory:",
    clock: Clock | None = None,
    namespace: str | None = None,
    grace: float = GRACE_SECONDS,
    durability: str = "memory",
    **options: Any,
) -> AsyncIterator[Runtime]:
    """A started runtime, stopped at the end: `async with fresh_runtime(payments) as runtime:`.

    `redis` is "memory:", "valkey:" (a server of its own, killed at the end; needs aioflow[embedded]) or any URL, where
    what is written stays. `clock` stands for the server's time and is moved by `clock.advance(seconds)`. `namespace`
    is a new one unless it is given, as to several runtimes that shall work together. `grace` is how many seconds
    running handlers get at the end. The other options are Runtime's. Raises as Runtime does.
    """
    with ExitStack() as stack:
        runtime = Runtime(
            [services] if isinstance(services, Service) else services,
            redis=stack.enter_context(PrivateValkey()).url if redis == "valkey:" else redis,
            clock=clock,
            namespace=namespace or f"test-{secrets.token_hex(6)}",
            grace=grace,
            durability=durability,
            **options,
        )
        async with runtime:
            yield runtime
