"""The header of every Lua script says what its body does, and lua/README.md what the headers say."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import tests
from aioflow.engine import scripts
from aioflow.engine.keys import PARTS
from aioflow.engine.store import Store

ROOT = scripts.script_root()
INCLUDES = sorted(path for path in ROOT.rglob("*.lua") if path.parent.name == "include")
SCRIPTS = sorted(path for path in ROOT.rglob("*.lua") if path.parent.name != "include")
ENGINE = [path for path in SCRIPTS if path.parent.name in {"queue", "timeline"}]
README = (ROOT / "README.md").read_text()

FIELDS = ("KEYS", "ARGV", "Returns", "Guards", "Repeat", "Cost")
SHEBANGS = {"#!lua", "#!lua flags=allow-oom"}
TYPES = {"zset", "hash", "list", "set", "string", "stream"}
INVARIANTS = {f"I{number}" for number in range(1, 11)}
KNOWN = re.compile(
    r"and|break|do|else|elseif|end|false|for|function|if|in|local|nil|not|or|return|then|true"
    r"|KEYS|ARGV|cjson|collectgarbage|error|ipairs|math|pairs|pcall|redis|setmetatable|string|table|tonumber|type|unpack"
)
"""Lua's words, and the globals that scripts may use."""
BINDINGS = (
    r"\blocal (?!function\b)([\w, ]+)",
    r"\blocal function (\w+)",
    r"\bfunction(?: \w+)?\(([^)]*)\)",
    r"\bfor ([\w, ]+?) (?:in|=)",
)
METHODS = {"await": "await_result"}
"""Where a script's name is a word of Python, its method has a longer one."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def loaded(path: Path, *, plain: bool = False) -> scripts.Script:
    """As the engine loads its scripts, and a runtime those of a service."""
    return scripts.load(name_of(path), plain=plain) if path in ENGINE else scripts.load_file(path, plain=plain)


def short(path: Path) -> str:
    """What the table of includes calls a script or an include: a service's by its folder."""
    owner = path.parent.parent if path.parent.name == "include" else path.parent
    return path.stem if owner == ROOT or path in ENGINE else f"{owner.name}/{path.stem}"


def included(path: Path) -> list[Path]:
    """The files that a script includes."""
    names = scripts.INCLUDE.findall(path.read_text())
    found = [path.parent / "include" / f"{name}.lua" for name in names]
    return [file if file in INCLUDES else ROOT / "include" / file.name for file in found]


def code_of(text: str) -> str:
    """The Lua without comments and without what stands in quotes."""
    return re.sub(r"'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|--[^\n]*", "", text)


def top_level(text: str) -> list[str]:
    """The items of a list separated by commas, a comma in parentheses or braces aside."""
    return [item.strip() for item in re.findall(r"(?:\([^()]*\)|[^,])+", text)]


@dataclass(frozen=True)
class Header:
    """A script's lines before its body."""

    shebang: str
    name: str
    purpose: str
    fields: dict[str, str]
    body: list[str]


def header_of(path: Path) -> Header:
    shebang, first, *rest = path.read_text().splitlines()
    purpose = re.fullmatch(r"-- (\w+): (.+\.)", first)
    assert purpose, f"the second line is '-- name: purpose.', not {first!r}"
    lines = [re.fullmatch(r"-- (\w+): (\S.*)", line) for line in rest[: len(FIELDS)]]
    fields = {found[1]: found[2] for found in lines if found}
    assert tuple(fields) == FIELDS, f"{path}: the header has {FIELDS} in this order, a line each"
    return Header(shebang, purpose[1], purpose[2], fields, rest[len(FIELDS) :])


@pytest.fixture(params=SCRIPTS, ids=name_of)
def script(request: pytest.FixtureRequest) -> Path:
    """Every script that is no include."""
    path: Path = request.param
    return path


# ---- a header and its body


def test_the_purpose_has_the_files_name(script: Path) -> None:
    header = header_of(script)
    assert header.name == script.stem
    assert header.shebang in SHEBANGS


def test_keys_are_bound_in_order_and_never_named_again(script: Path) -> None:
    header = header_of(script)
    keys = top_level(header.fields["KEYS"])
    names = [re.fullmatch(r"(\w+) (\w+)", key) for key in keys]
    assert all(names), f"KEYS is 'name type, name type', not {header.fields['KEYS']!r}"
    bound = re.fullmatch(r"local ([\w, ]+) = (.+)", header.body[0])
    assert bound, f"the first statement binds KEYS, it is {header.body[0]!r}"
    assert top_level(bound[1]) == [found[1] for found in names if found]
    assert top_level(bound[2]) == [f"KEYS[{number}]" for number in range(1, len(keys) + 1)]
    assert "KEYS" not in "\n".join(header.body[1:]), "KEYS is used in the first statement only"


def test_key_types(script: Path) -> None:
    keys = dict(key.split() for key in top_level(header_of(script).fields["KEYS"]))
    assert set(keys.values()) <= TYPES
    if script.parent.name == "queue":
        assert keys == {part: PARTS.get(part) for part in keys}


