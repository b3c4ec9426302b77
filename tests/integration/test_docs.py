"""The pages below docs/ do what they say: programs print their comments, tables are the code's, links lead somewhere.

A block of Python is a whole program, which runs in a folder of its own; the blocks of the same section that are marked
`<!-- file: name -->` lie beside it. Blocks marked `py` are of other projects and are only compiled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import logging
import re
import runpy
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aioflow import Breaker, Retry, Service, Task, web
from aioflow.contract import Contract
from aioflow.delivery import DeliverySettings, addresses
from aioflow.delivery.settings import PREFIX
from aioflow.delivery.signing import HOW_TO_MAKE
from aioflow.policy import TaskOptions
from aioflow.settings import Settings
from tests.serving import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(
    r"^(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
PRINTED = re.compile(r"^ *(?:print|[\w.]+\.log\.\w+)\(.*?\)(?:  # (.*))?\n((?: *# .*\n)*)", re.MULTILINE)
PROGRAM_SECONDS = 25.0


def page(name: str) -> str:
    """The text of a page."""
    return (ROOT / "docs" / name).read_text()


def programs() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Per program: where it stands, its text, and the files beside it."""
    for path in PAGES:
        for section in re.split(r"^(?=##+ )", path.read_text(), flags=re.MULTILINE):
            blocks = list(BLOCK.finditer(section))
            files = {block["file"]: block["text"] for block in blocks if block["file"]}
            for block in blocks:
                if block["kind"] == "python" and not block["file"]:
                    yield f"{path.stem}: {section.splitlines()[0].strip('# ')}", block["text"], files


def said_lines(program: str) -> list[str]:
    """What the comments of a program say that it prints: behind what prints it, and below that."""
    said: list[str] = []
    for beside, below in PRINTED.findall(program):
        said += [beside] if beside else []
        said += [line.strip().removeprefix("# ") for line in below.splitlines()]
    return said


