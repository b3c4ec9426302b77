"""How long a user waits: for `import aioflow`, and for `serve` until it is ready."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time

from tests.bench.environments import ROOT
from tests.serving import Serve


async def imported() -> float:
    """Milliseconds of the import, without those of the interpreter's start."""

    async def run(code: str) -> float:
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=ROOT)
        assert await process.wait() == 0
        return 1000 * (time.perf_counter() - began)

    return await run("import aioflow") - await run("pass")


async def served() -> float:
    """Seconds until `serve` with all services is ready, its embedded server's folder being there already."""
    with tempfile.TemporaryDirectory() as folder:
        took = []
        for _ in range(2):
            serve = Serve("--data", folder, "--port", "0")
            began = time.perf_counter()
            await serve.start()
            took.append(time.perf_counter() - began)
            await serve.stop()
            serve.close()
        return took[-1]
