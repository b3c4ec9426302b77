"""Run by Alembic: applies the migrations on the connection that migrate.py holds, in its transaction."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"], version_table=context.config.attributes["versions"]
)
context.run_migrations()
