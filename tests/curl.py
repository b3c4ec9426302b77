"""The curl lines of our pages, carried out without curl: a machine may have only Python."""

from __future__ import annotations

import shlex

import httpx


async def curl(command: str, url: str) -> str:
    """What a curl line prints, sent to this URL instead of its own."""
    program, *words = shlex.split(command)
    assert program == "curl"
    method, headers, body, target = None, {}, None, ""
    rest = iter(words)
    for word in rest:
        match word:
            case "-s":
                pass
            case "-X":
                method = next(rest)
            case "-H":
                name, _, headers[name] = next(rest).partition(": ")
            case "-d":
                body = next(rest)
            case _:
                assert not word.startswith("-"), f"an option that is not known here: {word}"
                target = word
    path = target.removeprefix("http://").partition("/")[2]
    async with httpx.AsyncClient() as client:
        answer = await client.request(
            method or ("GET" if body is None else "POST"), f"{url}/{path}", headers=headers, content=body, timeout=20
        )
    return answer.text
