"""Rows into the table, each once: the key is the event's id, and a key that is there is left alone.

A row that the database refuses is found by halving, so that it takes no other with it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from services.tracking.database import Database, RowRefused
from services.tracking.rows import Row

ROWS_OF_STATEMENT = 5000


async def insert(database: Database, rows: list[Row]) -> dict[str, str]:
    """Write rows, in pieces, each in a transaction. What was refused, by its id, and why. Raises DatabaseAway."""
    refused: dict[str, str] = {}
    pieces = [rows[first : first + ROWS_OF_STATEMENT] for first in range(0, len(rows), ROWS_OF_STATEMENT)][::-1]
    while pieces:
        piece = pieces.pop()
        try:
            await _insert(database, piece)
        except RowRefused as error:
            if len(piece) == 1:
                refused[piece[0].id] = str(error)
            else:
                half = len(piece) // 2
                pieces += [piece[half:], piece[:half]]
    return refused


async def _insert(database: Database, rows: list[Row]) -> None:
    parameters: Any = rows
    async with database.writing() as connection:
        # As text and tuples, which go to the driver as they are: SQLAlchemy would make each row's parameters anew, on
        # the event loop, and take longer than SQLite takes to write the row.
        await connection.exec_driver_sql(statement(database.is_sqlite), parameters)


@cache
def statement(is_sqlite: bool) -> str:
    """The statement in its database's words; the parameters are the fields of a Row, in order."""
    from sqlalchemy.dialects import postgresql, sqlite

    from services.tracking.table import requests

    of: Any = sqlite if is_sqlite else postgresql
    dialect = of.aiosqlite.dialect() if is_sqlite else of.asyncpg.dialect()
    compiled = of.insert(requests).on_conflict_do_nothing(index_elements=["id"]).compile(dialect=dialect)
    if tuple(compiled.positiontup) != Row._fields:
        raise AssertionError(f"the table has the columns {compiled.positiontup}, a row {Row._fields}")
    return str(compiled)
