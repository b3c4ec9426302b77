"""The pytest plugin of aioflow: a runtime per test, on `memory:` or on a private Valkey, and a clock that tests move.

It is a module of its own, outside the package, because pytest imports it in every run of an environment that has
aioflow: it imports aioflow, which takes about half a second, only for tests that ask for a fixture. Its fixtures are
plain ones that give async context managers, so they work with whatever runs the async tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from aioflow import Runtime
    from aioflow.testing import Clock

CHOICES = ("memory", "valkey")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the tests' runtimes keep their jobs."""
    about = "where runtimes of the fixture aioflow_runtime keep their jobs: memory, or valkey for a private server"
    parser.getgroup("aioflow").addoption("--aioflow-redis", choices=CHOICES, default=None, help=about)
    parser.addini("aioflow_redis", about, default="memory")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a wrong setting at once."""
    if chosen_redis(config) not in CHOICES:
        raise pytest.UsageError(f"aioflow_redis = {chosen_redis(config)!r}: use one of {', '.join(CHOICES)}")


def chosen_redis(config: pytest.Config) -> str:
    """What the option says, else the ini file."""
    return str(config.getoption("--aioflow-redis") or config.getini("aioflow_redis"))


@pytest.fixture(scope="session")
def aioflow_redis(pytestconfig: pytest.Config) -> Iterator[str]:
    """URL of this run's Redis: `memory:`, or that of a private Valkey, which lives until the end of the session."""
    if chosen_redis(pytestconfig) == "memory":
        yield "memory:"
        return
    from aioflow.testing import PrivateValkey

    with PrivateValkey() as server:
        yield server.url


@pytest.fixture
def aioflow_clock() -> Clock:
    """The time of the test's runtimes: it stands still, and `aioflow_clock.advance(seconds)` moves it."""
    from aioflow.testing import Clock

    return Clock()


@pytest.fixture
def aioflow_runtime(
    request: pytest.FixtureRequest, aioflow_redis: str
) -> Callable[..., AbstractAsyncContextManager[Runtime]]:
    """Makes runtimes: `async with aioflow_runtime(payments) as runtime:`; options as `fresh_runtime` takes them.

    They go by `aioflow_clock` where the test asks for it.
    """
    from aioflow.testing import fresh_runtime

    def make(*services: Any, **options: Any) -> AbstractAsyncContextManager[Runtime]:
        if "aioflow_clock" in request.fixturenames:
            options.setdefault("clock", request.getfixturevalue("aioflow_clock"))
        return fresh_runtime(services, **{"redis": aioflow_redis, **options})

    return make
