"""`python -m tests.hostile`: schemathesis against all services in a real process over a private Valkey.

It tries what /openapi.json says, and what it does not: `--examples` drawn requests for every route (100), besides those
that it makes of every bound and every type. Other options are schemathesis' own, such as `--seed 7`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.hostile.known import TOKEN, make_known
from tests.serving import ROOT, Serve
from tests.valkey import Valkey

CONFIG = Path(__file__).parent / "schemathesis.toml"
ENVIRONMENT = {
    "TRACKING_TOKEN": TOKEN,
    "AIOFLOW_DELIVERY_SECRETS": f"whsec_{'A' * 43}=",
    "AIOFLOW_LONGEST_WAIT": "0.5",
}
FAULTS = re.compile("Traceback|never retrieved|never awaited| ERROR ")


def schemathesis(url: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run it against a server until it ends."""
    program = Path(sys.executable).parent / "schemathesis"
    return subprocess.run(
        [
            *(str(program), "--config-file", str(CONFIG), "run", f"{url}/openapi.json", "--no-color"),
            *("--header", f"Authorization: Bearer {TOKEN}", *arguments),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


async def try_all(*runs: Sequence[str]) -> tuple[int, str]:
    """Serve everything and let schemathesis at it, once per list of options; exit code, and what was said."""
    valkey = Valkey()
    with tempfile.TemporaryDirectory(prefix="aioflow-hostile-") as data:
        serve = Serve("--redis", valkey.url, "--port", "0", "--data", data, environment=ENVIRONMENT)
        try:
            valkey.start()
            await serve.start()
            await make_known(serve.url)
            ran = [await asyncio.to_thread(schemathesis, serve.url, arguments) for arguments in runs]
            ended = await serve.stop()
            said = "".join(each.stdout + each.stderr for each in ran)
            if FAULTS.search(serve.said) or ended:
                return 1, f"{said}the server's log:\n{serve.said}"
            return max(each.returncode for each in ran), said
        finally:
            serve.close()
            valkey.close()


def main() -> int:
    """Run it, say what it says, and end as it ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--examples", type=int, default=100, help="drawn requests for every route")
    given, more = parser.parse_known_args()
    code, said = asyncio.run(try_all(["--max-examples", str(given.examples), *more]))
    print(said)
    return code


if __name__ == "__main__":
    sys.exit(main())
