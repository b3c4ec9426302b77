"""`python -m aioflow load`: a load test, in process or over HTTP, that accounts for every job it was receipted."""

from aioflow.cli.load.command import load

__all__ = ["load"]
