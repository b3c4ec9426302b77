"""What a type checker sees of tasks, submits and handles; checked by mypy --strict and pyright, never run.

A line that must be an error is marked for both checkers; a mark that is not needed is an error itself.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, assert_type

from pydantic import BaseModel
from typing_extensions import TypedDict

from aioflow import AioflowError, Batch, Handle, Job, JobInfo, Runtime, Service, Task


class Payment(BaseModel):
    amount: int


@dataclass
class Order:
    number: int


class Row(TypedDict):
    name: str


class Receipt(BaseModel):
    txn_id: str


@asynccontextmanager
async def lifespan(runtime: Runtime) -> AsyncGenerator[dict[str, int]]:
    yield {"answer": runtime.now_ms()}


async def count(job: Job, call: Any) -> Any:
    return await call()


service = Service("typing", lifespan=lifespan, middleware=[count])


# ---- every shape of a handler


@service.task()
async def payload_and_job(payment: Payment, job: Job) -> Receipt:
    assert_type(job.attempt, int)
    return Receipt(txn_id=job.id)


@service.task()
async def job_first(job: Job, payment: Payment) -> Receipt:
    return Receipt(txn_id=job.id)


@service.task()
async def payload_only(order: Order) -> int:
    return order.number


@service.task()
async def job_only(job: Job) -> str:
    return job.id


@service.task()
async def neither() -> None: ...


@service.task()
def in_a_thread(row: Row, job: Job) -> list[str]:
    return [row["name"]]


@service.task(cpu=True)
def in_a_process(number: int) -> float:
    return number / 2


@service.task(batch=10)
async def in_batches(orders: list[Order], batch: Batch) -> None:
    assert_type(batch.jobs, list[Job])


@service.task(batch=10)
async def batch_first(batch: Batch, orders: list[Order]) -> None: ...


@service.task()
def bare() -> bool:
    return True


assert_type(payload_and_job, Task[Payment, Receipt])
assert_type(job_first, Task[Payment, Receipt])
assert_type(payload_only, Task[Order, int])
assert_type(job_only, Task[None, str])
assert_type(neither, Task[None, None])
assert_type(in_a_thread, Task[Row, list[str]])
assert_type(in_a_process, Task[int, float])
assert_type(in_batches, Task[Order, None])
assert_type(batch_first, Task[Order, None])
assert_type(bare, Task[None, bool])


# ---- submit and what comes of it


async def submits() -> None:
    handle = await payload_and_job.submit(Payment(amount=1))
    assert_type(handle, Handle[Receipt])
    assert_type(await handle.result(timeout=5), Receipt)
    assert_type(await handle.status(), JobInfo)
    assert_type(await handle.cancel(), bool)
    assert_type(await job_first.submit(Payment(amount=1)), Handle[Receipt])
    assert_type(await neither.submit(), Handle[None])
    assert_type(await job_only.submit(), Handle[str])
    assert_type(await in_a_thread.submit({"name": "ann"}), Handle[list[str]])
    assert_type(await in_batches.submit(Order(1)), Handle[None])
    assert_type(await bare.submit(delay=1.5, priority=0, id="one", durability="fsync"), Handle[bool])
    assert_type(await payload_only.submit(Order(1), at=datetime.now(UTC)), Handle[int])
    many = await payload_only.submit_many([Order(1), Order(2)], ids=["a", "b"])
    assert_type(many, list[Handle[int] | AioflowError])


def synchronous() -> None:
    handle = in_a_process.submit_sync(3)
    assert_type(handle, Handle[float])
    assert_type(handle.result_sync(timeout=1), float)
    with Runtime([service], workers=False) as runtime:
        assert_type(runtime, Runtime)


async def by_name(runtime: Runtime) -> None:
    assert_type(await runtime.submit("typing.payload_only", Order(1)), Handle[Any])


# ---- misuse


async def misuse() -> None:
    await payload_and_job.submit("no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await payload_and_job.submit()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await neither.submit(Order(1))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await payload_only.submit(Order(1), delay="1 s")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await payload_only.submit_many([1, 2])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    handle = await payload_only.submit(Order(1))
    wrong: str = await handle.result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(wrong)


def misdeclared() -> None:
    @service.task()  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType, reportUntypedFunctionDecorator]
    async def three(payment: Payment, job: Job, more: int) -> None: ...

    @service.task(concurrency="many")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async def option(order: Order) -> None: ...
