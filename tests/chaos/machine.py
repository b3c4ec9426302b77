"""Drives `engine/store.py` on a real Valkey by made-up calls, beside the model, and compares after each.

Three queues: two tasks of one service, whose handlers emit into each other's queue directly, and one of another
service, which an outbox and a relay reach. A call may come twice, as after a lost reply, or once more much later.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, TypeVar

import uvloop
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioflow.commit import Effect
from aioflow.engine.keys import PARTS, Queue, data_key
from aioflow.engine.line import ServerClock
from aioflow.engine.records import Emitted, Leased, NewJob, Settlement
from aioflow.engine.store import Store
from aioflow.errors import NotFound, StoreUnavailable
from tests.chaos.model import BAD_EFFECT, PRIORITY, Data, End, ModelQueue, Row, sequence_of
from tests.valkey import Valkey

T = TypeVar("T")

NAMESPACE = "model"
START = 1_800_000_000_000
LONGEST = 10_000
"""Ms: the longest lease that a reap lets stand."""
STEP = 1000
"""Ms: a clock that is further off than this is not trusted."""
TIMID = 3000
"""Ms beyond it within which the time that the test itself takes decides, so either is right."""
CHANNELS = f"{NAMESPACE}:1:runtime:"
QUEUES = {name: Queue(NAMESPACE, *name.split(".")) for name in ("shop.sell", "shop.pack", "ledger.book")}
DATA = ("count", "seen", "flag")
STATES = ("scheduled", "ready", "running", "done", "dead")

DUMP = """
local found = {}
local READ = {zset = {'ZRANGE', 0, -1, 'WITHSCORES'}, hash = {'HGETALL'}, list = {'LRANGE', 0, -1}, set = {'SMEMBERS'},
              string = {'GET'}, stream = {'XRANGE', '-', '+'}}
for index, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  local command = READ[kind]
  found[index] = {key, kind, redis.call(command[1], key, unpack(command, 2))}
end
return found
"""

queues = st.sampled_from(["shop.sell"] * 6 + ["shop.pack", "ledger.book"])
"""Mostly the same, so that calls meet."""
ids = st.sampled_from([f"j{number}" for number in range(4)])
several = st.lists(ids, min_size=1, max_size=4)
old = st.integers(0, 1 << 16)
"""Which of the leases, deaths or calls that there ever were: 0 is the last."""
some = st.lists(old, min_size=1, max_size=3)
envelopes = st.sampled_from([b"a", b"b"])
priorities = st.sampled_from([0, 4, 9])
delays = st.sampled_from([0, 0, 2, 600, 5000])
twice = st.booleans()
leases = st.sampled_from([1, 3, 700, 5000, 2 * LONGEST])
most_crashes = st.sampled_from([1, 2, 3])


def effect(op: str, name: str, *words: str) -> Effect:
    return Effect(op, name, words)


good = [
    effect("hincrby", "count", "total", "1"),
    effect("record", "seen", "", "member", "0"),
    effect("record", "seen", "17", "other", "0"),
    effect("set", "flag", "up"),
    effect("delete", "flag"),
    effect("submit", "pack", "c0", "a", "4", "0"),
    effect("submit", "pack", "c1", "a", "9", "600"),
    effect("submit", "sell", "c2", "a", "0", "0"),
    effect("emit", "ledger.book", "a", "4", "0"),
    effect("emit", "ledger.book", "b", "0", "600"),
]
doubtful = [
    effect("hincrby", "count", "total", str(2**53)),
    effect("hincrby", "flag", "total", "-1"),
    effect("hincrby", "count", "total", "1.5"),
    effect("record", "seen", "soon", "member", "0"),
    effect("sadd", "flag", "member"),
    effect("delete", "count"),
    effect("submit", "pack", "c0", "b", "4", "0"),
    effect("submit", "sell", "c3", "a", "x", "0"),
]
effects = st.lists(st.sampled_from(good), max_size=3) | st.lists(st.sampled_from(good + doubtful), max_size=4)


class Heard(ServerClock):
    """Remembers the time at which the server ran the last call."""

    last = 0

    def hear(self, now_ms: int, sent: float | None = None) -> None:
        self.last = now_ms
        super().hear(now_ms, sent)


class Moved:
    """The time that a test moves, UTC ms."""

    ms = START

    def __call__(self) -> int:
        return self.ms


class World:
    """The server and what talks to it, for all examples of a test. `moved`: on a clock of the test's own."""

    def __init__(self, *, moved: bool) -> None:
        self.valkey = Valkey()
        self.valkey.start()
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.clock = Moved() if moved else None
        self.store = Store(self.valkey.url, name="aioflow:model", clock=self.clock)

    def run(self, call: Awaitable[T]) -> T:
        async def waited() -> T:
            return await call

        return self.runner.get_loop().run_until_complete(waited())  # `run` sets a signal's handler at each call

    def reset(self) -> None:
        self.run(self.store.redis.flushdb())
        self.store.clock = Heard()
        if self.clock is not None:
            self.clock.ms = START

    def close(self) -> None:
        self.run(self.store.close())
        self.runner.close()
        self.valkey.close()


