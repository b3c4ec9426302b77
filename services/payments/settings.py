"""Settings of payments, each with its `PAYMENTS_*` environment variable."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class PaymentsSettings(BaseSettings):
    """Which gateway decides, and how the simulated one behaves."""

    model_config = SettingsConfigDict(env_prefix="PAYMENTS_", extra="ignore")

    gateway_url: str | None = Field(None, description="URL of the gateway; unset: the simulated one")
    gateway_timeout: float = Field(10.0, gt=0, description="Seconds that the gateway gets to answer")
    simulated_seed: int = Field(0, description="Seed of the simulated gateway")
    simulated_insufficient_rate: float = Field(0.1, ge=0, le=1, description="Share of payments it declines")
    simulated_error_rate: float = Field(0.05, ge=0, le=1, description="Share of calls that fail")
    simulated_latency: float = Field(0.02, ge=0, le=60, description="Its mean latency in seconds")
