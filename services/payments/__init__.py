"""Payments: HTTP submit, three outcomes, one atomic completion each, and indexes by time."""

from services.payments.api import service

__all__ = ["service"]
