"""The command line: one file per command."""

from __future__ import annotations

import typer

from aioflow.cli.serve import serve

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


def main() -> None:
    """The entry point."""
    app()
