"""Moderation: items wait for moderators, moderators wait for items, and scripts in Redis bring them together."""

from services.moderation import posts, queries, socket
from services.moderation.declared import service

__all__ = ["posts", "queries", "service", "socket"]
