"""Runs the tests' servers with the README's ACL line, where AIOFLOW_TEST_ACL=1 asks for it.

aioflow then connects as that user everywhere, and the tests' own probing stays the default user's: what a test asks for
by `store.redis` or `runtime.redis` goes over a connection of its own, since a test may look where aioflow may not.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from redis.asyncio import Redis

from aioflow.engine.caller import Caller
from aioflow.engine.connect import Clients
from tests.serving import ROOT

ON = os.environ.get("AIOFLOW_TEST_ACL") == "1"
USER, PASSWORD = ("aioflow", "of-a-test") if ON else ("default", "")
"""As whom aioflow connects."""
_defaults: dict[str, str] = {}
LINE = re.compile(r"^user aioflow .*$", re.MULTILINE)


def readme_line() -> str:
    """The README's ACL line."""
    (found,) = LINE.findall((ROOT / "README.md").read_text())
    return str(found)


def words(namespace: str = "*", password: str = PASSWORD) -> list[str]:
    """The README's line for another namespace, as the words behind `user`; tests have a namespace each."""
    line = readme_line().replace(">PASSWORD", f">{password}")
    return re.sub(r"(?<= [~&])aioflow:", f"{namespace}:", line).split()[1:]


def arguments() -> tuple[str, ...]:
    """What a server is started with."""
    return ("--user", *words()) if ON else ()


def of_user(url: str) -> str:
    """A URL of the default user's as aioflow is given it."""
    if not ON:
        return url
    changed = re.sub(r"://(?:[^@/]*@)?", f"://{USER}:{PASSWORD}@", url, count=1)
    _defaults[changed] = url
    return changed


def of_default(url: str) -> str:
    """What `of_user` was given for a URL, which may have got options since; itself where it was not made so."""
    known = next((changed for changed in _defaults if url.startswith(changed)), "")
    return url.replace(known, _defaults[known], 1) if known else url


class _Probe:
    """`Caller.redis`: aioflow's own client, and another for whoever is a test."""

    def __set__(self, caller: Caller, client: Redis) -> None:
        caller.__dict__["own redis"] = client

    def __get__(self, caller: Caller, _: type) -> Any:
        asking = sys._getframe(1)
        while asking.f_code.co_name == "redis" and asking.f_back is not None:
            asking = asking.f_back  # Client.redis hands on what it has
        if not str(asking.f_globals["__name__"]).startswith("tests.") or not self._differs(caller):
            return caller.__dict__["own redis"]
        if "probe" not in caller.__dict__:
            own, probes = caller._clients, Clients(of_default(caller._clients._url), "test")
            caller.__dict__["probe"] = probes.make(16)
            close = own.close

            async def close_both() -> None:
                await probes.close()
                await close()

            own.close = close_both  # type: ignore[method-assign]
        return caller.__dict__["probe"]

    @staticmethod
    def _differs(caller: Caller) -> bool:
        return of_default(caller._clients._url) != caller._clients._url


def install() -> None:
    """Give the tests of this process their own connections."""
    if ON:
        Caller.redis = _Probe()  # type: ignore[assignment]