class Machine(RuleBasedStateMachine):
    """The calls. `world` is set by the test; what is drawn stays small, so that calls meet the same jobs."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.world.reset()
        self.store = self.world.store
        self.model: dict[str, ModelQueue] = {}
        data = {"shop": Data(), "ledger": Data()}
        for name in QUEUES:
            self.model[name] = ModelQueue(name, self.model, data[name.partition(".")[0]])
        self.tokens = 0
        self.leases: list[tuple[str, str, str]] = []
        """(queue, id, token) of each that there ever was."""
        self.deaths: list[tuple[str, str, str]] = []
        self.calls: list[Callable[[], None]] = []
        """What may come once more at any later time."""
        self.sequences: dict[str, tuple[int, int]] = {}

    # ---- how a call is made and judged

    @property
    def now(self) -> int:
        """When the server ran the last call."""
        clock = self.store.clock
        assert isinstance(clock, Heard)
        return clock.last

    def both(self, send: Callable[[], Awaitable[Any]], answer: Callable[[int], Any], *, times: int = 1) -> None:
        """Make a call, so often, and demand the model's answer each time."""
        for _ in range(times):
            said = self.world.run(send())
            said = [BAD_EFFECT if isinstance(part, str) else part for part in said] if isinstance(said, list) else said
            expected = answer(self.now)
            assert said == expected, f"redis answered {said!r}, and should have {expected!r}"

    def repeatable(self, send: Callable[[], Awaitable[Any]], answer: Callable[[int], Any], repeat: bool) -> None:
        """As `both`, at once or also later."""

        def call() -> None:
            self.both(send, answer)

        self.calls.append(call)
        self.both(send, answer, times=2 if repeat else 1)

    def chosen(self, which: list[int]) -> tuple[str, list[tuple[str, str]]]:
        """A queue, and some of the leases that there ever were on its jobs, one a job."""
        name = self.leases[-1 - which[0] % len(self.leases)][0]
        own = [lease for lease in self.leases if lease[0] == name]
        by_id = {job_id: token for _, job_id, token in (own[-1 - number % len(own)] for number in which)}
        return name, list(by_id.items())

    def may_be(self, there: Any) -> bool:
        """On the server's time two runs of one example differ, so hypothesis must not see what is there."""
        return self.world.clock is None or bool(there)

    def rung(self) -> list[str]:
        """The queues whose bell has been rung."""
        return [name for name, queue in self.model.items() if queue.bell]

    def emitted(self) -> list[str]:
        """The queues whose outbox holds something."""
        return [name for name, queue in self.model.items() if queue.outbox]

    # ---- jobs come

    @initialize(name=queues, bound=st.sampled_from([None, 3]))
    def declare(self, name: str, bound: int | None) -> None:
        self.world.run(self.store.configure(QUEUES[name], bound))
        self.model[name].bound = bound

    @rule(name=queues, several=several, envelope=envelopes, priority=priorities, delay=delays, repeat=twice)
    def submit(self, name: str, several: list[str], envelope: bytes, priority: int, delay: int, repeat: bool) -> None:
        due = f"+{delay}" if delay else "0"
        jobs = [NewJob(QUEUES[name], job_id, envelope, priority, due) for job_id in several]
        self.repeatable(lambda: self.store.submit(jobs), lambda now: self.model[name].submit(now, jobs), repeat)

    @precondition(lambda self: self.world.clock is not None)  # what is not answered does not tell the server's time
    @rule(name=queues, several=several, envelope=envelopes)
    def submit_what_is_not_synced(self, name: str, several: list[str], envelope: bytes) -> None:
        """I6: the server has no append-only file, so there is no receipt that means fsync; the jobs may be there."""
        assert self.world.clock is not None
        jobs = [NewJob(QUEUES[name], job_id, envelope, 4, "0") for job_id in several]
        try:
            self.world.run(self.store.submit(jobs, "fsync"))
        except StoreUnavailable:
            self.model[name].submit(self.world.clock.ms, jobs)
        else:
            raise AssertionError("a receipt for what was not synced")

    @precondition(lambda self: self.may_be(self.emitted()))
    @rule(which=old, most=st.integers(1, 3), forget=twice, repeat=twice)
    def relay(self, which: int, most: int, forget: bool, repeat: bool) -> None:
        if not self.emitted():
            return
        name = self.emitted()[which % len(self.emitted())]
        jobs = self.world.run(self.store.outbox(QUEUES[name], most))
        assert jobs == self.model[name].outbox[:most]
        destination = jobs[0].to
        self.repeatable(
            lambda: self.store.relay(QUEUES[destination], name, jobs),
            lambda now: self.model[destination].relay(now, name, jobs),
            repeat,
        )
        if forget:
            self.world.run(self.store.forget(QUEUES[name], [job.sequence for job in jobs]))
            del self.model[name].outbox[: len(jobs)]

    # ---- attempts

    @rule(name=queues, count=st.integers(1, 3), lease=leases, most=most_crashes)
    def claim(self, name: str, count: int, lease: int, most: int) -> None:
        self.take(name, count, lease, most)

    def take(self, name: str, count: int, lease: int, most: int) -> None:
        """Claim; a token is never used twice."""
        self.tokens += 1
        token = f"runtime{self.tokens % 2}.{self.tokens}"

        async def send() -> list[tuple[str, bytes | None, int, int, int]]:
            claimed = await self.store.claim(QUEUES[name], count, lease, token, most_crashes=most)
            return [(job.id, job.envelope, job.attempt, job.failures, job.crashes) for job in claimed.jobs]

        self.both(send, lambda now: self.model[name].claim(now, count, lease, token, most))
        self.leases += [(name, job_id, token) for job_id, row in self.model[name].claims.items() if row.by == token]

    @precondition(lambda self: self.may_be(self.leases))
    @rule(
        which=some,
        kind=st.sampled_from(["done", "done", "retry", "dead"]),
        failed=st.booleans(),
        delay=delays,
        effects=effects,
        repeat=twice,
    )
    def settle(
        self, which: list[int], kind: Any, failed: bool, delay: int, effects: list[Effect], repeat: bool
    ) -> None:
        if not self.leases:
            return
        name, held = self.chosen(which)
        if name == "ledger.book":  # a service of one task
            effects = [effect for effect in effects if effect.op != "submit"]
        result = {"error": "Failed", "message": "no", "attempt": 1} if kind == "dead" or failed else {"sum": 5}
        delay = delay if kind == "retry" else 0
        settlements = [
            Settlement(job_id, token, kind, json.dumps(result).encode(), delay, failed and kind != "done", effects)
            for job_id, token in held
        ]
        results = [result] * len(settlements)
        self.repeatable(
            lambda: self.store.settle(QUEUES[name], settlements),
            lambda now: self.model[name].settle(now, settlements, results),
            repeat,
        )

    @precondition(lambda self: self.may_be(self.leases))
    @rule(which=some, lease=leases, repeat=twice)
    def renew(self, which: list[int], lease: int, repeat: bool) -> None:
        if not self.leases:
            return
        name, held = self.chosen(which)

        async def send() -> list[int]:
            return (await self.store.renew([(QUEUES[name], lease, held)]))[0]

        self.repeatable(send, lambda now: self.model[name].renew(now, lease, held), repeat)

    @precondition(lambda self: self.may_be(self.leases))
    @rule(which=some, after=st.sampled_from([0, 0, 500]), repeat=twice)
    def release(self, which: list[int], after: int, repeat: bool) -> None:
        if not self.leases:
            return
        name, held = self.chosen(which)
        self.repeatable(
            lambda: self.store.release(QUEUES[name], held, after_ms=after),
            lambda now: self.model[name].release(now, held, after),
            repeat,
        )

    @precondition(lambda self: self.may_be(self.leases))
    @rule(which=old)
    def expose(self, which: int) -> None:
        if not self.leases:
            return
        name, [(job_id, token)] = self.chosen([which])
        leased = Leased(job_id, token, b"", 1, 0, 0)
        self.repeatable(
            lambda: self.store.expose(QUEUES[name], leased),
            lambda _: self.model[name].expose(job_id, token),
            False,
        )

    @precondition(lambda self: self.may_be(self.leases))
    @rule(which=old, said=st.integers(0, 3))
    def progress(self, which: int, said: int) -> None:
        if not self.leases:
            return
        name, [(job_id, token)] = self.chosen([which])
        self.repeatable(
            lambda: self.store.progress(QUEUES[name], [(job_id, token, str(said).encode())]),
            lambda _: self.model[name].note([(job_id, token, said)]),
            False,
        )

    @rule(
        name=queues,
        several=several,
        kind=st.sampled_from(["done", "done", "retry", "dead"]),
        failed=st.booleans(),
        effects=effects,
        repeat=twice,
    )
    def run(self, name: str, several: list[str], kind: Any, failed: bool, effects: list[Effect], repeat: bool) -> None:
        """A job's whole way, as most have it; hypothesis tries many an example without one of its steps."""
        self.submit(name, several, b"a", 4, 0, repeat=False)
        self.take(name, 2, 5000, 3)
        if self.leases:
            self.settle([0], kind, failed, 0, effects, repeat)
        self.redis_holds_what_the_model_says()
        if self.emitted():
            self.relay(0, 2, forget=not repeat, repeat=repeat)

    # ---- from outside

    @rule(name=queues, several=several, repeat=twice)
    def cancel(self, name: str, several: list[str], repeat: bool) -> None:
        chosen = list(dict.fromkeys(several))
        self.repeatable(
            lambda: self.store.cancel(QUEUES[name], chosen, CHANNELS),
            lambda now: self.model[name].cancel(now, chosen),
            repeat,
        )

    @precondition(lambda self: self.may_be(self.deaths))
    @rule(which=some, repeat=twice)
    def requeue(self, which: list[int], repeat: bool) -> None:
        if not self.deaths:
            return
        name = self.deaths[-1 - which[0] % len(self.deaths)][0]
        ends = [end for end in self.leases + self.deaths if end[0] == name]  # a job may have died by any of them
        by_id = {job_id: token for _, job_id, token in (ends[-1 - number % len(ends)] for number in which)}
        jobs = list(by_id.items())
        self.repeatable(
            lambda: self.store.requeue(QUEUES[name], jobs), lambda now: self.model[name].requeue(now, jobs), repeat
        )

    @rule(name=queues, paused=st.booleans())
    def pause(self, name: str, paused: bool) -> None:
        self.both(
            lambda: self.store.pause(QUEUES[name], paused=paused), lambda _: self.model[name].pause(paused=paused)
        )

    @rule(name=queues, job_id=ids, channel=st.sampled_from(["x:1:one", "x:1:two"]))
    def wait(self, name: str, job_id: str, channel: str) -> None:
        async def send() -> Any:
            try:
                ended = await self.store.await_result(QUEUES[name], job_id, channel)
            except NotFound:
                return False
            return True if ended is None else ended[0]

        def answer(_: int) -> Any:
            ended = self.model[name].wait(job_id, channel)
            return ended.kind if isinstance(ended, End) else ended

        self.both(send, answer)

    # ---- maintenance, and time

    @precondition(lambda self: self.may_be(self.rung()))
    @rule(which=old)
    def hear_the_bell(self, which: int) -> None:
        if not self.rung():
            return
        name = self.rung()[which % len(self.rung())]
        taken = self.world.run(self.store.redis.lpop(QUEUES[name].keys["bell"]))
        assert taken == b"1"
        self.model[name].bell = False
        self.take(name, 1, 5000, 3)  # as whoever hears it does

    @rule(name=queues)
    def promote(self, name: str) -> None:
        self.both(lambda: self.store.promote(QUEUES[name]), self.model[name].promote)

    @precondition(lambda self: self.world.clock is not None and self.leases)
    @rule(which=old, most=most_crashes)
    def a_lease_expires(self, which: int, most: int) -> None:
        """The time of a lease comes, the server's clock is seen to hold, and it is reaped."""
        name, [(job_id, _)] = self.chosen([which])
        deadline = self.model[name].running.get(job_id, 0)
        assert self.world.clock is not None
        self.world.clock.ms = max(self.world.clock.ms, deadline)
        self.promote(name)
        self.reap(name, most, judge=True, repeat=False)

    @rule(name=queues, most=most_crashes, judge=st.sampled_from([True, True, False]), repeat=twice)
    def reap(self, name: str, most: int, judge: bool, repeat: bool) -> None:
        for _ in range(2 if repeat else 1):
            heard = self.now
            expected = self.store.clock.expected_ms() if judge else 0
            reaped = self.world.run(self.store.reap(QUEUES[name], most_crashes=most, longest_ms=LONGEST, judge=judge))
            off = abs(self.now - expected)
            if off <= STEP - TIMID // 10 or off > STEP + TIMID or not judge or not heard:
                assert reaped.judged == (off <= STEP), f"leases judged with a clock {off} ms off"
            said = (reaped.promoted, reaped.jobs, reaped.dead)
            told = self.model[name].reap(self.now, judged=reaped.judged, most_crashes=most, longest=LONGEST)
            assert said == told, f"a reap did {said}, and should have done {told}"

    @rule(name=queues, keep=st.sampled_from([0, 5, 600_000]))
    def trim(self, name: str, keep: int) -> None:
        self.both(
            lambda: self.store.trim(QUEUES[name], keep_done_ms=keep, keep_dead_ms=2 * keep),
            lambda now: self.model[name].trim(now, keep_done=keep, keep_dead=2 * keep),
        )

    @precondition(lambda self: self.may_be(self.calls))
    @rule(which=old)
    def again(self, which: int) -> None:
        """A call comes once more, much later: a reply was lost, and its caller was slow."""
        if self.calls:
            self.calls[which % len(self.calls)]()

    @rule(by=st.sampled_from([1, 5, 400, 6000, 700_000, 3_600_000, -3_600_000]))
    def time_passes(self, by: int) -> None:
        if self.world.clock is not None:
            self.world.clock.ms += by
        else:
            self.world.run(asyncio.sleep(min(abs(by), 5) / 1000))

    # ---- what must hold after each call

    @invariant()
    def redis_holds_what_the_model_says(self) -> None:
        found = self._found()
        self._adopt_sequences(found)
        expected = self._expected()
        for key in sorted(found.keys() | expected.keys()):
            assert found.get(key) == expected.get(key), f"{key} holds {found.get(key)}, and should {expected.get(key)}"
        for name, queue in self.model.items():
            _check_states(name, found)
            for job_id, ended in queue.results.items():
                if ended.kind == "dead" and (name, job_id, ended.row.by) not in self.deaths:
                    self.deaths.append((name, job_id, ended.row.by))

    def _found(self) -> dict[str, Any]:
        dump: Any = self.world.run(self.store.redis.eval(DUMP, 0))
        # A stream that has been emptied is the one key that stays.
        return {key.decode(): _decoded(key.decode(), kind, content) for key, kind, content in dump if content}

    def _adopt_sequences(self, found: dict[str, Any]) -> None:
        """Sequences are the server's to give; they only grow."""
        for name, queue in self.model.items():
            entries = found.get(QUEUES[name].keys["outbox"], [])
            for position, job in enumerate(queue.outbox):
                if not job.sequence and position < len(entries):
                    sequence = entries[position].sequence
                    assert sequence_of(sequence) > self.sequences.get(name, (0, 0)), "a sequence went back"
                    self.sequences[name] = sequence_of(sequence)
                    queue.outbox[position] = Emitted(sequence, job.to, job.envelope, job.priority, job.due)

    def _expected(self) -> dict[str, Any]:
        expected: dict[str, Any] = {}
        for name, queue in self.model.items():
            keys = QUEUES[name].keys
            parts = {part: getattr(queue, part) for part in PARTS if part not in ("config", "bell", "runners", "seen")}
            config = {"bound": queue.bound, "paused": 1 if queue.paused else None}
            parts["config"] = {field: str(value) for field, value in config.items() if value is not None}
            parts["bell"] = ["1"] if queue.bell else []
            parts["seen"] = {source: f"{ms}-{number}" for source, (ms, number) in queue.seen.items()}
            parts["totals"] = {counter: count for counter, count in queue.totals.items() if count}
            expected |= {keys[part]: content for part, content in parts.items() if content}
            for data_name, content in queue.data.content.items():
                expected[data_key(NAMESPACE, queue.service, data_name)] = content
        return expected


