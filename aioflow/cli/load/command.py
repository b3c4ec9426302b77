"""The command `load`: its options, and what is started for them. What is wrong with them is one line, exit code 2.

Numbers are taken as text, and checked as a whole with the plan and the settings.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aioflow.cli.complete import complete_task
from aioflow.errors import AioflowError


def load(
    task: Annotated[
        str,
        typer.Argument(help='"service.task", of the services that `serve` finds', autocompletion=complete_task),
    ],
    payload: Annotated[str, typer.Argument(help="The payload of every job as JSON; - reads it from standard input")] = (
        "null"
    ),
    service: Annotated[
        list[str] | None,
        typer.Option(help="module:attribute, may be repeated; default: \\[tool.aioflow] services", metavar="SERVICE"),
    ] = None,
    url: Annotated[str | None, typer.Option(help="POST the payload there instead of submitting in process")] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            help="redis://, rediss://, unix://, redis+sentinel://, redis+cluster://, memory:, or embedded: where a "
            "server runs"
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder of the embedded server's data")] = None,
    workers: Annotated[
        str | None, typer.Option(help="Concurrency of each task, instead of its own", metavar="NUMBER")
    ] = None,
    no_workers: Annotated[bool, typer.Option("--no-workers", help="Leave the jobs to other processes")] = False,
    submitters: Annotated[
        str | None, typer.Option(help="Most submits under way at a time, default 100", metavar="NUMBER")
    ] = None,
    jobs: Annotated[str | None, typer.Option(help="End after so many submits", metavar="NUMBER")] = None,
    seconds: Annotated[str | None, typer.Option(help="End after so long, default 10", metavar="SECONDS")] = None,
    rate: Annotated[
        str | None, typer.Option(help="Open loop: so many submits a second, whatever the answers do", metavar="NUMBER")
    ] = None,
    settle: Annotated[
        str | None, typer.Option(help="How long the jobs are waited for at the end, default 30", metavar="SECONDS")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Submit many jobs, measure, and account for every one that was receipted.

    Each submitter submits again as soon as it is answered (closed loop). With
    --rate the submits are due at fixed times, and latencies count from those
    (open loop). Percentiles are of HDR histograms, over accepted jobs. The
    receipt is timed by this process' clock; start and finish come from the
    jobs' records, in whole milliseconds of the server's clock. Of a job that
    ran more than once, the start is that of its last run.

    In process, a runtime of all services also runs the jobs, unless
    --no-workers. With --url, TASK is only the name of the queue and no service
    is loaded; a receipt is a 202 with a tracking_id or an id; 429 and 503 count
    as refused. With --redis (and AIOFLOW_NAMESPACE) the jobs' records are then
    looked up as in process; without, each job's Location is asked for once.

    Conservation: every accepted job must be done, dead or still queued, and the
    queue's own counters must not be below that. A job is remembered until it is
    seen finished, in 24 bytes; 10 million at most.

    Ctrl-C stops submitting and reports; a second one ends at once.

    Exit codes: 0; 1 if a job is missing or nobody can be asked for it, or if
    none was accepted; 2 for bad input; 130 if interrupted.
    """
    from aioflow.cli.load.start import Options, start

    try:
        code = start(
            Options(
                task=task,
                payload=payload,
                services=service or [],
                url=url,
                redis=redis,
                data=data,
                workers=workers,
                no_workers=no_workers,
                plan={"submitters": submitters, "jobs": jobs, "seconds": seconds, "rate": rate, "settle": settle},
                as_json=as_json,
            )
        )
    except AioflowError as error:
        print(f"aioflow: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201 - what the command says
        sys.exit(2)
    sys.exit(code)
