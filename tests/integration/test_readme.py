"""The README does what it says: its commands, its curl lines and its code. The other pages have test_docs.py."""

from __future__ import annotations

import asyncio
import importlib
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.curl import curl
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


def matches(printed: str, said: str) -> bool:
    """Whether it prints what is said, where "..." stands for anything."""
    return re.fullmatch(re.escape(said).replace(r"\.\.\.", ".*"), printed) is not None


def test_the_two_commands_name_extras_that_there_are_and_the_command_that_is_tested_here() -> None:
    there = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    venv = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[{}]' && .venv/bin/{}\n"
    for mark, extras, program in (("serve", "all", "python -m aioflow serve"), ("test", "all,test", "pytest")):
        assert block(mark) == venv.format(extras, program)
        assert set(extras.split(",")) <= set(there)


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


async def test_testing_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hello.py").write_text(block("service: hello.py"))
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        there: dict[str, Any] = {}
        exec(compile(block("testing"), "README.md", "exec"), there)
        tests = [value for name, value in there.items() if name.startswith("test_")]
        assert len(tests) == 2
        for test in tests:
            await test()
    finally:
        sys.modules.pop("hello", None)


async def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(block("service: hello.py"))
    (tmp_path / "pyproject.toml").write_text('[tool.aioflow]\nservices = ["hello:service"]\n')
    serve = Serve("--port", "0", cwd=tmp_path)
    try:
        await serve.start()
        for command, said in session("cli"):
            program, *words = shlex.split(command)
            assert program == "aioflow"
            run = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "aioflow", *words),
                cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            printed, complaint = await run.communicate()
            assert (run.returncode, printed.decode().strip()) == (0, said), complaint.decode()
        assert await serve.stop() == 0
    finally:
        serve.close()


def test_the_gate_runs_the_readmes_own_test_command() -> None:
    gate = (ROOT / ".ci" / "run").read_text()
    *install, run = block("test").strip().split(" && ")
    assert " && ".join(install) in gate
    assert gate.rstrip().endswith(run)