def _decoded(key: str, kind: bytes, content: Any) -> Any:
    """A key's content as the model has it."""
    part = key.rpartition(":")[2]
    if kind == b"zset":
        return {content[at].decode(): int(float(content[at + 1])) for at in range(0, len(content), 2)}
    if kind == b"stream":
        return [_emitted(sequence.decode(), fields) for sequence, fields in content]
    if kind in (b"list", b"set"):
        made = [word.decode() for word in content]
        return made if kind == b"list" else set(made)
    if kind == b"string":
        return content.decode()
    pairs = {content[at].decode(): content[at + 1] for at in range(0, len(content), 2)}
    readers: dict[str, Callable[[bytes], Any]] = {
        "jobs": bytes,
        "claims": _row,
        "results": _end,
        "history": _history,
        "progress": json.loads,
        "waiters": lambda text: text.decode().split(),
        "totals": int,
        "count": int,
        "flag": int,
    }
    read = readers.get(part, bytes.decode)
    return {field: read(text) for field, text in pairs.items()}


def _row(text: bytes) -> Row:
    by, *numbers = text.decode().split(":")
    return Row(by, *map(int, numbers))


def _end(text: bytes) -> End:
    head, _, result = text.decode().partition("\n")
    kind, by, attempt, failures, crashes, place, submitted, started = head.split(":")
    decoded = json.loads(result)
    if isinstance(decoded, dict) and decoded.get("error") == BAD_EFFECT:
        assert decoded.pop("message"), "a bad effect is named"
    return End(
        kind, Row(by, int(attempt), int(failures), int(crashes), int(place)), int(submitted), int(started), decoded
    )


