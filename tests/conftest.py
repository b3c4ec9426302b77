"""Fixtures: a real Valkey per xdist worker, a fresh namespace per test, and a check that no task is left behind."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from aioflow.engine.keys import Queue
from aioflow.engine.store import Store
from tests import acl
from tests.cluster import Cluster
from tests.valkey import Valkey, running

acl.install()

TOLD = "told"
"""The property of a test that is shown at the end of all, also of one that passes."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests want to be known, such as the seed of a chaos run."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                told = [text for name, text in report.user_properties if name == TOLD]
                if told:
                    terminalreporter.section(report.nodeid.rpartition("::")[2])
                    terminalreporter.write_line(told[-1])


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """One server for all tests of this worker; a test that stops or reconfigures a server takes `own_valkey`."""
    with running() as server:
        yield server


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    """A server of the test's own, with appendfsync always."""
    with running(fsync=True) as server:
        yield server


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One cluster for all tests of this worker that leave its nodes and its slots as they were."""
    made = Cluster()
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def queue(namespace: str) -> Queue:
    """A queue that no other test uses."""
    return Queue(namespace, "demo", "work")


class Clock:
    """The server's time as a test moves it, in UTC ms."""

    def __init__(self) -> None:
        self.ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    """A clock that the test moves."""
    return Clock()


@pytest.fixture
async def store(valkey: Valkey) -> AsyncIterator[Store]:
    """A store on the server's own time."""
    made = Store(valkey.url, name="aioflow:test")
    yield made
    await made.close()


@pytest.fixture
async def clocked(valkey: Valkey, clock: Clock) -> AsyncIterator[Store]:
    """A store on the test's clock."""
    made = Store(valkey.url, name="aioflow:test", clock=clock)
    yield made
    await made.close()


@pytest.fixture(autouse=True)
async def no_task_left() -> AsyncIterator[None]:
    """Fail a test that leaves an asyncio task behind."""
    before = asyncio.all_tasks()
    yield
    left = {task for task in asyncio.all_tasks() - before if not task.done() and task is not asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"
