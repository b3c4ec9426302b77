"""The wheel carries everything: built, installed in an empty environment outside the checkout, it runs a job."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.serving import ROOT

PROGRAM = """
import asyncio
import aioflow
import aioflow.cli, aioflow.cli.load.latency, aioflow.embedded, aioflow.testing
from aioflow import Runtime, Service

service = Service("wheel")

@service.task()
async def double(number: int) -> int:
    return 2 * number

async def main() -> None:
    async with Runtime([service], redis="memory:"):
        handle = await double.submit(21)
        print(aioflow.__file__, await handle.result(timeout=10))

asyncio.run(main())
"""


def closure(wheel: Path) -> list[Distribution]:
    """The distributions that a wheel with its extra "all" asks for, and those that they ask for."""
    (info,) = [path for path in zipfile.Path(wheel).iterdir() if path.name.endswith(".dist-info")]
    ours = email.message_from_string((info / "METADATA").read_text(encoding="utf-8")).get_all("Requires-Dist") or []
    found: dict[str, Distribution] = {}
    line: list[tuple[list[str], frozenset[str]]] = [(ours, frozenset({"all"}))]
    while line:
        requires, extras = line.pop()
        for needed in map(Requirement, requires):
            wanted = needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in {"", *extras})
            if not wanted:
                continue
            if needed.name == "aioflow":
                line.append((ours, frozenset(needed.extras)))
            elif needed.name not in found or needed.extras:
                known = needed.name in found
                found[needed.name] = distribution(needed.name)
                if not known or needed.extras:
                    line.append((found[needed.name].requires or [], frozenset(needed.extras)))
    return list(found.values())


@pytest.mark.timeout(120)
def test_the_wheel_runs_a_job_in_an_empty_environment(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    # Nothing is downloaded: what the wheel declares that it needs, and nothing else, is linked from where it is.
    installed = next((environment / "lib").glob("python*")) / "site-packages"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(installed), str(wheel)], check=True
    )
    for needed in closure(wheel):
        for name in {file.parts[0] for file in needed.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (installed / name).exists():
                (installed / name).symlink_to(Path(str(needed.locate_file(name))))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ran = subprocess.run(
        [str(environment / "bin" / "python"), str(program)],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    path, result = ran.stdout.split()
    assert result == "42"
    assert Path(path).is_relative_to(environment), "it ran from the checkout"
