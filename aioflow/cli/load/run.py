"""One load test from the first submit to the report: submit, settle, account.

The jobs are looked up when all are submitted, so that the look-ups do not disturb the load; only in runs that last
longer than FOLLOW_SECONDS are the older ones looked up meanwhile, long before their retention can end (10 minutes at
least), and forgotten once they have finished.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from aioflow.cli.load.accounts import MOST_LISTED, Accounts, compare_totals
from aioflow.cli.load.ledger import MOST_ENTRIES, Ledger
from aioflow.cli.load.meter import Meter
from aioflow.cli.load.plan import Plan
from aioflow.cli.load.report import Report
from aioflow.cli.load.submitters import Submitters
from aioflow.errors import AioflowError
from aioflow.load import Keeper, Target

FOLLOW_SECONDS = 60.0
METER_SECONDS = 0.1
SHORTEST_PAUSE = 0.02
LONGEST_PAUSE = 5.0
LOOK_SHARE = 4
"""A pause is so many times as long as the look before it: waiting must not load the server."""


class LoadTest:
    """One run. `failed`, where it is set by the runtime, ends it as a signal does."""

    def __init__(
        self,
        task: str,
        target_name: str,
        target: Target,
        keeper: Keeper,
        plan: Plan,
        meter: Meter,
        failed: asyncio.Event | None = None,
    ) -> None:
        self._task = task
        self._target_name = target_name
        self._keeper = keeper
        self._plan = plan
        self._meter = meter
        self._failed = failed or asyncio.Event()
        ledger = Ledger()
        self._submitters = Submitters(target, plan, ledger)
        self._accounts = Accounts(ledger, keeper)
        self._interrupt = asyncio.Event()
        self._trouble: AioflowError | None = None
        """Why a look was not complete."""

    async def run(self) -> Report:
        """Carry the plan out. At a SIGINT or SIGTERM it goes straight to the report; a second ends the process."""
        with self._signals(), self._meter:
            before = await self._keeper.totals()
            await self._submit()
            checked = await self._settle()
            report = Report(
                self._task,
                self._target_name,
                self._plan,
                self._submitters,
                self._accounts,
                checked=checked,
                interrupted=self._interrupt.is_set(),
            )
            if self._failed.is_set():
                report.wrong.append("the runtime failed; its log says why")
            if report.checked:
                self._judge_jobs(report)
            if before is not None:
                await self._judge_totals(report, before)
        report.notes += self._notes(report)
        return report

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self._signalled)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        if self._interrupt.is_set():
            self._meter.close()
            os._exit(130)
        self._interrupt.set()
        self._submitters.stop()

    async def _submit(self) -> None:
        beside = [asyncio.create_task(loop) for loop in (self._keep_showing(), self._follow(), self._watch())]
        try:
            await self._submitters.run()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            self._show_submits()

    async def _watch(self) -> None:
        await self._failed.wait()
        self._interrupt.set()
        self._submitters.stop()

    async def _keep_showing(self) -> None:
        while True:
            self._show_submits()
            await asyncio.sleep(METER_SECONDS)

    def _show_submits(self) -> None:
        made, plan = self._submitters, self._plan
        done, of = (made.sent, plan.total) if plan.duration is None else (made.elapsed, plan.duration)
        self._meter.show("submitting", done, of or 1, f"{made.accepted:,} accepted")

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW_SECONDS / 4)
            # What cannot be looked up now is looked up later.
            with suppress(AioflowError):
                await self._accounts.look(before=time.monotonic() - FOLLOW_SECONDS)

    async def _settle(self) -> bool:
        """Look until all jobs have ended or the time is over; whether anybody could be asked."""
        if not self._keeper.can_tell:
            return False
        accounts, ends = self._accounts, time.monotonic() + self._plan.settle
        while True:
            began = time.monotonic()
            try:
                await accounts.look()
            except AioflowError as error:
                self._trouble = error
            now = time.monotonic()
            finished = accounts.ended.total() + accounts.missing
            self._meter.show("settling", finished, self._submitters.accepted or 1, f"{len(accounts.ledger):,} queued")
            if not len(accounts.ledger) or now >= ends or self._interrupt.is_set():
                return True
            pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, LOOK_SHARE * (now - began)), ends - now)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._interrupt.wait()

    def _judge_jobs(self, report: Report) -> None:
        accounts = self._accounts
        if accounts.missing:
            ids = ", ".join(accounts.missing_ids) + (", ..." if accounts.missing > len(accounts.missing_ids) else "")
            report.wrong.append(f"{accounts.missing:,} accepted jobs are missing: {ids}")
        awaited = accounts.queued.total() if self._keeper.arrive and not report.interrupted else 0
        if awaited:
            ids = ", ".join(job_id for job_id, _ in accounts.ledger.first(MOST_LISTED))
            report.wrong.append(f"{awaited:,} did not arrive within {self._plan.settle:g} s, such as {ids}")
        if accounts.unchecked:
            report.wrong.append(f"{accounts.unchecked:,} accepted jobs could not be looked up: {self._trouble}")

    async def _judge_totals(self, report: Report, before: dict[str, int]) -> None:
        try:
            after = await self._keeper.totals() or {}
        except AioflowError as error:
            report.wrong.append(str(error))
            return
        report.totals = {name: count - before.get(name, 0) for name, count in after.items()}
        wrong, notes = compare_totals(report.totals, self._submitters.accepted, self._accounts.ended)
        report.wrong += wrong
        report.notes += notes

    def _notes(self, report: Report) -> Iterator[str]:
        if self._submitters.stopped and not report.interrupted:
            yield f"submitting ended early, at {MOST_ENTRIES:,} unfinished jobs"
        if self._submitters.unsent:
            yield "the figures are of what was sent; what never was would have been slower still"
        if not report.checked:
            yield "the receipts name no Location to ask for the jobs; give --redis to check"
        elif self._accounts.ended["kept"]:
            yield "over HTTP alone, kept jobs are not told apart by state; --redis does"
