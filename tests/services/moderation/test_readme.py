"""The README of moderation: its curl lines answer what it prints, and its tables are complete."""

from __future__ import annotations

import re

import orjson

from services.moderation import service
from services.moderation.settings import ModerationSettings
from tests.curl import curl
from tests.services.moderation.client import Api
from tests.serving import ROOT

README = (ROOT / "services" / "moderation" / "README.md").read_text()
PRINTED_TOKEN = "40f30e962af8.1"


async def test_the_curl_lines_answer_what_it_prints(api: Api) -> None:
    lines = re.findall(r"^\$ (curl .+)\n(.+)$", README, re.MULTILINE)
    assert len(lines) == README.count("curl -s")
    token = PRINTED_TOKEN
    for command, printed in lines:
        answer = await curl(command.replace(PRINTED_TOKEN, token), api.url)
        if "/assignments" in command:
            token = orjson.loads(answer)["assignments"][0]["token"]
        expected = re.escape(printed.replace(PRINTED_TOKEN, token)).replace(r"\.\.\.", "[^{}]+?")
        assert re.fullmatch(expected, answer), (command, answer)


def test_its_tables_are_complete() -> None:
    routes = re.findall(r"^\| `(GET|POST) (/moderation/\S+)` \|", README, re.MULTILINE)
    assert sorted(routes) == sorted((route.method, route.path.replace(":[^/]+", "")) for route in service.routes)
    rows = re.findall(r"^\| `(MODERATION_\w+)` \| (?:`\S+`)? ?\| (.+) \|$", README, re.MULTILINE)
    fields = ModerationSettings.model_fields.items()
    assert rows == [(f"MODERATION_{name.upper()}", field.description) for name, field in fields]
