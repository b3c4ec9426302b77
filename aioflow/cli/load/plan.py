"""What one load test is to do, checked as a whole before anything is started."""

from __future__ import annotations

import math
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aioflow.errors import ConfigError

DEFAULT_SECONDS = 10.0


class Plan(BaseModel):
    """How many submitters submit how much, how fast, and how long the jobs are waited for. Times are in seconds."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    submitters: int = Field(100, ge=1, le=10_000)
    jobs: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0, le=30 * 86_400)
    rate: float | None = Field(None, gt=0, le=1_000_000)
    settle: float = Field(30.0, ge=0, le=86_400)

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.jobs is not None and self.seconds is not None:
            raise ValueError("give --jobs or --seconds, not both")
        return self

    @property
    def duration(self) -> float | None:
        """Seconds of submitting; None where a number of jobs ends it."""
        return None if self.jobs is not None else self.seconds or DEFAULT_SECONDS

    @property
    def total(self) -> int | None:
        """How many submits are made at most; None where only the time ends a closed loop."""
        if self.duration is None or self.rate is None:
            return self.jobs
        return max(1, math.ceil(self.duration * self.rate - 1e-9))


def make_plan(**given: Any) -> Plan:
    """The plan of these options (None: not given). Raises ConfigError that names every wrong one."""
    try:
        return Plan(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problems = [
            f"--{problem['loc'][0]}: {problem['msg']}, got {problem['input']!r}"
            if problem["loc"]
            else problem["msg"].removeprefix("Value error, ")
            for problem in error.errors()
        ]
        raise ConfigError("; ".join(problems)) from error
