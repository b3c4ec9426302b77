"""`python -m tests.security.audit`: are there known vulnerabilities in what is installed beside this Python?

By pip-audit over the advisories of osv.dev, in an environment of its own. Exit code 1 where there are any. Where the
advisories cannot be reached nothing is looked up, and that is what is said: pip-audit itself calls packages "not found"
then, and the whole free of vulnerabilities.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ADVISORIES = "https://api.osv.dev/v1/vulns/PYSEC-2021-66"
"""One that there is."""
REACH_SECONDS = 5.0
MOST_SKIPPED = 1
"""aioflow itself, which is installed from its folder."""


def reachable() -> bool:
    """Whether an advisory is to be had."""
    try:
        with urllib.request.urlopen(ADVISORIES, timeout=REACH_SECONDS) as answer:
            return b"PYSEC-2021-66" in answer.read(100_000)
    except (urllib.error.URLError, OSError):
        return False


def verdict(report: dict[str, Any]) -> tuple[int, str]:
    """The exit code, and what is said, of a report of pip-audit."""
    packages = report["dependencies"]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'nothing'}"
        for package in packages
        for flaw in package.get("vulns", [])
    ]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if found:
        return 1, "known vulnerabilities:\n" + "\n".join(found)
    if len(skipped) > MOST_SKIPPED or len(packages) == len(skipped):
        return 0, f"NOT AUDITED: {len(skipped)} of {len(packages)} packages could not be looked up"
    return 0, f"no known vulnerabilities in {len(packages) - len(skipped)} packages"


def audit() -> tuple[int, str]:
    """Install pip-audit in an environment of its own, and run it over this Python's packages."""
    with tempfile.TemporaryDirectory(prefix="aioflow-audit-") as folder:
        python = Path(folder) / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "pip-audit>=2.9"], check=True)
        words = ("--vulnerability-service", "osv", "--format", "json", "--progress-spinner", "off")
        ran = subprocess.run(
            [str(python), "-m", "pip_audit", *words, "--path", sysconfig.get_path("purelib")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if not ran.stdout.startswith("{"):
            return 0, f"NOT AUDITED: pip-audit did not answer: {ran.stderr.strip()[-300:]}"
        return verdict(json.loads(ran.stdout))


def main() -> None:
    """Audit where that can be done."""
    code, said = audit() if reachable() else (0, f"NOT AUDITED: the advisories of {ADVISORIES} cannot be reached")
    print(f"audit of the installed packages: {said}")
    sys.exit(code)


if __name__ == "__main__":
    main()
