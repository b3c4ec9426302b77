"""The one class that talks to Redis for the queue: a typed method per script.

It maps driver exceptions to aioflow's, knows the server's clock, and repeats a call only where the connection broke
and the script's header says that a repeat is harmless. It must never hide a failure: what did not certainly happen is
StoreUnavailable. Carries I6, I9 and I10.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis import exceptions as driver
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from aioflow.engine import scripts
from aioflow.engine.connect import ROUND_TRIP_SECONDS, Clients, Command, Wire, shown
from aioflow.engine.keys import Queue
from aioflow.engine.line import Line, ServerClock
from aioflow.engine.records import (
    MOST_BYTES,
    MOST_JOBS,
    Claimed,
    Durability,
    Leased,
    NewJob,
    Reaped,
    Ride,
    Settlement,
    Sizes,
)
from aioflow.engine.scripts import Script
from aioflow.errors import ConfigError, NotFound, ProtocolError, StoreUnavailable
from aioflow.job import JobInfo, State

log = logging.getLogger(__name__)
T = TypeVar("T")

RECEIPT_MS = 4000
"""How long a flush waits for its durability; below the round trip's deadline."""
FSYNC_POLICY = ("appendonly", "appendfsync")
AWAY = (
    "OOM",
    "MISCONF",
    "READONLY",
    "BUSY",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "NOREPLICAS",
    "TRYAGAIN",
    "WAITAOF",
)
"""What errors begin with by which a server says that it cannot serve now, or not as durably as asked."""


