"""The soak notices what grows: planted leaks are found, and what only swings is not called one."""

from __future__ import annotations

import math
import os
import random

import pytest

from tests.chaos.soak import Soak
from tests.chaos.trend import Allowance, slope_of, trend_of

TIMES = [5.0 * number for number in range(160)]


def test_the_slope_is_that_of_the_line_whatever_spikes_there_are() -> None:
    random_ = random.Random(1)
    values = [100 + 0.01 * at + random_.gauss(0, 0.2) + (500 if random_.random() < 0.1 else 0) for at in TIMES]
    assert slope_of(TIMES, values) == pytest.approx(0.01, rel=0.2)
    with pytest.raises(ValueError, match="two moments"):
        slope_of([1.0, 1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("leak_per_hour", "flat"),
    [(0.0, True), (2.0, True), (-500.0, True), (40.0, False), (400.0, False)],
)
def test_a_leak_is_told_from_noise(leak_per_hour: float, flat: bool) -> None:
    """A process of 100 MiB that swings by 5, over 13 minutes."""
    random_ = random.Random(2)
    values = [
        100 + 5 * math.sin(at / 40) + random_.gauss(0, 1) + leak_per_hour * at / 3600
        for at in TIMES
    ]  # fmt: skip
    trend = trend_of("memory", "MiB", TIMES, values, Allowance(0.03, 3.0))
    assert trend.flat is flat, str(trend)


async def test_a_planted_leak_is_named_and_nothing_else() -> None:
    """A descriptor is left open by each tenth job."""
    left: list[int] = []
    calls = iter(range(10**9))

    def leak() -> None:
        if next(calls) % 10 == 0:
            left.append(os.open("/dev/null", os.O_RDONLY))

    try:
        report = await Soak(4 / 60, 100, every=0.2, leak=leak).run()
    finally:
        for descriptor in left:
            os.close(descriptor)
    assert report.done > 200
    grown = {trend.name for trend in report.trends if not trend.flat}
    assert "file descriptors" in grown
    assert "file descriptors grows" in report.wrong
    assert not {"connections", "tasks", "keys"} & grown, str(report)
    assert "GROWS" in str(report)
    assert report.told()["trends"]["file descriptors"]["flat"] is False
