"""Signed webhooks: HTTP POSTs that are jobs, emitted with the completion of the job that they tell of.

`service` is made when it is first asked for, so that neither its settings nor its dependency are needed to emit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioflow.delivery.models import Delivery
from aioflow.delivery.outcomes import Delivered, DeliveryFailed, DeliveryGone, UrlRefused
from aioflow.delivery.posting import make_service
from aioflow.delivery.settings import DeliverySettings, check_url

if TYPE_CHECKING:
    from aioflow.service import Service

    service: Service
    """The service `delivery`, by the settings of the environment."""

__all__ = [
    "Delivered",
    "Delivery",
    "DeliveryFailed",
    "DeliveryGone",
    "DeliverySettings",
    "UrlRefused",
    "check_url",
    "make_service",
    "service",
]


def __getattr__(name: str) -> Any:
    """Make `service`, once. Raises ConfigError."""
    if name != "service":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()["service"] = make_service()
    return made
