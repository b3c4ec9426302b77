"""One process that serves everything, for all that is thrown at it: it must take it all."""

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
def everything() -> Iterator[Serve]:
    """The served process, with a server of its own: tests read what runs on the one that they share.

    In the end its log holds no fault.
    """
    valkey = Valkey()
    with tempfile.TemporaryDirectory(prefix="aioflow-hostile-") as data:
        options = ("--redis", valkey.url, "--port", "0", "--data", data, "--grace", "1")
        serve = Serve(*options, environment=ENVIRONMENT)
        loop = asyncio.new_event_loop()
        try:
            valkey.start()
            loop.run_until_complete(serve.start())
            loop.run_until_complete(make_known(serve.url))
            yield serve
            ended = loop.run_until_complete(serve.stop())
            said = serve.said
        finally:
            serve.close()
            valkey.close()
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
    assert (ended, FAULTS.search(said)) == (0, None), said


def port_of(serve: Serve) -> int:
    """Where it listens."""
    found = re.search(r":(\d+)$", serve.url)
    assert found, serve.url
    return int(found[1])
