"""The service: its scripts, what lives as long as a runtime, and the task that hands results on.

A decision is final when its script has run, and that script notes in `untold` that the result is to be told. Any
process' tick hands such a note to the task `tell`, under the decision's token as id; the task takes the note away and
emits the result in one step with its own end. So a result is told once: a second `tell` finds no note.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.exceptions import RedisError

from aioflow import Job, Problem, Retry, RetryLater, Runtime, Service
from aioflow.delivery import Delivery
from services.moderation.board import SCRIPTS, Board, unread
from services.moderation.hub import Hub
from services.moderation.models import LOCK_ID
from services.moderation.records import shown_decision
from services.moderation.settings import load_settings

log = logging.getLogger(__name__)

WAIT_FOR_SETTING = 60.0


@asynccontextmanager
async def lifespan(runtime: Runtime) -> AsyncIterator[Hub]:
    """The hub of this process, with its loops."""

    async def hand_on(tokens: list[str]) -> None:
        ours = [token for token in tokens if re.fullmatch(LOCK_ID, token)]
        if len(ours) < len(tokens):
            log.warning("moderation: %d entries of untold are no tokens of decisions", len(tokens) - len(ours))
        await runtime.submit_many(tell, ours, ids=ours)

    board = Board(runtime, scripts, load_settings(), secrets.token_hex(6))
    hub = Hub(runtime, service, board, hand_on)
    async with hub.running():
        yield hub


service = Service("moderation", lifespan=lifespan)
scripts = {name: service.script(f"../../lua/moderation/{name}.lua") for name in SCRIPTS}
untold = service.timeline("untold")


@service.task(concurrency=20, retry=Retry(attempts=20, base=1.0, longest=300))
async def tell(token: str, job: Job) -> bool:
    """Send a final decision to where the settings name; False where that was done before."""
    hub: Hub = job.resources
    settings = hub.board.settings
    if not settings.tells:
        raise RetryLater(WAIT_FOR_SETTING)  # it was set when the decision was made
    record = await hub.board.untold(token)
    if record is None:
        return False
    job.commit.remove(untold, token)
    if record:
        decision = shown_decision(record)
        if settings.results is not None:
            job.commit.submit(settings.results, decision)
        if settings.post_back is not None:
            told = Delivery(url=settings.post_back, type="moderation.decided", data=decision)
            job.commit.submit("delivery.post", told)
    return bool(record)


def hub_of(runtime: Runtime) -> Hub:
    """The hub of a live runtime. Raises Problem where it has stopped."""
    hub: Hub | None = runtime.resources.get(service.name)
    if hub is None or runtime.is_stopping():
        raise Problem(503, "the service is not running")
    return hub


async def asked(pipeline: Any) -> list[Any]:
    """The answers of a pipeline. Raises StoreUnavailable, and ProtocolError that names a key of another type."""
    try:
        answers: list[Any] = await pipeline.execute()
    except (RedisError, OSError) as error:
        raise unread(error) from error
    return answers
