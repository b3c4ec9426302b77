"""The chaos run, short and with a new seed each time; `python -m tests.chaos --minutes N` is the long one."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.chaos.mishaps import Mishaps
from tests.chaos.report import SHOWN, Report
from tests.chaos.run import Run, new_seed
from tests.chaos.world import World
from tests.conftest import TOLD


@pytest.mark.timeout(300)
async def test_nothing_is_lost_or_doubled_while_everything_is_killed(
    record_property: Callable[[str, object], None],
) -> None:
    run = Run(new_seed(), 0.6)
    record_property(TOLD, run.report.again)
    report = await run.run()
    record_property(TOLD, report.summary())
    assert not report.wrong, json.dumps(report.told(), indent=2)
    assert report.accepted["order"] > 500, report.summary()


def test_a_run_in_which_nothing_happened_has_shown_nothing() -> None:
    report = Report(1, 30, 0.1)
    assert len(report.nothing_shown()) == 3 + len(SHOWN) + 1
    report.accepted.update(order=1, payment=1, wait=1)
    report.judged.update(dict.fromkeys(SHOWN, 1))
    report.process_kills = 1
    assert not report.nothing_shown()


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
