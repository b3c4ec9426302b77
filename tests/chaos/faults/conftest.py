"""The servers of the walks and of the counted calls, one each for all of this folder's tests on a worker."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest

from aioflow import runtime as runtime_module
from tests.chaos.faults.lanes import World
from tests.chaos.faults.store import FaultyStore
from tests.valkey import Valkey, running

ALL = os.environ.get("AIOFLOW_FAULTS") == "all"
"""Whether those are tried as well that CI has no time for."""


@pytest.fixture(scope="session")
def durable_valkey() -> Iterator[Valkey]:
    """A server that fsyncs, and that nobody else talks to: its statistics count the commands of a test alone."""
    with running(fsync=True) as server:
        yield server


@pytest.fixture(scope="session")
def walked_valkey() -> Iterator[Valkey]:
    """The server of the walks. It fsyncs in the long mode only: a busy disk would hold up all of them."""
    with running(fsync=ALL) as server:
        yield server


@pytest.fixture
async def world(walked_valkey: Valkey) -> AsyncIterator[World]:
    """For runtimes as they are."""
    async with World.on(walked_valkey) as made:
        yield made


@pytest.fixture
async def durable_world(durable_valkey: Valkey) -> AsyncIterator[World]:
    """On a server that fsyncs."""
    async with World.on(durable_valkey) as made:
        yield made


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runtimes that are made from now on have faulty stores."""
    monkeypatch.setattr(runtime_module, "Store", FaultyStore)
