"""One process that serves everything over the workers' Valkey, for all that is thrown at it: it must take it all."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Iterator

import pytest

from tests.hostile.__main__ import ENVIRONMENT, FAULTS
from tests.hostile.known import make_known
from tests.serving import Serve
from tests.valkey import Valkey


@pytest.fixture(scope="session")
def everything(valkey: Valkey) -> Iterator[Serve]:
    """The served process; in the end its log holds no fault."""
    with tempfile.TemporaryDirectory(prefix="aioflow-hostile-") as data:
        environment = {**ENVIRONMENT, "AIOFLOW_NAMESPACE": "hostile"}
        options = ("--redis", valkey.url, "--port", "0", "--data", data, "--grace", "1")
        serve = Serve(*options, environment=environment)
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(serve.start())
            loop.run_until_complete(make_known(serve.url))
            yield serve
            ended = loop.run_until_complete(serve.stop())
            said = serve.said
        finally:
            serve.close()
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
    assert (ended, FAULTS.search(said)) == (0, None), said


def port_of(serve: Serve) -> int:
    """Where it listens."""
    found = re.search(r":(\d+)$", serve.url)
    assert found, serve.url
    return int(found[1])
