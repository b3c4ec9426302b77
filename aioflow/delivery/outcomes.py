"""How a delivery ends: what its handler returns, and what it raises. No I/O."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from aioflow.policy import Discard


class Delivered(BaseModel):
    """The result of a delivery: the status, 200 to 299, with which the receiver took it."""

    model_config = ConfigDict(frozen=True)

    status: int


class DeliveryFailed(Exception):
    """An attempt that is followed by another: no answer was had, or one that says no.

    `status` and `answer` are those of the receiver, the answer's first 1 KiB, where there was one. `retry_after` is
    the least wait in seconds that the receiver asked for; see `Retry`.
    """

    def __init__(
        self, message: str, *, status: int | None = None, answer: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.answer = answer
        self.retry_after = retry_after


class DeliveryGone(Discard):
    """The receiver answered 410: it wants nothing more under this URL, and the job is dead."""


class UrlRefused(Discard, ValueError):
    """A URL to which nothing is delivered; `rule` names why.

    As a ValueError it may leave a validator of pydantic; raised by a handler it ends the job as dead.
    """

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule = rule

    def __reduce__(self) -> tuple[type[UrlRefused], tuple[str, str]]:
        return UrlRefused, (self.rule, self.reason)  # it comes back from processes
