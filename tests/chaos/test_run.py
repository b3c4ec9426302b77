"""The chaos run, short and with a new seed each time; `python -m tests.chaos --minutes N` is the long one."""

from __future__ import annotations

import random

import pytest

from tests.chaos.run import Run


@pytest.mark.timeout(300)
async def test_nothing_is_lost_or_doubled_while_everything_is_killed() -> None:
    # pytest-randomly prints the seed of the whole, which this one follows from; a failure shows this one.
    report = await Run(random.getrandbits(32), 0.6).run()
    assert not report.wrong, report.told()
    assert report.accepted["order"] > 500, report.told()
    assert report.process_kills, report.told()
