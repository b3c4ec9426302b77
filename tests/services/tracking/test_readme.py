"""The README of tracking does what it says."""

from __future__ import annotations

import re
from pathlib import Path

from services.tracking.settings import TrackingSettings
from services.tracking.table import requests
from tests.curl import curl
from tests.integration.test_docs import rows_of
from tests.integration.test_readme import matches
from tests.serving import ROOT, Serve
from tests.valkey import Valkey
from tests.waiting import wait_until

README = (ROOT / "services" / "tracking" / "README.md").read_text()


async def test_the_curl_lines_print_what_the_readme_says(valkey: Valkey, namespace: str, tmp_path: Path) -> None:
    serve = Serve(
        *("services.tracking:service", "--redis", valkey.url, "--data", str(tmp_path), "--port", "0"),
        environment={"TRACKING_TOKEN": "open-sesame", "AIOFLOW_NAMESPACE": namespace},
    )
    try:
        await serve.start()
        blocks = re.findall(r"<!-- curl -->\n```console\n(.*?)```", README, re.DOTALL)
        assert len(blocks) == 2
        for block in blocks:
            for command, said in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
                if "stats" in command:  # both events are on their way

                    async def both(line: str = command) -> bool:
                        return '"count":2' in await curl(line, serve.url)

                    await wait_until(both, 20)
                printed = await curl(command, serve.url)
                assert matches(printed, said.strip()), printed
        assert await serve.stop() == 0
    finally:
        serve.close()


def test_the_tables_are_those_of_the_code() -> None:
    expected = []
    for name, field in TrackingSettings.model_fields.items():
        default = "" if field.default in (None, ()) else f"`{field.default}`"
        expected.append([f"`TRACKING_{name.upper()}`", default, field.description])
    assert rows_of(README, "settings") == expected
    named = [name for names, _ in rows_of(README, "columns") for name in re.findall(r"`(\w+)`", names)]
    assert sorted(named) == sorted(column.name for column in requests.columns)
