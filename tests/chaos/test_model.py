"""The store beside a plain Python model: 2,000 examples here, more by AIOFLOW_MODEL_EXAMPLES."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from aioflow.engine import scripts
from aioflow.errors import ProtocolError
from tests.chaos.machine import Machine, World
from tests.chaos.mutations import MUTATIONS, Mutation, plant

QUIET = list(HealthCheck)
EXAMPLES = int(os.environ.get("AIOFLOW_MODEL_EXAMPLES", "1000"))
"""Of each clock."""


@pytest.fixture(params=["server time", "moved clock"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(moved=request.param == "moved clock")
    yield made
    made.close()


def explore(world: World, examples: int, **how: Any) -> None:
    """Make up so many examples of 40 calls."""
    run_state_machine_as_test(
        type("Machine", (Machine,), {"world": world}),
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=QUIET, **how
        ),
    )


@pytest.mark.timeout(30 + EXAMPLES)
def test_the_store_does_what_the_model_says(world: World) -> None:
    explore(world, EXAMPLES)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_bug_is_noticed(mutation: Mutation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(mutation, tmp_path)
    monkeypatch.setattr(scripts, "script_root", lambda: root)
    scripts.load.cache_clear()
    world = World(moved=True)
    try:
        with pytest.raises((AssertionError, ProtocolError)):
            explore(world, 3000, phases=[Phase.generate])
    finally:
        world.close()
        scripts.load.cache_clear()
