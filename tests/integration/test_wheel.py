"""The wheel carries everything: built, installed in an empty environment outside the checkout, it runs a job."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.serving import ROOT

PROGRAM = """
import asyncio
import aioflow
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


@pytest.mark.timeout(120)
def test_the_wheel_runs_a_job_in_an_empty_environment(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    # Only the wheel is installed; what it depends on is seen through a path file, so that nothing is downloaded.
    installed = next((environment / "lib").glob("python*")) / "site-packages"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(installed), str(wheel)], check=True
    )
    (installed / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
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
