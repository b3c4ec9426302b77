"""One POST and its answer: a connection of its own, to an address that was checked, within one time limit.

What is connected to is decided here and nowhere else: each address that a name resolves to is checked, and again the
one of each socket that is made, since a client connects to literal addresses without asking its resolver. Redirects,
proxies of the environment and cookies are not followed; of the answer's body 1 KiB is read, as it comes.
"""

from __future__ import annotations

import asyncio
import email.utils
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from aioflow.delivery.outcomes import DeliveryFailed, UrlRefused
from aioflow.delivery.urls import Rules, Target

MOST_READ = 1024
"""Bytes of an answer's body, and characters of what an error says."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver answered: the first 1 KiB of its body as printable text, its wish for a wait in seconds."""

    status: int
    text: str = ""
    retry_after: float | None = None


class Gate(AbstractResolver):
    """Lets one request through to addresses that the rules allow; `refused` is why it let none."""

    def __init__(self, target: Target, rules: Rules, resolver: AbstractResolver) -> None:
        self.refused: UrlRefused | None = None
        self._target = target
        self._rules = rules
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of the target's name; none where one of them is refused: it may be the next to be tried."""
        found = await self._resolver.resolve(host, port, family)
        for entry in found:
            self._check(entry["host"])
        return found

    def open(self, info: tuple[Any, ...]) -> socket.socket:
        """The socket for an address that is being connected to now."""
        family, kind, protocol, _, address = info
        self._check(str(address[0]))
        return socket.socket(family, kind, protocol)

    async def close(self) -> None:
        """The resolver is not this request's."""

    def _check(self, address: str) -> None:
        try:
            self._rules.check_address(self._target, address)
        except UrlRefused as refusal:
            self.refused = refusal
            raise OSError(str(refusal)) from refusal  # which is what the client expects of a socket


async def exchange(
    url: URL,
    body: bytes,
    headers: Mapping[str, str],
    *,
    target: Target,
    rules: Rules,
    resolver: AbstractResolver,
    timeout: float,
) -> Answer:
    """POST the body and return the answer, whatever its status; `timeout`, in seconds, covers all of it.

    Raises UrlRefused where no address may be connected to, and DeliveryFailed where no answer was had.
    """
    gate = Gate(target, rules, resolver)
    deadline = asyncio.get_running_loop().time() + timeout
    # A connection a request: one that was kept may be closed by the receiver at any time, and a POST is not repeated.
    connector = aiohttp.TCPConnector(
        resolver=gate, socket_factory=gate.open, use_dns_cache=False, force_close=True, limit=0
    )
    session = aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
        trust_env=False,
        auto_decompress=False,
    )
    try:
        async with asyncio.timeout_at(deadline):
            answer = await session.post(url, data=body, headers=headers, allow_redirects=False)
        try:
            taken = 200 <= answer.status <= 299
            text = "" if taken else await first_bytes(answer, deadline)
            return Answer(answer.status, text, retry_after_of(answer.headers.get("Retry-After")))
        finally:
            answer.close()
    except TimeoutError as error:
        raise DeliveryFailed(f"{target}: no answer within {timeout:g} s") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        if gate.refused is not None:
            raise gate.refused from None
        said = printable(str(error)[:MOST_READ]) or type(error).__name__
        raise DeliveryFailed(f"{target}: no answer: {type(error).__name__}: {said}") from error
    finally:
        await session.close()


async def first_bytes(answer: aiohttp.ClientResponse, deadline: float) -> str:
    """The first 1 KiB of the body, or what of it comes in time, as one line."""
    encoding = answer.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        return f"(a body in {printable(encoding[:40])}, which was not asked for)"
    got = b""
    try:
        async with asyncio.timeout_at(deadline):
            while len(got) < MOST_READ and (part := await answer.content.read(MOST_READ - len(got))):
                got += part
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
        return printable(got.decode(errors="replace")) + " (cut off)"
    return printable(got.decode(errors="replace"))


def printable(text: str) -> str:
    """The text in one line: what does not print is escaped, since it ends up in logs and on terminals."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text.strip()
    )


def retry_after_of(value: str | None) -> float | None:
    """Seconds from a Retry-After (RFC 9110, 10.2.3): a number of seconds or an HTTP date; None for anything else."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,15}", value.strip()):
        return float(value)
    try:
        at = email.utils.parsedate_to_datetime(value.strip()[:100])
    except (ValueError, TypeError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
