"""Finds the services that a command is about."""

from __future__ import annotations

import importlib
import sys
import tomllib
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aioflow.errors import AioflowError, ConfigError
from aioflow.service import Service, Task


def find_services(names: Sequence[str]) -> list[Service]:
    """The services named `module:attribute`, or those of the current folder's pyproject.toml.

    Raises ConfigError, also where a module of theirs fails.
    """
    if not names:
        names = _configured(Path("pyproject.toml"))
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return [_load(name) for name in names]
    except AioflowError:
        raise
    except Exception as error:  # a user's module may raise anything
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"the services cannot be imported: {culprit(error)}: {said}") from error


def culprit(error: Exception) -> str:
    """Where an import went wrong, as file:line: the last line of the user's own on the way to the error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    places = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not str(frame.f_globals.get("__name__")).startswith(("importlib", "aioflow."))
    ]
    own = [place for place in places if Path(place[0]).is_relative_to(Path.cwd()) and "site-packages" not in place[0]]
    file, line = (own or places or [("a file that cannot be read", 0)])[-1]
    return f"{file}:{line}"


def find_task(services: Sequence[Service], name: str) -> Task[Any, Any]:
    """The task of that name, or ConfigError."""
    known = {task.full_name: task for service in services for task in service.tasks.values()}
    if name not in known:
        raise ConfigError(f"there is no task {name!r}; there are {', '.join(sorted(known)) or 'none'}")
    return known[name]


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
