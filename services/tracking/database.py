"""The database behind tracking: opened and migrated by whoever needs it first, and what its errors mean.

A failed opening is forgotten, so that the next use tries again: the service comes up while the database is away. Every
call has a time limit of its own, below the task's, since a limit of the task says nothing about what is away.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from services.tracking.migrate import WAIT_SECONDS, migrate

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

log = logging.getLogger(__name__)

T = TypeVar("T")
CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 30.0
CONNECTIONS = 5
ROW_ERRORS = ("22", "23")
"""Classes of SQLSTATE that are about the data of a row: data exceptions, and violated constraints."""


class DatabaseAway(Exception):
    """The database cannot be reached, or does not do what it should: try again later."""


class TooSlow(Exception):
    """A query took longer than it may."""


class RowRefused(Exception):
    """The database refuses what was to be written, and will again."""


class Database:
    """One database, by its URL with a driver."""

    def __init__(self, url: str, query_seconds: float) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        self._query_seconds = query_seconds
        self._engine: AsyncEngine | None = None
        self._opening: asyncio.Task[AsyncEngine] | None = None
        self._preparing: asyncio.Task[None] | None = None
        # SQLite has one writer: a second one of this process would wait in a thread, and run into its limit.
        self._writer = asyncio.Lock() if self.is_sqlite else None

    def __repr__(self) -> str:
        state = "open" if self._engine else "opening" if self._opening else "not open"
        return f"<Database {self.url.partition(':')[0]} {state}>"

    def prepare(self) -> None:
        """Open it in the background, again and again until it is there."""
        self._preparing = asyncio.create_task(self._prepare(), name="tracking prepares its database")

    async def close(self) -> None:
        """Close all connections. Its threads end with them."""
        for task in (self._preparing, self._opening):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._engine is not None:
            await self._engine.dispose()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction that is committed at the end. Raises DatabaseAway, RowRefused."""
        with mapped():
            engine = await self._open()
            async with self._turn(), engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Of a writer, waited for no longer than for a statement: each before it may take as long as it can."""
        if self._writer is None:
            yield
            return
        async with asyncio.timeout(STATEMENT_SECONDS):
            await self._writer.acquire()
        try:
            yield
        finally:
            self._writer.release()

    async def reading(self, query: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """What a query answers in its time. Raises DatabaseAway, TooSlow."""
        with mapped():
            engine = await self._open()
            async with engine.connect() as connection:
                asking = asyncio.ensure_future(query(connection))
                try:
                    done, _ = await asyncio.wait([asking], timeout=self._query_seconds)
                except asyncio.CancelledError:
                    await self._interrupt(connection, asking)
                    raise
                if done:
                    return asking.result()
                await self._interrupt(connection, asking)
                raise TooSlow(f"the query took longer than {self._query_seconds:g} s; ask for a shorter range of time")

    async def _interrupt(self, connection: AsyncConnection, asking: asyncio.Future[Any]) -> None:
        """End a query. One of SQLite would run on in its thread, and keep the connection."""
        if self.is_sqlite:
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            await driver.interrupt()
        else:
            asking.cancel()
        await asyncio.wait([asking])
        if not asking.cancelled():
            asking.exception()

    async def _prepare(self) -> None:
        wait, said = 0.2, False
        while True:
            try:
                await self._open()
            except DatabaseAway as error:
                if not said:
                    log.warning("the database of tracking is away: %s; events are collected, and wait", error)
                said = True
                await asyncio.sleep(wait)
                wait = min(10.0, wait * 2)
            else:
                log.log(logging.INFO if said else logging.DEBUG, "the database of tracking is there")
                return

    async def _open(self) -> AsyncEngine:
        """The engine. All who come meanwhile wait for one opening, and hear how it went."""
        if self._engine is not None:
            return self._engine
        if self._opening is None:
            self._opening = asyncio.create_task(self._connect(), name="tracking opens its database")
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    def _opened(self, opening: asyncio.Task[AsyncEngine]) -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._engine = opening.result()

    async def _connect(self) -> AsyncEngine:
        try:
            async with asyncio.timeout(WAIT_SECONDS + STATEMENT_SECONDS):
                return await asyncio.to_thread(self._make)
        except Exception as error:
            # Whatever is wrong with it now, it may be right the next time; nothing of an event is in here.
            raise DatabaseAway(f"{type(error).__name__}: {told(error)}") from error

    def _make(self) -> AsyncEngine:
        """In a thread: the imports alone take half a second."""
        from sqlalchemy import event
        from sqlalchemy.ext.asyncio import create_async_engine

        if self.is_sqlite:
            arguments: dict[str, Any] = {"timeout": CONNECT_SECONDS}
            file = Path(self.url.partition(":///")[2].partition("?")[0])
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Once without the driver, whose thread would tell of a failure to a loop that has ended by then.
            sqlite3.connect(file, timeout=CONNECT_SECONDS).close()
        else:
            arguments = {"timeout": CONNECT_SECONDS, "command_timeout": STATEMENT_SECONDS}
        migrate(self.url, arguments)
        engine = create_async_engine(
            self.url,
            connect_args=arguments,
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=CONNECT_SECONDS,
            pool_pre_ping=not self.is_sqlite,
        )
        if self.is_sqlite:
            event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        return engine


def _set_up_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    # A row's job is over once it is committed: it must be on disk by then.
    for pragma in ("synchronous=FULL", "cache_size=-65536", "temp_store=MEMORY", "journal_size_limit=67108864"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


@contextmanager
def mapped() -> Iterator[None]:
    """Errors of the driver become DatabaseAway or RowRefused."""
    try:
        yield
    except (DatabaseAway, RowRefused, TooSlow):
        raise
    except (OSError, TimeoutError) as error:
        raise DatabaseAway(f"{type(error).__name__}: {told(error)}") from error
    except Exception as error:
        from sqlalchemy.exc import DBAPIError, SQLAlchemyError

        if isinstance(error, DBAPIError) and is_of_row(error):
            raise RowRefused(told(error)) from error
        if isinstance(error, UnicodeDecodeError):  # what came back, such as an error in the server's own encoding
            raise DatabaseAway(f"{type(error).__name__}: {told(error)}") from error
        if isinstance(error, (ValueError, OverflowError)):  # a driver that cannot send it
            raise RowRefused(told(error)) from error
        if isinstance(error, SQLAlchemyError):
            raise DatabaseAway(f"{type(error).__name__}: {told(error)}") from error
        raise


def is_of_row(error: Any) -> bool:
    """Whether the data is refused; everything else, such as a missing right or a full disk, may pass."""
    from sqlalchemy.exc import DataError, IntegrityError

    state = getattr(error.orig, "sqlstate", None)
    if state:
        return str(state)[:2] in ROW_ERRORS
    return isinstance(error, (DataError, IntegrityError)) or isinstance(error.orig, ValueError)


def told(error: BaseException) -> str:
    """What the driver said, in one line, without the statement and its parameters."""
    said = str(getattr(error, "orig", None) or error) or "no answer"
    return " ".join(said.split())[:300]