class Store:
    """Typed calls to the queue's scripts. Every method raises StoreUnavailable and ProtocolError.

    `clock` replaces the server's time, in UTC ms; only tests pass one.
    """

    def __init__(self, url: str, *, name: str, queues: int = 1, clock: Callable[[], int] | None = None) -> None:
        self._clients = Clients(url, name)
        self._clock = clock
        # Claims, settles and renewals of each queue may be under way at once, beside the ingress' reads.
        self._wire = self._clients.wire(4 * queues + 8)
        self._receipts = self._clients.wire(2)
        self.redis: Redis = self._clients.make(16)
        self._bells = self._clients.wire(queues)
        self._listener: Redis = self._clients.make(1, blocking=True)
        self.in_memory = self._clients.in_memory
        self.clock = ServerClock()
        self.line = Line(shown(url))
        self._plain = self.in_memory  # fakeredis takes no shebang line

    async def close(self) -> None:
        """Close all connections."""
        await self._clients.close()

    # ---- the queue's scripts

    async def submit(
        self, jobs: Sequence[NewJob], durability: Durability = "memory", rides: Sequence[Ride] = ()
    ) -> list[int]:
        """Take jobs into their queues; per job 1 new, 0 known, -1 known with another payload, -2 queue full.

        Returns only once all of them are as durable as asked, else raises StoreUnavailable. May be repeated. `rides`
        are claims sent along; those that were answered are ended, whatever comes of the submit.
        """
        script = scripts.load("queue/submit", plain=self._plain)
        by_queue: dict[Queue, list[NewJob]] = {}
        for job in jobs:
            by_queue.setdefault(job.queue, []).append(job)
        # WAITAOF speaks for the writes of its own connection only: one pipeline, alone on its connection.
        fsync = durability == "fsync"
        wire = self._receipts if fsync else self._wire

        def commands(quiet: set[Queue]) -> list[Command]:
            made: list[Command] = []
            for queue, mine in by_queue.items():
                words: list[str | bytes] = [self._clock_word(), "1" if queue in quiet else "0", str(len(mine))]
                for job in mine:
                    words += (job.id, job.envelope, str(job.priority), job.due)
                made.append(evalsha(script, queue, words))
            return [*made, ("WAITAOF", 1, 0, RECEIPT_MS), ("CONFIG", "GET", *FSYNC_POLICY)] if fsync else made

        sent = time.monotonic()
        replies = await self._carry(commands({ride.queue for ride in rides}), wire, rides) if rides else None
        if replies is None:
            replies = await self._ask(script, commands(set()), wire)
        if fsync:
            policy, synced = replies.pop(), replies.pop()[0]
            if synced < 1:
                raise StoreUnavailable(f"redis did not fsync within {RECEIPT_MS} ms; the jobs may have been taken")
            # Whoever may configure the server can lower its policy at any time, and a failover may as well.
            if not fsyncs(policy):
                raise StoreUnavailable(
                    "redis does not fsync before it answers any more (appendonly yes, appendfsync always); "
                    "the jobs may have been taken"
                )
        self.clock.hear(replies[0][0], sent)
        answers = {queue: iter(reply[1:]) for queue, reply in zip(by_queue, replies, strict=True)}
        return [next(answers[job.queue]) for job in jobs]

    async def claim(self, queue: Queue, count: int, lease_ms: int, token: str, *, most_crashes: int = 3) -> Claimed:
        """Lease up to `count` (at most 1,000) ready jobs under a token that was never used before.

        Not repeated: the jobs of a lost answer wait until their lease expires.
        """
        script = scripts.load("queue/claim", plain=self._plain)
        call = self._claim_call(script, queue, count, lease_ms, token, most_crashes)
        sent = time.monotonic()
        (reply,) = await self._ask(script, [call], self._wire)
        return self._claimed(reply, token, sent)

    def _claim_call(
        self, script: Script, queue: Queue, count: int, lease_ms: int, token: str, most_crashes: int
    ) -> Command:
        count = min(count, MOST_JOBS)
        words = (self._clock_word(), str(count), str(lease_ms), token, str(MOST_BYTES), str(most_crashes))
        return evalsha(script, queue, words)

    def _claimed(self, reply: Any, token: str, sent: float) -> Claimed:
        now_ms, next_due, ids, envelopes, rows = reply
        self.clock.hear(now_ms, sent)
        jobs = []
        for job_id, envelope, row in zip(ids, envelopes, rows, strict=True):
            attempt, failures, crashes = 1, 0, 0
            if row is not None:
                _, before, failed, crashed, _ = row.split(b":")
                attempt, failures, crashes = int(before) + 1, int(failed), int(crashed)
            jobs.append(Leased(job_id.decode(), token, envelope, attempt, failures, crashes))
        due_ms = int(float(next_due))
        return Claimed(jobs, sent, max(0, due_ms - now_ms) if due_ms else None)

    async def expose(self, queue: Queue, job: Leased) -> bool:
        """Count a crash of this job against it from now on; False where the lease is lost. May be repeated."""
        script = scripts.load("queue/expose", plain=self._plain)
        (reply,) = await self._ask(script, [evalsha(script, queue, (job.id, job.token))], self._wire)
        return bool(reply)

    async def settle(self, queue: Queue, settlements: Sequence[Settlement]) -> list[int | str]:
        """End attempts; per job 1 settled, 0 lease lost, or why it is dead instead. May be repeated."""
        words: list[str | bytes] = [str(len(settlements))]
        for job in settlements:
            words += (job.id, job.token, job.kind, str(job.delay_ms), "1" if job.failed else "0", job.result)
            words.append(str(len(job.effects)))
            for effect in job.effects:
                words += (effect.op, effect.name, str(len(effect.words)), *effect.words)
        answers = (await self._call("queue/settle", queue, *words))[1:]
        return [answer.decode() if isinstance(answer, bytes) else answer for answer in answers]

    async def renew(self, queue: Queue, lease_ms: int, leases: Sequence[tuple[str, str]]) -> list[bool]:
        """Move the deadlines of (id, token); False where the lease is lost. May be repeated."""
        words = [str(lease_ms), str(len(leases)), *(word for lease in leases for word in lease)]
        return [answer == 1 for answer in (await self._call("queue/renew", queue, *words))[1:]]

    async def release(self, queue: Queue, leases: Sequence[tuple[str, str]]) -> list[bool]:
        """Give leased jobs back to their places; False where the lease is lost. May be repeated."""
        words = [str(len(leases)), *(word for lease in leases for word in lease)]
        return [answer == 1 for answer in (await self._call("queue/release", queue, *words))[1:]]

    async def promote(self, queue: Queue, limit: int = MOST_JOBS) -> int:
        """Put due jobs in line and ring over a non-empty queue; how many were due. May be repeated."""
        _, _, promoted = await self._call("queue/promote", queue, str(limit))
        return int(promoted)

    async def reap(self, queue: Queue, *, most_crashes: int, longest_ms: int, limit: int = MOST_JOBS) -> Reaped:
        """Take expired leases away, unless the server's clock is not as expected. May be repeated."""
        expected_ms = self.clock.expected_ms()
        words = (str(expected_ms), str(limit), str(most_crashes), str(longest_ms))
        now_ms, *reply = await self._call("queue/reap", queue, *words)
        if not reply:
            log.warning(
                "the clock of redis is %+d ms off what was expected; no lease of %s is taken away until it holds",
                now_ms - expected_ms,
                queue.name,
            )
            return Reaped(clock_agrees=False)
        deadline_ms = int(float(reply[0]))
        next_ms = max(0, deadline_ms - now_ms) if deadline_ms else None
        return Reaped(True, next_ms, int(reply[1]), int(reply[2]))

    async def trim(self, queue: Queue, *, keep_done_ms: int, keep_dead_ms: int, limit: int = MOST_JOBS) -> int:
        """Forget finished jobs that are older than their retention; how many. May be repeated."""
        words = (str(limit), str(keep_done_ms), str(keep_dead_ms))
        _, forgotten = await self._call("queue/trim", queue, *words)
        return int(forgotten)

    async def requeue(self, queue: Queue, jobs: Sequence[tuple[str, str]]) -> list[bool]:
        """Give dead jobs, as (id, token that settled it), a new life; False where not dead by it. May be repeated."""
        words = [str(len(jobs)), *(word for job in jobs for word in job)]
        return [answer == 1 for answer in (await self._call("queue/requeue", queue, *words))[1:]]

    async def inspect(self, queue: Queue, ids: Sequence[str]) -> list[JobInfo | None]:
        """What is known of jobs, as one moment; None where no record is kept."""
        script = scripts.load("queue/inspect", plain=self._plain)
        call = evalsha(script, queue, (str(len(ids)), *ids))
        (replies,) = await self._ask(script, [call], self._wire)
        return [None if reply is None else _job_info(job_id, reply) for job_id, reply in zip(ids, replies, strict=True)]

    async def await_result(self, queue: Queue, job_id: str, channel: str) -> tuple[State, bytes] | None:
        """(state, result) of a finished job; None: its finish will be told on `channel`. Raises NotFound."""
        script = scripts.load("queue/await", plain=self._plain)
        (reply,) = await self._ask(script, [evalsha(script, queue, (job_id, channel))], self._wire)
        if reply == 0:
            raise NotFound(queue.name, job_id)
        return None if reply == 1 else parse_result(reply)

    # ---- plain reads and small writes

    async def page(
        self, key: str, since: int, until: int, limit: int, after: tuple[int, str] | None
    ) -> list[tuple[str, int]]:
        """One page of any sorted set of whole scores, as (member, score)."""
        script = scripts.load("timeline/page", plain=self._plain)
        cursor = (str(after[0]), after[1]) if after else ("", "")
        call: Command = ("EVALSHA", script.sha, 1, key, str(since), str(until), str(limit), *cursor)
        (reply,) = await self._ask(script, [call], self._wire)
        return [(reply[at].decode(), int(float(reply[at + 1]))) for at in range(0, len(reply), 2)]

    async def count(self, key: str, since: int, until: int) -> int:
        """How many entries of a sorted set have since <= score < until."""
        return int(await self._command(lambda: self.redis.zcount(key, since, f"({until}")))

    async def configure(self, queue: Queue, bound: int | None) -> None:
        """Write what the scripts must know of a queue's declaration."""
        config = queue.keys["config"]
        if bound is None:
            await self._command(lambda: self.redis.hdel(config, "bound"))
        else:
            await self._command(lambda: self.redis.hset(config, "bound", str(bound)))

    async def sizes(self, queue: Queue) -> Sizes:
        """How full a queue is."""

        async def send() -> list[Any]:
            pipeline = self.redis.pipeline(transaction=False)
            for part in ("scheduled", "ready", "running", "done", "dead", "open"):
                pipeline.zcard(queue.keys[part])
            pipeline.zrange(queue.keys["open"], 0, 0, withscores=True)
            replies: list[Any] = await pipeline.execute()
            return replies

        scheduled, ready, running, done, dead, unfinished, oldest = await self._command(send)
        return Sizes(scheduled, ready, running, done, dead, unfinished, int(oldest[0][1]) if oldest else None)

    async def wait_bell(self, queue: Queue, seconds: float) -> bool:
        """Block until the queue's bell rings (True) or the time is over (False).

        A caller that is cancelled must ring again by `promote`: the abandoned pop may have taken the token.
        """

        pop: Command = ("BLPOP", queue.keys["bell"], seconds)
        (reply,) = await self._command(lambda: self._bells.ask([pop], seconds + 2))
        if isinstance(reply, Exception):
            raise self._mapped(reply, "BLPOP")
        return reply is not None

    async def ping(self) -> None:
        """Raise StoreUnavailable unless the server answers."""
        await self._command(lambda: self.redis.execute_command("PING"))

    async def memory_share(self) -> float:
        """used_memory as a share of maxmemory; 0 where no maxmemory is set."""
        memory = await self._command(lambda: self.redis.info("memory"))
        return float(memory["used_memory"]) / memory["maxmemory"] if memory.get("maxmemory") else 0.0

    async def fsyncs(self) -> bool | None:
        """Whether the server fsyncs before it answers; None where it may not be asked."""
        if self.in_memory:
            return False
        try:
            policy = await self.redis.execute_command("CONFIG", "GET", *FSYNC_POLICY)
        except driver.ResponseError:
            return None
        except (driver.RedisError, OSError) as error:
            raise self.lost(error) from error
        return fsyncs(policy)

    def pubsub(self) -> PubSub:
        """A subscription on a connection of its own."""
        return self._listener.pubsub(ignore_subscribe_messages=False)

    # ---- how a call is made

    async def _call(self, name: str, queue: Queue, *words: str | bytes) -> Any:
        """Run a script that takes the time and answers it first."""
        script = scripts.load(name, plain=self._plain)
        sent = time.monotonic()
        (reply,) = await self._ask(script, [evalsha(script, queue, (self._clock_word(), *words))], self._wire)
        self.clock.hear(reply[0], sent)
        return reply

    def _clock_word(self) -> str:
        return "0" if self._clock is None else str(self._clock())

    async def _carry(self, commands: list[Command], wire: Wire, rides: Sequence[Ride]) -> list[Any] | None:
        """Send claims behind a submit and answer them; the submit's replies, None where it has to be sent again."""
        claim = scripts.load("queue/claim", plain=self._plain)
        sent = time.monotonic()
        claims = [self._claim_call(claim, r.queue, r.count, r.lease_ms, r.token, r.most_crashes) for r in rides]
        try:
            replies = await wire.ask([*commands, *claims])
        except driver.ConnectionError as error:
            if isinstance(error, driver.BusyLoadingError):
                raise self.lost(error) from error
            self.line.broke()
            return None
        except (driver.RedisError, OSError) as error:
            raise self._mapped(error, "queue/submit") from error
        for ride, reply in zip(rides, replies[len(commands) :], strict=True):
            if not isinstance(reply, Exception):
                ride.end(self._claimed(reply, ride.token, sent))
        del replies[len(commands) :]
        for reply in replies:
            if isinstance(reply, driver.NoScriptError):
                return None
            if isinstance(reply, Exception):
                raise self._mapped(reply, "queue/submit") from reply
        self.line.up()
        return replies

    async def _ask(self, script: Script, commands: list[Command], wire: Wire) -> list[Any]:
        """Send a script's calls; load it where the server does not know it; repeat once where the line broke."""

        async def send() -> list[Any]:
            replies = await wire.ask(commands)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
            return replies

        loaded = repeated = False
        while True:
            try:
                replies = await send()
            except driver.NoScriptError as error:
                if loaded:
                    raise self._mapped(error, script.name) from error
                loaded = True  # nothing was run, so this counts as no repeat; a server that came back knows no script
                await self._command(lambda: self.redis.script_load(script.source))
            except driver.ConnectionError as error:
                # Most often a kept connection that the server has closed since. A busy server is not asked twice.
                if repeated or not script.may_repeat or isinstance(error, driver.BusyLoadingError):
                    raise self.lost(error) from error
                repeated = True
                self.line.broke()
            except (driver.RedisError, OSError) as error:
                raise self._mapped(error, script.name) from error
            else:
                self.line.up()
                return replies

    async def _command(self, send: Callable[[], Awaitable[T]]) -> T:
        try:
            reply = await send()
        except (driver.RedisError, OSError, TimeoutError) as error:
            raise self._mapped(error, "a command") from error
        self.line.up()
        return reply

    def _mapped(self, error: BaseException, what: str) -> Exception:
        if isinstance(error, driver.ResponseError):
            code = str(error).partition(" ")[0]
            if code in AWAY or isinstance(
                error, (driver.OutOfMemoryError, driver.ReadOnlyError, driver.ClusterDownError)
            ):
                return StoreUnavailable(f"redis cannot serve now: {error}")
            if isinstance(error, driver.NoPermissionError):
                return ConfigError(f"redis refuses {what} to this user: {error}")
            return ProtocolError(f"{what} failed in redis: {error}")
        return self.lost(error)

    def lost(self, error: BaseException) -> StoreUnavailable:
        """Take note that the line broke; what to raise."""
        reason = str(error) or f"no answer within {ROUND_TRIP_SECONDS:g} s"
        self.line.down(error if str(error) else TimeoutError(reason))
        return StoreUnavailable(f"redis is away: {reason}")


