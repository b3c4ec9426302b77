"""Settings of payments, each with its `PAYMENTS_*` environment variable, checked as a whole."""

from __future__ import annotations

from pydantic import Field, HttpUrl, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from aioflow import ConfigError


class PaymentsSettings(BaseSettings):
    """Which gateway decides, and how the simulated one behaves. A variable that is empty counts as unset."""

    model_config = SettingsConfigDict(env_prefix="PAYMENTS_", env_ignore_empty=True, extra="ignore")

    gateway_url: HttpUrl | None = Field(None, repr=False, description="URL of the gateway; unset: the simulated one")
    gateway_timeout: float = Field(10.0, gt=0, le=3600, description="Seconds that the gateway gets to answer")
    simulated_seed: int = Field(0, description="Seed of the simulated gateway")
    simulated_insufficient_rate: float = Field(0.1, ge=0, le=1, description="Share of payments it declines")
    simulated_error_rate: float = Field(0.05, ge=0, le=1, description="Share of calls that fail")
    simulated_latency: float = Field(0.02, ge=0, le=60, description="Its mean latency in seconds")


def load_settings() -> PaymentsSettings:
    """Settings from the environment. Raises ConfigError that names every wrong one."""
    try:
        return PaymentsSettings()
    except ValidationError as error:
        problems = [_said(str(problem["loc"][0]), problem["msg"], problem["input"]) for problem in error.errors()]
    # Outside the handler: neither the cause nor the context of what is raised holds a password.
    raise ConfigError("wrong settings of payments: " + "; ".join(problems))


def _said(name: str, message: str, given: object) -> str:
    shown = "" if name == "gateway_url" else f", got {given!r}"  # a URL may hold a password
    return f"PAYMENTS_{name.upper()}: {message}{shown}"
