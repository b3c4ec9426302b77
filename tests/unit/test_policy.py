"""Waits: how retries and reconnects are spread; random.uniform says between what, and is answered with the most."""

from __future__ import annotations

import asyncio
import random

import pytest

from aioflow import ConfigError, Retry, StoreUnavailable
from aioflow.engine.line import Line
from aioflow.policy import LONGEST_WAIT
from services.payments.api import charge


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Between what a wait was drawn."""
    drawn: list[tuple[float, float]] = []

    def uniform(least: float, most: float) -> float:
        drawn.append((least, most))
        return most

    monkeypatch.setattr(random, "uniform", uniform)
    return drawn


def test_the_wait_before_a_retry_is_drawn_from_nothing_to_a_bound_that_doubles(
    drawn: list[tuple[float, float]],
) -> None:
    retry = Retry(attempts=8, base=0.5, longest=10.0)
    delays = [retry.delay(ValueError(), failures) for failures in range(8)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, None]
    assert drawn == [(0, delay) for delay in delays[:-1]], "full jitter"
    assert Retry(attempts=10_000).delay(ValueError(), 5_000) == 300.0, "no overflow"


class Busy(Exception):
    """Says when to come again."""

    def __init__(self, retry_after: object) -> None:
        self.retry_after = retry_after


class Broken(Exception):
    """Cannot even say that."""

    @property
    def retry_after(self) -> float:
        raise RuntimeError("broken")


def test_an_exception_sets_the_least_wait_and_what_is_drawn_comes_on_top(drawn: list[tuple[float, float]]) -> None:
    retry = Retry(attempts=3, base=0.5, longest=10.0)
    assert [retry.delay(Busy(60), failures) for failures in range(3)] == [60.5, 61.0, None]
    assert drawn == [(0, 0.5), (0, 1.0)]
    assert retry.delay(Busy(0.25), 0) == 0.75
    for most in (float("inf"), 10**400, LONGEST_WAIT + 1):
        assert retry.delay(Busy(most), 0) == LONGEST_WAIT


@pytest.mark.parametrize("error", [Broken(), *map(Busy, [None, -1, 0, float("nan"), True, "60", [60]])], ids=repr)
def test_what_is_no_number_of_seconds_sets_none(drawn: list[tuple[float, float]], error: Exception) -> None:
    assert Retry(base=0.5).delay(error, 0) == 0.5


def test_only_what_is_to_be_retried_is() -> None:
    retry = Retry(on=(OSError, ValueError), never=(FileNotFoundError,))
    assert [retry.delay(error, 0) is None for error in (OSError(), FileNotFoundError(), KeyError())] == [
        False,
        True,
        True,
    ]
    for wrong in ({"attempts": 0}, {"base": -1.0}, {"longest": -1.0}, {"longest": float("nan")}):
        with pytest.raises(ConfigError, match="attempts is at least 1"):
            Retry(**wrong)


def test_a_payment_is_tried_again_as_its_readme_says(drawn: list[tuple[float, float]]) -> None:
    delays = [charge.options.retry.delay(TimeoutError(), failures) for failures in range(5)]
    assert delays == [0.5, 1.0, 2.0, 4.0, None]


async def test_reconnects_wait_longer_and_longer_and_are_spread(
    drawn: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    line = Line("redis://x")
    for _ in range(8):
        line.down(ConnectionError("gone"))
        await line.setback(StoreUnavailable("gone"), "a test")
    assert slept == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]
    assert drawn == [(most / 4, most) for most in slept]
