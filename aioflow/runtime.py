"""Wires the parts and owns the loop's life: start, drain, stop.

Stopping has two scopes. First nothing new is claimed, and running handlers go on until the grace period ends; then
they are cancelled, what has finished is settled, and the rest goes back to its places. Only then are leases no longer
renewed and connections closed. Handlers in threads cannot be cancelled: they keep their lease until they end, because
a released job would start elsewhere while they still run.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Self

from aioflow import service as declarations
from aioflow.background import Background
from aioflow.client import Client
from aioflow.embedded import STOP_SECONDS, EmbeddedServer
from aioflow.engine.breaker import Circuit
from aioflow.engine.claimer import Claimer
from aioflow.engine.clock import Clock
from aioflow.engine.codec import encode_emit
from aioflow.engine.control import Control
from aioflow.engine.crew import Crew
from aioflow.engine.executor import Executor
from aioflow.engine.fleet import Fleet
from aioflow.engine.gauge import MemoryGauge
from aioflow.engine.inbox import Inbox
from aioflow.engine.keys import Queue, runtime_channels
from aioflow.engine.lease import LeaseKeeper
from aioflow.engine.maintenance import Maintenance
from aioflow.engine.pool import Pool
from aioflow.engine.relay import Relay
from aioflow.engine.results import Results
from aioflow.engine.roster import Roster
from aioflow.engine.store import Store
from aioflow.engine.submitter import Submitter
from aioflow.errors import AioflowError, ConfigError
from aioflow.lifespans import Lifespans
from aioflow.service import Middleware, Service, Task
from aioflow.settings import Settings, check_durability, load_settings

log = logging.getLogger(__name__)

CANCEL_SECONDS = 1.0
"""What cancelled handlers get to end, and then what the last settles and releases get."""
GOODBYE_SECONDS = 0.3


class Runtime(Client):
    """Runs services in this process: `async with Runtime([payments], redis="redis://..."):`.

    `redis` is a redis://, rediss:// or unix:// URL, "embedded:" (a real server that aioflow starts, data in `data`) or
    "memory:". `workers=False` only submits; a number replaces every task's concurrency. `durability` is what a receipt
    means: "memory", "fsync" or "replicated:N"; unset, fsync where the server gives it, else memory. `grace` is how many
    seconds running handlers get at the stop. `middleware` goes around every handler, outside that of its service. What
    is not given comes from the `AIOFLOW_*` environment variables. Installs no signal handlers. `clock` is for tests
    only: one of aioflow.testing stands for the server's time.

    A synchronous program writes `with Runtime(...)`: the runtime lives in a thread of its own then.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        redis: str | None = None,
        workers: bool | int | None = None,
        durability: str | None = None,
        namespace: str | None = None,
        data: str | None = None,
        grace: float | None = None,
        middleware: Sequence[Middleware] = (),
        settings: Settings | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(
            services,
            settings
            or load_settings(
                redis=redis,
                durability=None if durability is None else check_durability(durability),
                namespace=namespace,
                data=data,
                grace=grace,
            ),
        )
        if workers is None:
            workers = self.settings.workers or True
        if workers is not False and workers < 1:
            raise ConfigError(f"workers={workers!r}: at least 1, True for each task's own, or False for none")
        self.id = secrets.token_hex(6)
        self.name = f"{socket.gethostname()}:{os.getpid()}:{self.id}"
        """What failures say of the worker."""
        self.failed = asyncio.Event()
        """Set when one of the runtime's loops has failed; it stops by itself then, and leaving it raises the error."""
        self.closing = asyncio.Event()
        """Set when nothing new is taken any more: whoever keeps a request waiting answers it now."""
        self._workers = workers
        self._middleware = tuple(middleware)
        self._clock = clock
        self._embedded: EmbeddedServer | None = None
        self._gauge: MemoryGauge | None = None
        self._keeper: LeaseKeeper | None = None
        self._pools: list[Pool] = []
        self._claimers: dict[Queue, Claimer] = {}
        self._maintenance: list[Maintenance] = []
        self._relays: list[Relay] = []
        self._claiming: list[asyncio.Task[None]] = []
        self._loops: list[asyncio.Task[None]] = []
        self.ends_with_process = False
        """Set by whoever calls `end_process` where the stop leaves handlers that take no notice of it."""
        self.leaves_handlers = False
        self._context = contextvars.copy_context()
        self._context.run(declarations.running_in.set, self)
        self._lifespans = Lifespans()
        self._failure: BaseException | None = None
        self._roster: Roster | None = None
        self._enlisted: asyncio.Task[None] | None = None
        self._control = Control(self._pools, self._begin_stop)
        self._started = False
        self._starter: asyncio.Task[None] | None = None
        self._stopper: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._disconnected = False
        self._background: Background | None = None

    def __repr__(self) -> str:
        return f"<Runtime {self.id} services={sorted(self.services)} pools={self._pools}>"

    @property
    def works(self) -> bool:
        """Whether it runs handlers; False where it only submits."""
        return self._workers is not False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        if self._failure is not None and error is None:
            raise self._failure

    def __enter__(self) -> Self:
        self._background = Background(self)
        self._background.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._background is not None:
            self._background.stop()
        if self._failure is not None and error is None:
            raise self._failure

    # ---- start

    async def start(self) -> None:
        """Connect, check what was asked for, and start the workers. Raises ConfigError and StoreUnavailable.

        A second call does nothing; a runtime that was stopped cannot be started again.
        """
        if self._stopper is not None:
            raise ConfigError("a runtime is started once; make a new one")
        if self._started:
            return
        self._started = True
        for task in self._queues:
            _ = task.signature  # annotations are checked before anything is started
        self._loop, self._thread_id = asyncio.get_running_loop(), threading.get_ident()
        self._starter = asyncio.create_task(self._start(), name="aioflow start")
        try:
            await self._starter
        except BaseException:
            stopped_meanwhile = self._stopper is not None and not (asyncio.current_task() or self._starter).cancelling()
            await self.stop()
            if stopped_meanwhile:
                raise self._failure or ConfigError("the runtime was stopped while it started") from None
            raise

    async def _start(self) -> None:
        url = self.settings.redis
        if url == "embedded:":
            self._embedded = EmbeddedServer(self.settings.data)
            await self._embedded.start()
            url = self._embedded.url
            self._spawn(self._embedded.supervise(), "embedded server")
        store = Store(url, name=f"aioflow:{self.id}", queues=len(self._queues) or 1, clock=self._clock)
        self._store = store
        await store.begin(list(self._queues.values()))
        self._gauge = MemoryGauge(store, self.settings.memory_watermark, self.settings.memory_budget or 0)
        if not self.settings.allow_eviction:
            await self._gauge.check_eviction()
        submitter = Submitter(store, self._claimers, self._spawn)
        self.durability = await submitter.choose(self.settings.durability)
        for task, queue in self._queues.items():
            await store.part(queue).configure(queue, task.options.bound)
        self._submitter = submitter
        self._results = results = Results(store)
        self._inbox = inbox = Inbox(
            store,
            runtime_channels(self.namespace) + self.id,
            {
                b"result": results.tell,
                b"cancel": self._control.cancel_running,
                b"order": lambda _: self._call_roll(),
            },
            lambda: self._connected(results, inbox),
            results.waiting,
        )
        self._spawn(inbox.run(), "channel")
        self._spawn(results.run(inbox.channel), "waits")
        declarations.live_runtimes.append(self)
        await self._lifespans.enter(self.services.values(), self, self._loop_ended, self._context.copy())
        if self._workers is not False:
            self._start_workers(store, url)
        if self._pools or self.ends_with_process:
            self._enlist(store, inbox)
        if self._clock is not None:
            self._clock.follow(self._clock_moved)

    async def _connected(self, results: Results, inbox: Inbox) -> None:
        """What came by the channel while the line was down is lost."""
        self._call_roll()
        await results.register_all(inbox.channel)

    def _start_workers(self, store: Store, url: str) -> None:
        alone = asyncio.Lock()
        encode = encode_emit({task.full_name: task for task in self._queues}.get)
        for task, queue in self._queues.items():
            resources = self._lifespans.resources.get(task.service.name)
            circuit = Circuit(task.options.breaker, task.full_name) if task.options.breaker else None
            middleware = (*([circuit] if circuit else ()), *self._middleware, *task.service.middleware)
            part = store.part(queue)
            relay = Relay(queue, part, [known.full_name for known in self._queues])
            self._relays.append(relay)
            concurrency = task.options.concurrency if self._workers is True else int(self._workers)
            executor = Executor(task, resources, self.name, encode, middleware, concurrency)
            executor.open()
            pool = Pool(task, queue, part, executor, concurrency, alone, relay.emitted, circuit, _crew_of(task))
            maintenance = Maintenance(queue, task.options, part, relay, self.id)
            claimer = Claimer(pool, part, self.id, maintenance.runners)
            self._pools.append(pool)
            self._claimers[queue] = claimer
            self._maintenance.append(maintenance)
            self._spawn(pool.settles.run(), f"settles {queue.name}")
            self._spawn(pool.notes.run(), f"progress {queue.name}")
            self._spawn(relay.run(), f"relay {queue.name}")
            self._spawn(maintenance.run(), f"maintenance {queue.name}")
            self._claiming.append(self._spawn(claimer.run(), f"claimer {queue.name}"))
        name = f"aioflow:{self.id}"
        pools, clock = self._pools, self._clock
        self._keeper = LeaseKeeper(
            pools,
            lambda: store if store.in_memory else Store(url, name=name, queues=len(pools), clock=clock, quiet=True),
            in_thread=not store.in_memory,
        )
        self._keeping = self._spawn(self._keeper.run(), "lease keeper")

    # ---- the list of runtimes, and orders

    def _enlist(self, store: Store, inbox: Inbox) -> None:
        about = partial(self._control.about, self.now_ms())
        self._roster = Roster(Fleet(store, self.namespace), self.id, about, self._control.obey)
        self._enlisted = self._spawn(self._roster.run(), "list of runtimes")
        inbox.wanted.set()

    def when_ordered_to_stop(self, act: Callable[[], object]) -> None:
        """What to do then, instead of stopping; `serve` ends its process."""
        self._control.stop = act

    def quiet(self) -> None:
        """Start no more jobs; what runs goes on, and submits and the ingress as well."""
        self._control.quiet()

    def _call_roll(self) -> None:
        if self._roster is not None:
            self._roster.wanted.set()

    def _begin_stop(self) -> asyncio.Task[None]:
        if self._stopper is None:
            self._stopper = asyncio.create_task(self._stop(), name="aioflow stop")
            self._control.stopping()
            self._call_roll()
        return self._stopper

    # ---- stop

    async def stop(self) -> None:
        """Drain and leave, within the grace period and about 2 seconds; every call returns once that is done.

        Whoever is cancelled while waiting for it does not keep it from going on.
        """
        await asyncio.shield(self._begin_stop())

    async def _stop(self) -> None:
        self.closing.set()
        ends = time.monotonic() + self.settings.grace
        if self._starter is not None and not self._starter.done():
            self._starter.cancel()
            await asyncio.wait([self._starter])
        try:
            answers = await self._end_claiming(ends)
            await self._end_handlers(ends)
            await self._within(CANCEL_SECONDS, self._write_last(), "the last settles")
            if answers:
                await self._within(GOODBYE_SECONDS, self._say_goodbye(), "the turns and the outbox")
        finally:
            # Only now: a handler that runs out its grace may submit.
            if self in declarations.live_runtimes:
                declarations.live_runtimes.remove(self)
            try:
                await self._lifespans.leave(max(CANCEL_SECONDS, ends - time.monotonic()))
            finally:
                await self._disconnect()

    def stop_waiting(self) -> None:
        """End every wait for a result with ResultTimeout; whoever waits over HTTP is answered before the stop."""
        self.closing.set()
        if self._results is not None:
            self._results.give_up()

    def is_stopping(self) -> bool:
        """Whether the stop has begun."""
        return self._stopper is not None

    async def _end_claiming(self, ends: float) -> bool:
        """Claims in flight are completed; no handler may start once the others have been ended.

        False where the server did not answer the last calls.
        """
        for claimer in self._claimers.values():
            claimer.stop()
        if not self._claiming:
            return True
        _, late = await asyncio.wait(self._claiming, timeout=max(CANCEL_SECONDS, ends - time.monotonic()))
        for claiming in late:
            claiming.cancel()
        if late:
            await asyncio.wait(late, timeout=CANCEL_SECONDS)
        return not late

    async def _end_handlers(self, ends: float) -> None:
        for pool in self._pools:
            pool.be_quiet()
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
        # Side by side: in a cluster the node of one may be away.
        await asyncio.gather(*(self._write_last_of(pool) for pool in self._pools))
        if self._submitter is not None:
            await self._submitter.drain()

    async def _write_last_of(self, pool: Pool) -> None:
        await pool.settles.drain()
        await pool.release_rest()

    async def _say_goodbye(self) -> None:
        """What others would do soon, if it were left undone."""
        if self._roster is not None and self._enlisted is not None:
            self._roster.leave()
            await asyncio.wait([self._enlisted])
        for maintenance in self._maintenance:
            await maintenance.leave()
        for relay in self._relays:
            await relay.empty()

    async def _within(self, seconds: float, last: Awaitable[None], what: str) -> None:
        try:
            async with asyncio.timeout(seconds):
                await last
        except (TimeoutError, AioflowError) as error:
            log.warning("stopped before %s were written (%r); others go on where this one left off", what, error)

    async def _disconnect(self) -> None:
        self._submitter, self._disconnected = None, True
        for pool in self._pools:
            for attempt in pool.running:
                attempt.left = True
        if self._clock is not None:
            self._clock.unfollow(self._clock_moved)
        if self._keeper is not None:
            await self._keeper.finish(CANCEL_SECONDS)
        if self._results is not None:
            self._results.close()
        if self._inbox is not None:
            self._inbox.subscribed.set()  # whoever waits for the channel waits for nothing any more
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            _, stuck = await asyncio.wait(self._loops, timeout=CANCEL_SECONDS)
            if stuck:
                log.error("loops that do not end: %s", sorted(loop.get_name() for loop in stuck))
        for pool in self._pools:
            pool.close()
        if self._store is not None:
            await self._store.close()
            self._store = None
        self._results = self._inbox = self._gauge = None
        self.leaves_handlers = self.running_on() > 0
        if self._embedded is not None and not (self.ends_with_process and self.leaves_handlers):
            await self._embedded.stop()

    def end_process(self, code: int) -> NoReturn:
        """After the stop: give back the jobs of handlers that run on, and end the process with this exit code."""
        if self._keeper is not None:
            self._keeper.abandon()
        if self._embedded is not None:
            # In a thread and a loop of its own: this one runs nothing any more.
            stopping = threading.Thread(target=asyncio.run, args=(self._embedded.stop(),), daemon=True)
            stopping.start()
            stopping.join(STOP_SECONDS + CANCEL_SECONDS)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # its reader has gone
                stream.flush()
        os._exit(code)

    def scale(self, by: int) -> None:
        """Run so many more of each task's jobs at a time, or fewer, at least 1; what runs is not disturbed."""
        for pool in self._pools:
            pool.scale(max(1, pool.concurrency + by))

    # ---- for tests

    async def rest(self) -> bool:
        """Wait until the handlers that run here now have ended and are settled; False where none does."""
        tasks = [attempt.task for pool in self._pools for attempt in pool.held if attempt.task is not None]
        if tasks:
            await asyncio.wait(tasks)
            for pool in self._pools:
                await pool.settles.drain()
        return bool(tasks)

    def _clock_moved(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        for pool in self._pools:
            for attempt in pool.held:
                attempt.renew_at = 0.0
        for maintenance in self._maintenance:
            maintenance.look()

    def running_on(self) -> int:
        """How many handlers still run; after the stop, those that took no notice of it."""
        return sum(len(pool.running) for pool in self._pools)

    def handler_tasks(self) -> set[asyncio.Task[None]]:
        """The tasks of the handlers that run."""
        return {attempt.task for pool in self._pools for attempt in pool.running if attempt.task is not None}

    # ---- its loops

    def _spawn(self, loop: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        if self._disconnected:
            loop.close()
            raise ConfigError("the runtime is not running")
        task = asyncio.create_task(loop, name=f"aioflow {name}", context=self._context.copy())
        task.add_done_callback(self._loop_ended)
        self._loops.append(task)
        return task

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if task is self._keeping:
            # Nobody would end a handler whose lease is over.
            for pool in self._pools:
                pool.cancel_running()
        if self._stopper is not None:
            log.error("%s failed during the stop: %r", task.get_name(), error, exc_info=error)
            return
        log.critical("%s failed: %r; the runtime stops", task.get_name(), error, exc_info=error)
        self._failure = error
        self._begin_stop()
        self.failed.set()

    async def ready(self) -> str | None:
        """None where Redis answers and every claimer made progress lately; else what is wrong."""
        if self.failed.is_set() or self._store is None:
            return "the runtime is not running"
        try:
            async with asyncio.timeout(1.0):
                await self._store.ping()
        except (TimeoutError, AioflowError) as error:
            return f"redis does not answer: {str(error) or 'nothing came within 1 s'}"
        stuck = [repr(claimer) for claimer in self._claimers.values() if not claimer.healthy]
        return f"no progress lately: {', '.join(stuck)}" if stuck else None

    async def admit(self) -> None:
        """Ask whether something new may be taken in; routes that submit do so by themselves.

        Raises StoreUnavailable where Redis was fuller than the watermark a second ago at most.
        """
        if self._gauge is not None:
            await self._gauge.admit()

    @property
    def resources(self) -> dict[str, Any]:
        """What each service's lifespan yielded, by the service's name."""
        return self._lifespans.resources


def _crew_of(task: Task[Any, Any]) -> Crew | None:
    """Who comes and goes, where the task says so and these are no processes, which are looked after elsewhere."""
    if task.options.workers is None or task.options.cpu:
        return None
    return Crew(task.full_name, task.options.workers[0], task.options.idle_timeout)
