"""What a shell completes on a command line."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

import typer


def complete_task(context: typer.Context, incomplete: str) -> list[str]:
    """The tasks of the services; none where these cannot be imported. A shell must hear of nothing else."""
    from aioflow.cli.find import find_services

    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            services = find_services(context.params.get("service") or [])
    except (Exception, SystemExit):  # noqa: BLE001 - a user's module may raise anything
        return []
    names = [task.full_name for service in services for task in service.tasks.values()]
    names += [service.name for service in services if service.generator is not None]
    return sorted(name for name in names if name.startswith(incomplete))