def _history(text: bytes) -> list[tuple[int, Any]]:
    lines = [line.partition(" ") for line in text.decode().split("\n")]
    made = [(int(ms), json.loads(failure)) for ms, _, failure in lines]
    for _, failure in made:
        if failure.get("error") == BAD_EFFECT:
            failure.pop("message", None)
    return made


def _emitted(sequence: str, words: Sequence[bytes]) -> Emitted:
    fields = {words[at].decode(): words[at + 1] for at in range(0, len(words), 2)}
    return Emitted(sequence, fields["to"].decode(), fields["envelope"], int(fields["priority"]), int(fields["due"]))


def _check_states(name: str, found: dict[str, Any]) -> None:
    """I1 and I2, from Redis alone: whatever the model says, these hold."""
    keys = QUEUES[name].keys
    held = {part: found.get(keys[part], {}) for part in PARTS}
    states = Counter(job_id for state in STATES for job_id in held[state])
    assert all(count == 1 for count in states.values()), f"in two states: {states}"
    assert set(states) == set(held["jobs"]), "a record without a state, or a state without a record"
    assert set(held["open"]) == set(held["scheduled"]) | set(held["ready"]) | set(held["running"])
    assert set(held["results"]) == set(held["done"]) | set(held["dead"])
    assert set(held["started"]) == set(held["running"])
    assert set(held["cancels"]) <= set(held["running"])
    assert not set(held["claims"]) - set(held["open"])
    live = [row.by for job_id, row in held["claims"].items() if job_id in held["running"]]
    assert all("/" not in by and "." in by for by in live), f"a job runs without a live lease: {live}"
    for job_id, row in held["claims"].items():
        assert job_id in held["running"] or "/" in row.by or row.by == "-", f"{job_id} waits, and {row.by} is live"
        if job_id in held["ready"]:
            assert held["ready"][job_id] == row.place, f"{job_id} lost its place"
    assert len(found.get(keys["bell"], [])) <= 1
    assert all(0 <= place < 10 * PRIORITY for place in held["ready"].values())
