"""The chaos run, short and with a new seed each time; `python -m tests.chaos --minutes N` is the long one."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.chaos.mishaps import Mishaps
from tests.chaos.receipts import REFUSED, Receipt
from tests.chaos.report import SHOWN, Report
from tests.chaos.run import Run, new_seed
from tests.chaos.world import World
from tests.conftest import TOLD

GAVE_UP = """\
ERROR aioflow.engine.executor: payments.charge a attempt 5: dead after GatewayError: the simulated gateway is down
Traceback (most recent call last):
  File "services/payments/api.py", line 93, in charge
    decision = await gateway.charge(payment, idempotency_key=job.id)
services.payments.models.GatewayError: the simulated gateway is down
WARNING aioflow.engine.executor: payments.charge b attempt 1: GatewayError
"""


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


async def test_receipts_and_ends_that_are_not_as_they_should_be_are_named() -> None:
    run = Run(1, 30)
    try:
        run._receipts = [Receipt("order", "a", "fsync"), Receipt("payment", "b", "http")]
        assert run._named()["order"] == ["a"]
        run._ended("runtimes", 0, f"aioflow serves shop, receipts mean fsync\n{GAVE_UP}")
        assert not run._findings.lines()
        run._receipts += [Receipt("order", "c", "memory"), Receipt(REFUSED, "d:409", "http")]
        assert run._named()["order"] == ["a", "c"]
        said = "aioflow serves shop, receipts mean memory\nTraceback (most recent call last):\n  here\nValueError: no\n"
        run._ended("runtimes", 1, said)
        assert run._findings.lines() == [
            "1 submits that were refused, and not for now: d:409",
            "1 receipts that promise less than fsync: c (memory)",
            "1 runtimes that did not end in order after the calm: exit code 1",
            "1 runtimes with a traceback in their log: 1, the first: ValueError: no",
            "1 runtimes whose receipts promise less than fsync: memory",
        ]
    finally:
        await run._world.close()


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
