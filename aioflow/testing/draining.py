"""Waits until a runtime has nothing left to do."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from aioflow.engine.cluster_client import ClusterClient
from aioflow.engine.keys import Queue
from aioflow.runtime import Runtime

SHORTEST_PAUSE = 0.001
LONGEST_PAUSE = 0.05
"""Seconds between two looks while what is left is not in the hands of this runtime: on its way there, or another's."""
MOST_IDS = 5


class NotDrained(AssertionError):
    """There is still something to do; `left` says what."""

    def __init__(self, seconds: float, left: list[Left]) -> None:
        said = "; ".join(map(str, left)) or "redis has not said what is left"
        super().__init__(f"not drained within {seconds:g} s: {said}")
        self.left = left


@dataclass(frozen=True, slots=True)
class Left:
    """What a task has to do, at one moment; `ids` are the first of its jobs that run or are ready."""

    task: str
    running: int
    ready: int
    due: int
    outbox: int
    paused: bool
    ids: list[str]

    def __bool__(self) -> bool:
        return bool(self.running or self.ready or self.due or self.outbox)

    def __str__(self) -> str:
        counts = {"running": self.running, "ready": self.ready, "due": self.due, "in the outbox": self.outbox}
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        ids = f" ({', '.join(self.ids)})" if self.ids else ""
        return f"{self.task}{' (paused)' if self.paused else ''}: {said}{ids}"


async def drain(runtime: Runtime, *, timeout: float = 10.0) -> None:
    """Wait until no job of the runtime's tasks runs, is ready or due, and what they emitted has arrived.

    Jobs that are due later are left alone, retries among them: move the clock, and drain again. What is emitted to a
    task that the runtime does not hold is delivered, and no more. To be called on the runtime's own loop: a synchronous
    test calls `runtime.call_sync(drain(runtime))`. Raises NotDrained after `timeout` seconds, ConfigError where the
    runtime is not running, and what `runtime.redis` raises where Redis is away.
    """
    left: list[Left] = []
    counted, counted_before = None, None
    pause = SHORTEST_PAUSE
    try:
        async with asyncio.timeout(timeout):
            while True:
                looks, counted = await _look(runtime)
                left = [found for found in looks if found]
                if not left and counted in (None, counted_before):
                    return
                counted_before = counted
                if await runtime.rest():
                    pause = SHORTEST_PAUSE
                else:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
    except TimeoutError:
        raise NotDrained(timeout, left) from None


async def _look(runtime: Runtime) -> tuple[list[Left], list[Any] | None]:
    """What each task has to do, as one moment; in a cluster service by service, and what each has ever counted.

    There a job may move between two looks. Nothing was left in the moment between two that found nothing and in which
    every counter was the same.
    """
    of_services = [
        [Queue(runtime.namespace, service.name, task) for task in service.tasks]
        for service in runtime.services.values()
    ]
    if isinstance(runtime.redis, ClusterClient):
        looks = [await _look_at(runtime, queues) for queues in of_services]
        return [left for lefts, _ in looks for left in lefts], [totals for _, totals in looks]
    lefts, _ = await _look_at(runtime, [queue for queues in of_services for queue in queues])
    return lefts, None


async def _look_at(runtime: Runtime, queues: list[Queue]) -> tuple[list[Left], list[Any]]:
    async with runtime.redis.pipeline(transaction=True) as pipeline:  # a job must not move between two looks
        for queue in queues:
            pipeline.zrange(queue.keys["running"], 0, MOST_IDS - 1)
            pipeline.zrange(queue.keys["ready"], 0, MOST_IDS - 1)
            pipeline.zcard(queue.keys["running"])
            pipeline.zcard(queue.keys["ready"])
            pipeline.zcount(queue.keys["scheduled"], "-inf", runtime.now_ms())
            pipeline.xlen(queue.keys["outbox"])
            pipeline.hget(queue.keys["config"], "paused")
            pipeline.hgetall(queue.keys["totals"])
        answers: list[Any] = await pipeline.execute() if queues else []
    lefts = [_left(queue, answers[8 * index : 8 * index + 7]) for index, queue in enumerate(queues)]
    return lefts, answers[7::8]


def _left(queue: Queue, answers: list[Any]) -> Left:
    running_ids, ready_ids, running, ready, due, outbox, paused = answers
    ids = [job_id.decode() for job_id in [*running_ids, *ready_ids][:MOST_IDS]]
    return Left(queue.name, running, ready, due, outbox, paused == b"1", ids)
