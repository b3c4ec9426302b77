"""The table `requests`, as statements see it; migrations/ makes it. Imported where the database is first used.

Times are UTC milliseconds. Text is as it was sent; what is derived from it (host, path, browser, ...) is written beside
it, so that queries need no parsing.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, MetaData, Table, Text

metadata = MetaData()

requests = Table(
    "requests",
    metadata,
    Column("id", Text, primary_key=True),
    Column("received_ms", BigInteger, nullable=False),
    Column("occurred_ms", BigInteger, nullable=False),
    Column("url", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("ip", Text),
    Column("user_agent", Text),
    Column("browser", Text),
    Column("browser_version", Text),
    Column("os", Text),
    Column("os_version", Text),
    Column("device", Text),
    Column("referrer", Text),
    Column("properties", Text),
)
