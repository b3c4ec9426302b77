"""The one class that talks to Redis for the queue: a typed method per script. How a call is made is in `caller`."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from redis import exceptions as driver
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from aioflow.engine import scripts
from aioflow.engine.caller import Caller, evalsha
from aioflow.engine.keys import Queue
from aioflow.engine.line import TOLERANCE_MS
from aioflow.engine.receipts import FSYNC_POLICY, fsyncs, proof_of, unproven
from aioflow.engine.records import (
    MOST_BYTES,
    MOST_JOBS,
    NO_EVICTION,
    Claimed,
    Durability,
    Emitted,
    Leased,
    Memory,
    NewJob,
    Overview,
    Reaped,
    Ride,
    Settlement,
    Sizes,
)
from aioflow.engine.rights import check_rights
from aioflow.engine.rows import ask_sizes, job_info, memory_of, parse_result, sizes_of
from aioflow.engine.scripts import Script
from aioflow.engine.wire import Command, Wire
from aioflow.errors import NotFound, ProtocolError, StoreUnavailable
from aioflow.job import JobInfo, State

log = logging.getLogger(__name__)

RUNNER_MS = 15_000
"""A runtime that was noted before is gone: reap notes it every 10 s, when its turn comes."""


MEMORY_SECONDS = 1.0
"""How long a node of a cluster may take to say how full it is."""
RECEIPT_WIRES = 3
"""As many flushes of one durability may be under way: two of single submits and one of many."""


class Store(Caller):
    """Typed calls to the queue's scripts. Every method raises StoreUnavailable and ProtocolError."""

    # ---- the queue's scripts

    async def submit(
        self, jobs: Sequence[NewJob], durability: Durability = "memory", rides: Sequence[Ride] = ()
    ) -> list[int]:
        """Take jobs into their queues; per job 1 new, 0 known, -1 known with another payload, -2 queue full.

        Returns only once all of them are as durable as asked, else raises StoreUnavailable. May be repeated. `rides`
        are claims sent along; those that were answered are ended, whatever comes of the submit. In a cluster all are of
        one `part`: a node proves only what it wrote itself.
        """
        script = scripts.load("queue/submit", plain=self._plain)
        by_queue: defaultdict[Queue, list[NewJob]] = defaultdict(list)
        for job in jobs:
            by_queue[job.queue].append(job)
        # WAIT and WAITAOF speak for the writes of their own connection only: one pipeline, alone on its connection.
        wire = self._wire if durability == "memory" else self._receipts(durability)
        proof = proof_of(durability)

        def commands(quiet: set[Queue]) -> list[Command]:
            made: list[Command] = []
            for queue, mine in by_queue.items():
                words: list[str | bytes] = [self._clock_word(), "1" if queue in quiet else "0", str(len(mine))]
                for job in mine:
                    words += (job.id, job.envelope, str(job.priority), job.due)
                made.append(evalsha(script, queue, words))
            return [*made, *proof]

        sent = time.monotonic()
        replies = await self._carry(commands({ride.queue for ride in rides}), wire, rides) if rides else None
        if replies is None:
            replies = await self._ask(script, commands(set()), wire)
        missing = unproven(durability, replies[len(by_queue) :])
        if missing is not None:
            raise StoreUnavailable(f"{missing}; the jobs may have been taken")
        del replies[len(by_queue) :]
        self.clock.hear(replies[0][0], sent)
        if len(by_queue) == 1:
            taken: list[int] = replies[0][1:]
            return taken
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
        return Claimed(jobs, sent, self.clock.wait_ms(now_ms, due_ms) if due_ms else None)

    async def expose(self, queue: Queue, job: Leased) -> bool:
        """Count a crash of this job against it from now on; False where the lease is lost. May be repeated."""
        script = scripts.load("queue/expose", plain=self._plain)
        (reply,) = await self._ask(script, [evalsha(script, queue, (job.id, job.token))], self._wire)
        return bool(reply)

    async def settle(self, queue: Queue, settlements: Sequence[Settlement]) -> list[int | str]:
        """End attempts; per job 1 settled, 0 lease lost, or why it is dead instead. May be repeated."""
        words: list[str | bytes] = [str(len(settlements))]
        for job in settlements:
            words += (job.id, job.token, job.outcome, job.result)
            for effect in job.effects:
                words += (effect.op, effect.name, str(len(effect.words)), *effect.words)
        answers = (await self._call("queue/settle", queue, *words))[1:]
        return [answer.decode() if isinstance(answer, bytes) else answer for answer in answers]

    async def renew(self, calls: Sequence[tuple[Queue, int, Sequence[tuple[str, str]]]]) -> list[list[int]]:
        """Move the deadlines of leases, in one round trip; per call (queue, lease ms, (id, token) of up to 1,000 jobs).

        Per job 1 renewed, 2 renewed and to be cancelled, 0 lease lost. May be repeated. In a cluster the queues are of
        one `part`.
        """
        script = scripts.load("queue/renew", plain=self._plain)
        commands = [
            evalsha(
                script,
                queue,
                [
                    self._clock_word(),
                    str(lease_ms),
                    str(len(leases)),
                    *(word for lease in leases for word in lease),
                ],
            )
            for queue, lease_ms, leases in calls
        ]
        sent = time.monotonic()
        replies = await self._ask(script, commands, self._wire)
        self.clock.hear(replies[0][0], sent)
        return [reply[1:] for reply in replies]

    async def release(self, queue: Queue, leases: Sequence[tuple[str, str]], *, after_ms: int = 0) -> list[bool]:
        """Give leased jobs back to their places, from when on they may be claimed; False where the lease is lost.

        May be repeated.
        """
        words = [str(after_ms), str(len(leases)), *(word for lease in leases for word in lease)]
        return [answer == 1 for answer in (await self._call("queue/release", queue, *words))[1:]]

    async def promote(self, queue: Queue, limit: int = MOST_JOBS) -> int:
        """Put due jobs in line and ring over a non-empty queue; how many were due. May be repeated."""
        _, _, promoted = await self._call("queue/promote", queue, str(limit))
        return int(promoted)

    async def reap(
        self,
        queue: Queue,
        *,
        most_crashes: int,
        longest_ms: int,
        judge: bool = True,
        runner: str = "",
        limit: int = MOST_JOBS,
    ) -> Reaped:
        """Maintain a queue: put due jobs in line, take expired leases away, ring over what waits. May be repeated.

        Leases are judged where `judge` says so and the server's clock is as expected; `runner` is the runtime that is
        to be noted as alive.
        """
        script = scripts.load("queue/reap", plain=self._plain)

        def call(expected_ms: int) -> list[Command]:
            words = (self._clock_word(), str(expected_ms), str(limit), str(most_crashes), str(longest_ms), runner)
            return [evalsha(script, queue, words)]

        sent = time.monotonic()
        expected_ms = self.clock.expected_ms() if judge else 0
        # Over a new connection no lease is judged: their holders may have been cut off as well.
        (reply,) = await self._ask(script, call(expected_ms), self._wire, again=call(0))
        now_ms, promoted, runners, rank, outbox, *judged = reply
        self.clock.hear(now_ms, sent)
        about = Reaped(False, None, 0, 0, int(promoted), int(runners), None if rank < 0 else int(rank), int(outbox))
        if not judged:
            if judge and abs(now_ms - expected_ms) > TOLERANCE_MS:
                log.warning(
                    "the clock of redis is %+d ms off what was expected; no lease of %s is taken away until it holds",
                    now_ms - expected_ms,
                    queue.name,
                )
            return about
        deadline_ms = int(float(judged[0]))
        next_ms = self.clock.wait_ms(now_ms, deadline_ms) if deadline_ms else None
        return replace(about, judged=True, next_ms=next_ms, jobs=int(judged[1]), dead=int(judged[2]))

    async def leave(self, queue: Queue, runner: str) -> None:
        """Note that a runtime looks after a queue no more."""
        await self._command(lambda: self.redis.zrem(queue.keys["runners"], runner), queue.keys["runners"])

    async def trim(self, queue: Queue, *, keep_done_ms: int, keep_dead_ms: int, limit: int = MOST_JOBS) -> int:
        """Forget finished jobs that are older than their retention; how many. May be repeated."""
        words = (str(limit), str(keep_done_ms), str(keep_dead_ms))
        _, forgotten = await self._call("queue/trim", queue, *words)
        return int(forgotten)

    async def requeue(self, queue: Queue, jobs: Sequence[tuple[str, str]]) -> list[bool]:
        """Give dead jobs, as (id, token that settled it), a new life; False where not dead by it. May be repeated."""
        words = [str(len(jobs)), *(word for job in jobs for word in job)]
        return [answer == 1 for answer in (await self._call("queue/requeue", queue, *words))[1:]]

    async def cancel(self, queue: Queue, ids: Sequence[str], channels: str) -> list[int]:
        """Cancel jobs; per job 2 cancelled, 1 its holder is asked, 0 finished already, -1 unknown. May be repeated.

        `channels` is what the name of a runtime's channel begins with.
        """
        return list((await self._call("queue/cancel", queue, channels, str(len(ids)), *ids))[1:])

    async def progress(self, queue: Queue, notes: Sequence[tuple[str, str, bytes]]) -> list[bool]:
        """Note (id, token, JSON) of running jobs; False where the lease is lost. May be repeated."""
        script = scripts.load("queue/progress", plain=self._plain)
        words: list[str | bytes] = [str(len(notes)), *(word for note in notes for word in note)]
        (reply,) = await self._ask(script, [evalsha(script, queue, words)], self._wire)
        return [answer == 1 for answer in reply]

    async def pause(self, queue: Queue, *, paused: bool) -> bool:
        """Let nothing be claimed from a queue, or again; False where it was so already. May be repeated."""
        script = scripts.load("queue/pause", plain=self._plain)
        (reply,) = await self._ask(script, [evalsha(script, queue, ("1" if paused else "0",))], self._wire)
        return bool(reply)

    async def relay(self, queue: Queue, source: str, jobs: Sequence[Emitted]) -> int:
        """Take up to 1,000 jobs of another queue's outbox, in its order; how many are new. May be repeated."""
        words: list[str | bytes] = [source, str(len(jobs))]
        for job in jobs:
            words += (job.sequence, job.envelope, str(job.priority), str(job.due))
        return int((await self._call("queue/relay", queue, *words))[1])

    async def outbox(self, queue: Queue, limit: int) -> list[Emitted]:
        """The first jobs in a queue's outbox."""
        entries: Any = await self._command(
            lambda: self.redis.xrange(queue.keys["outbox"], count=limit), queue.keys["outbox"]
        )
        try:
            return [
                Emitted(
                    sequence.decode(),
                    fields[b"to"].decode(),
                    fields[b"envelope"],
                    int(fields[b"priority"]),
                    int(fields[b"due"]),
                )
                for sequence, fields in entries
            ]
        except (KeyError, ValueError) as error:
            raise ProtocolError(f"foreign data in the outbox of {queue.name}: {error!r}") from error

    async def forget(self, queue: Queue, sequences: Sequence[str]) -> None:
        """Take jobs out of a queue's outbox, once their queues have them."""
        await self._command(lambda: self.redis.xdel(queue.keys["outbox"], *sequences), queue.keys["outbox"])

    async def inspect(self, queue: Queue, ids: Sequence[str]) -> list[JobInfo | None]:
        """What is known of jobs, as one moment; None where no record is kept."""
        script = scripts.load("queue/inspect", plain=self._plain)
        call = evalsha(script, queue, (str(len(ids)), *ids))
        (replies,) = await self._ask(script, [call], self._wire)
        return [job_info(queue, job_id, reply) if reply else None for job_id, reply in zip(ids, replies, strict=True)]

    async def await_result(self, queue: Queue, job_id: str, channel: str) -> tuple[State, bytes] | None:
        """(state, result) of a finished job; None: its finish will be told on `channel`. Raises NotFound."""
        script = scripts.load("queue/await", plain=self._plain)
        (reply,) = await self._ask(script, [evalsha(script, queue, (job_id, channel))], self._wire)
        if reply == 0:
            raise NotFound(queue.name, job_id)
        if reply == -1:
            raise StoreUnavailable(f"too many runtimes wait for {queue.name} {job_id}; ask again")
        return None if reply == 1 else parse_result(reply, queue.keys["results"], job_id)

    # ---- plain reads and small writes

    async def look(self, queue: Queue, job_id: str) -> tuple[State, bytes] | None:
        """(state, result) of a finished job; None: it has not finished. Raises NotFound."""
        results, jobs = queue.keys["results"], queue.keys["jobs"]
        row: Any = await self._command(lambda: self.redis.hget(results, job_id), results)
        if row is not None:
            return parse_result(row, results, job_id)
        if not await self._command(lambda: self.redis.hexists(jobs, job_id), jobs):
            raise NotFound(queue.name, job_id)
        return None

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
        return int(await self._command(lambda: self.redis.zcount(key, since, f"({until}"), key))

    async def configure(self, queue: Queue, bound: int | None) -> None:
        """Write what the scripts must know of a queue's declaration."""
        config = queue.keys["config"]
        if bound is None:
            await self._command(lambda: self.redis.hdel(config, "bound"), config)
        else:
            await self._command(lambda: self.redis.hset(config, "bound", str(bound)), config)

    async def sizes(self, queue: Queue) -> Sizes:
        """How full a queue is."""

        async def send() -> list[Any]:
            pipeline = self.redis.pipeline(transaction=False)
            ask_sizes(pipeline, queue)
            replies: list[Any] = await pipeline.execute()
            return replies

        return sizes_of(await self._command(send))

    async def overview(self, queue: Queue) -> Overview:
        """How full a queue is, what it has done, who looks after it; as one moment."""

        async def send() -> list[Any]:
            pipeline = self.redis.pipeline(transaction=True)
            ask_sizes(pipeline, queue)
            pipeline.time()
            pipeline.hgetall(queue.keys["totals"])
            pipeline.hget(queue.keys["config"], "paused")
            pipeline.zrange(queue.keys["runners"], 0, -1, withscores=True)
            pipeline.xlen(queue.keys["outbox"])
            replies: list[Any] = await pipeline.execute()
            return replies

        *sizes, (seconds, micros), counted, paused, noted, outbox = await self._command(send)
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        living_since = now_ms - RUNNER_MS - 1000 * len(noted)
        return Overview(
            now_ms,
            sizes_of(sizes),
            {name.decode(): int(value) for name, value in counted.items()},
            paused == b"1",
            sum(at_ms > living_since for _, at_ms in noted),
            outbox,
        )

    async def wait_bell(self, queue: Queue, seconds: float) -> bool:
        """Block until the queue's bell rings (True) or the time is over (False).

        A caller that is cancelled must ring again by `promote`: the abandoned pop may have taken the token.
        """

        pop: Command = ("BLPOP", queue.keys["bell"], seconds)
        (reply,) = await self._command(lambda: self._bells.ask([pop], seconds + 2))
        if isinstance(reply, Exception):
            raise self._mapped(reply, f"BLPOP {queue.keys['bell']}")
        return reply is not None

    async def begin(self, queues: Sequence[Queue]) -> None:
        """Load every script, ask for this user's rights, and hear the server's clock.

        Raises ConfigError that names every right which its ACL lacks.
        """
        names = [path.stem for path in sorted((scripts.script_root() / "queue").glob("*.lua"))]
        loaded = [scripts.load(f"queue/{name}", plain=self._plain) for name in names]
        loaded.append(scripts.load("timeline/page", plain=self._plain))
        for script in loaded:
            await self._command(partial(self.redis.script_load, script.source))
        of_parts: dict[Store, list[Queue]] = {}
        for queue in queues:
            of_parts.setdefault(self.part(queue), []).append(queue)
        for part, mine in of_parts.items():
            await check_rights(part, mine)
        parts: list[Store] = list(of_parts) or [self]
        for part in parts:
            await part.hear_server()
        self.clock = parts[0].clock

    async def hear_server(self) -> None:
        """Hear the server's clock. It may have been set a moment ago; its uptime, which follows it, does not tell."""
        server = await self._command(self._server)
        seconds, micros = await self._command(server.time)
        self.clock.hear(int(seconds) * 1000 + int(micros) // 1000)
        # Leases are judged once their holders have had the time to renew them by this clock.
        self.line.connected_at = time.monotonic()

    async def ping(self) -> None:
        """Raise StoreUnavailable unless the server answers."""
        await self._command(lambda: self.redis.execute_command("PING"))

    async def memory(self) -> Memory:
        """What the server's memory holds, and may; of a cluster that of the fullest node, and a policy that evicts."""
        if self.in_memory:
            return Memory()
        if self.has_parts:
            found = [memory_of(about) for about in await self._memories()]
            policy = next((memory.policy for memory in found if memory.policy != NO_EVICTION), NO_EVICTION)
            return replace(
                max(found, key=lambda memory: (memory.used / (memory.limit or math.inf), memory.used)), policy=policy
            )
        return memory_of(await self._command(lambda: self.redis.info("memory")))

    async def _memories(self) -> list[dict[str, Any]]:
        """Of the nodes that answer soon: one that is away must not keep those waiting who do not need it."""

        async def ask(server: Redis) -> Any:
            async with asyncio.timeout(MEMORY_SECONDS):
                return await server.info("memory")

        asked = [ask(server) for server in await self._command(self._servers)]
        found = [memory for memory in await asyncio.gather(*asked, return_exceptions=True) if isinstance(memory, dict)]
        if not found:
            raise StoreUnavailable("no node of the cluster says how full it is")
        return found

    async def lacks_fsync(self) -> str | None:
        """Why a server gives no receipts of "fsync", and what to change; None where each does."""
        if self.in_memory:
            return "memory: keeps nothing; use another server"
        servers, asked = await self._command(self._servers), ""
        try:
            for server in servers:
                asked = "CONFIG GET"
                policy = await server.execute_command("CONFIG", "GET", *FSYNC_POLICY)
                if not fsyncs(policy):
                    return "set both in its configuration (CONFIG SET appendonly yes, CONFIG SET appendfsync always)"
                asked = "WAITAOF"
                await server.execute_command("WAITAOF", 0, 0, 1)
        except driver.ResponseError as error:
            return f"it refuses {asked} ({error}), which Valkey and Redis 7.2 or newer have; allow it to this user"
        except (driver.RedisError, OSError) as error:
            raise self.lost(error) from error
        return None

    async def replicas(self) -> int:
        """How many replicas follow the server; in a cluster, the one that has the fewest."""
        servers = await self._command(self._servers)
        abouts = [await self._command(partial(server.info, "replication")) for server in servers]
        for server in servers:
            await self._command(partial(server.execute_command, "WAIT", 0, 1))  # whether this user may
        return min(int(about.get("connected_slaves", 0)) if about.get("role") == "master" else 0 for about in abouts)

    async def totals(self, queue: Queue) -> dict[str, int]:
        """The queue's counters, which only grow."""
        counted: Any = await self._command(lambda: self.redis.hgetall(queue.keys["totals"]))
        return {name.decode(): int(value) for name, value in counted.items()}

    async def run_script(self, script: Script, keys: Sequence[str], words: Sequence[str | bytes]) -> Any:
        """Run a user's script. It is repeated after a lost answer only where its header says that this is harmless."""
        call: Command = ("EVALSHA", script.sha, len(keys), *keys, *words)
        (reply,) = await self._ask(script, [call], self._wire)
        return reply

    def pubsub(self) -> PubSub:
        """A subscription on a connection of its own."""
        return self._listener.pubsub(ignore_subscribe_messages=False)

    # ---- how a call is made

    def _receipts(self, durability: Durability) -> Wire:
        """Connections of its own for each durability: one that waits for replicas holds up no other."""
        wire = self._receipt_wires.get(durability)
        if wire is None:
            wire = self._receipt_wires[durability] = self._clients.wire(RECEIPT_WIRES)
        return wire

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
                raise await self._refusal(reply, scripts.load("queue/submit", plain=self._plain), commands) from reply
        self.line.served(sent)
        return replies
