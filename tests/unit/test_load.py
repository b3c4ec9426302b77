"""The parts of the load test that need no server."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from aioflow import StoreUnavailable
from aioflow.cli.load.accounts import Accounts, compare_totals
from aioflow.cli.load.latency import Latency
from aioflow.cli.load.ledger import Ledger
from aioflow.cli.load.plan import make_plan
from aioflow.cli.load.submitters import Submitters
from aioflow.job import new_id
from aioflow.load import Seen


class Keeper:
    """Answers from a table; fails where an id is not in it."""

    batch = 2
    arrive = False
    can_tell = True

    def __init__(self, known: dict[str, Seen | None]) -> None:
        self.known = known

    async def look(self, ids: Sequence[str]) -> list[Seen | None]:
        try:
            return [self.known[job_id] for job_id in ids]
        except KeyError as error:
            raise StoreUnavailable("away") from error

    async def totals(self) -> dict[str, int] | None:
        return None

    async def synchronize(self) -> None:
        pass


def test_the_ledger_gives_back_every_kind_of_id_in_order() -> None:
    ids = [new_id(), "order-1", "A" * 32, "0" * 31 + "1", new_id().upper(), "ü"]
    ledger = Ledger()
    for at, job_id in enumerate(ids):
        ledger.add(job_id, float(at))
    assert ledger.first(10) == [(job_id, float(at)) for at, job_id in enumerate(ids)]
    ledger.move(3, [("order-1", 1.0)])
    assert [job_id for job_id, _ in ledger.first(10)] == [*ids[3:], "order-1"]
    assert len(ledger) == 4


async def test_submitting_ends_where_the_ledger_is_full() -> None:
    class Target:
        async def submit(self) -> str:
            return new_id()

    ledger = Ledger(most=5)
    made = Submitters(Target(), make_plan(jobs=100, submitters=3), ledger)
    await made.run()
    assert made.stopped
    assert 5 <= made.accepted <= 5 + 3


async def test_jobs_are_looked_at_until_they_have_ended() -> None:
    now = time.monotonic()
    keeper = Keeper({"a": Seen("done", now + 1, now + 2), "b": Seen("running"), "c": None, "d": Seen("ready")})
    ledger = Ledger()
    for job_id in "abcd":
        ledger.add(job_id, now)
    accounts = Accounts(ledger, keeper)
    await accounts.look()
    assert (accounts.ended, accounts.queued) == ({"done": 1}, {"running": 1, "ready": 1})
    assert (accounts.missing, accounts.missing_ids, accounts.unchecked) == (1, ["c"], 0)
    keeper.known = {"b": Seen("dead", now + 3, now + 4), "d": Seen("done", now + 3, now + 5)}
    await accounts.look()
    assert (accounts.ended, len(ledger), accounts.last_end) == ({"done": 2, "dead": 1}, 0, now + 5)
    assert accounts.end_to_end.count == 3


async def test_what_could_not_be_looked_at_is_unchecked() -> None:
    keeper = Keeper({"a": Seen("ready"), "b": Seen("ready")})
    ledger = Ledger()
    for job_id in "abc":
        ledger.add(job_id, 0.0)
    accounts = Accounts(ledger, keeper)
    with pytest.raises(StoreUnavailable):
        await accounts.look()
    assert (accounts.queued.total(), accounts.unchecked, len(ledger)) == (2, 1, 3)


async def test_a_look_during_the_run_leaves_the_young_ones() -> None:
    keeper = Keeper({job_id: Seen("done", 1.0, 2.0) for job_id in "abcd"})
    ledger = Ledger()
    for at, job_id in enumerate("abcd"):
        ledger.add(job_id, float(at))
    accounts = Accounts(ledger, keeper)
    await accounts.look(before=2.0)
    assert [job_id for job_id, _ in ledger.first(4)] == ["c", "d"]


@pytest.mark.parametrize(
    ("grown", "wrong", "notes"),
    [
        ({"submitted": 10, "done": 8, "dead": 2}, [], []),
        ({"submitted": 12, "done": 9, "dead": 3}, [], ["2 more jobs were submitted to this queue meanwhile"]),
        ({"submitted": 9, "done": 8, "dead": 2}, ["the queue counts 9 submits, and 10 were receipted"], []),
        ({"submitted": 10, "done": 7, "dead": 2}, ["the queue counts 7 jobs that ended done, and 8 are"], []),
        ({"submitted": 10, "done": 8}, ["the queue counts 0 jobs that ended dead, and 2 are"], []),
        ({"submitted": 1, "repeated": 9, "done": 1}, [], []),
    ],
)
def test_the_counters_may_not_be_below_what_was_receipted(
    grown: dict[str, int], wrong: list[str], notes: list[str]
) -> None:
    assert compare_totals(grown, 10, {"done": 8, "dead": 2}) == (wrong, notes)


def test_a_latency_keeps_three_digits_and_any_length() -> None:
    latency = Latency(resolution_us=1)
    assert latency.summary_ms() == {}
    assert latency.by_bound() == {}
    for milliseconds in range(1, 1001):
        latency.record(milliseconds / 1000)
    summary = latency.summary_ms()
    for name, right in {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 1000}.items():
        assert summary[name] == pytest.approx(right, rel=0.002)
    assert sum(latency.by_bound().values()) == 1000
    latency.record(-1.0)
    latency.record(1e12)
    assert latency.count == 1002
    assert sum(latency.by_bound().values()) == 1002


def test_the_chart_is_no_finer_than_the_clocks() -> None:
    latency = Latency(resolution_us=1000)
    for seconds in (0.0, 0.0004, 0.0009, 0.0015):
        latency.record(seconds)
    assert latency.by_bound() == {1000: 3, 2000: 1}


def test_the_seconds_and_the_rate_give_the_number_of_submits() -> None:
    assert make_plan(rate=100, seconds=0.3).total == 30
    assert make_plan(rate=0.1, seconds=1).total == 1
    assert make_plan(seconds=1).total is None
    assert make_plan(jobs=7, rate=5).total == 7
    assert make_plan().duration == 10
