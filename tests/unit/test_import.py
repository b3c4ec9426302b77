"""`import aioflow` loads what is asked for, and no more."""

from __future__ import annotations

import subprocess
import sys

import pytest

import aioflow


def loaded(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after this code."""
    told = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(told.stdout.split())


def test_the_package_alone_loads_no_library() -> None:
    assert not loaded("import aioflow") & {"pydantic", "redis", "aiohttp", "asyncio", "orjson"}


def test_a_program_that_runs_no_ingress_loads_no_http_server() -> None:
    assert "aiohttp" not in loaded("from aioflow import Runtime, Service")


def test_every_public_name_is_there() -> None:
    assert set(aioflow._HOME_OF) == set(aioflow.__all__) == set(dir(aioflow))
    for name in aioflow.__all__:
        assert getattr(aioflow, name).__name__ == name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'aioflow' has no attribute 'Nothing'"):
        aioflow.Nothing  # noqa: B018
