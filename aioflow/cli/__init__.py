"""The command line: one file per command."""

from __future__ import annotations

import typer

from aioflow.cli.connect import EXIT_CODES
from aioflow.cli.fleet import quiet, runtimes, scale, stop
from aioflow.cli.jobs import jobs
from aioflow.cli.load import load
from aioflow.cli.queue import queue
from aioflow.cli.serve import serve
from aioflow.cli.status import status
from aioflow.cli.submit import submit

app = typer.Typer(
    name="aioflow",
    help="Tiny services that talk to each other through Redis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def commands() -> None:
    """Tiny services that talk to each other through Redis."""


app.command()(serve)
app.command()(load)
app.command(epilog=EXIT_CODES)(submit)
app.command(epilog=EXIT_CODES)(status)
for command in (runtimes, stop, quiet, scale):
    app.command(epilog=EXIT_CODES)(command)
app.add_typer(jobs, name="jobs")
app.add_typer(queue, name="queue")


def main() -> None:
    """The entry point. Its name is said: a shell completes `aioflow`, also where it was installed by `python -m`."""
    app(prog_name="aioflow")
