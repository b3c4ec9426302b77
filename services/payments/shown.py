"""What the queries take and show, for the description of the API."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from aioflow.web import PageQuery, RangeQuery, Seconds
from services.payments.models import Receipt

Decided = Literal["success", "insufficient_funds"]


class CountQuery(RangeQuery):
    """Of which status."""

    status: Literal["success", "insufficient_funds", "api_error", "open", "running", "dead"]


class ListQuery(CountQuery, PageQuery):
    """A page of one status."""


class OverdueQuery(RangeQuery, PageQuery, total=False):
    """A page of what has been open for long."""

    older_than: Seconds


class PartyQuery(RangeQuery, PageQuery, total=False):
    """A page of one party's payments."""

    status: Decided


class Failure(TypedDict, total=False):
    """How a payment failed."""

    error: str
    message: str
    attempt: int


class PaymentState(TypedDict):
    """A payment as its job tells it; `payment` is null where its record is gone."""

    tracking_id: str
    payment: Any
    receipt: NotRequired[Receipt]
    failure: NotRequired[Failure]
    status: str
    attempt: int
    submitted_at: datetime
    finished_at: NotRequired[datetime]
    due_at: NotRequired[datetime]


class DecidedPayment(TypedDict):
    """A receipt, and since when it is in the list."""

    tracking_id: str
    txn_id: str
    outcome: Decided
    payer_id: str
    recipient_id: str
    amount: int
    currency: str
    at: datetime


class Payments(TypedDict):
    """A page; without a cursor it is the last."""

    payments: list[PaymentState | DecidedPayment]
    cursor: str | None


class Overdue(TypedDict):
    """A page, and how many there are in all."""

    payments: list[PaymentState]
    count: int
    cursor: str | None


class Count(TypedDict):
    """How many payments have a status."""

    status: str
    count: int


class Requeued(TypedDict):
    """A dead payment that has a new life."""

    status: Literal["OK"]
    tracking_id: str
