"""schemathesis against every route of every service: no fault, and no answer that /openapi.json does not have.

Drawn requests and their sequences for all routes; those that it makes of every bound and type, for a quarter of the
routes, which is another one each time. `python -m tests.hostile` is the long form, for all of them.
"""

from __future__ import annotations

import random

import pytest

from aioflow.cli.find import find_services
from aioflow.web import openapi
from tests.hostile.__main__ import try_all

SHARE = 4


def operations() -> list[str]:
    """The names of all that is described."""
    paths = openapi(find_services([]))["paths"]
    return sorted(operation["operationId"] for path in paths.values() for operation in path.values())


@pytest.mark.timeout(180)  # some 20 s of one core
async def test_every_answer_is_one_that_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOFLOW_DELIVERY_SECRETS", f"whsec_{'A' * 43}=")
    seed = random.SystemRandom().randrange(10**6)
    some = random.Random(seed).sample(operations(), len(operations()) // SHARE)
    named = [word for name in some for word in ("--include-operation-id", name)]
    code, said = await try_all(
        ["--phases", "fuzzing,stateful", "--max-examples", "3", "--seed", str(seed)],
        ["--phases", "coverage", "--seed", str(seed), *named],
    )
    assert code == 0, said
    assert "Failed to load" not in said
