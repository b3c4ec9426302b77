"""Tracking: collects events over HTTP, writes them to a database in batches, and answers queries about them."""

from services.tracking import collect, generator, reads
from services.tracking.service import service

__all__ = ["collect", "generator", "reads", "service"]