def test_arguments_are_bound_in_order(script: Path) -> None:
    header = header_of(script)
    once, *per_item = header.fields["ARGV"].split("; then per ")
    described = [re.fullmatch(r"(\w+)(?: \((.+)\))?", word) for word in top_level(once)]
    assert all(described), f"ARGV is 'name (unit or meaning), ...', not {once!r}"
    names = [found[1] for found in described if found]
    bound = re.fullmatch(r"local ([\w, ]+) = (.+)", header.body[1])
    assert bound, f"the second statement binds ARGV, it is {header.body[1]!r}"
    assert top_level(bound[1]) == names
    values = top_level(bound[2])
    for number, value in enumerate(values, start=1):
        assert re.search(r"\bARGV\[(\d+)\]", value), f"{value} binds no argument"
        assert re.findall(r"\bARGV\[(\d+)\]", value) == [str(number)]
    assert len(values) == len(names)
    # What is a number or compared with one has its unit or its meaning said.
    for found, value in zip(described, values, strict=True):
        assert found
        if value != f"ARGV[{values.index(value) + 1}]" or found[1].endswith("_ms"):
            assert found[2], f"{found[1]}: say its unit or meaning"
        if found[1].endswith("_ms"):
            assert found[2].startswith("ms"), f"{found[1]} is in ms"
    rest = code_of("\n".join(header.body[2:]))
    assert not re.search(r"\bARGV\[\d+\]", rest), "a fixed argument is named by its local only"
    assert bool(per_item) == ("ARGV[" in rest), "what is sent per item is said after '; then per'"


def test_guards_are_invariants(script: Path) -> None:
    guards = header_of(script).fields["Guards"].split(" ")
    assert set(guards) <= INVARIANTS
    assert guards == sorted(guards, key=lambda guard: int(guard[1:]))
    assert "I8" in guards, "every script's work is bounded"


def test_a_batch_says_its_limit(script: Path) -> None:
    header = header_of(script)
    counted = re.search(r"\b(count|limit) \(([^)]*)\)", header.fields["ARGV"])
    if counted:
        assert "at most 1000" in counted[2]
        assert re.search(rf"\b{counted[1]} < 1 or {counted[1]} > 1000\b", code_of("\n".join(header.body)))


def test_loops_are_bounded(script: Path) -> None:
    code = code_of(loaded(script).source)
    assert not re.search(r"\b(while|repeat|until|goto)\b", code), "use for: its end is known when it begins"


def test_every_name_is_bound(script: Path) -> None:
    # An include names locals of the script that includes it; one that is missing shows on the path that uses it only.
    code = code_of(loaded(script).source.partition("\n")[2])
    bindings = " ".join(names for pattern in BINDINGS for names in re.findall(pattern, code))
    # A name after a dot is a field, one before a single "=" a field or the target of an assignment.
    used = set(re.findall(r"(?<![\w.])([A-Za-z_]\w*)(?!\w)(?!\s*=[^=])", code))
    assert {name for name in used if not KNOWN.fullmatch(name)} <= set(re.findall(r"\w+", bindings))


def test_the_header_is_what_the_loader_reads(script: Path) -> None:
    header, made = header_of(script), loaded(script)
    assert made.header == header.fields
    assert list(made.keys) == [tuple(key.split()) for key in top_level(header.fields["KEYS"])]
    assert loaded(script, plain=True).source == made.source.partition("\n")[2]


# ---- includes


def test_every_include_exists_and_is_used() -> None:
    assert {file for path in SCRIPTS for file in included(path)} == set(INCLUDES)


def test_include_lines_are_resolved(script: Path) -> None:
    assert "@include" not in loaded(script).source


def test_a_script_includes_a_file_once(script: Path) -> None:
    asked = scripts.INCLUDE.findall(script.read_text())
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("include", INCLUDES, ids=short)
def test_an_include_says_what_it_is_and_takes_no_arguments(include: Path) -> None:
    text = include.read_text()
    assert text.startswith("-- ")
    assert not re.search(r"\b(KEYS|ARGV)\b", code_of(text)), "includes work on the locals that their script has bound"


# ---- one name: script, method of the store, test


@pytest.mark.parametrize("path", ENGINE, ids=name_of)
def test_the_store_has_a_method_for_the_script(path: Path) -> None:
    method = METHODS.get(path.stem, path.stem)
    source = inspect.getsource(getattr(Store, method))
    assert f'"{name_of(path)}"' in source, f"Store.{method} calls {name_of(path)}"


@pytest.mark.parametrize("path", ENGINE, ids=name_of)
def test_the_script_has_a_test_of_its_own(path: Path) -> None:
    folder = Path(tests.__file__).parent / "integration" / "scripts"
    assert (folder / f"test_{path.stem}.py").is_file()


# ---- lua/README.md


def table(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without code marks."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("`", "") for cell in row] for row in rows[2:]]


def test_the_readmes_key_table() -> None:
    rows = table("Keys")
    assert [(row[0], row[1]) for row in rows] == list(PARTS.items())
    assert all(len(row) == 3 and row[2] for row in rows)


def test_the_readmes_script_table() -> None:
    described = []
    for path in SCRIPTS:
        header = header_of(path)
        fields = header.fields
        described.append([name_of(path), header.purpose, fields["Guards"], fields["Repeat"], fields["Cost"]])
    assert table("Scripts") == [[cell.replace("`", "") for cell in row] for row in described]


def test_the_readmes_include_table() -> None:
    users = {
        short(path): ", ".join(short(script) for script in SCRIPTS if path in included(script)) for path in INCLUDES
    }
    assert [(row[0], row[2]) for row in table("Includes")] == list(users.items())


def test_the_readmes_invariants() -> None:
    assert re.findall(r"^- (I\d+) ", README, re.MULTILINE) == sorted(INVARIANTS, key=lambda guard: int(guard[1:]))


def test_the_readme_says_which_scripts_run_at_maxmemory() -> None:
    said = re.search(r"All scripts but ([^.]+?) carry\s+`#!lua flags=allow-oom`", README)
    assert said
    plain = {path.stem for path in SCRIPTS if header_of(path).shebang == "#!lua"}
    assert set(re.findall(r"`(\w+)`", said[1])) == plain
