"""The service: one task that asks the gateway and commits the outcome, the route in, and the queries."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
from aiohttp import web
from redis.exceptions import RedisError, ResponseError

from aioflow import (
    Discard,
    Job,
    JobInfo,
    Page,
    Problem,
    ProtocolError,
    Retry,
    Runtime,
    Service,
    State,
    StoreUnavailable,
)
from aioflow.web import format_time, read_choice, read_page, read_range, read_seconds
from services.payments.gateways import CheckedGateway, Gateway, HttpGateway, SimulatedGateway
from services.payments.models import GatewayError, Outcome, Payment, PaymentRefused, Receipt
from services.payments.settings import load_settings
from services.payments.shown import (
    Count,
    CountQuery,
    ListQuery,
    Overdue,
    OverdueQuery,
    PartyQuery,
    Payments,
    PaymentState,
    Requeued,
)

LEDGER = "gateway_ledger"


@asynccontextmanager
async def lifespan(runtime: Runtime) -> AsyncIterator[Gateway]:
    """The gateway that the settings choose."""
    settings = load_settings()
    if settings.gateway_url is None:
        yield SimulatedGateway(
            runtime.redis,
            runtime.key(service, LEDGER),
            seed=settings.simulated_seed,
            insufficient_rate=settings.simulated_insufficient_rate,
            error_rate=settings.simulated_error_rate,
            latency=settings.simulated_latency,
        )
        return
    # The task's concurrency bounds the calls; a call that waits for a connection would use up its time to answer.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        gateway = HttpGateway(session, str(settings.gateway_url), timeout=settings.gateway_timeout)
        records = {Outcome(outcome): runtime.key(service, record) for outcome, (_, record) in DECIDED.items()}
        yield CheckedGateway(gateway, runtime.redis, records)


service = Service("payments", lifespan=lifespan)

successful_txns = service.timeline("successful_txns")
payments_made_by = service.timeline("payments_made_by")
payments_received_by = service.timeline("payments_received_by")
insufficient_txns = service.timeline("insufficient_funds_txns")
insufficient_made_by = service.timeline("insufficient_funds_made_by")
insufficient_received_by = service.timeline("insufficient_funds_received_by")
api_errors = service.timeline("api_errors")

TXNS = "txns"
INSUFFICIENT_TXNS = "insufficient_funds_records"


# The gateway is asked with an idempotency key, so a payment may run again as often as its workers are killed.
@service.task(
    concurrency=100,
    timeout=30,
    retry=Retry(attempts=5, base=0.5, longest=60, on=(GatewayError, TimeoutError)),
    most_crashes=10,
)
async def charge(payment: Payment, job: Job) -> Receipt:
    """Ask the gateway and index the outcome; all of it lands with the acknowledgement or not at all."""
    gateway: Gateway = job.resources
    job.commit.record(api_errors, job.id, on_failure=True)
    try:
        decision = await gateway.charge(payment, idempotency_key=job.id)
    except PaymentRefused as refusal:
        job.commit.record(api_errors, job.id)
        raise Discard(str(refusal)) from refusal
    receipt = decision.receipt(payment, job.id)
    if decision.outcome is Outcome.SUCCESS:
        record, txns, made_by, received_by = TXNS, successful_txns, payments_made_by, payments_received_by
    else:
        record, txns = INSUFFICIENT_TXNS, insufficient_txns
        made_by, received_by = insufficient_made_by, insufficient_received_by
    job.commit.remove(api_errors, job.id)
    job.commit.hset(record, receipt.txn_id, receipt.model_dump_json())
    job.commit.record(txns, receipt.txn_id)
    job.commit.record(made_by[payment.payer_id], receipt.txn_id)
    job.commit.record(received_by[payment.recipient_id], receipt.txn_id)
    return receipt


service.post("/payments", submits=charge, location="/payments/{id}")


@service.get("/payments/overdue", query=OverdueQuery, answers={200: Overdue}, problems=(503,))
async def overdue(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """Payments that have been queued or running for longer than `older_than` seconds, oldest first."""
    older_than = read_seconds(request, "older_than", 60.0)
    (since_ms, until_ms), (limit, cursor) = read_range(request), read_page(request)
    until_ms = max(0, min(until_ms, runtime.now_ms() - int(older_than * 1000)))
    window: dict[str, Any] = {"since_ms": since_ms, "until_ms": until_ms}
    listed = await _listed(runtime.jobs_page(charge, "open", **window, limit=limit, cursor=cursor))
    infos = await runtime.inspect_many(charge, [job_id for job_id, _ in listed.entries])
    return {
        "payments": [_of_job(info) for info in infos if info is not None],
        "count": await runtime.jobs_count(charge, "open", **window),
        "cursor": listed.cursor,
    }


@service.get("/payments/count", query=CountQuery, answers={200: Count}, problems=(503,))
async def count(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """How many payments have a status, in a time range."""
    status, since_ms, until_ms = read_choice(request, "status", STATUSES), *read_range(request)
    return {"status": status, "count": await _count(runtime, status, since_ms, until_ms)}


@service.get("/payments/{tracking_id}", answers={200: PaymentState}, problems=(503,))
async def one(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """One payment: its state, its times, and what came of it."""
    return _of_job(await runtime.inspect(charge, request.match_info["tracking_id"]))


@service.post("/payments/{tracking_id}/requeue", answers={202: Requeued}, problems=(409, 503))
async def requeue(request: web.Request, runtime: Runtime) -> web.Response:
    """Give a dead payment a new life."""
    tracking_id = request.match_info["tracking_id"]
    if not await runtime.requeue(charge, tracking_id):
        raise Problem(409, f"payment {tracking_id} is not dead")
    return web.Response(
        status=202,
        body=orjson.dumps({"status": "OK", "tracking_id": tracking_id}),
        headers={"Content-Type": "application/json", "Location": f"/payments/{tracking_id}"},
    )


@service.get("/payments", query=ListQuery, answers={200: Payments}, problems=(503,))
async def listing(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """Payments of one status, oldest first."""
    status = read_choice(request, "status", STATUSES)
    (since_ms, until_ms), (limit, cursor) = read_range(request), read_page(request)
    window: dict[str, Any] = {"since_ms": since_ms, "until_ms": until_ms, "limit": limit, "cursor": cursor}
    if status in DECIDED:
        timeline, record = DECIDED[status]
        listed = await _listed(timeline.page(**window))
        return {"payments": await _records(runtime, record, listed), "cursor": listed.cursor}
    if status == "api_error":
        listed = await _listed(api_errors.page(**window))
    else:
        listed = await _listed(runtime.jobs_page(charge, ENGINE_SETS[status], **window))
    infos = await runtime.inspect_many(charge, [job_id for job_id, _ in listed.entries])
    return {"payments": [_of_job(info) for info in infos if info is not None], "cursor": listed.cursor}


@service.get("/payers/{party_id:[^/]+}/payments", query=PartyQuery, answers={200: Payments}, problems=(503,))
async def made(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """The successful payments of a payer, oldest first; `status=insufficient_funds` for those that were declined."""
    return await _of_party(request, runtime, {"success": payments_made_by, "insufficient_funds": insufficient_made_by})


@service.get("/recipients/{party_id:[^/]+}/payments", query=PartyQuery, answers={200: Payments}, problems=(503,))
async def received(request: web.Request, runtime: Runtime) -> dict[str, Any]:
    """The successful payments to a recipient, oldest first; `status=insufficient_funds` for the declined."""
    return await _of_party(
        request, runtime, {"success": payments_received_by, "insufficient_funds": insufficient_received_by}
    )


DECIDED = {"success": (successful_txns, TXNS), "insufficient_funds": (insufficient_txns, INSUFFICIENT_TXNS)}
ENGINE_SETS: dict[str, Any] = {"open": "open", "running": "started", "dead": "dead"}
STATUSES = (*DECIDED, "api_error", *ENGINE_SETS)
SHOWN_OF_FAILURE = ("error", "message", "attempt")
"""A traceback and the name of a worker are for the log, not for clients."""


async def _of_party(request: web.Request, runtime: Runtime, timelines: dict[str, Any]) -> dict[str, Any]:
    status = read_choice(request, "status", tuple(timelines), "success")
    (since_ms, until_ms), (limit, cursor) = read_range(request), read_page(request)
    timeline = timelines[status][request.match_info["party_id"]]
    listed = await _listed(timeline.page(since_ms=since_ms, until_ms=until_ms, limit=limit, cursor=cursor))
    return {"payments": await _records(runtime, DECIDED[status][1], listed), "cursor": listed.cursor}


async def _count(runtime: Runtime, status: str, since_ms: int, until_ms: int) -> int:
    if status in DECIDED:
        return await DECIDED[status][0].count(since_ms=since_ms, until_ms=until_ms)
    if status == "api_error":
        return await api_errors.count(since_ms=since_ms, until_ms=until_ms)
    return await runtime.jobs_count(charge, ENGINE_SETS[status], since_ms=since_ms, until_ms=until_ms)


async def _records(runtime: Runtime, name: str, listed: Page) -> list[dict[str, Any]]:
    if not listed.entries:
        return []
    key = runtime.key(service, name)
    try:
        records = await runtime.redis.hmget(key, [txn_id for txn_id, _ in listed.entries])
    except ResponseError as error:
        raise ProtocolError(f"a query met what is not payments' at {key}: {error}") from error
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"redis is away: {error}") from error
    return [
        {**_object(record, f"{key} of {txn_id}"), "at": format_time(at_ms)}
        for record, (txn_id, at_ms) in zip(records, listed.entries, strict=True)
        if record is not None
    ]


def _object(record: bytes | str, where: str) -> dict[str, Any]:
    """A record of ours. Raises ProtocolError that says where another's is."""
    try:
        held = orjson.loads(record)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"what there is at {where} is no JSON: {error}") from error
    if not isinstance(held, dict):
        raise ProtocolError(f"what there is at {where} is no record of payments")
    return held


