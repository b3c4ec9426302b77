"""Each call of the core path, the first, the second, and so on: what comes of one that fails, or is cancelled in.

Enumerated, not sampled: a method's calls are struck one after the other until a walk has no such call. With
AIOFLOW_FAULTS=all runtimes are stopped in the calls as well that change nothing on the server.
"""

from __future__ import annotations

import pytest

from tests.chaos.faults.conftest import ALL
from tests.chaos.faults.lanes import World, fail_a_stop, stop_all, store_fault, together, walk_all
from tests.chaos.faults.store import METHODS, Kind

pytestmark = pytest.mark.usefixtures("faulty")

ASKED_FOR = {"submit", "await_result", "cancel"}
"""Calls that somebody waits for."""
AT_THE_STOP = {"release", "promote"}
"""Calls that only a runtime makes which stops."""
ALWAYS = {"wait_bell"}
"""In which every runtime is stopped."""
READS = {"outbox", "await_result", "promote", "reap", "cancel"}
"""Calls in which a stop leaves nothing that it would not leave elsewhere."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "kind", [Kind.LOST, Kind.UNANSWERED, Kind.CANCELLED_BEFORE, Kind.CANCELLED_AFTER], ids=lambda kind: kind.name
)
async def test_a_call_that_fails_or_is_cancelled_in_loses_and_doubles_nothing(world: World, kind: Kind) -> None:
    cancels = kind in {Kind.CANCELLED_BEFORE, Kind.CANCELLED_AFTER}
    await together(
        *(
            walk_all(world, store_fault(method, kind), f"{method}: {kind.value}", lane=lane, lanes=2)
            for method in METHODS
            for lane in range(2)
            if (method in ASKED_FOR if cancels else method not in AT_THE_STOP)
        )
    )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", [Kind.STOPPED_BEFORE, Kind.STOPPED_AFTER], ids=lambda kind: kind.name)
async def test_a_runtime_that_stops_in_any_call_leaves_all_to_its_heir(world: World, kind: Kind) -> None:
    methods = set(METHODS) - ALWAYS - (set() if ALL else READS)
    await together(*(stop_all(world, method, kind, lane=lane, lanes=2) for method in methods for lane in range(2)))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", [Kind.LOST, Kind.UNANSWERED], ids=lambda kind: kind.name)
async def test_a_stop_whose_own_calls_fail_leaves_all_to_its_heir(world: World, kind: Kind) -> None:
    await together(*(fail_a_stop(world, method, kind) for method in AT_THE_STOP))
