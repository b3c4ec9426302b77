"""Settings of tracking, each with its `TRACKING_*` environment variable, checked as a whole."""

from __future__ import annotations

import re
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from aioflow import ConfigError

Network = IPv4Network | IPv6Network
SCHEMES = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
DATABASE = re.compile(r"sqlite(\+\w+)?:///(?!:memory:)[^?]*[^?/](\?|$)|postgres(ql)?(\+\w+)?://")
"""Each connection to a database in memory would have its own."""
NEEDED = ("sqlalchemy", "alembic", "ua_parser")


class TrackingSettings(BaseSettings):
    """Where events go, and who may read them. A variable that is empty counts as unset."""

    model_config = SettingsConfigDict(env_prefix="TRACKING_", env_ignore_empty=True, extra="ignore")

    database: SecretStr | None = Field(
        None, description="sqlite:///FILE or postgresql://...; unset: the file tracking.sqlite3 in the data folder"
    )
    token: SecretStr | None = Field(
        None,
        min_length=8,
        description="Bearer token of reads and changes, 8 characters or more; unset: all are refused",
    )
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode] = Field(
        (), description="Addresses and networks, with commas between, whose X-Forwarded-For is believed"
    )
    query_seconds: float = Field(10.0, gt=0, le=300, description="How long a query of the table may take")

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        return tuple(ip_network(part.strip(), strict=False) for part in given.split(",") if part.strip())

    @field_validator("database")
    @classmethod
    def _known(cls, given: SecretStr | None) -> SecretStr | None:
        if given is not None and not (DATABASE.match(given.get_secret_value()) and _has_a_place(given)):
            raise ValueError("write sqlite:///FILE or postgresql://user:password@host:port/name, %40 for an @ in it")
        return given

    def url(self, data: Path) -> str:
        """The database's URL with its driver."""
        if self.database is None:
            return f"sqlite+aiosqlite:///{(data / 'tracking.sqlite3').absolute()}"
        scheme, _, rest = self.database.get_secret_value().partition("://")
        return f"{SCHEMES[scheme.partition('+')[0]]}://{rest}"


def _has_a_place(url: SecretStr) -> bool:
    """Whether its port is a number: what stands there instead is a part of the password, most often."""
    try:
        _ = urlsplit(url.get_secret_value()).port
    except ValueError:
        return False
    return True


def load_settings() -> TrackingSettings:
    """Settings from the environment. Raises ConfigError that names every wrong one."""
    try:
        return TrackingSettings()
    except ValidationError as error:
        secret = {"database", "token"}
        problems = [
            f"TRACKING_{name.upper()}: {problem['msg']}" + ("" if name in secret else f", got {problem['input']!r}")
            for problem in error.errors()
            for name in [str(problem["loc"][0])]
        ]
    # Outside the handler: neither the cause nor the context of what is raised holds a password.
    raise ConfigError("wrong settings of tracking: " + "; ".join(problems))


def check_installed(url: str) -> None:
    """Raise ConfigError where a package is missing. Nothing is imported: only what is used is."""
    driver = url.partition("://")[0].partition("+")[2]
    missing = [name for name in (*NEEDED, driver) if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"tracking needs {', '.join(missing)}: pip install 'aioflow[tracking]', or serve without services.tracking"
        )