async def _listed(reading: Any) -> Page:
    try:
        page: Page = await reading
    except ValueError as error:
        raise Problem(422, f"cursor: {error}", errors=[("cursor", str(error))]) from error
    return page


def _of_job(info: JobInfo) -> dict[str, Any]:
    """A payment as its job tells it; `status` is its outcome once it has one."""
    status: str = {State.SCHEDULED: "queued", State.READY: "queued"}.get(info.state, info.state.value)
    shown: dict[str, Any] = {"tracking_id": info.id, "payment": _payment(info.payload)}
    if info.state is State.DONE and info.result is not None:
        shown["receipt"] = _object(info.result, f"the results of {charge.full_name}, {info.id}")
        status = shown["receipt"].get("outcome", status)
    elif info.state is State.DEAD and info.result is not None:
        failure = _object(info.result, f"the results of {charge.full_name}, {info.id}")
        shown["failure"] = {name: failure[name] for name in SHOWN_OF_FAILURE if name in failure}
    shown |= {"status": status, "attempt": info.attempt, "submitted_at": format_time(info.submitted_ms)}
    if info.state in (State.DONE, State.DEAD):
        shown["finished_at"] = format_time(info.at_ms)
    elif info.state is State.SCHEDULED:
        shown["due_at"] = format_time(info.at_ms)
    return shown


def _payment(payload: bytes) -> Any:
    """None where the record is gone, or holds no JSON: whoever wrote it did not come through this API."""
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
