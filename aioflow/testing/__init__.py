"""What users' tests use: run one handler, a runtime of a test's own, drain it, move its clock."""

from aioflow.engine.clock import Clock
from aioflow.testing.draining import NotDrained, drain
from aioflow.testing.handler import Effect, Emit, Ran, run_handler
from aioflow.testing.runtimes import fresh_runtime
from aioflow.testing.valkey import PrivateValkey

__all__ = [
    "Clock",
    "Effect",
    "Emit",
    "NotDrained",
    "PrivateValkey",
    "Ran",
    "drain",
    "fresh_runtime",
    "run_handler",
]
