"""Alembic's folder: one file a step below versions/."""
