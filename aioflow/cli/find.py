"""Finds the services that a command is about."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from aioflow.errors import ConfigError
from aioflow.service import Service


def find_services(names: Sequence[str]) -> list[Service]:
    """The services named `module:attribute`, or those of the current folder's pyproject.toml. Raises ConfigError."""
    if not names:
        names = _configured(Path("pyproject.toml"))
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return [_load(name) for name in names]


def _configured(project: Path) -> Sequence[str]:
    how = "name one as module:attribute, or list them under [tool.aioflow] services in pyproject.toml"
    try:
        table = tomllib.loads(project.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no service is named and there is no pyproject.toml here; {how}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{project.resolve()} cannot be read: {error}") from error
    names: object = table
    for part in ("tool", "aioflow", "services"):
        names = names.get(part) if isinstance(names, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{project.resolve()} names no services; {how}")
    return names


def _load(name: str) -> Service:
    module_name, _, attribute = name.partition(":")
    if not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(f"service {name!r}: write module:attribute, such as services.payments:service")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"service {name!r}: {error}") from error
    service = getattr(module, attribute, None)
    if not isinstance(service, Service):
        raise ConfigError(f"service {name!r}: {module_name} has no Service named {attribute}")
    return service
