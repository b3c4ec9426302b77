"""Turns per host, on a clock that the test moves."""

from __future__ import annotations

import random

import pytest

from aioflow.delivery.hosts import LEAST_WAIT, LONGEST_WAIT, Hosts


class Time:
    """A monotonic clock."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda least, most: (least + most) / 2)


def test_a_host_has_so_many_turns_and_others_have_theirs(time: Time) -> None:
    hosts = Hosts(2, time)
    assert [hosts.enter("a", "1"), hosts.enter("a", "2"), hosts.enter("b", "3")] == [0, 0, 0]
    assert hosts.enter("a", "4") >= LEAST_WAIT
    assert hosts.statistics() == {"a": 2, "b": 1}
    hosts.leave("a", "1")
    assert hosts.enter("a", "4") == 0


def test_the_wait_grows_with_the_crowd_and_with_the_hosts_slowness_up_to_a_bound(time: Time) -> None:
    hosts = Hosts(2, time)
    hosts.enter("a", "1"), hosts.enter("a", "2")
    time.now += 10  # and no answer yet: a turn every 5 s
    assert [round(hosts.enter("a", str(number))) for number in range(3, 6)] == [5, 10, 15]
    waits = [hosts.enter("a", str(number)) for number in range(6, 2000)]
    assert waits == sorted(waits)
    assert max(waits) == LONGEST_WAIT


def test_a_host_that_answers_soon_has_short_waits(time: Time) -> None:
    hosts = Hosts(2, time)
    hosts.enter("a", "0")
    for number in range(100):
        hosts.enter("a", f"{number + 1}")
        time.now += 0.01
        hosts.leave("a", f"{number}")
    hosts.enter("a", "x")
    assert [hosts.enter("a", "z") for _ in range(5)] == [LEAST_WAIT] * 5


def test_hosts_that_idle_are_forgotten(time: Time) -> None:
    hosts = Hosts(1, time)
    for number in range(1000):
        hosts.enter(f"host-{number}", "1")
        hosts.leave(f"host-{number}", "1")
    assert hosts.statistics() == {}
    for number in range(1000):  # of each one is put off, and its turn lies ahead when the first has left
        hosts.enter(f"host-{number}", "1"), hosts.enter(f"host-{number}", "2")
        hosts.leave(f"host-{number}", "1")
    assert len(hosts.statistics()) == 1000
    time.now += LONGEST_WAIT
    for number in range(1100):
        hosts.enter(f"more-{number}", "1")
    assert not [name for name in hosts.statistics() if name.startswith("host-")]
