"""What a queue must do, said in plain Python: dicts in place of keys, and one method a script.

Nothing is taken over from lua/: a model that repeated its code would repeat its faults. Every method takes the time at
which the server ran the call, answers what the call must have answered, and leaves the state that Redis must hold.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aioflow.commit import Effect
from aioflow.engine.records import Emitted, NewJob, Settlement

PRIORITY = 2**42
LARGEST = 2**53
TIMES = re.compile(r"-?(0|[1-9][0-9]*)")
CANCELLED = {"error": "JobCancelled", "message": "cancelled on request"}
WAITS_ALONE = 1000
"""Added to the crashes of a job on its last chance that is leased but not started yet."""
BAD_EFFECT = "BadEffect"

Failure = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """What is kept of an unfinished job's attempts; `by` is its live token, or how the last one ended."""

    by: str
    attempt: int
    failures: int
    crashes: int
    place: int


@dataclass(frozen=True)
class End:
    """How a job ended."""

    kind: str
    row: Row
    submitted: int
    started: int
    result: Any


@dataclass
class Data:
    """A service's own data, by name: as a Redis type and its content."""

    types: dict[str, str] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelQueue:
    """One queue. `queues` are all of the model by their full names; those of one service share `data`."""

    name: str
    queues: dict[str, ModelQueue]
    data: Data
    scheduled: dict[str, int] = field(default_factory=dict)
    ready: dict[str, int] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)
    started: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    dead: dict[str, int] = field(default_factory=dict)
    open: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, bytes] = field(default_factory=dict)
    results: dict[str, End] = field(default_factory=dict)
    claims: dict[str, Row] = field(default_factory=dict)
    history: dict[str, list[tuple[int, Failure]]] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    waiters: dict[str, list[str]] = field(default_factory=dict)
    cancels: dict[str, int] = field(default_factory=dict)
    totals: Counter[str] = field(default_factory=Counter)
    outbox: list[Emitted] = field(default_factory=list)
    """The sequences are given by the server; until they are read back they are empty."""
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    bound: int | None = None
    paused: bool = False
    bell: bool = False

    @property
    def service(self) -> str:
        return self.name.partition(".")[0]

    # ---- what comes in

    def submit(self, now: int, jobs: Sequence[NewJob]) -> list[int]:
        answers = []
        paused, first_due = self.paused, min(self.scheduled.values(), default=None)
        rings = False
        for job in jobs:
            if job.id in self.jobs:
                self.totals["repeated"] += 1
                answers.append(0 if self.jobs[job.id] == job.envelope else -1)
            elif self.bound is not None and len(self.open) >= self.bound:
                answers.append(-2)
            else:
                due = now + int(job.due[1:]) if job.due.startswith("+") else int(job.due)
                rings |= self._take(now, job.id, job.envelope, job.priority, due, first_due)
                answers.append(1)
        self.bell |= rings and not paused
        return answers

    def _take(
        self, now: int, job_id: str, envelope: bytes, priority: int, due: int, first_due: int | None = None
    ) -> bool:
        """A new job; whether somebody should look at once."""
        self.jobs[job_id] = envelope
        self.open[job_id] = now
        self.totals["submitted"] += 1
        if due > now:
            self.scheduled[job_id] = due
            self.claims[job_id] = Row("-", 0, 0, 0, priority * PRIORITY + due)
            return first_due is None or due < first_due
        self.ready[job_id] = priority * PRIORITY + now
        return True

    def relay(self, now: int, source: str, jobs: Sequence[Emitted]) -> int:
        taken = 0
        for job in jobs:
            sequence = sequence_of(job.sequence)
            if sequence > self.seen.get(source, (0, 0)):
                self.seen[source] = sequence
                self._take(now, emitted_id(source, job.sequence), job.envelope, job.priority, job.due)
                taken += 1
        self.bell |= taken > 0 and not self.paused
        return taken

    # ---- attempts

    def claim(
        self, now: int, count: int, lease: int, token: str, most_crashes: int
    ) -> list[tuple[str, bytes, int, int, int]]:
        """Per job id, envelope, attempt, failures and crashes."""
        if self.paused:
            return []
        self._promote(now)
        claimed = []
        for job_id in in_order(self.ready)[:count]:
            place = self.ready.pop(job_id)
            before = self.claims.get(job_id, Row("-", 0, 0, 0, place))
            crashes = before.crashes
            if crashes > 0 and crashes + 1 >= most_crashes:
                crashes += WAITS_ALONE
            self.claims[job_id] = replace(before, by=token, attempt=before.attempt + 1, crashes=crashes)
            self.running[job_id] = now + lease
            self.started[job_id] = now
            claimed.append((job_id, self.jobs[job_id], before.attempt + 1, before.failures, before.crashes))
        self.bell |= bool(self.ready)
        return claimed

    def _promote(self, now: int) -> int:
        due = [job_id for job_id, at in self.scheduled.items() if at <= now]
        for job_id in due:
            del self.scheduled[job_id]
            self.ready[job_id] = self.claims[job_id].place
        return len(due)

    def promote(self, now: int) -> int:
        promoted = self._promote(now)
        self.bell |= bool(self.ready) and not self.paused
        return promoted

    def holds(self, job_id: str, token: str) -> bool:
        """Whether this token is the live lease of a job."""
        return job_id in self.claims and self.claims[job_id].by == token

    def expose(self, job_id: str, token: str) -> bool:
        if not self.holds(job_id, token):
            return False
        row = self.claims[job_id]
        self.claims[job_id] = replace(row, crashes=row.crashes % WAITS_ALONE)
        return True

    def renew(self, now: int, lease: int, leases: Iterable[tuple[str, str]]) -> list[int]:
        answers = []
        for job_id, token in leases:
            held = self.holds(job_id, token)
            if held:
                self.running[job_id] = now + lease
            answers.append(0 if not held else 2 if job_id in self.cancels else 1)
        return answers

    def note(self, notes: Iterable[tuple[str, str, Any]]) -> list[bool]:
        answers = []
        for job_id, token, said in notes:
            held = self.holds(job_id, token)
            if held:
                self.progress[job_id] = said
            answers.append(held)
        return answers

    def release(self, now: int, leases: Sequence[tuple[str, str]], after: int) -> list[bool]:
        answers, rings = [], False
        for job_id, token in leases:
            ended = self.results.get(job_id)
            by = f"release/{token}"
            if self.holds(job_id, token):
                row = self.claims[job_id]
                if job_id in self.cancels:
                    self._finish(now, job_id, "dead", replace(row, by=by), CANCELLED)
                else:
                    self._leave(job_id)
                    self.claims[job_id] = replace(row, by=by, crashes=row.crashes % WAITS_ALONE)
                    if after:
                        self.scheduled[job_id] = now + after
                    else:
                        self.ready[job_id] = row.place
                    self.totals["released"] += 1
                    rings = True
                answers.append(True)
            else:
                answers.append(
                    self.holds(job_id, by) or (ended is not None and ended.kind == "dead" and ended.row.by == by)
                )
        self.bell |= rings and not self.paused
        return answers

    def _leave(self, job_id: str) -> None:
        del self.running[job_id]
        del self.started[job_id]

    def _finish(self, now: int, job_id: str, kind: str, row: Row, result: Any) -> None:
        self.results[job_id] = End(kind, row, self.open.pop(job_id), self.started.pop(job_id, 0), result)
        (self.done if kind == "done" else self.dead)[job_id] = now
        self.totals[kind] += 1
        for part in (self.running, self.ready, self.scheduled, self.claims, self.cancels, self.waiters):
            part.pop(job_id, None)

    def settle(self, now: int, settlements: Sequence[Settlement], results: Sequence[Any]) -> list[int | str]:
        """`results` are what the settlements' hold, decoded. A text answers a bad effect; which, the server says."""
        first_due = min(self.scheduled.values(), default=None)
        answers: list[int | str] = []
        for job, result in zip(settlements, results, strict=True):
            if not self.holds(job.id, job.token):
                answers.append(self._settled_before(job))
                continue
            row = self.claims[job.id]
            if not self._fits(now, job.effects):
                self._finish(now, job.id, "dead", row, {"error": BAD_EFFECT})
                answers.append(BAD_EFFECT)
                continue
            self._apply(now, job.effects)
            if job.kind == "retry" and job.id in self.cancels:
                self._finish(now, job.id, "dead", replace(row, by=f"retry/{job.token}"), CANCELLED)
            elif job.kind == "retry":
                due = now + job.delay_ms
                self._leave(job.id)
                self.scheduled[job.id] = due
                self.claims[job.id] = Row(
                    f"retry/{job.token}",
                    row.attempt,
                    row.failures + job.failed,
                    row.crashes % WAITS_ALONE,
                    row.place // PRIORITY * PRIORITY + due,
                )
                self.totals["retried"] += 1
                if job.failed:
                    self._remember(now, job.id, result)
                self.bell |= (first_due is None or due < first_due) and not self.paused
            else:
                self._finish(now, job.id, job.kind, replace(row, failures=row.failures + job.failed), result)
            answers.append(1)
        return answers

    def _settled_before(self, job: Settlement) -> int | str:
        ended = self.results.get(job.id)
        if ended is None:
            return int(job.kind == "retry" and self.holds(job.id, f"retry/{job.token}"))
        if ended.row.by != job.token:
            return int(job.kind == "retry" and ended.row.by == f"retry/{job.token}")
        if isinstance(ended.result, dict) and ended.result.get("error") == BAD_EFFECT:
            return BAD_EFFECT
        return int(ended.kind == job.kind)

    def _remember(self, now: int, job_id: str, failure: Failure) -> None:
        self.history[job_id] = [*self.history.get(job_id, []), (now, failure)][-10:]

    # ---- effects

    def _fits(self, now: int, effects: Sequence[Effect]) -> bool:
        types, numbers = dict(self.data.types), {name: dict(held) for name, held in self._hashes()}
        new: dict[tuple[str, str], bytes] = {}
        for effect in effects:
            words = [word.decode() if isinstance(word, bytes) else word for word in effect.words]
            if effect.op in ("submit", "emit"):
                if not words[-2].isdigit() or len(words[-2]) != 1:
                    return False
                if effect.op == "submit":
                    child, envelope = words[0], words[1].encode()
                    queue = self.queues[f"{self.service}.{effect.name}"]
                    if new.setdefault((effect.name, child), queue.jobs.get(child, envelope)) != envelope:
                        return False
                continue
            if effect.op == "delete":
                types.pop(effect.name, None)
                numbers.pop(effect.name, None)
                continue
            kind = {"record": "zset", "hincrby": "hash", "set": "string", "sadd": "set"}[effect.op]
            if types.setdefault(effect.name, kind) != kind:
                return False
            if effect.op == "record" and words[0] and not TIMES.fullmatch(words[0]):
                return False
            if effect.op == "hincrby":
                held = numbers.setdefault(effect.name, {})
                if not TIMES.fullmatch(words[1]):
                    return False
                total = int(held.get(words[0], 0)) + int(words[1])
                if abs(total) > LARGEST or abs(int(words[1])) > LARGEST:
                    return False
                held[words[0]] = total
        return True

    def _hashes(self) -> list[tuple[str, dict[str, int]]]:
        return [(name, self.data.content[name]) for name, kind in self.data.types.items() if kind == "hash"]

    def _apply(self, now: int, effects: Sequence[Effect]) -> None:
        content = self.data.content
        for effect in effects:
            words = [word.decode() if isinstance(word, bytes) else word for word in effect.words]
            if effect.op == "delete":
                content.pop(effect.name, None)
                self.data.types.pop(effect.name, None)
            elif effect.op == "emit":
                due = now + int(words[2]) if words[2] != "0" else 0
                self.outbox.append(Emitted("", effect.name, words[0].encode(), int(words[1]), due))
            elif effect.op == "submit":
                child = self.queues[f"{self.service}.{effect.name}"]
                if words[0] in child.jobs:
                    child.totals["repeated"] += 1
                else:
                    child._take(now, words[0], words[1].encode(), int(words[2]), now + int(words[3]))
                    child.bell |= not child.paused
            else:
                kind, empty = {
                    "record": ("zset", dict), "hincrby": ("hash", dict), "set": ("string", str), "sadd": ("set", set),
                }[effect.op]  # fmt: skip
                self.data.types[effect.name] = kind
                held: Any = content.setdefault(effect.name, empty())
                if effect.op == "record":
                    held[words[1]] = int(words[0]) if words[0] else now
                elif effect.op == "hincrby":
                    held[words[0]] = held.get(words[0], 0) + int(words[1])
                elif effect.op == "sadd":
                    held.add(words[0])
                else:
                    content[effect.name] = words[0]

    # ---- from outside

    def cancel(self, now: int, ids: Iterable[str]) -> list[int]:
        answers: list[int] = []
        for job_id in ids:
            ended = self.results.get(job_id)
            if job_id not in self.jobs:
                answers.append(-1)
            elif ended is not None:
                answers.append(2 if ended.kind == "dead" and ended.row.by.startswith("cancel/") else 0)
            elif job_id in self.running:
                self.cancels[job_id] = now
                answers.append(1)
            else:
                row = self.claims.get(job_id, Row("", 0, 0, 0, self.ready.get(job_id, now)))
                self._finish(now, job_id, "dead", replace(row, by=f"cancel/{now}"), CANCELLED)
                answers.append(2)
        return answers

    def requeue(self, now: int, jobs: Iterable[tuple[str, str]]) -> list[bool]:
        answers, rings = [], False
        for job_id, token in jobs:
            ended = self.results.get(job_id)
            if ended is not None and ended.kind == "dead" and ended.row.by == token:
                place = ended.row.place // PRIORITY * PRIORITY + now
                self._remember(now, job_id, ended.result)
                del self.results[job_id], self.dead[job_id]
                self.claims[job_id] = Row(f"requeue/{token}", ended.row.attempt, 0, 0, place)
                self.open[job_id] = now
                self.ready[job_id] = place
                self.totals["requeued"] += 1
                rings = True
                answers.append(True)
            else:
                answers.append(self.holds(job_id, f"requeue/{token}"))
        self.bell |= rings and not self.paused
        return answers

    def pause(self, *, paused: bool) -> bool:
        changed = paused != self.paused
        self.paused = paused
        self.bell |= not paused and bool(self.ready or self.scheduled)
        return changed

    def wait(self, job_id: str, channel: str) -> End | bool:
        """The end of a job, or whether it is known, and its finish will be told."""
        if job_id in self.results:
            return self.results[job_id]
        if job_id not in self.jobs:
            return False
        others = [other for other in self.waiters.get(job_id, []) if other != channel]
        self.waiters[job_id] = [channel, *others]
        return True

    # ---- maintenance

    def reap(self, now: int, *, judged: bool, most_crashes: int, longest: int) -> tuple[int, int, int]:
        """(promoted, put back, dead)."""
        promoted = self._promote(now)
        back = dead = 0
        for job_id in [job_id for job_id, deadline in self.running.items() if deadline <= now] if judged else ():
            row = self.claims[job_id]
            # A job that has not begun yet cannot have been what killed its process.
            crashes = row.crashes - WAITS_ALONE if row.crashes >= WAITS_ALONE else row.crashes + 1
            lost: Failure = {"error": "Crashed", "attempt": row.attempt, "worker": row.by.partition(".")[0]}
            over = replace(row, by=f"crash/{row.by}", crashes=crashes)
            if job_id in self.cancels:
                self._finish(now, job_id, "dead", over, CANCELLED)
                dead += 1
            elif crashes >= most_crashes:
                self._finish(now, job_id, "dead", over, {**lost, "message": f"lease expired {crashes} times"})
                dead += 1
            else:
                self._leave(job_id)
                self.claims[job_id] = replace(row, by="-", crashes=crashes)
                self.ready[job_id] = row.place
                self._remember(now, job_id, {**lost, "message": "its lease expired"})
                self.totals["reaped"] += 1
                back += 1
        if judged:
            self.running = {job_id: min(deadline, now + longest) for job_id, deadline in self.running.items()}
        self.bell |= bool(self.ready) and not self.paused
        return promoted, back, dead

    def trim(self, now: int, *, keep_done: int, keep_dead: int) -> int:
        forgotten = 0
        for ended, keep in ((self.done, keep_done), (self.dead, keep_dead)):
            for job_id in [job_id for job_id, at in ended.items() if at < now - keep]:
                for part in (ended, self.jobs, self.results, self.history, self.progress):
                    part.pop(job_id, None)
                forgotten += 1
        if forgotten:
            self.totals["trimmed"] += forgotten
        return forgotten


def in_order(line: dict[str, int]) -> list[str]:
    """The ids of a line, first first: by place, and within a millisecond by the id's bytes."""
    return sorted(line, key=lambda job_id: (line[job_id], job_id.encode()))


def emitted_id(source: str, sequence: str) -> str:
    """The id of a job that a handler of another queue has emitted."""
    ms, number = sequence_of(sequence)
    return f"{source}-{ms}-{number:06}"


def sequence_of(text: str) -> tuple[int, int]:
    """A stream's sequence as numbers."""
    ms, _, number = text.partition("-")
    return int(ms), int(number)
