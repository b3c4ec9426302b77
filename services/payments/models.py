"""What goes in and out of payments."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LARGEST_AMOUNT = 2**53 - 1
"""The largest whole number that every JSON reader keeps exact."""


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("use printable characters only")
    return value


PartyId = Annotated[
    str, Field(min_length=1, max_length=128, json_schema_extra={"format": "printable"}), AfterValidator(_printable)
]


class Payment(BaseModel):
    """A payment as it is asked for; `amount` is in the currency's minor unit."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    payer_id: PartyId
    recipient_id: PartyId
    amount: Annotated[int, Field(gt=0, le=LARGEST_AMOUNT)]
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")] = "USD"


class Outcome(StrEnum):
    """How a gateway answers."""

    SUCCESS = "success"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    API_ERROR = "api_error"


class Receipt(BaseModel):
    """The record of a payment that the gateway decided: `outcome` is success or insufficient_funds."""

    model_config = ConfigDict(frozen=True)

    tracking_id: str
    txn_id: str
    outcome: Outcome
    payer_id: str
    recipient_id: str
    amount: int
    currency: str


class PaymentRefused(Exception):
    """The gateway decided another payment under this key: this one is never charged, however often it is tried."""


class GatewayError(Exception):
    """The gateway could not be asked, or did not answer: api_error, worth another attempt."""
