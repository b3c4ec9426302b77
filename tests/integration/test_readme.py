"""The README does what it says: its commands, its curl lines, its code and its table of settings."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import httpx
import pytest

from aioflow.settings import Settings
from tests.serving import ROOT, Serve

README = (ROOT / "README.md").read_text()


def block(mark: str) -> str:
    """The code block under <!-- mark -->."""
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has no block {mark}"
    return found[1]


def session(mark: str) -> list[tuple[str, str]]:
    """(command, what it prints) of a console block."""
    found = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block(mark), re.MULTILINE)
    assert found
    return [(command, output.strip()) for command, output in found]


async def curl(command: str, url: str) -> str:
    """What a curl line of the README prints, without needing curl."""
    program, *words = shlex.split(command)
    assert program == "curl"
    headers, body, target = {}, None, ""
    rest = iter(words)
    for word in rest:
        if word == "-H":
            name, _, value = next(rest).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = next(rest)
        elif word != "-s":
            target = word
    target = target.replace("localhost:8080", url.removeprefix("http://"))
    async with httpx.AsyncClient() as client:
        answer = await client.request(
            "GET" if body is None else "POST",
            f"http://{target.removeprefix('http://')}",
            headers=headers,
            content=body,
            timeout=20,
        )
    return answer.text


def matches(printed: str, said: str) -> bool:
    """Whether it prints what is said, where "..." stands for anything."""
    return re.fullmatch(re.escape(said).replace(r"\.\.\.", ".*"), printed) is not None


async def test_the_curl_lines_print_what_the_readme_says(tmp_path: Path) -> None:
    serve = Serve("--data", str(tmp_path / "data"), "--port", "0")
    try:
        await serve.start()
        for command, said in session("curl"):
            assert await curl(command, serve.url) == said
        assert await serve.stop() == 0
    finally:
        serve.close()


async def test_a_service_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(block("service: hello.py"))
    assert len(block("service: hello.py").split("\n\n\n", 1)[1].strip().splitlines()) <= 15
    serve = Serve("hello:service", "--redis", "memory:", "--port", "0", cwd=tmp_path)
    try:
        await serve.start()
        for command, said in session("hello"):
            printed = await curl(command, serve.url)
            assert matches(printed, said), printed
        assert await serve.stop() == 0
    finally:
        serve.close()


async def test_embedding_in_fastapi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hello.py").write_text(block("service: hello.py"))
    (tmp_path / "embedding.py").write_text(block("embed"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("AIOFLOW_DATA", str(tmp_path / "data"))
    try:
        app = importlib.import_module("embedding").app
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            answer = await client.post("/greet", json={"name": "Ann"})
        assert (answer.status_code, answer.json()) == (200, "Hello, Ann!")
    finally:
        for name in ("embedding", "hello"):
            sys.modules.pop(name, None)


def test_the_settings_table_is_the_settings() -> None:
    rows = re.findall(r"^\| `(AIOFLOW_\w+)` \|\s*(.*?)\s*\| (.*?) \|$", README, re.MULTILINE)
    expected = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        expected.append((f"AIOFLOW_{name.upper()}", default, field.description))
    assert rows == expected


def test_the_gate_runs_the_readmes_own_test_command() -> None:
    gate = (ROOT / ".ci" / "run").read_text()
    *install, run = block("test").strip().split(" && ")
    assert " && ".join(install) in gate
    assert gate.rstrip().endswith(run)


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "lua" / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
