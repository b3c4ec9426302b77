"""Who decides a payment: a simulated gateway for tries and tests, and one behind HTTP.

A gateway is asked with an idempotency key, because an attempt may be repeated: a worker can die between the answer
and its commit. The same key gets the first decision again, never a second charge; another payment under a key that was
decided is refused, and never gets the decision of the first.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Annotated, Protocol

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.payments.models import GatewayError, Outcome, Payment, PaymentRefused, Receipt


class Decision(BaseModel):
    """A gateway's answer: success or insufficient_funds, under the gateway's own transaction id."""

    model_config = ConfigDict(frozen=True)

    txn_id: Annotated[str, Field(min_length=1, max_length=200)]
    outcome: Outcome

    def receipt(self, payment: Payment, tracking_id: str) -> Receipt:
        """The record of the payment that was decided so."""
        return Receipt(tracking_id=tracking_id, txn_id=self.txn_id, outcome=self.outcome, **payment.model_dump())


class LedgerEntry(Decision):
    """What the simulated gateway keeps under an idempotency key."""

    payment: Payment


class Gateway(Protocol):
    """Asks for a payment. Raises GatewayError where no decision was had, PaymentRefused where none will be."""

    async def charge(self, payment: Payment, *, idempotency_key: str) -> Decision: ...


class SimulatedGateway:
    """Decides by a seed, after a latency, and keeps its ledger of decisions in a Redis hash.

    Rates are shares of all payments; the rest succeeds. Whether the gateway fails is drawn per call, and counts only
    while nothing is decided; what it decides is drawn per idempotency key. `latency` is in seconds.
    """

    def __init__(
        self,
        redis: Redis,
        ledger_key: str,
        *,
        seed: int = 0,
        insufficient_rate: float = 0.1,
        error_rate: float = 0.05,
        latency: float = 0.02,
    ) -> None:
        self._redis = redis
        self._ledger_key = ledger_key
        self._seed = seed
        self._insufficient_rate = insufficient_rate
        self._error_rate = error_rate
        self._latency = latency
        self._calls = 0

    async def charge(self, payment: Payment, *, idempotency_key: str) -> Decision:
        """Decide, or find the earlier decision under this key."""
        self._calls += 1
        call = str(self._calls)
        await asyncio.sleep(self._latency * 2 * self._draw("latency", idempotency_key, call))
        fails = self._draw("error", idempotency_key, call) < self._error_rate
        try:
            # A call that fails only looks, so it writes nothing; one that does not looks and writes in one step.
            entry = await (self._find(idempotency_key) if fails else self._decide(payment, idempotency_key))
        except (RedisError, OSError) as error:
            raise GatewayError(f"the simulated gateway cannot reach its ledger: {error}") from error
        if entry is None:
            raise GatewayError("the simulated gateway is down")
        if entry.payment != payment:
            raise PaymentRefused("the gateway decided another payment under this key; pay under a new Idempotency-Key")
        return Decision(txn_id=entry.txn_id, outcome=entry.outcome)

    async def _find(self, key: str) -> LedgerEntry | None:
        found = await self._redis.hget(self._ledger_key, key)
        return None if found is None else LedgerEntry.model_validate_json(found)

    async def _decide(self, payment: Payment, key: str) -> LedgerEntry:
        declined = self._draw("decision", key) < self._insufficient_rate
        entry = LedgerEntry(
            txn_id="txn_" + hashlib.blake2b(key.encode(), digest_size=12).hexdigest(),
            outcome=Outcome.INSUFFICIENT_FUNDS if declined else Outcome.SUCCESS,
            payment=payment,
        )
        if await self._redis.hsetnx(self._ledger_key, key, entry.model_dump_json()):
            return entry
        return await self._find(key) or entry

    def _draw(self, *parts: str) -> float:
        digest = hashlib.blake2b("\n".join((str(self._seed), *parts)).encode(), digest_size=7).digest()
        return int.from_bytes(digest) / 2**56


class HttpGateway:
    """POSTs the payment as JSON with an Idempotency-Key; expects {"txn_id": ..., "outcome": ...} with status 200.

    422 is PaymentRefused, as draft-ietf-httpapi-idempotency-key-header has it for a key that comes again with another
    payload. Timeouts, refused connections, other statuses and answers that cannot be read are GatewayError: 409 too,
    which there says that the first request under the key is still being worked on. `timeout` is in seconds.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, *, timeout: float = 10.0) -> None:
        self._session = session
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=timeout)

    async def charge(self, payment: Payment, *, idempotency_key: str) -> Decision:
        """Ask the gateway."""
        try:
            async with self._session.post(
                self._url,
                data=payment.model_dump_json().encode(),
                headers={"Content-Type": "application/json", "Idempotency-Key": idempotency_key},
                timeout=self._timeout,
                allow_redirects=False,
            ) as answer:
                body = await answer.read()
                if answer.status == 422:
                    raise PaymentRefused("the gateway refuses this payment under this key: it answered 422")
                if answer.status != 200:
                    raise GatewayError(f"the gateway answered {answer.status}")
        except TimeoutError as error:
            raise GatewayError(f"the gateway did not answer within {self._timeout.total:g} s") from error
        except aiohttp.ClientError as error:
            raise GatewayError(f"the gateway cannot be asked: {str(error) or type(error).__name__}") from error
        try:
            decision = Decision.model_validate_json(body)
        except ValidationError as error:
            raise GatewayError(f"the gateway's answer cannot be read: {error.error_count()} errors") from error
        if decision.outcome is Outcome.API_ERROR:
            raise GatewayError("the gateway answered api_error")
        return decision


class CheckedGateway:
    """A gateway whose decisions are compared with what is recorded of their transactions.

    A gateway that looks at the key alone answers another payment under a known key with the decision of the first;
    recorded, it would overwrite the first payment's record. `records` are the Redis hashes of receipts by transaction.
    """

    def __init__(self, gateway: Gateway, redis: Redis, records: Mapping[Outcome, str]) -> None:
        self._gateway = gateway
        self._redis = redis
        self._records = records

    async def charge(self, payment: Payment, *, idempotency_key: str) -> Decision:
        """Ask the gateway, and refuse where its decision is recorded for another payment."""
        decision = await self._gateway.charge(payment, idempotency_key=idempotency_key)
        try:
            record = await self._redis.hget(self._records[decision.outcome], decision.txn_id)
        except (RedisError, OSError) as error:
            raise GatewayError(f"the gateway's decision cannot be compared with the records: {error}") from error
        if record is not None and Receipt.model_validate_json(record) != decision.receipt(payment, idempotency_key):
            raise PaymentRefused(f"the gateway answered with transaction {decision.txn_id} of another payment")
        return decision
