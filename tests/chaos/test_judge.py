"""The judge of the handlers' ledgers can fail: each kind of broken promise, planted, is named; excused, it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import ledger
from tests.chaos.history import BLOCK, CLOCK, FREEZE, SERVER, History, Span
from tests.chaos.judge import Findings, Judge
from tests.chaos.ledger import Attempt

TASK = "shop.sell"


def attempt(number: int, began: float, ended: float | None, *, pid: int = 1, token: str = "", how: str = "") -> Attempt:
    return Attempt(TASK, "order", number, token or f"r{pid}.{number}", pid, began, ended, how)


WELL, AGAIN = attempt(1, 10.0, 10.1, how="done"), attempt(2, 11.2, 11.3, pid=2, how="done")
FIRST, KILLED = attempt(1, 10.0, 11.0), attempt(1, 10.0, None)
GONE = {1: [10.5]}
"""The first process was killed then."""
STEP = Span(CLOCK, 9.0, 9.5)

LEDGERS = [
    ("two live leases", [FIRST, attempt(2, 10.5, 10.6, pid=2)], History()),
    ("two live leases", [attempt(1, 10.0, None), attempt(2, 10.5, 10.6, pid=2)], History(deaths={1: [12.0]})),
    ("two live leases", [FIRST, attempt(2, 10.5, 10.6, pid=2)], History([Span(BLOCK, 10.0, 11.0, 1)])),
    ("", [FIRST, attempt(2, 10.5, 10.6, pid=2)], History([Span(FREEZE, 9.5, 10.9, 1)])),
    ("", [FIRST, attempt(2, 10.5, 10.6, pid=2)], History([Span(BLOCK, 10.0, 11.0, 1), Span(SERVER, 9.0, 9.5)])),
    ("fence went back", [attempt(2, 10.0, 10.1), attempt(1, 10.5, 10.6, pid=2)], History()),
    ("fence went back", [FIRST, attempt(1, 11.5, 11.6, pid=2)], History()),
    ("", [attempt(2, 10.0, 10.1), attempt(1, 10.5, 10.6, pid=2)], History([Span(FREEZE, 9.0, 10.49, 2)])),
    ("", [attempt(2, 10.0, 12.0), attempt(1, 10.5, 10.6, pid=2)], History([Span(FREEZE, 9.0, 10.49, 2)])),
    (
        "two live leases",
        [attempt(2, 10.0, 12.0), attempt(1, 10.5, 10.6, pid=2), attempt(3, 11.0, 11.1, pid=3)],
        History([Span(FREEZE, 9.0, 10.49, 2)]),
    ),
    ("twice under one token", [FIRST, attempt(2, 12.0, 12.1, pid=2, token="r1.1")], History()),
    ("ran again after they had ended well", [WELL, AGAIN], History()),
    ("ran again after they had ended well", [WELL, AGAIN], History([Span(SERVER, 5.0, 6.0)], {1: [11.5], 2: [10.2]})),
    ("", [WELL, AGAIN], History(deaths=GONE)),
    ("", [WELL, AGAIN], History([Span(SERVER, 10.0, 10.2)])),
    ("", [WELL, AGAIN], History([Span(FREEZE, 10.0, 12.0, 1)])),
    ("", [attempt(1, 10.0, 10.1, how="ValueError"), AGAIN], History()),
    ("did not start again within 2 s", [KILLED, attempt(2, 12.6, 12.7, pid=2)], History(deaths=GONE)),
    ("never started again", [KILLED], History(deaths=GONE)),
    ("", [KILLED, attempt(2, 12.4, 12.5, pid=2)], History(deaths=GONE)),
    ("", [KILLED, attempt(2, 12.6, 12.7, pid=2)], History([Span(SERVER, 10.6, 10.7)], GONE)),
    ("", [KILLED, attempt(2, 12.6, 12.7, pid=2)], History([STEP], GONE)),
    ("", [KILLED, attempt(2, 12.6, 12.7, pid=2)], History([Span(BLOCK, 10.0, 11.9, 2)], GONE)),
    ("again within 2 s", [KILLED, attempt(2, 12.6, 12.7, pid=2)], History([Span(BLOCK, 10.4, 10.7, 2)], GONE)),
    ("", [KILLED, attempt(2, 12.6, 12.7, pid=2)], History(deaths={**GONE, 2: [11.0]})),
    ("", [KILLED, attempt(2, 12.6, 12.7, pid=3)], History(deaths={**GONE, 2: [9.0]})),
]


def judged(history: History | None = None) -> tuple[Judge, Findings]:
    findings = Findings()
    history = history or History()
    history.starts = [(1, 1.0), (2, 1.0)]
    return Judge(findings, history, {TASK: 1.0}, [TASK]), findings


def assert_named(findings: Findings, words: str) -> None:
    lines = findings.lines()
    assert len(lines) == bool(words), lines
    assert not lines or words in lines[0], lines


@pytest.mark.parametrize(("words", "attempts", "history"), LEDGERS)
def test_a_broken_promise_of_leases_is_named(words: str, attempts: list[Attempt], history: History) -> None:
    judge, findings = judged(history)
    judge.job(attempts)
    assert_named(findings, words)


def test_a_pid_may_be_given_again() -> None:
    judge, findings = judged(History(deaths={1: [5.0, 10.5], 2: [9.0]}))
    judge._history.starts += [(1, 6.0), (2, 9.5)]
    judge.job([KILLED, attempt(2, 12.6, 12.7, pid=2)])
    assert_named(findings, "did not start again within 2 s")


@pytest.mark.parametrize(
    ("words", "due", "spans"),
    [
        ("before they were due", 10.1, []),
        ("", 10.0, []),
        ("", 10.1, [STEP]),
        ("before they were due", 10.1, [Span(CLOCK, 7.0, 8.0)]),
    ],
)
def test_a_job_before_its_time_is_named(words: str, due: float, spans: list[Span]) -> None:
    judge, findings = judged(History(spans))
    judge.delay(FIRST, 9.0, due)
    assert_named(findings, words)


@pytest.mark.parametrize(
    ("words", "started"),
    [
        ("", "abcd"),
        ("", "bacd"),
        ("out of order", "cabd"),
        ("never started", "abc"),
    ],
)
def test_a_line_out_of_order_is_named(words: str, started: str) -> None:
    judge, findings = judged()
    judge.order("abcd", list(started), slots=2)
    assert_named(findings, words)


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "00").write_text(
        f"S 2.5 8 {TASK} order 2 b.1\nS 1.5 7 {TASK} order 1 a.1\nE 2.75 8 {TASK} order 2 ValueError\n"
    )
    assert ledger.read(tmp_path, 0) == {
        (TASK, "order"): [
            Attempt(TASK, "order", 1, "a.1", 7, 1.5),
            Attempt(TASK, "order", 2, "b.1", 8, 2.5, 2.75, "ValueError"),
        ]
    }
    (tmp_path / ledger.BLOCKS).write_text("S 1.5 7\nE 2.0 7\nS 3.0 8\n")
    assert ledger.read_spans(tmp_path, ledger.BLOCKS) == [(7, 1.5, 2.0), (8, 3.0, None)]
