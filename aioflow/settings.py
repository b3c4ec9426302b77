"""Every setting of aioflow, each with its `AIOFLOW_*` environment variable, checked as a whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import ByteSize, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from aioflow.errors import ConfigError

DURABILITY = r"^(memory|fsync|replicated:[1-9][0-9]?)$"


class Settings(BaseSettings):
    """What can be set. Command line options win over the environment, and that over these defaults."""

    model_config = SettingsConfigDict(env_prefix="AIOFLOW_", extra="ignore")

    redis: str = Field(
        "embedded:",
        repr=False,  # it may hold a password
        description="redis://, rediss://, unix://, redis+sentinel://, redis+cluster://, embedded: or memory:",
    )
    data: Path = Field(Path(".aioflow"), description="Folder of the embedded server's data")
    namespace: str = Field("aioflow", description="What every Redis key begins with")
    durability: str | None = Field(
        None,
        pattern=DURABILITY,
        description="What a receipt means: memory, fsync or replicated:N; unset: fsync if it is to be had, else memory",
    )
    host: str = Field("127.0.0.1", description="Address that the HTTP ingress listens on")
    port: int = Field(8080, ge=0, le=65535, description="Port of the HTTP ingress; 0 takes a free one")
    workers: int | None = Field(None, ge=1, le=10_000, description="Concurrency of each task, instead of its own")
    grace: float = Field(10.0, ge=0, le=3600, description="Seconds that running handlers get when stopping")
    body_limit: int = Field(1 << 20, ge=1024, description="Largest HTTP request body, in bytes")
    longest_wait: float = Field(60.0, ge=0, le=3600, description="Most seconds that `Prefer: wait` may ask for")
    memory_watermark: float = Field(
        0.9, gt=0, le=1, description="Share of Redis' maxmemory above which the ingress answers 503"
    )
    memory_budget: ByteSize | None = Field(
        None, ge=1, description="Stands for maxmemory where that is 0, in bytes, or such as 512MiB or 2GB"
    )
    allow_eviction: bool = Field(False, description="Start although the server may evict accepted jobs")
    log_format: Literal["text", "json"] = Field("text", description="Form of the log lines on standard error")

    @field_validator("data", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if given == "":
            raise ValueError("a folder is needed; . is the current one")
        return given


def check_durability(durability: str) -> str:
    """Return the durability, or raise ConfigError."""
    if not isinstance(durability, str) or not re.fullmatch(DURABILITY, durability):
        raise ConfigError(f"durability={durability!r}: use memory, fsync, or replicated:N with N from 1 to 99")
    return durability


def load_settings(**given: Any) -> Settings:
    """Settings from the environment and from what is given (None: not given).

    Raises ConfigError that names every wrong setting and what it may be.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc']))} (AIOFLOW_{'_'.join(map(str, problem['loc'])).upper()}): "
            f"{problem['msg']}, got {problem['input']!r}"
            for problem in error.errors()
        ]
    # Outside the handler: neither the cause nor the context of what is raised holds what was given.
    raise ConfigError("wrong settings: " + "; ".join(problems))
