"""Wires the parts and owns the loop's life: start, submit, drain, stop.

Stopping has two scopes. First nothing new is claimed, and running handlers go on until the grace period ends; then
they are cancelled, what has finished is settled, and the rest goes back to its places. Only then are leases no longer
renewed and connections closed. Handlers in threads cannot be cancelled: they keep their lease until the process ends,
because a released job would start elsewhere while they still run.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Literal, Self

from redis.asyncio import Redis

from aioflow import service as declarations
from aioflow.embedded import EmbeddedServer
from aioflow.engine import codec
from aioflow.engine.claimer import Claimer
from aioflow.engine.coalescer import Coalescer
from aioflow.engine.keys import Queue, check_namespace, data_key
from aioflow.engine.lease import LeaseKeeper
from aioflow.engine.maintenance import Maintenance
from aioflow.engine.pool import Pool
from aioflow.engine.records import NewJob, Sizes
from aioflow.engine.results import Results
from aioflow.engine.store import Store
from aioflow.errors import (
    AioflowError,
    ConfigError,
    IdConflict,
    JobFailed,
    NotFound,
    QueueFull,
    StoreUnavailable,
)
from aioflow.job import Handle, JobInfo, State, check_id, new_id
from aioflow.service import DEFAULT_PRIORITY, LONGEST_WAIT, Service, Task
from aioflow.settings import Settings, load_settings
from aioflow.timeline import LARGEST_MS, Page, page

log = logging.getLogger(__name__)

CANCEL_SECONDS = 1.0
"""What cancelled handlers get to end, and then what the last settles and releases get."""
SUBMITS_IN_FLIGHT = 100
"""Per flush, of two: 75,000 submits/s of 200 submitters, against 38,000 by one flush of them all (2 cores)."""


class Runtime:
    """Runs services in this process: `async with Runtime([payments], redis="redis://..."):`.

    `redis` is a redis://, rediss:// or unix:// URL, "embedded:" (a real server that aioflow starts, data in `data`) or
    "memory:". `workers=False` only submits; a number replaces every task's concurrency. `durability` is what a receipt
    means: "fsync" or "memory"; unset, fsync where the server gives it. `grace` is how many seconds running handlers
    get at the stop. What is not given comes from the `AIOFLOW_*` environment variables. Installs no signal handlers.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        redis: str | None = None,
        workers: bool | int = True,
        durability: Literal["memory", "fsync"] | None = None,
        namespace: str | None = None,
        data: str | None = None,
        grace: float | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or load_settings(
            redis=redis, durability=durability, namespace=namespace, data=data, grace=grace
        )
        self.namespace = check_namespace(self.settings.namespace)
        self.services = {service.name: service for service in services}
        if len(self.services) != len(services):
            raise ConfigError(f"two services share a name: {sorted(service.name for service in services)}")
        if workers is not False and workers < 1:
            raise ConfigError(f"workers={workers!r}: at least 1, True for each task's own, or False for none")
        self.id = secrets.token_hex(6)
        self.resources: dict[str, Any] = {}
        """What each service's lifespan yielded, by the service's name."""
        self.memory_share = 0.0
        """used_memory of Redis as a share of its maxmemory, a second old at most."""
        self.failed = asyncio.Event()
        """Set when one of the runtime's loops has failed; the runtime should be stopped then."""
        self._workers = workers
        self._queues = {
            task: Queue(self.namespace, service.name, task.name)
            for service in services
            for task in service.tasks.values()
        }
        self._embedded: EmbeddedServer | None = None
        self._store: Store | None = None
        self._submits: Coalescer[NewJob, int] | None = None
        self._results: Results | None = None
        self._pools: list[Pool] = []
        self._claimers: dict[Queue, Claimer] = {}
        self._claiming: list[asyncio.Task[None]] = []
        self._loops: list[asyncio.Task[None]] = []
        self._lifespans = AsyncExitStack()
        self._started = self._stopping = False

    def __repr__(self) -> str:
        return f"<Runtime {self.id} services={sorted(self.services)} pools={self._pools}>"

    # ---- life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect, enter the lifespans, start the workers, all or nothing. Raises ConfigError, StoreUnavailable.

        A second call is legal and does nothing; a runtime that was stopped cannot be started again.
        """
        if self._stopping:
            raise ConfigError("a runtime is started once; make another")
        if self._started:
            return
        self._started = True
        for task in self._queues:
            _ = task.signature  # annotations are checked before anything is started
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        url = self.settings.redis
        if url == "embedded:":
            self._embedded = EmbeddedServer(self.settings.data)
            await self._embedded.start()
            url = self._embedded.url
            self._spawn(self._embedded.supervise(), "embedded server")
        store = Store(url, name=f"aioflow:{self.id}", queues=len(self._queues) or 1)
        self._store = store
        await store.ping()
        await self._settle_durability(store)
        for task, queue in self._queues.items():
            await store.configure(queue, task.options.bound)
        self._submits = Coalescer("submit", self._flush_submits, flights=2, most_items=SUBMITS_IN_FLIGHT)
        self._spawn(self._submits.run(), "submits")
        self._results = Results(store, self.namespace, self.id)
        self._spawn(self._results.run(), "results")
        self._spawn(self._watch_memory(store), "memory watch")
        declarations.live_runtimes.append(self)
        for service in self.services.values():
            if service.lifespan is not None:
                self.resources[service.name] = await self._lifespans.enter_async_context(service.lifespan(self))
        if self._workers is not False:
            self._start_workers(store)

    def _start_workers(self, store: Store) -> None:
        alone = asyncio.Lock()
        for task, queue in self._queues.items():
            concurrency = task.options.concurrency if self._workers is True else int(self._workers)
            resources = self.resources.get(task.service.name)
            pool = Pool(task, queue, store, resources, concurrency, alone)
            claimer = Claimer(pool, store, self.id)
            self._pools.append(pool)
            self._claimers[queue] = claimer
            self._spawn(pool.settles.run(), f"settles {queue.name}")
            self._claiming.append(self._spawn(claimer.run(), f"claimer {queue.name}"))
            self._spawn(Maintenance(queue, task.options, store).run(), f"maintenance {queue.name}")
        self._spawn(LeaseKeeper(self._pools, store).run(), "lease keeper")

    async def stop(self) -> None:
        """Drain and leave, within the grace period and about 2 seconds. A second call is legal and does nothing."""
        if self._stopping:
            return
        self._stopping = True
        ends = time.monotonic() + self.settings.grace
        try:
            await self._end_claiming(ends)
            await self._end_handlers(ends)
            await self._within(self._write_last(), "the last settles")
        finally:
            # Only now: a handler that runs out its grace may submit.
            if self in declarations.live_runtimes:
                declarations.live_runtimes.remove(self)
            try:
                await self._lifespans.aclose()
            finally:
                await self._disconnect()

    def stop_waiting(self) -> None:
        """End every wait for a result with ResultTimeout; whoever waits over HTTP is answered before the stop."""
        if self._results is not None:
            self._results.give_up()

    async def _end_claiming(self, ends: float) -> None:
        """Claims in flight are completed; no handler may start once the others have been ended."""
        for claimer in self._claimers.values():
            claimer.stop()
        if not self._claiming:
            return
        _, late = await asyncio.wait(self._claiming, timeout=max(CANCEL_SECONDS, ends - time.monotonic()))
        for claiming in late:
            claiming.cancel()
        if late:
            await asyncio.wait(late, timeout=CANCEL_SECONDS)

    async def _end_handlers(self, ends: float) -> None:
        handlers = [attempt.task for pool in self._pools for attempt in pool.running if attempt.task is not None]
        if not handlers:
            return
        _, late = await asyncio.wait(handlers, timeout=max(0.0, ends - time.monotonic()))
        if late:
            log.warning("%d handlers did not end within the grace period of %g s", len(late), self.settings.grace)
            for pool in self._pools:
                pool.cancel_running()
            await asyncio.wait(late, timeout=CANCEL_SECONDS)

    async def _write_last(self) -> None:
        for pool in self._pools:
            await pool.settles.drain()
            await pool.release_rest()
        if self._submits is not None:
            await self._submits.drain()

    async def _within(self, last: Awaitable[None], what: str) -> None:
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                await last
        except (TimeoutError, AioflowError) as error:
            log.warning("stopped before %s were written (%r); the leases bring these jobs back", what, error)

    async def _disconnect(self) -> None:
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            _, stuck = await asyncio.wait(self._loops, timeout=CANCEL_SECONDS)
            if stuck:
                log.error("loops that do not end: %s", sorted(loop.get_name() for loop in stuck))
        if self._store is not None:
            await self._store.close()
            self._store = None
        if self._embedded is not None:
            await self._embedded.stop()

    def _spawn(self, loop: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(loop, name=f"aioflow {name}")
        task.add_done_callback(self._loop_ended)
        self._loops.append(task)
        return task

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.critical("%s failed: %r; the runtime must stop", task.get_name(), error, exc_info=error)
            self.failed.set()

    async def _settle_durability(self, store: Store) -> None:
        asked = self.settings.durability
        given = await store.fsyncs()
        if asked == "fsync" and not given:
            why = "it may not be asked (CONFIG GET is refused)" if given is None else "it does not say so"
            raise ConfigError(
                f'durability "fsync" needs a server with appendonly yes and appendfsync always, and {why}; '
                "set both in its configuration (CONFIG SET appendonly yes, CONFIG SET appendfsync always)"
            )
        self.durability: Literal["memory", "fsync"] = asked or ("fsync" if given else "memory")

    async def _watch_memory(self, store: Store) -> None:
        while True:
            try:
                self.memory_share = await store.memory_share()
            except AioflowError:
                self.memory_share = 0.0  # a server that is away says so by itself
            await asyncio.sleep(1.0)

    # ---- submitting

    async def submit(
        self,
        task: Task[Any, Any] | str,
        payload: Any = None,
        *,
        delay: float = 0.0,
        id: str | None = None,
        priority: int = DEFAULT_PRIORITY,
    ) -> Handle[Any]:
        """As `Task.submit`, for a task or its name "service.task"."""
        found = self.task(task)
        envelope = codec.encode_payload(found.signature.payload, payload, found.full_name)
        return await self._submit(found, envelope, delay, id, priority)

    async def submit_json(self, task: Task[Any, Any], body: bytes, *, job_id: str | None = None) -> Handle[Any]:
        """Submit a payload given as JSON. Raises pydantic.ValidationError where it does not fit, and as `submit`."""
        adapter = task.signature.payload
        payload = codec.NOTHING if adapter is None else adapter.dump_json(adapter.validate_json(body))
        return await self._submit(task, codec.seal(payload, task.full_name), 0.0, job_id, DEFAULT_PRIORITY)

    async def _submit(
        self, task: Task[Any, Any], envelope: bytes, delay: float, job_id: str | None, priority: int
    ) -> Handle[Any]:
        if not 0 <= priority <= 9 or not 0 <= delay <= LONGEST_WAIT:
            raise ConfigError(
                f"submit {task.full_name}: priority={priority!r} is 0 to 9, delay={delay!r} up to 366 days"
            )
        found_id = new_id() if job_id is None else check_id(job_id)
        due = f"+{int(delay * 1000)}" if delay else "0"
        if self._submits is None or self._store is None:
            raise ConfigError(f"submit {task.full_name}: the runtime is not started")
        job = NewJob(self._queues[task], found_id, envelope, priority, due)
        try:
            answer = await self._submits.put(job, len(envelope))
        except StoreUnavailable as error:
            raise StoreUnavailable(f"submit {task.full_name} {found_id}: {error}", job_id=found_id) from error
        if answer == -1:
            raise IdConflict(task.full_name, found_id)
        if answer == -2:
            raise QueueFull(task.full_name, bound=task.options.bound or 0, job_id=found_id)
        return Handle(found_id, task.full_name, answer == 1, self)

    async def _flush_submits(self, jobs: list[NewJob]) -> list[int]:
        claimers = {self._claimers[job.queue] for job in jobs if job.queue in self._claimers}
        rides = [ride for claimer in claimers if (ride := claimer.ride()) is not None]
        try:
            return await self._live_store().submit(jobs, self.durability, rides)
        finally:
            for ride in rides:
                ride.end(None)

    # ---- looking

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

    def runs_here(self) -> bool:
        """Whether the calling asyncio task is a handler of this runtime."""
        current = asyncio.current_task()
        return any(attempt.task is current for pool in self._pools for attempt in pool.running)

    def timelines(self) -> Runtime:
        """Where timelines are read."""
        return self

    @property
    def redis(self) -> Redis:
        """The shared client; without driver retries, answers are bytes."""
        return self._live_store().redis

    def key(self, service: Service, name: str) -> str:
        """The Redis key that an effect named `name` writes."""
        return data_key(self.namespace, service.name, name)

    async def inspect(self, task_name: Task[Any, Any] | str, job_id: str) -> JobInfo:
        """What is known of a job now. Raises NotFound, StoreUnavailable."""
        task = self.task(task_name)
        (info,) = await self._live_store().inspect(self._queues[task], [job_id])
        if info is None:
            raise NotFound(task.full_name, job_id)
        return info

    async def inspect_many(self, task: Task[Any, Any], ids: Sequence[str]) -> list[JobInfo | None]:
        """What is known of up to 1,000 jobs as one moment; None for those of which nothing is kept."""
        return await self._live_store().inspect(self._queues[task], ids) if ids else []

    async def wait_result(self, task_name: str, job_id: str, timeout: float | None) -> Any:
        """As `Handle.result`."""
        task = self.task(task_name)
        if self._results is None:
            raise ConfigError("the runtime is not started")
        state, result = await self._results.wait(self._queues[task], job_id, timeout)
        if state is State.DEAD:
            error, message = codec.decode_failure(result)
            raise JobFailed(job_id, error=error, message=message)
        return codec.decode_result(task.signature.result, result)

    async def requeue(self, task: Task[Any, Any], job_id: str) -> bool:
        """Give a dead job a new life; False where it is not dead. Raises NotFound, StoreUnavailable."""
        info = await self.inspect(task, job_id)
        if info.state is not State.DEAD:
            return False
        (requeued,) = await self._live_store().requeue(self._queues[task], [(job_id, info.token)])
        return requeued

    async def sizes(self, task: Task[Any, Any]) -> Sizes:
        """How many jobs a task's queue holds in each state."""
        return await self._live_store().sizes(self._queues[task])

    async def jobs_page(
        self,
        task: Task[Any, Any],
        part: Literal["open", "started", "done", "dead"],
        *,
        since_ms: int = 0,
        until_ms: int = LARGEST_MS,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Ids of a task's jobs, oldest first: unfinished by submission, running by start, finished by their end."""
        key = self._queues[task].keys[part]
        store = self._live_store()
        return await page(
            lambda since, until, most, after: store.page(key, since, until, most, after),
            since_ms,
            until_ms,
            limit,
            cursor,
        )

    async def jobs_count(
        self,
        task: Task[Any, Any],
        part: Literal["open", "started", "done", "dead"],
        *,
        since_ms: int = 0,
        until_ms: int = LARGEST_MS,
    ) -> int:
        """How many of a task's jobs `jobs_page` would list in all."""
        return await self._live_store().count(self._queues[task].keys[part], since_ms, until_ms)

    async def timeline_page(
        self, service: str, name: str, since_ms: int, until_ms: int, limit: int, after: tuple[int, str] | None
    ) -> list[tuple[str, int]]:
        """For Timeline.page."""
        return await self._live_store().page(data_key(self.namespace, service, name), since_ms, until_ms, limit, after)

    async def timeline_count(self, service: str, name: str, since_ms: int, until_ms: int) -> int:
        """For Timeline.count."""
        return await self._live_store().count(data_key(self.namespace, service, name), since_ms, until_ms)

    async def ready(self) -> str | None:
        """None where Redis answers and every claimer made progress lately; else what is wrong."""
        if self.failed.is_set() or self._store is None:
            return "the runtime is not running"
        try:
            async with asyncio.timeout(1.0):
                await self._store.ping()
        except (TimeoutError, AioflowError) as error:
            return f"redis does not answer: {error}"
        stuck = [repr(claimer) for claimer in self._claimers.values() if not claimer.healthy]
        return f"no progress lately: {', '.join(stuck)}" if stuck else None

    def _live_store(self) -> Store:
        if self._store is None:
            raise ConfigError("the runtime is not started")
        return self._store
