"""Gathers jobs of a batch task into calls of its handler.

Each job keeps its own attempt: lease, middleware, retry policy, effects and outcome are as everywhere. Only the
innermost call is shared. A call begins when `batch` jobs wait, or `linger` seconds after the first one came, unless as
many calls run as may; those that come meanwhile join the next one. How many wait is bounded by the pool's concurrency.

A job that is cancelled while its call runs is over when the call is: what it did may be done. Once all of them are to
be cancelled, the call is.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aioflow.engine.attempt import Attempt
from aioflow.errors import plain
from aioflow.job import Batch, Job
from aioflow.service import Task


@dataclass(slots=True, eq=False)
class Member:
    """One job of a call."""

    attempt: Attempt
    payload: Any
    job: Job
    begin: Callable[[], None]
    future: asyncio.Future[None]
    call: Call | None = None
    context: contextvars.Context = field(default_factory=contextvars.copy_context)


@dataclass(slots=True, eq=False)
class Call:
    """One call of the handler."""

    members: list[Member]
    task: asyncio.Task[None] | None = None
    leaving: set[Member] = field(default_factory=set)

    def leave(self, member: Member) -> None:
        """This member is to be cancelled."""
        self.leaving.add(member)
        if self.task is not None and len(self.leaving) == len(self.members):
            self.task.cancel()


class Batches:
    """The calls of one batch task in this process."""

    def __init__(self, task: Task[Any, Any], most: int, concurrency: int) -> None:
        self._task = task
        self._asked = most
        self._concurrency = concurrency
        self._calls: set[asyncio.Task[None]] = set()
        self._line: dict[Member, None] = {}  # in order
        self._hurries = False
        self._lingered = False
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Batches {self._task.full_name} waiting={len(self._line)} calls={len(self._calls)}>"

    async def run(self, attempt: Attempt, payload: Any, job: Job, begin: Callable[[], None]) -> None:
        """Take part in a call; `begin` is called when it begins. Raises what the handler says of this job."""
        attempt.waiting = True
        loop = asyncio.get_running_loop()
        member = Member(attempt, payload, job, begin, loop.create_future())
        self._line[member] = None
        if attempt.alone or self._hurries:
            self._lingered = True
        elif self._timer is None and not self._lingered:
            self._timer = loop.call_later(self._task.options.linger, self._waited)
        self._start_calls()
        try:
            await asyncio.shield(member.future)
        except asyncio.CancelledError:
            if member.call is None:
                del self._line[member]
                if not self._line:
                    self._wait_again()
                raise
            member.call.leave(member)
            while not member.future.done():
                try:
                    await asyncio.wait([member.future])
                except asyncio.CancelledError:
                    if attempt.left:
                        raise
                    member.call.leave(member)  # it may take its time over the first
            if member.future.cancelled() or member.future.exception() is not None:
                raise

    def scale(self, concurrency: int) -> None:
        """At most so many jobs are here at a time from now on."""
        self._concurrency = concurrency
        self._start_calls()

    def hurry(self) -> None:
        """No more jobs are claimed: nobody will join those that wait."""
        self._hurries = self._lingered = True
        self._start_calls()

    def close(self) -> None:
        """The runtime has stopped."""
        if self._timer is not None:
            self._timer.cancel()

    def _waited(self) -> None:
        self._timer = None
        self._lingered = True
        self._start_calls()

    def _start_calls(self) -> None:
        most = max(1, min(self._asked, self._concurrency))
        while len(self._calls) < max(1, self._concurrency // most):
            if not self._lingered and len(self._line) < most:
                return
            # One that is to be cancelled this moment may run elsewhere already.
            members = [member for member in self._line if member.attempt.stop is None][:most]
            if not members or (not self._lingered and len(members) < most):
                return
            call = Call(members)
            name = f"{self._task.full_name} {members[0].job.id} and {len(members) - 1} more"
            call.task = asyncio.create_task(self._run(call), name=name, context=members[0].context.copy())
            self._calls.add(call.task)
            call.task.add_done_callback(partial(self._ended, call))
            for member in members:
                del self._line[member]
                member.call = call
                member.begin()
            self._wait_again()

    def _wait_again(self) -> None:
        """Those that are left, or come next, get time for others to join them."""
        self._lingered = self._hurries
        self.close()
        self._timer = None
        if self._line and not self._hurries:
            self._timer = asyncio.get_running_loop().call_later(self._task.options.linger, self._waited)

    def _ended(self, call: Call, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        for member in call.members:
            if not member.future.done():
                if error is None:
                    member.future.cancel()  # so was the call, perhaps before its first step
                else:
                    fail(member, error)
        # Its members name it: left together they would be for the garbage collector, which holds up the event loop.
        call.members, call.leaving = [], set()
        self._calls.discard(task)
        self._start_calls()

    async def _run(self, call: Call) -> None:
        batch = Batch([member.job for member in call.members])
        payloads = [member.payload for member in call.members]
        try:
            await self._task.handler(*self._task.signature.arguments(payloads, batch))
        except (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything; each job's retry policy decides
            for member in call.members:
                fail(member, error)
        else:
            for position, member in enumerate(call.members):
                failure = batch.failures.get(position)
                if failure is None:
                    member.future.set_result(None)
                else:
                    fail(member, failure)


def fail(member: Member, error: BaseException) -> None:
    """Let one job of a call fail; nobody may be waiting for it any more."""
    member.future.set_exception(plain(error))
    member.future.exception()
