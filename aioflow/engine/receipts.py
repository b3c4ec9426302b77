"""What a receipt's durability asks of the server, and what its answers are worth. Carries I6."""

from __future__ import annotations

from typing import Any

from aioflow.engine.records import Durability
from aioflow.engine.wire import Command

RECEIPT_MS = 4000
"""How long a flush waits for its durability; below the round trip's deadline."""
FSYNC_POLICY = ("appendonly", "appendfsync")
FSYNC_NEEDS = "appendonly yes, appendfsync always"


def replicas_of(durability: Durability) -> int:
    """How many replicas "replicated:N" asks for; 0 for the others."""
    return int(durability.removeprefix("replicated:")) if durability.startswith("replicated:") else 0


def proof_of(durability: Durability) -> list[Command]:
    """What is asked behind a submit, in the same pipeline, before its receipt is given."""
    if durability == "memory":
        return []
    if durability == "fsync":
        return [("WAITAOF", 1, 0, RECEIPT_MS), ("CONFIG", "GET", *FSYNC_POLICY)]
    return [("WAIT", replicas_of(durability), RECEIPT_MS)]


def unproven(durability: Durability, answers: list[Any]) -> str | None:
    """Why these answers to `proof_of` allow no receipt; None where they do."""
    if durability == "memory":
        return None
    if durability == "fsync":
        synced, policy = answers
        if synced[0] < 1:
            return f"redis did not fsync within {RECEIPT_MS} ms"
        # Whoever may configure the server can lower its policy at any time, and a failover may as well.
        return None if fsyncs(policy) else f"redis does not fsync before it answers any more ({FSYNC_NEEDS})"
    (reached,) = answers
    asked = replicas_of(durability)
    return None if reached >= asked else f"{reached} of {asked} replicas had it within {RECEIPT_MS} ms"


def fsyncs(policy: list[bytes]) -> bool:
    """Whether a server whose CONFIG GET answers so fsyncs before it answers."""
    return dict(zip(policy[::2], policy[1::2], strict=True)) == {b"appendonly": b"yes", b"appendfsync": b"always"}
