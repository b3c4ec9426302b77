"""Settings of deliveries, each with its `AIOFLOW_DELIVERY_*` environment variable, checked as a whole.

Secrets are kept as pydantic's SecretStr, and no message shows what was given for them.
"""

from __future__ import annotations

import base64
import binascii
import functools
import os
import re
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from aioflow.delivery.urls import PORTS, Rules, parse_allowed
from aioflow.errors import ConfigError

PREFIX = "AIOFLOW_DELIVERY_"
MOST_ATTEMPTS = 10
"""As many failures as a job's record keeps."""
SECRET_BYTES = (24, 64)
MOST_SECRETS = 10


class DeliverySettings(BaseSettings):
    """How deliveries are signed, tried and bounded; what is not given comes from the environment.

    There lists are separated by commas or spaces, and a variable that is empty counts as unset.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", hide_input_in_errors=True
    )

    secrets: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), max_length=MOST_SECRETS, description="The secrets that sign, each as whsec_ and base64 of 24 to 64 bytes"
    )
    timeout: float = Field(
        15.0, gt=0, le=300, description="Seconds that one attempt may take, from the name to the answer"
    )
    attempts: int = Field(10, ge=1, le=MOST_ATTEMPTS, description="How often a delivery may fail before it is dead")
    base: float = Field(
        60.0, ge=0, le=86_400, description="The wait after a failure is drawn between 0 and base * 2**failures seconds"
    )
    longest: float = Field(
        14_400.0,
        ge=0,
        le=604_800,
        description="No drawn wait is longer, and no `Retry-After` counts for more, in seconds",
    )
    concurrency: int = Field(100, ge=1, le=10_000, description="How many deliveries a runtime has under way")
    per_host: int = Field(
        10, ge=1, le=10_000, description="How many of them may be to one host; at most half of them are"
    )
    allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Hosts, addresses and networks, each with `:port` or for all ports, that no rule holds for"
    )
    http: bool = Field(False, description="Whether plain http is allowed everywhere, not only to what `ALLOW` names")
    ports: Annotated[tuple[int, ...], NoDecode] = Field(PORTS, description="Ports that are allowed")

    @field_validator("secrets", "allow", "ports", mode="before")
    @classmethod
    def _separated(cls, given: Any) -> Any:
        return (
            tuple(re.split(r"[,\s]+", given.strip(", \t\r\n"))) if isinstance(given, str) and given.strip() else given
        )

    @field_validator("secrets")
    @classmethod
    def _can_sign(cls, given: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, secret in enumerate(given, 1):
            try:
                prefix, _, encoded = secret.get_secret_value().rpartition("whsec_")
                size = len(base64.b64decode(encoded, validate=True)) if not prefix else 0
            except (binascii.Error, ValueError):
                size = 0
            if not secret.get_secret_value().startswith("whsec_") or not SECRET_BYTES[0] <= size <= SECRET_BYTES[1]:
                raise ValueError(
                    f"secret {number} is not whsec_ and base64 of {SECRET_BYTES[0]} to {SECRET_BYTES[1]} bytes"
                )
        return given

    @field_validator("allow")
    @classmethod
    def _can_be_read(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for entry in given:
            parse_allowed(entry)
        return given

    @field_validator("ports")
    @classmethod
    def _are_ports(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        if not given or not all(1 <= port <= 65535 for port in given):
            raise ValueError("a port is 1 to 65535")
        return given

    @property
    def turns(self) -> int:
        """Deliveries to one host at a time: never so many that it could have all."""
        return min(self.per_host, max(1, self.concurrency // 2))

    @property
    def rules(self) -> Rules:
        """Where deliveries may go."""
        return Rules(allow=self.allow, http=self.http, ports=self.ports)


def load_settings() -> DeliverySettings:
    """Settings from the environment. Raises ConfigError that names every wrong one."""
    try:
        return DeliverySettings()
    except ValidationError as error:
        problems = [_said(problem["loc"], problem["msg"], problem["input"]) for problem in error.errors()]
    # Outside the handler: neither the cause nor the context of what is raised holds a secret.
    raise ConfigError("wrong settings of deliveries: " + "; ".join(problems))


def _said(where: tuple[int | str, ...], message: str, given: Any) -> str:
    name = str(where[0])
    shown = "" if name == "secrets" else f", got {given!r}"
    return f"{PREFIX}{name.upper()}: {message}{shown}"


def check_url(url: str) -> None:
    """Raise UrlRefused, whose `rule` names why, where nothing would be delivered to a URL; names are not resolved.

    For services that refuse a URL when it is given: in a validator of a pydantic model it becomes a 422 that names the
    field. The addresses are checked at each connection, and that check decides. Reads the settings from the
    environment; raises ConfigError where they are wrong.
    """
    _rules(tuple(item for item in os.environ.items() if item[0].upper().startswith(PREFIX))).check(url)


@functools.lru_cache(maxsize=4)
def _rules(_environment: tuple[tuple[str, str], ...]) -> Rules:
    """Read once for each environment: it takes longer than the check."""
    return load_settings().rules