def fsyncs(policy: list[bytes]) -> bool:
    """Whether a server whose CONFIG GET answers so fsyncs before it answers."""
    return dict(zip(policy[::2], policy[1::2], strict=True)) == {b"appendonly": b"yes", b"appendfsync": b"always"}


def evalsha(script: Script, queue: Queue, words: Sequence[str | bytes]) -> Command:
    """The call of a script on a queue's keys."""
    keys = [queue.keys[key] for key, _ in script.keys]
    return ("EVALSHA", script.sha, len(keys), *keys, *words)


def parse_result(line: bytes) -> tuple[State, bytes]:
    """(state, result) of a results row."""
    head, _, result = line.partition(b"\n")
    return State(head.partition(b":")[0].decode()), result


def _job_info(job_id: str, reply: list[Any]) -> JobInfo:
    state, score, submitted, started, row, line, envelope = reply
    result = None
    if line is not None:
        head, _, result = line.partition(b"\n")
        _, token, attempt, failures, crashes, _, submitted, started = head.split(b":")
    elif row is not None:
        token, attempt, failures, crashes, _ = row.rpartition(b"/")[2].split(b":")
    else:
        token, attempt, failures, crashes = b"", 0, 0, 0
    at_ms = int(float(score))
    return JobInfo(
        id=job_id,
        state=State(state.decode()),
        at_ms=at_ms % 2**42,  # a ready score is priority * 2**42 + time
        submitted_ms=int(float(submitted or 0)),
        started_ms=int(float(started)) if started else None,
        attempt=int(attempt),
        failures=int(failures),
        crashes=int(crashes) % 1000,  # more while it waits for its last chance
        token=token.decode(),
        payload=(envelope or b"").partition(b"\n")[2],
        result=result,
    )
