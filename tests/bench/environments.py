"""A virtual environment for each peer, made once: their dependencies contradict one another."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).parent / "peers"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))) / "aioflow-bench"
FASTAPI = ["fastapi==0.165.0", "uvicorn[standard]==0.54.0"]
REQUIREMENTS = {
    "arq": ["arq==0.28.0", "hiredis==3.5.0", "uvloop==0.23.0", *FASTAPI],
    "saq": ["saq[redis,hiredis]==0.26.4", "uvloop==0.23.0", *FASTAPI],
    "streaq": ["streaq==7.2.0", "uvloop==0.23.0"],
    "taskiq": ["taskiq==0.13.0", "taskiq-redis==1.2.4", "hiredis==3.5.0", "uvloop==0.23.0"],
    "docket": ["pydocket==0.27.0", "hiredis==3.5.0", "uvloop==0.23.0"],
    "bullmq": ["bullmq==3.4.4", "hiredis==3.5.0", "uvloop==0.23.0"],
}
PATIENCE = 300.0


class ItemFailed(Exception):
    """A system did not do its work; says which, and its last words."""


@dataclass(frozen=True)
class System:
    """One of those that are compared, and the interpreter of its environment."""

    name: str
    python: str = sys.executable

    async def start(self, script: str, *arguments: str) -> asyncio.subprocess.Process:
        """A process of a script in `peers`."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT) if self.name == "aioflow" else ""}
        return await asyncio.create_subprocess_exec(
            self.python,
            str(PEERS / script),
            self.name,
            *arguments,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def begin(self, item: str, url: str, **options: float) -> asyncio.subprocess.Process:
        """A process that does an item of the harness."""
        return await self.start("harness.py", item, json.dumps({"url": url, **options}))

    async def end(self, item: str, process: asyncio.subprocess.Process) -> dict[str, float]:
        """What it found."""
        try:
            async with asyncio.timeout(PATIENCE):
                out, errors = await process.communicate()
        except TimeoutError:
            raise ItemFailed(f"{self.name}, {item}: not done within {PATIENCE:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise ItemFailed(f"{self.name}, {item}: {errors.decode().strip().rpartition(chr(10))[2][:300]}")
        found: dict[str, float] = json.loads(out.decode().strip().rpartition("\n")[2])
        return found

    async def run(self, item: str, url: str, **options: float) -> dict[str, float]:
        """Do an item of the harness, and say what it found."""
        return await self.end(item, await self.begin(item, url, **options))


async def _do(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait():
        raise SystemExit(f"failed: {' '.join(command)}")


async def peer(name: str) -> System:
    """A peer in its environment, which is made where it is not there."""
    wanted = REQUIREMENTS[name]
    key = hashlib.sha256(f"{sys.version} {wanted}".encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{key}"
    if not (folder / "complete").exists():
        print(f"making the environment of {name} in {folder}", file=sys.stderr)
        await _do(sys.executable, "-m", "venv", "--clear", str(folder))
        await _do(str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *wanted)
        (folder / "complete").touch()
    return System(name, str(folder / "bin" / "python"))


def versions() -> dict[str, Any]:
    """What is compared."""
    return {name: wanted[0] for name, wanted in REQUIREMENTS.items()}
