"""Tracking for the kill test: leases end soon."""

from __future__ import annotations

from dataclasses import replace

from services.tracking import service
from services.tracking.service import store

__all__ = ["service"]

store.options = replace(store.options, lease=1.0)
