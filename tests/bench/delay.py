"""`python -m tests.bench.delay TO_PORT MILLISECONDS`: a proxy that adds so much to each round trip; prints its port."""

from __future__ import annotations

import asyncio
import selectors
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.bench.environments import ROOT


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while chunk := await source.read(1 << 18):
            loop.call_later(seconds, target.write, chunk)
    loop.call_later(seconds, target.close)


async def _serve(to_port: int, seconds: float) -> None:
    pumps: set[asyncio.Task[None]] = set()

    async def accept(from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", to_port)
        for source, target in ((from_client, to_server), (from_server, to_client)):
            pump = asyncio.create_task(_pump(source, target, seconds / 2), name="pump")
            pumps.add(pump)
            pump.add_done_callback(pumps.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@asynccontextmanager
async def delayed(to_port: int, milliseconds: float) -> AsyncIterator[int]:
    """The port of a proxy in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(to_port), str(milliseconds), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.kill()
        await process.wait()


if __name__ == "__main__":
    # select() takes microseconds, where epoll_wait() takes milliseconds.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_serve(int(sys.argv[1]), float(sys.argv[2]) / 1000))
