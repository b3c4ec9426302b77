"""Ids that exist in the served services, by path, so that a description's routes answer with more than 404."""

from __future__ import annotations

from typing import Any

import aiohttp

from aioflow.ingress.app import id_of_key
from services.factors.compute import compute
from services.payments.api import charge
from services.tracking.service import store

TOKEN = "open-sesame"
PAYMENT, QUESTION, EVENT = (id_of_key(task, "known") for task in (charge, compute, store))
IDS = {
    "/payments/{tracking_id}": ("tracking_id", PAYMENT),
    "/payers/{party_id}/payments": ("party_id", "ann"),
    "/recipients/{party_id}/payments": ("party_id", "bob"),
    "/compute_factors/{tracking_id}": ("tracking_id", QUESTION),
    "/track/requests/{id}": ("id", f"{EVENT}.0"),
    "/moderation/items/{id}": ("id", "known"),
    "/moderation/items/{id}/extend": ("id", "known"),
    "/moderation/items/{id}/decisions": ("id", "known"),
    "/moderation/desks/{moderator}/leave": ("moderator", "ann"),
}
ITEM = {"id": "known", "content": "Buy now!", "category": "spam", "language": "en", "author": "zoe"}
POSTS: tuple[tuple[str, Any], ...] = (
    ("/payments", {"payer_id": "ann", "recipient_id": "bob", "amount": 1}),
    ("/compute_factors", {"number": "12"}),
    ("/track", {"url": "https://example.org/"}),
    ("/moderation/items", ITEM),
    ("/moderation/items", {**ITEM, "id": "other"}),
    ("/moderation/desks", {"name": "ann", "categories": ["spam"], "languages": ["en"], "holds": 1}),
)


async def make_known(url: str) -> None:
    """Bring them in."""
    async with aiohttp.ClientSession() as session:
        for path, body in POSTS:
            headers = {"Idempotency-Key": "known", "Prefer": "wait=10"}
            async with session.post(url + path, json=body, headers=headers) as answer:
                assert answer.status in (200, 202), await answer.text()
