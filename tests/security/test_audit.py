"""What the audit of the installed packages says: never that all is well where nothing was looked up."""

from __future__ import annotations

from typing import Any

import pytest

from tests.security.audit import verdict

SOUND: dict[str, Any] = {"name": "sound", "version": "1", "vulns": []}
FLAWS = [{"id": "PYSEC-1", "fix_versions": ["3"]}, {"id": "X", "fix_versions": []}]
FLAWED: dict[str, Any] = {"name": "flawed", "version": "2", "vulns": FLAWS}
SKIPPED: dict[str, Any] = {"name": "skipped", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([SOUND, SOUND, SKIPPED], 0, "no known vulnerabilities in 2 packages"),
        ([SOUND, FLAWED, SKIPPED, SKIPPED], 1, "flawed 2: PYSEC-1, fixed in 3\nflawed 2: X, fixed in nothing"),
        ([SOUND, SKIPPED, SKIPPED], 0, "NOT AUDITED: 2 of 3"),
        ([SKIPPED], 0, "NOT AUDITED: 1 of 1"),
        ([], 0, "NOT AUDITED: 0 of 0"),
    ],
)
def test_what_is_said_of_a_report(packages: list[dict[str, Any]], code: int, said: str) -> None:
    told = verdict({"dependencies": packages})
    assert told[0] == code
    assert said in told[1]
