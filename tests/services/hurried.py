"""Payments for the kill test, served by a process of its own: leases end soon, and two failures are the end."""

from __future__ import annotations

from dataclasses import replace

from aioflow import Retry
from services.payments.api import charge, service
from services.payments.models import GatewayError

__all__ = ["service"]

charge.options = replace(charge.options, lease=1.0, retry=Retry(attempts=2, base=0.01, on=(GatewayError,)))
