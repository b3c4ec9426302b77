"""Finds the primary through Sentinel, anew for every connection, so that a failover needs no restart.

A Sentinel that was cut off may name a server that is the primary no more: each new connection asks for its role.
Source: Redis documentation, "Guidelines for Redis clients with support for Redis Sentinel".
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote

from redis import exceptions as driver
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel

from aioflow.engine import tls
from aioflow.errors import ConfigError

SCHEMES = ("redis+sentinel", "rediss+sentinel")
"""The second over TLS, to the Sentinels as well."""
FORM = "redis+sentinel://user:password@host:26379,host:26379/NAME/0"
DEFAULT_PORT = 26379
SECONDS = 1.0
"""For one Sentinel to connect, and to answer."""
OPTIONS = {"sentinel_username", "sentinel_password"}
HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[^:\[\]]+)(:(?P<port>[0-9]{1,5}))?")


URL = re.compile(r"([^:/?#]+):(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?")
"""RFC 3986, appendix B. urlsplit takes one host alone in brackets, since the Python releases of 2024."""


def split(url: str) -> SplitResult:
    """The parts of a URL that may name several hosts; all empty where it is none."""
    found = URL.fullmatch(url)
    return SplitResult(*(found.groups(default="") if found else ("", "", "", "", "")))


@dataclass(frozen=True, slots=True)
class Place:
    """What a URL says: where the Sentinels are, what they call the server, and how to log in to both."""

    sentinels: list[tuple[str, int]]
    name: str
    server: dict[str, Any]
    login: dict[str, str]
    tls: dict[str, Any] | None
    """How to do TLS; None: not at all."""


def parse(url: str) -> Place:
    """Read a URL. Raises ConfigError, which shows nothing of what may be a password."""
    parts = split(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    account, _, hosts = parts.netloc.rpartition("@")
    found = [HOST.fullmatch(host) for host in hosts.split(",")]
    if any(host and int(host["port"] or DEFAULT_PORT) > 65535 for host in found):
        found = [None]
    over_tls = parts.scheme == SCHEMES[1]
    allowed = {*OPTIONS, *(tls.OPTIONS if over_tls else ())}
    name, _, db = parts.path.removeprefix("/").partition("/")
    if None in found or not name or not re.fullmatch("[0-9]*", db) or options.keys() - allowed or parts.fragment:
        raise ConfigError(
            f"the URL of redis cannot be read; write {FORM}, and ?sentinel_password= where the Sentinels want one; "
            "in a password %40 for an @, %2F for a /, %23 for a #, %3F for a ?, %26 for a &"
        )
    if wrong := tls.wrong_options(options, tls.OPTIONS):
        raise ConfigError(f"the URL of redis: {'; '.join(wrong)}")
    sentinels = [(host["host"].strip("[]"), int(host["port"] or DEFAULT_PORT)) for host in found if host]
    login = {key.removeprefix("sentinel_"): value for key, value in options.items() if key in OPTIONS}
    server = {"db": int(db or 0), **login_of(account)}
    return Place(sentinels, unquote(name), server, login, tls.arguments_of(options) if over_tls else None)


def login_of(account: str) -> dict[str, str]:
    """The user and the password before the hosts, where they are given."""
    user, _, password = account.partition(":")
    given = {"username": user, "password": password}
    return {key: unquote(value) for key, value in given.items() if value}


class Finder:
    """Asks the Sentinels."""

    def __init__(self, place: Place, retry: Retry) -> None:
        self._place = place
        options: dict[str, Any] = {
            "socket_timeout": SECONDS,
            "socket_connect_timeout": SECONDS,
            "protocol": 2,
            "retry": retry,
        }
        over_tls = {} if place.tls is None else {"ssl": True, **place.tls}
        self._sentinel = Sentinel(place.sentinels, sentinel_kwargs={**options, **place.login, **over_tls})

    async def primary(self) -> tuple[str, int]:
        """Where the primary is. Raises redis' ConnectionError where no Sentinel that answers knows it."""
        try:
            address: tuple[str, int] = await self._sentinel.discover_master(self._place.name)
        except MasterNotFoundError as error:
            why = ", ".join(re.findall(r" - ([\w:]+)", str(error))) or "it is not known, or is down"
            if self._place.tls is not None:
                why += "; they are asked over TLS: ssl_ca_certs= names the file of their CA"
            hosts = ", ".join(f"{host}:{port}" for host, port in self._place.sentinels)
            raise driver.ConnectionError(
                f"no Sentinel of {hosts} says where the primary of {self._place.name!r} is ({why})"
            ) from None
        return address

    async def close(self) -> None:
        """Close the connections to the Sentinels."""
        await asyncio.gather(*(sentinel.aclose() for sentinel in self._sentinel.sentinels), return_exceptions=True)


class ToPrimary(Connection):
    """A connection to whatever server is the primary when it connects; `finder` is set by a subclass."""

    finder: Finder

    async def _connect(self) -> None:
        self.host, self.port = await self.finder.primary()
        await super()._connect()  # type: ignore[no-untyped-call]

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """As the driver's; and the server says that it is the primary."""
        await super().on_connect_check_health(check_health)
        await self.send_command("ROLE")
        role = await self.read_response(disable_decoding=True)
        if role[0] != b"master":
            raise driver.ConnectionError(f"{self.host}:{self.port} is not the primary any more")
