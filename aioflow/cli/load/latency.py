"""Latencies as HDR histograms: bounded memory, however many are recorded, and three significant digits."""

from __future__ import annotations

from aioflow.errors import ConfigError

LONGEST_US = 30 * 86_400 * 1_000_000
"""Longer ones count as this."""
DIGITS = 3
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
BOUNDS_US = [digit * 10**power for power in range(1, 12) for digit in (1, 2, 5)]
"""What the chart is divided by."""


class Latency:
    """One kind of latency. `resolution_us` is how fine the clocks are that it is measured by."""

    def __init__(self, resolution_us: int) -> None:
        try:
            from hdrh.histogram import HdrHistogram
        except ImportError:
            raise ConfigError("load needs hdrhistogram; pip install 'aioflow[load]'") from None
        self.resolution_us = resolution_us
        self._histogram = HdrHistogram(1, LONGEST_US, DIGITS)

    @property
    def count(self) -> int:
        """How many were recorded."""
        return int(self._histogram.get_total_count())

    def record(self, seconds: float) -> None:
        """Take one. Clocks of two machines may make it negative: that counts as 0."""
        self._histogram.record_value(min(LONGEST_US, max(0, int(seconds * 1_000_000))))

    def summary_ms(self) -> dict[str, float]:
        """p50, p90, p99, p99.9 and max in milliseconds; empty where nothing was recorded."""
        if not self.count:
            return {}
        values = {f"p{percent:g}": self._histogram.get_value_at_percentile(percent) for percent in PERCENTILES}
        return {name: value / 1000 for name, value in (values | {"max": self._histogram.get_max_value()}).items()}

    def by_bound(self) -> dict[int, int]:
        """How many lie at or below each of BOUNDS_US and above the one before it, without the empty ends.

        Bounds that are finer than the resolution are left out.
        """
        counts = {bound: 0 for bound in BOUNDS_US if bound >= self.resolution_us}
        bounds = iter(counts)
        bound = next(bounds)
        for step in self._histogram.get_recorded_iterator():
            while step.value_iterated_to > bound and bound < BOUNDS_US[-1]:
                bound = next(bounds)
            counts[bound] += step.count_added_in_this_iter_step
        filled = [bound for bound, count in counts.items() if count]
        return {bound: count for bound, count in counts.items() if filled and filled[0] <= bound <= filled[-1]}
