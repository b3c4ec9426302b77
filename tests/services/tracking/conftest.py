"""Tracking over SQLite in a folder of the test's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aioflow.settings import Settings, load_settings
from tests.services.tracking.client import TOKEN, Api, serving
from tests.valkey import Valkey


@pytest.fixture
def settings(valkey: Valkey, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A runtime's settings: SQLite in a folder of the test's, and a token."""
    monkeypatch.setenv("TRACKING_TOKEN", TOKEN)
    return load_settings(redis=valkey.url, namespace=namespace, data=str(tmp_path))


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    """Tracking over SQLite."""
    async with serving(settings) as client:
        yield client
