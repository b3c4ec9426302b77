"""The service: its one task posts a delivery, and says what comes of the answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from aiohttp.abc import AbstractResolver
from pydantic_core import to_json

from aioflow.delivery.exchange import Answer, exchange
from aioflow.delivery.hosts import Hosts
from aioflow.delivery.models import Delivery
from aioflow.delivery.names import Resolver
from aioflow.delivery.outcomes import Delivered, DeliveryFailed, DeliveryGone
from aioflow.delivery.settings import PREFIX, DeliverySettings, load_settings
from aioflow.delivery.signing import HOW_TO_MAKE, Signer, library, secret_of_folder, webhook_id_of
from aioflow.errors import ConfigError
from aioflow.job import Job
from aioflow.policy import Retry, RetryLater
from aioflow.service import Service
from aioflow.settings import Settings

log = logging.getLogger(__name__)

MARGIN = 5.0
"""Seconds by which the task's time limit lies behind that of an attempt, which says more when it fails."""
HEADERS = {"Content-Type": "application/json", "User-Agent": "aioflow", "Accept": "*/*", "Accept-Encoding": "identity"}


class RuntimeLike(Protocol):
    """What the service needs of its runtime."""

    settings: Settings

    @property
    def works(self) -> bool: ...


class Sender:
    """Posts deliveries for one runtime."""

    def __init__(self, settings: DeliverySettings, signer: Signer, resolver: AbstractResolver) -> None:
        self.hosts = Hosts(settings.turns)
        self._rules = settings.rules
        self._signer = signer
        self._resolver = resolver
        self._timeout = settings.timeout
        self._longest = settings.longest

    async def send(self, delivery: Delivery, job_id: str) -> Delivered:
        """One attempt. Raises what ends it otherwise than by a success; RetryLater where its host has no turn free."""
        url, target = self._rules.check(delivery.url)
        webhook_id = webhook_id_of(job_id)
        turn = object()  # not the job's id: an attempt that lost its lease may still be ending here
        wait = self.hosts.enter(target.host, turn)
        if wait:
            raise RetryLater(wait)
        try:
            body = to_json(delivery.data)
            answer = await exchange(
                url,
                body,
                {**HEADERS, **self._signer.headers(webhook_id, body)},
                target=target,
                rules=self._rules,
                resolver=self._resolver,
                timeout=self._timeout,
            )
        finally:
            self.hosts.leave(target.host, turn)
        return self._judged(answer)

    def _judged(self, answer: Answer) -> Delivered:
        if 200 <= answer.status <= 299:
            return Delivered(status=answer.status)
        redirect = ", a redirect, and redirects are not followed" if 300 <= answer.status <= 399 else ""
        said = f"the receiver answered {answer.status}{redirect}: {answer.text or '(nothing)'}"
        if answer.status == 410:
            raise DeliveryGone(said)
        asked = None if answer.retry_after is None else min(answer.retry_after, self._longest)
        raise DeliveryFailed(said, status=answer.status, answer=answer.text, retry_after=asked)


def make_service(settings: DeliverySettings | None = None, *, resolver: AbstractResolver | None = None) -> Service:
    """The service `delivery` with the task `post`, by these settings or those of the environment.

    `resolver` looks names up instead of the system's; it is left open. Raises ConfigError, also where the extra is
    not installed. A secret is needed once a runtime with workers starts, and not to look at the queue.
    """
    library()
    chosen = load_settings() if settings is None else settings

    @asynccontextmanager
    async def lifespan(runtime: RuntimeLike) -> AsyncIterator[Sender | None]:
        if not runtime.works:
            yield None  # a process that takes requests has no use for the secrets
            return
        secrets = [secret.get_secret_value() for secret in chosen.secrets] or [await own_secret(runtime.settings)]
        yield Sender(chosen, Signer(secrets), resolver or Resolver())

    made = Service("delivery", lifespan=lifespan)

    @made.task(
        concurrency=chosen.concurrency,
        timeout=chosen.timeout + MARGIN,
        retry=Retry(attempts=chosen.attempts, base=chosen.base, longest=chosen.longest),
        most_crashes=100,  # a delivery kills no process: who dies in one dies of something else
    )
    async def post(delivery: Delivery, job: Job) -> Delivered:
        """POST the data, signed, to the URL."""
        sender: Any = job.resources
        sent: Delivered = await sender.send(delivery, job.id)
        return sent

    return made


async def own_secret(settings: Settings) -> str:
    """The secret of the embedded server's folder; elsewhere a ConfigError, since each machine would have another."""
    if settings.redis != "embedded:":
        raise ConfigError(
            f"deliveries cannot be signed: set {PREFIX}SECRETS, the same for all processes; "
            f"this makes a secret: {HOW_TO_MAKE}"
        )
    secret = await asyncio.to_thread(secret_of_folder, settings.data)
    log.info(
        "deliveries are signed with the secret that is kept in %s, since %sSECRETS is unset", settings.data, PREFIX
    )
    return secret
