"""Loads the Lua scripts: resolves their includes, reads their headers, and sends them by hash.

A script's header names its keys in order, so that the store can build KEYS from a queue by name and no index is
written twice. The header is checked against the body by a test.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from aioflow.errors import ConfigError

INCLUDE = re.compile(r"^--@include (\w+)$", re.MULTILINE)
UNRESOLVED = re.compile(r"^\s*--\s*@include\b.*$", re.MULTILINE)
HEADER = re.compile(r"^-- (KEYS|ARGV|Returns|Guards|Repeat|Cost): (.+)$", re.MULTILINE)


def script_root() -> Path:
    """The folder of Lua scripts: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for root in (package / "lua", package.parent / "lua"):
        if (root / "queue").is_dir():
            return root
    raise ConfigError(f"the Lua scripts are missing beside {package}; install aioflow again")


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script with its includes resolved."""

    name: str
    source: str
    sha: str
    header: dict[str, str]
    keys: tuple[tuple[str, str], ...]
    """(name, type) of each key, in order."""

    @property
    def may_repeat(self) -> bool:
        """Whether the store may send it again after a lost answer without asking its caller."""
        said = self.header.get("Repeat", "")
        return said.startswith(("same answer", "no second effect")) and "but one lease" not in said


@cache
def load(name: str, *, plain: bool = False) -> Script:
    """Read a script, such as "queue/submit", from the folder of scripts.

    `plain` leaves out the shebang line, which fakeredis refuses.
    """
    root = script_root()
    return read(name, root / f"{name}.lua", [root / "include"], plain=plain)


@cache
def load_file(path: Path, *, plain: bool = False) -> Script:
    """Read a user's script; its includes lie in `include` beside it, or are aioflow's own. Raises ConfigError."""
    try:
        return read(path.stem, path, [path.parent / "include", script_root() / "include"], plain=plain)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"script {path}: {error}") from error


def read(name: str, path: Path, folders: Sequence[Path], *, plain: bool) -> Script:
    """A script with its includes, each from the first folder that has it; a header is optional here.

    Raises ConfigError for a line that looks like an include and is none.
    """

    def included(found: re.Match[str]) -> str:
        files = [folder / f"{found[1]}.lua" for folder in folders]
        return next((file for file in files if file.is_file()), files[0]).read_text("utf-8").rstrip()

    text = path.read_text("utf-8")
    source = INCLUDE.sub(included, text)
    if unresolved := UNRESOLVED.search(source):
        # Lua would take it for a comment, and miss what it stands for only on the path that uses it.
        message = "write --@include NAME of letters, digits and _, alone on its line, and not in an include"
        raise ConfigError(f"script {path}: {unresolved[0].strip()!r} includes nothing: {message}")
    if plain and source.startswith("#!"):
        source = source.partition("\n")[2]
    header = dict(HEADER.findall(text))
    keys = tuple((key, kind) for key, kind in re.findall(r"(\w+) (\w+)", header.get("KEYS", "")))
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest(), header, keys)
