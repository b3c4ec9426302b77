"""What the routes read from a request beyond what `aioflow.web` has: bodies by their models, and pages of lines."""

from __future__ import annotations

from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel

from aioflow import Page
from aioflow.timeline import LARGEST_MS, ReadPage, page
from aioflow.web import json_body, read_page, wrong

PLACES = 10 * LARGEST_MS
"""Beyond every place in a line."""

Model = TypeVar("Model", bound=BaseModel)


async def body_of(request: web.Request, model: type[Model]) -> Model:
    """The JSON body as a model. Raises Problem, and ValidationError that names the field."""
    return model.model_validate_json(await json_body(request))


async def page_of(request: web.Request, read: ReadPage, since_ms: int = 0, until_ms: int = PLACES) -> Page:
    """One page, as `limit` and `cursor` say."""
    limit, cursor = read_page(request)
    try:
        return await page(read, since_ms, until_ms, limit, cursor)
    except ValueError as error:
        raise wrong("cursor", str(error)) from error
