"""Who decides a payment: a simulated gateway for tries and tests, and one behind HTTP.

A gateway is asked with an idempotency key, because an attempt may be repeated: a worker can die between the answer
and its commit. The same key gets the first decision again, never a second charge.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Annotated, Protocol

import aiohttp
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.payments.models import GatewayError, Outcome, Payment


class Decision(BaseModel):
    """A gateway's answer: success or insufficient_funds, under the gateway's own transaction id."""

    model_config = ConfigDict(frozen=True)

    txn_id: Annotated[str, Field(min_length=1, max_length=200)]
    outcome: Outcome


class Gateway(Protocol):
    """Asks for a payment. Raises GatewayError where no decision was had."""

    async def charge(self, payment: Payment, *, idempotency_key: str) -> Decision: ...


class SimulatedGateway:
    """Decides by a seed, after a latency, and keeps its ledger of decisions in a Redis hash.

    Rates are shares of all payments; the rest succeeds. Whether the gateway fails is drawn per call, what it decides
    per idempotency key. `latency` is in seconds.
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
        await asyncio.sleep(self._latency * 2 * self._draw("latency", idempotency_key, str(self._calls)))
        if self._draw("error", idempotency_key, str(self._calls)) < self._error_rate:
            raise GatewayError("the simulated gateway is down")
        declined = self._draw("decision", idempotency_key) < self._insufficient_rate
        decision = Decision(
            txn_id="txn_" + hashlib.blake2b(idempotency_key.encode(), digest_size=12).hexdigest(),
            outcome=Outcome.INSUFFICIENT_FUNDS if declined else Outcome.SUCCESS,
        )
        entry = orjson.dumps({**decision.model_dump(mode="json"), "payment": payment.model_dump()})
        try:
            if not await self._redis.hsetnx(self._ledger_key, idempotency_key, entry):
                first = await self._redis.hget(self._ledger_key, idempotency_key)
                return Decision.model_validate_json(first or entry)
        except (RedisError, OSError) as error:
            raise GatewayError(f"the simulated gateway cannot reach its ledger: {error}") from error
        return decision

    def _draw(self, *parts: str) -> float:
        digest = hashlib.blake2b("\n".join((str(self._seed), *parts)).encode(), digest_size=7).digest()
        return int.from_bytes(digest) / 2**56


class HttpGateway:
    """POSTs the payment as JSON with an Idempotency-Key; expects {"txn_id": ..., "outcome": ...} with status 200.

    Timeouts, refused connections, 5xx and answers that cannot be read are GatewayError. `timeout` is in seconds.
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
