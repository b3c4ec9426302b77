"""Brings the database to the newest form of the table, whoever comes first; the others wait for it.

One transaction under a lock: an advisory lock of PostgreSQL, the write lock of SQLite. So any number of processes may
start at once, and one that dies in the middle leaves nothing half-made. Alembic works synchronously and takes its time
to be imported, hence in a thread with a loop and a connection of its own.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

SCRIPTS = Path(__file__).parent / "migrations"
VERSIONS = "tracking_version"
LOCK = 0x747261636B  # "track"
WAIT_SECONDS = 20
"""How long it waits for another process that migrates."""


def migrate(url: str, connect_args: dict[str, Any]) -> None:
    """Apply what is missing. Blocks; raises what the database raises. May be repeated."""
    asyncio.run(_migrate(url, connect_args))


async def _migrate(url: str, connect_args: dict[str, Any]) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    engine = create_async_engine(url, poolclass=NullPool, connect_args=connect_args)
    try:
        if engine.dialect.name == "sqlite":
            async with engine.connect() as connection:
                await connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # of the file, not of the connection
        if await _is_current(engine):
            return
        async with engine.begin() as connection:
            if engine.dialect.name == "sqlite":
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                await connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{WAIT_SECONDS}s'")
                await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
            await connection.run_sync(_upgrade)
    finally:
        await engine.dispose()


async def _is_current(engine: AsyncEngine) -> bool:
    """Whether nothing is missing: asked without Alembic, whose import takes longer than all the rest of a start."""
    from sqlalchemy import inspect

    newest = max(path.name.partition("_")[0] for path in (SCRIPTS / "versions").glob("[0-9]*.py"))
    async with engine.connect() as connection:
        if not await connection.run_sync(lambda sync: inspect(sync).has_table(VERSIONS)):
            return False
        found = await connection.exec_driver_sql(f"SELECT version_num FROM {VERSIONS}")  # noqa: S608 - a constant
        return found.scalars().all() == [newest]


def _upgrade(connection: Any) -> None:
    logging.getLogger("alembic").setLevel(logging.WARNING)  # before it is imported: it tells of its plugins then
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes |= {"connection": connection, "versions": VERSIONS}
    command.upgrade(config, "head")
