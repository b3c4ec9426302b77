"""What can be asked of a started runtime: submit, wait, look, cancel, requeue, pause.

It owns nothing of the runtime's life; `Runtime` sets its parts when it starts. Everything here raises StoreUnavailable
where Redis is away, and ConfigError before the start and after the stop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent import futures
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from redis.asyncio import Redis

from aioflow.commit import check_priority
from aioflow.engine import codec, scripts
from aioflow.engine.caller import MOST_CHANNELS
from aioflow.engine.fleet import Fleet
from aioflow.engine.inbox import Inbox
from aioflow.engine.keys import Queue, check_namespace, data_key, no_data_key, runtime_channels
from aioflow.engine.records import MOST_JOBS, NewJob, Overview, Sizes
from aioflow.engine.results import Results
from aioflow.engine.store import Store
from aioflow.engine.submitter import Submitter
from aioflow.errors import (
    AioflowError,
    CodecError,
    ConfigError,
    IdConflict,
    JobCancelled,
    JobFailed,
    NotFound,
    QueueFull,
    StoreUnavailable,
)
from aioflow.job import Handle, JobInfo, State, check_id, check_new_id, new_id
from aioflow.policy import DEFAULT_PRIORITY, LONGEST_WAIT
from aioflow.service import Service, Task
from aioflow.settings import Settings, check_durability
from aioflow.timeline import LARGEST_MS, Page, page

T = TypeVar("T")
Part = Literal["scheduled", "open", "ready", "started", "done", "dead"]
MANY = 1000
"""Jobs that submit_many has in the line at a time."""
LOOK_SECONDS = 0.5
"""How often a thread that waits looks whether the loop that is to answer it is still there."""
PLACE_STEP = 2**42
"""A place in the line of ready jobs is priority * this + UTC ms."""


class Client:
    """The calls that a started runtime answers."""

    def __init__(self, services: Sequence[Service], settings: Settings) -> None:
        self.settings = settings
        self.namespace = check_namespace(settings.namespace)
        self.services = {service.name: service for service in services}
        if len(self.services) != len(services):
            raise ConfigError(f"two services share a name: {sorted(service.name for service in services)}")
        self.durability = "memory"
        """What a receipt means unless a submit says otherwise; known once started."""
        self._queues = {
            task: Queue(self.namespace, service.name, task.name)
            for service in services
            for task in service.tasks.values()
        }
        self._store: Store | None = None
        self._submitter: Submitter | None = None
        self._listening = 0
        self._results: Results | None = None
        self._inbox: Inbox | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread_id = 0

    # ---- submitting

    def submit(
        self,
        task: Task[Any, Any] | str,
        payload: Any = None,
        *,
        delay: float = 0.0,
        at: datetime | None = None,
        id: str | None = None,
        priority: int = DEFAULT_PRIORITY,
        durability: str | None = None,
    ) -> Coroutine[Any, Any, Handle[Any]]:
        """As `Task.submit`, for a task or its name "service.task"."""
        # A coroutine that only awaits another costs a submit as much as its id does; what can raise is in the other.
        return self._submit(task, payload, None, delay, at, id, priority, durability, False)

    async def submit_many(
        self,
        task: Task[Any, Any] | str,
        payloads: Sequence[Any],
        *,
        ids: Sequence[str] | None = None,
        delay: float = 0.0,
        at: datetime | None = None,
        priority: int = DEFAULT_PRIORITY,
        durability: str | None = None,
    ) -> list[Handle[Any] | AioflowError]:
        """As `Task.submit_many`, for a task or its name "service.task"."""
        found = self.task(task)
        if ids is not None and len(ids) != len(payloads):
            raise ConfigError(f"submit_many {found.full_name}: {len(ids)} ids for {len(payloads)} payloads")

        def encoded(payload: Any) -> bytes | CodecError:
            try:
                return codec.encode_payload(found, payload)
            except CodecError as error:
                return error

        async def one(envelope: bytes | CodecError, job_id: str | None) -> Handle[Any] | AioflowError:
            if isinstance(envelope, CodecError):
                return envelope
            try:
                return await self._submit(found, None, envelope, delay, at, job_id, priority, durability, True)
            except AioflowError as error:
                return error

        answers: list[Handle[Any] | AioflowError] = []
        for first in range(0, len(payloads), MANY):
            # All of them before the first is sent: what a validator raises by mistake must not lose anybody's handles.
            envelopes = [encoded(payload) for payload in payloads[first : first + MANY]]
            some_ids = [None] * len(envelopes) if ids is None else ids[first : first + MANY]
            some = await asyncio.gather(*map(one, envelopes, some_ids))
            if first == 0 and all(isinstance(answer, ConfigError) for answer in some):
                raise some[0]  # type: ignore[misc]  # it is wrong with all of them
            answers += some
        return answers

    def submit_sync(self, task: Task[Any, Any] | str, payload: Any = None, **options: Any) -> Handle[Any]:
        """As `submit`, for threads and synchronous programs; not for the runtime's own thread."""
        return self.call_sync(self.submit(task, payload, **options))

    async def submit_json(
        self,
        task: Task[Any, Any],
        body: bytes,
        *,
        job_id: str | None = None,
        delay: float = 0.0,
        at: datetime | None = None,
        priority: int = DEFAULT_PRIORITY,
        durability: str | None = None,
    ) -> Handle[Any]:
        """Submit a payload given as JSON. Raises pydantic.ValidationError where it does not fit, and as `submit`."""
        adapter = task.signature.payload
        # Not by the adapter's own methods, which cost a few calls more.
        payload = (
            codec.NOTHING if adapter is None else adapter.serializer.to_json(adapter.validator.validate_json(body))
        )
        envelope = codec.seal(payload, task.full_name, task.options.payload_limit)
        return await self._submit(task, None, envelope, delay, at, job_id, priority, durability, False)

    async def _submit(
        self,
        named: Task[Any, Any] | str,
        payload: Any,
        envelope: bytes | None,
        delay: float,
        at: datetime | None,
        job_id: str | None,
        priority: int,
        durability: str | None,
        many: bool,
    ) -> Handle[Any]:
        """Submit a payload, or an envelope that was made before; as one of `many`, together with them."""
        task = self.task(named)
        if envelope is None:
            envelope = codec.encode_payload(task, payload)
        if priority is not DEFAULT_PRIORITY:
            priority = check_priority(f"submit {task.full_name}", priority)
        due = "0" if at is None and delay == 0.0 else due_of(task.full_name, delay, at)
        found_id = new_id() if job_id is None else check_new_id(job_id)
        if self._submitter is None:
            raise ConfigError(f"submit {task.full_name}: the runtime is not running")
        receipt = self.durability if durability is None else check_durability(durability)
        job = NewJob(self._queues[task], found_id, envelope, priority, due)
        try:
            lines = self._submitter.lines.get(receipt)
            if lines is None:
                lines = await self._submitter.open(receipt)
            line = lines.many if many else lines.single
            answer = await line.put(job, len(envelope))
        except StoreUnavailable as error:
            raise StoreUnavailable(f"submit {task.full_name} {found_id}: {error}", job_id=found_id) from error
        if answer == -1:
            raise IdConflict(task.full_name, found_id)
        if answer == -2:
            raise QueueFull(task.full_name, bound=task.options.bound or 0, job_id=found_id)
        return Handle(found_id, task.full_name, answer == 1, self)

    def call_sync(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the runtime's loop and wait for it, from another thread.

        Raises ConfigError from the loop's own thread, or where the runtime is not running, and StoreUnavailable where
        it stops meanwhile.
        """
        loop, answer = self._loop, None
        if loop is not None and not loop.is_closed():
            if threading.get_ident() == self._thread_id:
                coroutine.close()
                raise ConfigError("a synchronous call: await it in the runtime's own thread")
            with suppress(RuntimeError):  # it has closed since
                answer = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            # A loop that closes forgets what has come in its last moment, and would leave this thread waiting for ever.
            while answer is not None and not futures.wait([answer], LOOK_SECONDS).done:
                if loop is None or loop.is_closed():
                    break
            if answer is not None and answer.done():
                return answer.result()
        except futures.CancelledError:
            raise StoreUnavailable("the runtime stopped meanwhile; it may or may not have been done") from None
        except BaseException:
            if answer is not None:
                answer.cancel()
            raise
        coroutine.close()
        raise ConfigError("a synchronous call: the runtime is not running")

    # ---- one job

    def handle(self, task: Task[Any, Any] | str, job_id: str) -> Handle[Any]:
        """As `Task.handle`, for a task or its name "service.task"."""
        return Handle(check_id(job_id), self.task(task).full_name, False, self)

    async def inspect(self, task_name: Task[Any, Any] | str, job_id: str) -> JobInfo:
        """What is known of a job now. Raises NotFound."""
        task = self.task(task_name)
        queue = self._queues[task]
        (info,) = await self._live_store(queue).inspect(queue, [job_id])
        if info is None:
            raise NotFound(task.full_name, job_id)
        return info

    async def inspect_many(self, task: Task[Any, Any] | str, ids: Sequence[str]) -> list[JobInfo | None]:
        """What is known of up to 1,000 jobs as one moment; None for those of which nothing is kept.

        More are a ConfigError, here as in `requeue_many` and `cancel_many`.
        """
        check_count("inspect_many", ids)
        queue = self._queues[self.task(task)]
        return await self._live_store(queue).inspect(queue, ids) if ids else []

    async def wait_result(self, task_name: str, job_id: str, timeout: float | None) -> Any:
        """As `Handle.result`."""
        task = self.task(task_name)
        if self._results is None or self._inbox is None:
            raise ConfigError("the runtime is not running")
        state, result = await self._results.wait(self._inbox, self._queues[task], job_id, timeout)
        if state is State.DEAD:
            failure = codec.decode_failure(result)
            # A handler may raise a JobCancelled as well, of a job that it waited for: that one has a traceback.
            cancelled = failure.error == JobCancelled.__name__ and not failure.traceback
            kind = JobCancelled if cancelled else JobFailed
            raise kind(
                job_id,
                error=failure.error,
                message=failure.message,
                traceback=failure.traceback,
                attempt=failure.attempt,
                worker=failure.worker,
            )
        return codec.decode_result(task.signature.result, result)

    async def cancel(self, task_name: Task[Any, Any] | str, job_id: str) -> bool:
        """As `Handle.cancel`."""
        task = self.task(task_name)
        queue, channels = self._queues[task], runtime_channels(self.namespace)
        (answer,) = await self._live_store(queue).cancel(queue, [job_id], channels)
        if answer == -1:
            raise NotFound(task.full_name, job_id)
        return answer > 0

    async def requeue(self, task_name: Task[Any, Any] | str, job_id: str) -> bool:
        """Give a dead job a new life; False where it is not dead. Raises NotFound."""
        task = self.task(task_name)
        info = await self.inspect(task, job_id)
        if info.state is not State.DEAD:
            return False
        queue = self._queues[task]
        (requeued,) = await self._live_store(queue).requeue(queue, [(job_id, info.token)])
        return requeued

    # ---- many jobs

    async def requeue_many(self, task: Task[Any, Any] | str, jobs: Sequence[JobInfo]) -> list[bool]:
        """Give up to 1,000 dead jobs a new life; False where one is not dead, or not by the death that was seen."""
        check_count("requeue_many", jobs)
        fences = [(job.id, job.token) for job in jobs]
        queue = self._queues[self.task(task)]
        return await self._live_store(queue).requeue(queue, fences) if fences else []

    async def cancel_many(self, task: Task[Any, Any] | str, ids: Sequence[str]) -> list[int]:
        """Cancel up to 1,000 jobs; per job 2 cancelled, 1 its holder is asked, 0 finished already, -1 unknown."""
        check_count("cancel_many", ids)
        queue, channels = self._queues[self.task(task)], runtime_channels(self.namespace)
        return await self._live_store(queue).cancel(queue, ids, channels) if ids else []

    # ---- the runtimes

    def fleet(self) -> Fleet:
        """Who runs jobs in this namespace, and orders to them."""
        return Fleet(self._live_store(), self.namespace)

    # ---- a queue

    async def pause(self, task: Task[Any, Any] | str) -> bool:
        """Let no runtime claim the task's jobs; what runs goes on. False where it was paused already."""
        queue = self._queues[self.task(task)]
        return await self._live_store(queue).pause(queue, paused=True)

    async def resume(self, task: Task[Any, Any] | str) -> bool:
        """Let the task's jobs be claimed again. False where it was not paused."""
        queue = self._queues[self.task(task)]
        return await self._live_store(queue).pause(queue, paused=False)

    async def sizes(self, task: Task[Any, Any] | str) -> Sizes:
        """How many jobs a task's queue holds in each state."""
        queue = self._queues[self.task(task)]
        return await self._live_store(queue).sizes(queue)

    async def totals(self, task: Task[Any, Any] | str) -> dict[str, int]:
        """How many of a task's jobs were ever submitted, done, dead and so on; counters that only grow."""
        queue = self._queues[self.task(task)]
        return await self._live_store(queue).totals(queue)

    async def overview(self, task: Task[Any, Any] | str) -> Overview:
        """What a task's queue holds, what it has done, and how many runtimes run its jobs; as one moment."""
        queue = self._queues[self.task(task)]
        return await self._live_store(queue).overview(queue)

    async def jobs_page(
        self,
        task: Task[Any, Any] | str,
        part: Part,
        *,
        since_ms: int = 0,
        until_ms: int = LARGEST_MS,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Ids of a task's jobs, oldest first.

        `part` is "open" (unfinished, by submission), "scheduled" (by due time), "ready" (in the order of the line, by
        the time of their places), "started" (running, by start), "done" or "dead" (by their end).
        """
        queue = self._queues[self.task(task)]
        key, store = queue.keys[part], self._live_store(queue)

        async def read(since: int, until: int, most: int, after: tuple[int, str] | None) -> list[tuple[str, int]]:
            entries: list[tuple[str, int]] = []
            for first, beyond in scores_of(part, since, until):
                if len(entries) < most:
                    entries += await store.page(key, first, beyond, most - len(entries), after)
            return entries

        found = await page(read, since_ms, until_ms, limit, cursor)
        if part != "ready":
            return found
        return Page([(job_id, place % PLACE_STEP) for job_id, place in found.entries], found.cursor)

    async def jobs_count(
        self, task: Task[Any, Any] | str, part: Part, *, since_ms: int = 0, until_ms: int = LARGEST_MS
    ) -> int:
        """How many of a task's jobs `jobs_page` would list in all."""
        queue = self._queues[self.task(task)]
        key, store = queue.keys[part], self._live_store(queue)
        return sum([await store.count(key, first, beyond) for first, beyond in scores_of(part, since_ms, until_ms)])

    # ---- a service's own data

    @property
    def redis(self) -> Redis:
        """The shared client; without driver retries, answers are bytes."""
        return self._live_store().redis

    def key(self, service: Service, name: str) -> str:
        """The Redis key that an effect named `name` writes."""
        return data_key(self.namespace, service.name, name)

    async def run_script(
        self, service: Service, path: Path, keys: Sequence[str] | None, args: Sequence[str | bytes | float]
    ) -> Any:
        """As calling what `Service.script` gives."""
        store = self._live_store(self.key(service, ""))
        script = scripts.load_file(path, plain=store.in_memory)
        words = [arg if isinstance(arg, (str, bytes)) else repr(arg) for arg in args]
        names = [name for name, _ in script.keys] if keys is None else keys
        sent = [self.key(service, name) for name in names]
        if store.has_parts:
            if not sent:
                raise ConfigError(f"script {path}: name its keys; in a cluster they say where it is to run")
            if keys is None:
                # It may build keys of its own: none of them may be missed while the slot is moved key by key.
                sent.append(no_data_key(self.namespace, service.name))
        return await store.run_script(script, sent, words)

    async def listen(
        self,
        service: Service,
        name: str,
        heard: Mapping[bytes, Callable[[bytes], None]],
        connected: Callable[[], Awaitable[None]],
    ) -> None:
        """Hear, until cancelled, what is published on a channel named as the service's keys are; for a lifespan's task.

        A message is a kind, a newline and the rest, which goes to `heard[kind]`. Messages are lost while the line is
        down, so nothing may rest on them alone: `connected` is awaited after every (re)connection, to ask anew. In a
        cluster it does not matter which node publishes. Raises ConfigError where a runtime has 15 channels already.
        """
        if self._listening >= MOST_CHANNELS - 1:
            raise ConfigError(f"a runtime listens to at most {MOST_CHANNELS - 1} channels; put some messages on one")
        inbox = Inbox(self._live_store(), self.key(service, name), heard, connected, lambda: True, at_once=True)
        self._listening += 1
        try:
            await inbox.run()
        finally:
            self._listening -= 1

    def timelines(self) -> Client:
        """Where timelines are read."""
        return self

    async def timeline_page(
        self, service: str, name: str, since_ms: int, until_ms: int, limit: int, after: tuple[int, str] | None
    ) -> list[tuple[str, int]]:
        """For Timeline.page."""
        key = data_key(self.namespace, service, name)
        return await self._live_store(key).page(key, since_ms, until_ms, limit, after)

    async def timeline_count(self, service: str, name: str, since_ms: int, until_ms: int) -> int:
        """For Timeline.count."""
        key = data_key(self.namespace, service, name)
        return await self._live_store(key).count(key, since_ms, until_ms)

    def now_ms(self) -> int:
        """The server's UTC milliseconds, as last heard and carried on by the monotonic clock."""
        return self._live_store().clock.expected_ms()

    # ---- what it holds

    def task(self, task: Task[Any, Any] | str) -> Task[Any, Any]:
        """The task of that name. Raises ConfigError where this runtime does not hold it."""
        if isinstance(task, Task) and task in self._queues:
            return task
        for known in self._queues:
            if known.full_name == task:
                return known
        raise ConfigError(f"this runtime holds no task {task}; it holds {sorted(t.full_name for t in self._queues)}")

    def holds(self, service: Service) -> bool:
        """Whether the service is one of this runtime's."""
        return self.services.get(service.name) is service

    def _live_store(self, of: Queue | str | None = None) -> Store:
        """The store, or the part of it that a queue or a key is in."""
        if self._store is None:
            raise ConfigError("the runtime is not running")
        return self._store if of is None else self._store.part(of)


def scores_of(part: Part, since_ms: int, until_ms: int) -> list[tuple[int, int]]:
    """The scores of a time range in a queue's set: in the line of ready jobs, a range for each priority."""
    steps = range(10) if part == "ready" else range(1)
    return [(step * PLACE_STEP + since_ms, step * PLACE_STEP + until_ms) for step in steps]


def check_count(what: str, jobs: Sequence[Any]) -> None:
    """Raise ConfigError where these are more jobs than one call takes."""
    if len(jobs) > MOST_JOBS:
        raise ConfigError(f"{what} takes up to {MOST_JOBS:,} jobs, not {len(jobs):,}")


def due_of(what: str, delay: float, at: datetime | None) -> str:
    """When a job is due, as the submit script takes it. Raises ConfigError."""
    if not isinstance(delay, (int, float)) or not isinstance(at, datetime | None):
        raise ConfigError(f"submit {what}: delay={delay!r} is a number of seconds, at={at!r} a datetime with a zone")
    if at is None:
        if not 0 <= delay <= LONGEST_WAIT:
            raise ConfigError(f"submit {what}: delay={delay!r} is 0 seconds to 366 days")
        return f"+{int(delay * 1000)}"
    if delay or at.utcoffset() is None:
        raise ConfigError(f"submit {what}: at={at!r} is a datetime with a zone, and stands alone, without delay=")
    at_ms = int(at.timestamp() * 1000)
    if not 0 < at_ms < LARGEST_MS:
        raise ConfigError(f"submit {what}: at={at!r} is not between 1970 and 2109")
    return str(at_ms)
