"""One run: services and submitters as real processes, a seeded schedule of what goes wrong, then the check."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterable

from aioflow import AioflowError, Handle, Runtime
from services.payments.api import service as payments
from tests.chaos import ledger
from tests.chaos.check import TASKS, Check, rows_of
from tests.chaos.history import BLOCK, FREEZE, Span
from tests.chaos.judge import Findings, Judge
from tests.chaos.mishaps import Mishaps
from tests.chaos.receipts import REFUSED, Receipt
from tests.chaos.report import Report
from tests.chaos.work import archive, books, die, eat, shop, step, stock
from tests.chaos.world import NAMESPACE, RUNTIMES, World
from tests.waiting import wait_until

SETTLED_SECONDS = 120.0
"""Once nothing goes wrong any more, all that was accepted must be done within so many."""
LINE_SECONDS = 60.0
LONG_LINE = 150
"""Jobs whose order is looked at, before and after everything."""
PRIORITIES = (4, 0, 9)
GAVE_UP = re.compile(r"dead after GatewayError: .*\nTraceback .*\n(?: .*\n)*\S+GatewayError: .*\n")
"""What is to be said of a payment whose simulated gateway failed five times: one in millions does."""
RECOVERING = ("shop.wait",)
"""The other queues may be long: what goes back to its place there waits for those before it."""


class Run:
    """A run of so many minutes; the seed decides what goes wrong, and when."""

    def __init__(self, seed: int, minutes: float, *, pace: float = 0.1, deadly: float = 0.0001) -> None:
        self.report = Report(seed, minutes, pace)
        self._world = World(seed, pace, deadly)
        self._faults = Mishaps(self._world, seed)
        self._findings = Findings()
        self._lines: list[list[str]] = []
        self._receipts: list[Receipt] = []

    async def run(self) -> Report:
        """Everything; the report says whether all promises were kept."""
        world = self._world
        services = [shop, stock, books, archive, payments]
        try:
            await world.start()
            async with Runtime(services, redis=world.server.url, namespace=NAMESPACE, workers=False) as runtime:
                supervising = asyncio.create_task(world.supervise())
                try:
                    await self._run_a_line(runtime)
                    await self._submit_the_deadly(runtime)
                    await self._go_wrong()
                    await self._calm_down(runtime)
                    await self._run_a_line(runtime)
                finally:
                    supervising.cancel()
                    await asyncio.wait([supervising])
                await self._end_runtimes()
                await self._check(runtime)
        finally:
            await world.close(keep=bool(self.report.wrong))
        return self.report

    async def _run_a_line(self, runtime: Runtime) -> None:
        """Where nothing goes wrong, jobs start in the order of their line."""
        number = len(self._lines)
        await runtime.pause(step)
        expected: list[tuple[int, str]] = []
        for index in range(LONG_LINE):
            priority, name = PRIORITIES[index % len(PRIORITIES)], f"line{number}-{index:06}"
            await runtime.submit(step, name, id=name, priority=priority)
            expected.append((priority, name))
        self._lines.append([name for _, name in sorted(expected)])
        await runtime.resume(step)

        async def all_done() -> bool:
            return (await runtime.sizes(step)).open == 0

        await wait_until(all_done, LINE_SECONDS)

    async def _submit_the_deadly(self, runtime: Runtime) -> None:
        """One of each kind at least, however short the run."""
        for task, kind in ((die, "die"), (eat, "eat")):
            handle = await runtime.submit(task, kind, id=f"first-{kind}")
            assert isinstance(handle, Handle)
            self._receipts.append(Receipt(kind, handle.id, runtime.durability))

    async def _go_wrong(self) -> None:
        began = self._world.history.began = time.monotonic()
        for submitter in self._world.submitters:
            submitter.spawn()
        end = began + 60 * self.report.minutes
        while True:
            pause, fault = self._faults.draw()
            if time.monotonic() + pause >= end:
                break
            await asyncio.sleep(pause)
            since = time.monotonic() - began
            detail = await fault()
            name = fault.__name__
            self.report.faults[name] += 1
            self.report.schedule.append(f"{since:.1f} {name} {detail}".rstrip())
        await asyncio.sleep(max(0.0, end - time.monotonic()))

    async def _calm_down(self, runtime: Runtime) -> None:
        """Nothing goes wrong any more: submitters end, and the rest is done."""
        world = self._world
        for submitter in world.submitters:
            process, submitter.process = submitter.process, None  # nobody starts it again
            world.signal(process, signal.SIGTERM)
            assert process is not None
            self._ended("submitters", await asyncio.to_thread(process.wait, 30), submitter.said)
            receipts = list(submitter.receipts())
            self._findings.say("submitters without a receipt", [] if receipts else [submitter.said])
            self._receipts += receipts
        if world.server.offset < world.server.latest:
            # What was put off by a clock that was fast is due by that clock only.
            await self._faults.set_the_clock(world.server.latest)

        async def settled() -> bool:
            try:
                views = [await runtime.overview(task) for task in TASKS]
            except AioflowError:
                return False
            return not any(view.sizes.open or view.outbox for view in views)

        try:
            await wait_until(settled, SETTLED_SECONDS)
        except AssertionError:
            views = [(task.full_name, await runtime.overview(task)) for task in TASKS]
            left = [f"{name}: {view.sizes}, outbox {view.outbox}" for name, view in views if view.sizes.open]
            self._findings.say(f"queues whose work was not done {SETTLED_SECONDS:g} s after the last fault", left)

    async def _end_runtimes(self) -> None:
        """In order; what they said on the way is looked at."""
        for served in self._world.runtimes:
            process, served.process = served.process, None
            self._world.signal(process, signal.SIGTERM)
            assert process is not None
            self._ended("runtimes", await asyncio.to_thread(process.wait, 30), served.said)
        self._findings.say("processes that ended by themselves", self._world.exits)

    def _ended(self, whose: str, code: int, said: str) -> None:
        if code:
            self._findings.say(f"{whose} that did not end in order after the calm", [f"exit code {code}"])
        said = GAVE_UP.sub("", said)
        if "Traceback" in said:
            self._findings.say(f"{whose} with a traceback in their log", [excerpt(said)])
        weak = [means for means in re.findall(r"receipts mean (.*)", said) if means != "fsync"]
        self._findings.say(f"{whose} whose receipts promise less than fsync", weak)

    def _named(self) -> dict[str, list[str]]:
        """The names of all that was accepted, by kind."""
        names: dict[str, list[str]] = {"order": [], "payment": [], "wait": [], "die": [], "eat": [], REFUSED: []}
        for receipt in self._receipts:
            names[receipt.kind].append(receipt.name)
        self._findings.say("submits that were refused, and not for now", names.pop(REFUSED))
        weak = [f"{one.name} ({one.durability})" for one in self._receipts if one.durability not in ("fsync", "http")]
        self._findings.say("receipts that promise less than fsync", weak)
        return names

    async def _check(self, runtime: Runtime) -> None:
        names = self._named()
        check = Check(runtime, names, self._findings)
        world, report = self._world, self.report
        filed = await asyncio.to_thread(world.database.run, "SELECT name FROM orders", world.archive)
        await check.all(await asyncio.to_thread(rows_of, world.books), [name for (name,) in filed])
        await asyncio.to_thread(self._judge, check.done)
        report.accepted = Counter({kind: len(of_kind) for kind, of_kind in names.items()})
        report.emitted, report.lost, report.doubled = check.emitted, check.lost, check.doubled
        report.process_kills, report.memory_kills = world.process_kills, world.memory_kills
        report.server_kills, report.left_out = self._faults.server_kills, self._faults.left_out
        report.replies_lost, report.died_of_kills = world.proxy.lost, check.excused
        report.judged = self._findings.judged
        report.slowest_recovery_seconds = round(self._findings.slowest_recovery, 3)
        report.stalls = len(ledger.read_spans(world.ledger, ledger.STALLS))
        report.wrong = [*self._faults.wrong, *self._findings.lines(), *report.nothing_shown()]
        if report.wrong:
            report.evidence = str(world.folder)
            for name, told in (("history", dataclasses.asdict(world.history)), ("report", report.told())):
                await asyncio.to_thread((world.folder / f"{name}.json").write_text, json.dumps(told, indent=1))

    def _judge(self, done: dict[str, set[str]]) -> None:
        world = self._world
        for name, kind in ((ledger.BLOCKS, BLOCK), (ledger.STALLS, FREEZE)):
            for pid, began, ended in ledger.read_spans(world.ledger, name):
                world.history.spans.append(Span(kind, began, world.history.end_of(pid, began, ended), pid))
        world.history.starts = [(pid, at) for pid, at, _ in ledger.read_spans(world.ledger, ledger.STARTS)]
        leases = {task.full_name: task.options.lease for task in TASKS}
        judge = Judge(self._findings, world.history, leases, RECOVERING)
        delayed = {receipt.name: receipt for receipt in self._receipts if receipt.due}
        steps: list[tuple[float, str]] = []
        for part in range(ledger.PARTS):
            for (task, job), attempts in ledger.read(world.ledger, part).items():
                judge.job(attempts)
                if any(attempt.how == "done" for attempt in attempts):
                    done[task].discard(job)
                if task == "shop.sell" and job in delayed:
                    judge.delay(attempts[0], delayed[job].submitted, delayed[job].due)
                if task == "shop.step":
                    steps.append((attempts[0].began, job))
        for task in TASKS:
            if task.service is not payments:  # which keeps no ledger of attempts
                self._findings.say(f"done jobs of {task.full_name} that no handler ended well", done[task.full_name])
        self._judge_order(judge, [job for _, job in sorted(steps)])

    def _judge_order(self, judge: Judge, started: Iterable[str]) -> None:
        for number, line in enumerate(self._lines):
            judge.order(line, [job for job in started if job.startswith(f"line{number}-")], RUNTIMES)


def excerpt(said: str) -> str:
    """The end of the first traceback in a log."""
    lines = said[said.index("Traceback") :].splitlines()
    ends = [line for line in lines[1:] if line and not line.startswith(" ")]
    return f"{said.count('Traceback')}, the first: {ends[0] if ends else lines[0]}"


def new_seed() -> int:
    """One that nobody has chosen."""
    return int.from_bytes(os.urandom(4))
