"""Bugs planted into the Python side, each of which the kit must notice: who guards the guards.

A bug is a line that stands once in a function, and what a careless hand makes of it; `caught_by` names the part of the
kit that is to notice. A line that is gone is an error, so that no bug is planted into nothing.
"""

from __future__ import annotations
import __future__

import inspect
import sys
import textwrap
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from aioflow import runtime
from aioflow.engine import claimer, coalescer, connect, lease, pool, relay, scripts, store, wire


@dataclass(frozen=True)
class Bug:
    """A line of a function, and what stands there instead; both without the function's own indentation."""

    name: str
    owner: type | ModuleType
    function: str
    line: str
    instead: str
    caught_by: str


BUGS = [
    Bug(
        "a submit that ignores the durability answer",
        store.Store,
        "submit",
        "    if missing is not None:\n",
        "    if False:\n",
        "receipts",
    ),
    Bug(
        "driver retries switched on",
        connect,
        "no_retry",
        "    return Retry(NoBackoff(), 0)\n",
        "    return Retry(NoBackoff(), 3)\n",
        "lost replies",
    ),
    Bug(
        "a wire that repeats by itself",
        wire.SocketWire,
        "ask",
        "        return await self._ask(packed, len(commands), until)\n",
        "        try:\n"
        "            return await self._ask(packed, len(commands), until)\n"
        "        except driver.ConnectionError:\n"
        "            return await self._ask(packed, len(commands), until)\n",
        "lost replies",
    ),
    Bug(
        "a repeat of calls that may not be repeated",
        scripts.Script,
        "may_repeat",
        '    return said.startswith(("same answer", "no second effect")) and "but one lease" not in said\n',
        "    return True\n",
        "lost replies",
    ),
    Bug(
        "tokens that are used again",
        claimer.Claimer,
        "_next_token",
        '    return f"{self._token_prefix}.{self._claims:x}"\n',
        '    return f"{self._token_prefix}.1"\n',
        "a walk",
    ),
    Bug(
        "a renewer that never renews",
        lease.LeaseKeeper,
        "_keep",
        '            renewing = renewals.create_task(self._renew(store, due), name="aioflow renewal")\n',
        "            continue\n",
        "a long walk",
    ),
    Bug(
        "a renewer that renews with a stale token",
        lease.LeaseKeeper,
        "_renew_some",
        "[(attempt.job.id, attempt.job.token) for attempt in attempts]",
        "[(attempt.job.id, attempt.job.token + '0') for attempt in attempts]",
        "a long walk",
    ),
    Bug(
        "a relay that forgets before its destination has taken",
        relay.Relay,
        "_some",
        "        await self._store.part(queue).relay(queue, self._queue.name, jobs)\n",
        "        await self._store.forget(self._queue, [job.sequence for job in jobs])\n"
        "        await self._store.part(queue).relay(queue, self._queue.name, jobs)\n",
        "relay LOST",
    ),
    Bug(
        "a relay by whose name nobody can remember the last sequence",
        relay.Relay,
        "_some",
        "relay(queue, self._queue.name, jobs)",
        'relay(queue, f"{self._queue.name}.{random.random()}", jobs)',
        "relay UNANSWERED",
    ),
    Bug(
        "a group commit that gives receipts before the reply has come",
        coalescer.Coalescer,
        "_answer",
        "        answers = await self._flush(items)\n",
        "        for receiver in receivers:\n"
        "            receiver.set_result(1)\n"
        "        answers = await self._flush(items)\n",
        "submit LOST",
    ),
    Bug(
        "a group commit that takes a lost line for an answer",
        coalescer.Coalescer,
        "_answer",
        "        self._fail(receivers, error)\n    except Exception",
        "        for receiver in receivers:\n            receiver.set_result(1)\n    except Exception",
        "submit LOST",
    ),
    Bug(
        "a settle that gives up when the line breaks",
        pool.Pool,
        "_flush",
        '            await self._store.line.setback(error, f"settle {self.queue.name}")\n',
        "            return [None] * len(batch)\n",
        "settle LOST",
    ),
    Bug(
        "a settle that swallows a refused fence",
        pool.Pool,
        "_flush",
        "        if answer == 0:\n",
        "        if answer == 0:\n            continue\n        if answer is None:\n",
        "a zombie",
    ),
    Bug(
        "a last chance that is given up with an answer that was lost",
        pool.Pool,
        "_expose",
        '            await self._store.line.setback(error, f"start {self.queue.name} {attempt.job.id}")\n',
        "            return False\n",
        "expose UNANSWERED",
    ),
    Bug(
        "a drain that drops what was claimed",
        runtime.Runtime,
        "_write_last_of",
        "    await pool.release_rest()\n",
        "    pool.held.clear()\n",
        "a stop",
    ),
]


def plant(bug: Bug, patch: pytest.MonkeyPatch) -> None:
    """Put a bug in its place, until the test is over."""
    module = bug.owner if isinstance(bug.owner, ModuleType) else sys.modules[bug.owner.__module__]
    found: Any = inspect.getattr_static(bug.owner, bug.function)
    function: Any = found.fget if isinstance(found, property) else found
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(bug.line) == 1, f"{bug.function} holds this {source.count(bug.line)} times: {bug.line!r}"
    made: dict[str, Any] = {}
    code = compile(source.replace(bug.line, bug.instead), f"<{bug.name}>", "exec", __future__.annotations.compiler_flag)
    exec(code, vars(module), made)
    patch.setattr(bug.owner, bug.function, made[bug.function])
