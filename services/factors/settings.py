"""Settings of factors, each with its `FACTORS_*` environment variable, checked as a whole."""

from __future__ import annotations

import os

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from aioflow import ConfigError


class FactorsSettings(BaseSettings):
    """How much may be computed at a time, and for how long. A variable that is empty counts as unset."""

    model_config = SettingsConfigDict(env_prefix="FACTORS_", env_ignore_empty=True, extra="ignore")

    workers: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        le=1000,
        description="Computations at a time, each in a process of its own, in one runtime; unset: one a core",
    )
    idle_timeout: float = Field(60.0, gt=0, le=86_400, description="Seconds after which a process without work ends")
    timeout: float = Field(
        120.0, ge=1, le=86_400, description="Seconds that a computation may take, before its process is killed"
    )
    bound: int = Field(100_000, ge=1, description="Unfinished computations that are taken; more are answered with 429")


def load_settings() -> FactorsSettings:
    """Settings from the environment. Raises ConfigError that names every wrong one."""
    try:
        return FactorsSettings()
    except ValidationError as error:
        problems = [
            f"FACTORS_{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg']}, got {problem['input']!r}"
            for problem in error.errors()
        ]
        raise ConfigError("wrong settings of factors: " + "; ".join(problems)) from error
