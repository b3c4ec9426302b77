"""A board on a clock that the test moves, without the service's loops; and the service as clients see it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from aioflow import Runtime, Service
from services.moderation.board import SCRIPTS, Board
from services.moderation.settings import ModerationSettings
from tests.conftest import Clock
from tests.services.moderation.client import Api, running
from tests.serving import ROOT
from tests.valkey import Valkey

bare = Service("moderation")
"""The service without its loops: nothing happens but what a test calls."""
scripts = {name: bare.script(ROOT / "lua" / "moderation" / f"{name}.lua") for name in SCRIPTS}


@pytest.fixture
async def bare_runtime(valkey: Valkey, namespace: str) -> AsyncIterator[Runtime]:
    """A runtime whose keys are the service's."""
    async with Runtime([bare], redis=valkey.url, namespace=namespace, workers=False) as runtime:
        yield runtime


@pytest.fixture
def make_board(bare_runtime: Runtime, clock: Clock) -> Callable[..., Board]:
    """A board with settings of the test's own; two of them are two processes."""

    def make(nonce: str = "abc", **settings: object) -> Board:
        return Board(bare_runtime, scripts, ModerationSettings(**settings), nonce, clock)  # type: ignore[arg-type]

    return make


@pytest.fixture
def board(make_board: Callable[..., Board]) -> Board:
    """A board with the default settings."""
    return make_board()


Serving = Callable[..., AbstractAsyncContextManager[Api]]


@pytest.fixture
def serving(valkey: Valkey, namespace: str) -> Serving:
    """Serve the service on this test's keys; called twice, there are two processes as far as Redis can tell."""

    def serve(**options: object) -> AbstractAsyncContextManager[Api]:
        return running(**{"redis": valkey.url, "namespace": namespace, **options})

    return serve


@pytest.fixture
async def api(serving: Serving) -> AsyncIterator[Api]:
    """The service with its default settings."""
    async with serving() as made:
        yield made