@contextlib.contextmanager
def logs_as_they_were() -> Iterator[None]:
    """A program may set up the logs of its process."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    root.handlers.clear()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def printed_lines(path: Path) -> list[str]:
    """Run a program in a thread, where it may have an event loop of its own, and return what it prints."""
    output, failures = io.StringIO(), []

    def run() -> None:
        try:
            runpy.run_path(str(path), run_name="__main__")
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    with logs_as_they_were(), contextlib.redirect_stdout(output):
        thread = threading.Thread(target=run, name=path.name, daemon=True)
        thread.start()
        thread.join(PROGRAM_SECONDS)
    assert not thread.is_alive(), f"it does not end; it has printed {output.getvalue()!r}"
    if failures:
        raise failures[0]
    return output.getvalue().splitlines()


@pytest.mark.parametrize(
    ("program", "files"), [pytest.param(text, files, id=where) for where, text, files in programs()]
)
def test_a_program_prints_what_its_comments_say(
    program: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {**files, "program.py": program}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    try:
        # In whatever order: what a lifespan prints at its end stands above what is printed before.
        assert sorted(printed_lines(tmp_path / "program.py")) == sorted(said_lines(program))
    finally:
        for name in files:
            sys.modules.pop(name.removesuffix(".py"), None)


def test_there_are_programs_and_they_say_what_they_print() -> None:
    told = {where: len(said_lines(text)) for where, text, _ in programs()}
    assert len(told) >= 20
    assert [where for where, lines in told.items() if not lines] == ["guide: HTTP"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_stands_beside_ours_is_python(path: Path) -> None:
    for block in BLOCK.finditer(path.read_text()):
        if block["kind"] == "py":
            compile(block["text"], path.name, "exec")


# ---- tables


def rows_of(text: str, mark: str) -> list[list[str]]:
    """The cells of the table under <!-- mark -->, without its head."""
    found = re.search(rf"<!-- {mark} -->\n((?:\|.*\n)+)", text)
    assert found, f"there is no table {mark}"
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in found[1].splitlines()[2:]]


def test_the_table_of_settings_is_the_settings() -> None:
    expected = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        expected.append([f"`AIOFLOW_{name.upper()}`", default, field.description])
    assert rows_of(page("settings.md"), "settings") == expected


def test_the_table_of_delivery_settings_is_the_settings() -> None:
    expected = []
    for name, field in DeliverySettings.model_fields.items():
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
        expected.append([f"`{PREFIX}{name.upper()}`", f"`{default}`" if default else "", field.description])
    assert rows_of(page("delivery.md"), "delivery settings") == expected


def test_the_table_of_rules_for_urls_names_those_that_there_are() -> None:
    rows = re.search(r"\| rule \| refuses \|\n\| --- \| --- \|\n((?:\|.*\n)+)", page("delivery.md"))
    assert rows
    said = {rule for row in rows[1].splitlines() for rule in re.findall(r"`([a-z-]+)`", row.split(" | ")[0])}
    by_address = {rule for rule, _ in (*addresses.V4, *addresses.V6)} | {"metadata"}
    assert said == by_address | {"scheme", "port", "userinfo", "host", "syntax", "length", "spelling"}


def test_the_line_that_makes_a_secret_is_the_one_that_the_error_says() -> None:
    assert f"$ {HOW_TO_MAKE}\n" in page("delivery.md")


def test_the_table_of_task_options_is_what_a_task_takes() -> None:
    rows = {name.strip("`"): default for name, default, _ in rows_of(page("guide.md"), "task options")}
    taken = [name for name in inspect.signature(Service.task).parameters if name not in {"self", "misused"}]
    assert list(rows) == taken
    assert set(taken) == {field.name for field in dataclasses.fields(TaskOptions)} | {"name"}
    options = TaskOptions()
    said = {name: default.strip("`") for name, default in rows.items() if name not in {"name", "retry"}}
    assert said == {name: repr(getattr(options, name)) for name in said}
    assert (rows["retry"], options.retry) == ("`Retry()`", Retry())
    declared = {
        name: parameter.default
        for name, parameter in inspect.signature(Service.task).parameters.items()
        if name not in {"self", "misused", "name", "retry", "concurrency"}
    }
    assert declared == {name: getattr(options, name) for name in declared}


def test_the_table_of_retry_is_retry() -> None:
    said = [(name.strip("`"), default.strip("`")) for name, default, _ in rows_of(page("guide.md"), "retry options")]
    policy = Retry()
    values = [(field.name, getattr(policy, field.name)) for field in dataclasses.fields(Retry)]
    assert said == [(name, "(Exception,)" if value == (Exception,) else repr(value)) for name, value in values]


def test_the_table_of_breaker_is_breaker() -> None:
    said = [(name.strip("`"), default.strip("`")) for name, default, _ in rows_of(page("guide.md"), "breaker options")]
    policy = Breaker(on=(OSError,))
    values = [(field.name, getattr(policy, field.name)) for field in dataclasses.fields(Breaker)]
    assert said == [(name, "" if name == "on" else repr(value)) for name, value in values]


def test_the_table_of_submit_is_what_submit_takes() -> None:
    rows = {name.strip("`"): default.strip("`") for name, default, _ in rows_of(page("guide.md"), "submit options")}
    taken = {
        name: parameter.default
        for name, parameter in inspect.signature(Task.submit).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert list(rows) == list(taken)
    assert {name: rows[name] for name in ("delay", "at", "priority")} == {
        name: repr(taken[name]) for name in ("delay", "at", "priority")
    }


def test_the_table_of_web_is_what_it_has() -> None:
    said = {name for names, _ in rows_of(page("guide.md"), "web") for name in re.findall(r"`(\w+)[(`]", names)}
    assert said == set(web.__all__)


def test_the_table_of_a_contract_is_what_a_route_takes() -> None:
    assert [name.strip("`") for name, _ in rows_of(page("guide.md"), "contract")] == list(Contract.__annotations__)


# ---- links


def anchors(text: str) -> set[str]:
    """What its headings are called in a link."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *PAGES, ROOT / "lua" / "README.md"], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_links_lead_somewhere(path: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text()), target
