"""Ids are UUIDv7 and sort as they were made, also where a millisecond's numbers run out."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

import pytest

from aioflow.job import VARIANT, IdSource


def test_they_sort_as_they_were_made_and_are_version_7() -> None:
    source = IdSource()
    made = [source.next() for _ in range(20_000)]
    assert made == sorted(set(made))
    assert {len(one) for one in made} == {32}
    assert {(uuid.UUID(one).version, uuid.UUID(one).variant) for one in made} == {(7, uuid.RFC_4122)}


def test_a_millisecond_whose_numbers_run_out_borrows_from_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_000 * 1_000_000)
    source = IdSource()
    first = source.next()
    source._tail = (VARIANT + 1 << 62) - 1  # the last number that a millisecond has
    second, third = source.next(), source.next()
    assert first < second < third
    assert [int(one[:12], 16) - 1_700_000_000_000 for one in (first, second, third)] == [0, 1, 1]
    assert uuid.UUID(second).variant == uuid.RFC_4122


FORKED = """
import os
from aioflow.job import new_id
new_id()
child = os.fork()
os.write(1, new_id().encode() + b"\\n")  # in one piece, as both write there
if child:
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_makes_others() -> None:
    told = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=20, check=True)
    assert len({one[12:] for one in told.stdout.split()}) == 2
