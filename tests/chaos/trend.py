"""Whether a figure that was sampled over time stands still: a line through its samples, and how far it rises.

The line is that of Theil and Sen, the median of the slopes between all pairs of samples: a few spikes, such as a
rewrite of the server's AOF or a collection of garbage, do not move it. Source: P. K. Sen, "Estimates of the regression
coefficient based on Kendall's tau", JASA 63 (1968).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MOST_SAMPLES = 400
"""That a line is laid through; of more, evenly spread ones."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much a figure may rise over the span that is seen: a share of its median, or `least` where that is more."""

    share: float
    least: float


@dataclass(frozen=True, slots=True)
class Trend:
    """How a figure went, from the end of the warm-up on."""

    name: str
    unit: str
    first: float
    last: float
    median: float
    per_hour: float
    """The slope."""
    rise: float
    """Slope times span."""
    allowed: float

    @property
    def flat(self) -> bool:
        """Whether it does not grow; that it shrinks is no fault."""
        return self.rise <= self.allowed

    def __str__(self) -> str:
        verdict = "flat" if self.flat else "GROWS"
        return (
            f"{self.name:24} {self.first:>14,.1f} {self.last:>14,.1f} {self.unit:6} {self.per_hour:>+16,.1f} an hour, "
            f"{self.rise:>+12,.1f} in all (up to {self.allowed:,.1f})  {verdict}"
        )


def slope_of(times: Sequence[float], values: Sequence[float]) -> float:
    """The median of the slopes between all pairs. Raises ValueError where there are fewer than two moments."""
    step = max(1, -(-len(times) // MOST_SAMPLES))
    times, values = times[::step], values[::step]
    slopes = [
        (values[later] - values[sooner]) / (times[later] - times[sooner])
        for sooner in range(len(times))
        for later in range(sooner + 1, len(times))
        if times[later] > times[sooner]
    ]
    if not slopes:
        raise ValueError("a line needs samples of two moments")
    return statistics.median(slopes)


def trend_of(name: str, unit: str, times: Sequence[float], values: Sequence[float], allowance: Allowance) -> Trend:
    """The trend of a figure; `times` are in seconds."""
    slope, median = slope_of(times, values), statistics.median(values)
    edge = max(1, len(values) // 10)
    return Trend(
        name,
        unit,
        statistics.median(values[:edge]),
        statistics.median(values[-edge:]),
        median,
        slope * 3600,
        slope * (times[-1] - times[0]),
        max(allowance.share * median, allowance.least),
    )
