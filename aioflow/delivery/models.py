"""What is delivered: the payload of the task `delivery.post`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

LONGEST_URL = 2048


class Delivery(BaseModel):
    """One webhook: `data`, as JSON, is the body of a POST to `url`.

    `type` says what happened, as "invoice.paid" does, for those who look at the queue; it is not sent. The URL is
    not checked here, since the job that emits a delivery has its effects already: `check_url` says beforehand what
    would be refused.
    """

    model_config = ConfigDict(frozen=True)

    url: str
    type: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    data: JsonValue
