"""From the options of `load` to its report: finds the task, opens the target and whoever keeps the jobs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import uvloop
from rich.console import Console

from aioflow.cli.connect import reachable
from aioflow.cli.find import find_services, find_task
from aioflow.cli.given import check_payload, number_of, read_payload
from aioflow.cli.load.keepers import Locations, Records
from aioflow.cli.load.meter import Meter
from aioflow.cli.load.plan import Plan, make_plan
from aioflow.cli.load.report import Report
from aioflow.cli.load.run import LoadTest
from aioflow.cli.load.targets import InProcess, OverHttp, check_url
from aioflow.cli.logs import set_up_logs
from aioflow.engine.connect import shown
from aioflow.engine.keys import Queue, check_namespace
from aioflow.engine.store import Store
from aioflow.errors import ConfigError
from aioflow.load import Generator, LoadOptions, open_session
from aioflow.runtime import Runtime
from aioflow.service import TASK_NAME, Service, Task
from aioflow.settings import Settings, load_settings


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    task: str
    payload: str
    services: Sequence[str]
    url: str | None
    redis: str | None
    data: str | None
    workers: str | None
    no_workers: bool
    plan: Mapping[str, str | None]
    as_json: bool
    seed: str | None = None


def start(options: Options) -> int:
    """Run the load test and print its report; the exit code. Raises AioflowError before anything was submitted."""
    settings = load_settings(redis=options.redis, data=options.data, workers=options.workers)
    set_up_logs(settings.log_format)
    logging.getLogger().setLevel(logging.WARNING)
    plan = make_plan(**options.plan)
    generator = find_generator(options)
    if generator is None and options.seed is not None:
        raise ConfigError("--seed is for a service's own generator: name the service, without a task")
    body = read_payload(options.payload)
    if generator is not None:
        if options.payload != "null" or options.redis or options.data or options.workers or options.no_workers:
            raise ConfigError(
                f"{options.task} makes its own payloads and submits them to a URL: leave out PAYLOAD, --redis, --data, "
                "--workers and --no-workers"
            )
        running = generated(plan, options, generator)
    elif options.url is None:
        services = find_services(options.services)
        task = find_task(services, options.task)
        check_payload(task, body)
        running = in_process(settings, plan, services, task, body, workers=not options.no_workers)
    else:
        if options.services or options.workers or options.no_workers:
            raise ConfigError(
                "--service, --workers and --no-workers are for loads in process; leave them out with --url"
            )
        running = over_http(settings, plan, options, check_url(options.url), body)
    report = uvloop.run(running)
    if options.as_json:
        print(orjson.dumps(report.as_json()).decode())  # noqa: T201 - what the command says
    else:
        report.show(Console())
    return report.exit_code


async def in_process(
    settings: Settings, plan: Plan, services: list[Service], task: Task[Any, Any], body: bytes, *, workers: bool
) -> Report:
    """Submit to a runtime of this process, which also runs the jobs."""
    settings = settings.model_copy(update={"redis": await reachable(settings)})
    queue = Queue(check_namespace(settings.namespace), task.service.name, task.name)
    runtime = Runtime(services, settings=settings, workers=(settings.workers or True) if workers else False)
    try:
        await runtime.start()
        keeper = Records(partial(runtime.inspect_many, task), runtime.redis, queue, len(body))
        name = f"in process, redis {shown(settings.redis)}, receipts mean {runtime.durability}"
        target = InProcess(runtime, task, body)
        return await LoadTest(task.full_name, name, target, keeper, plan, Meter(), runtime.failed).run()
    finally:
        await runtime.stop()  # leaving it by `async with` raises where it failed, and there would be no report


async def generated(plan: Plan, options: Options, generator: Generator) -> Report:
    """Submit what a service's own generator makes."""
    url = check_url(options.url or "http://127.0.0.1:8080")
    seed = 0 if options.seed is None else number_of(options.seed, "--seed", 0, 10**12 - 1)
    async with generator(LoadOptions(url.rstrip("/"), plan.submitters, seed)) as load:
        return await LoadTest(options.task, load.name, load.target, load.keeper, plan, Meter()).run()


def find_generator(options: Options) -> Generator | None:
    """The generator that the options mean; None: they mean a task."""
    if "." in options.task:
        return None
    try:
        services = find_services(options.services)
    except ConfigError:
        if options.url is None or options.services:
            raise
        return None  # with a URL a task need not be known here
    return generator_of(services, options.task)


def generator_of(services: list[Service], name: str) -> Generator | None:
    """The generator of a service; None: there is no service of that name. Raises ConfigError where it has none."""
    for service in services:
        if service.name == name:
            if service.generator is None:
                tasks = ", ".join(sorted(task.full_name for task in service.tasks.values()))
                raise ConfigError(
                    f"service {name} has no load generator of its own; name a task: {tasks or 'it has none'}"
                )
            return service.generator
    return None


async def over_http(settings: Settings, plan: Plan, options: Options, url: str, body: bytes) -> Report:
    """Submit by HTTP; the jobs are looked up in Redis where it was named, else by their Locations."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(open_session(plan.submitters))
        locations = Locations(session, plan.submitters)
        keeper: Locations | Records = locations
        if options.redis is not None:
            if options.redis == "memory:":
                raise ConfigError("--redis memory: is seen by its own process only; leave it out with --url")
            queue = queue_of(settings.namespace, options.task)
            store = Store(await reachable(settings), name="aioflow:load")
            stack.push_async_callback(store.close)
            await store.ping()
            keeper = Records(partial(store.inspect, queue), store.redis, queue, len(body))
        target = stack.enter_context(closing(OverHttp(url, body, locations)))
        return await LoadTest(options.task, f"POST {url}", target, keeper, plan, Meter()).run()


def queue_of(namespace: str, task: str) -> Queue:
    """The queue of "service.task", which is not loaded here. Raises ConfigError."""
    service, _, name = task.partition(".")
    if not TASK_NAME.fullmatch(service) or not TASK_NAME.fullmatch(name):
        raise ConfigError(f"task {task!r}: write service.task")
    return Queue(check_namespace(namespace), service, name)
