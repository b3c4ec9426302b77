"""The chaos run, short and with a new seed each time; `python -m tests.chaos --minutes N` is the long one."""

from __future__ import annotations

import json

import pytest

from tests.chaos.mishaps import Mishaps
from tests.chaos.run import Run, new_seed
from tests.chaos.world import World


@pytest.mark.timeout(300)
async def test_nothing_is_lost_or_doubled_while_everything_is_killed() -> None:
    run = Run(new_seed(), 0.6)
    print(run.report.again)
    report = await run.run()
    assert not report.wrong, json.dumps(report.told(), indent=2)
    assert report.accepted["order"] > 500, report.summary()
    assert report.process_kills, report.summary()
    assert report.judged["order"], report.summary()


async def test_a_seed_draws_one_schedule() -> None:
    world = World(1, 0.1, 0.0)
    try:
        first, again, other = (Mishaps(world, seed) for seed in (1, 1, 2))

        def drawn(faults: Mishaps) -> list[tuple[float, str]]:
            return [(pause, fault.__name__) for pause, fault in (faults.draw() for _ in range(100))]

        schedule = drawn(first)
        assert schedule == drawn(again) != drawn(other)
        assert {name for _, name in schedule} == {fault.__name__ for fault in first._faults}, "none is left out"
    finally:
        await world.close()
