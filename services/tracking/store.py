"""Rows into the table, each once: the key is the event's id, and a key that is there is left alone.

A row that the database refuses is found by halving, so that it takes no other with it.
"""

from __future__ import annotations

from typing import Any

from services.tracking.database import Database, RowRefused
from services.tracking.rows import Row

ROWS_OF_STATEMENT = 1000


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
                refused[piece[0]["id"]] = str(error)
            else:
                half = len(piece) // 2
                pieces += [piece[half:], piece[:half]]
    return refused


async def _insert(database: Database, rows: list[Row]) -> None:
    async with database.writing() as connection:
        await connection.execute(_statement(database.is_sqlite), rows)


def _statement(sqlite: bool) -> Any:
    from services.tracking.table import requests

    if sqlite:
        from sqlalchemy.dialects.sqlite import insert as insert_into
    else:
        from sqlalchemy.dialects.postgresql import insert as insert_into  # type: ignore[assignment]
    return insert_into(requests).on_conflict_do_nothing(index_elements=["id"])
