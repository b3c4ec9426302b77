"""Where deliveries may go: the rules for URLs, and for the addresses that their names resolve to. No I/O.

`Rules.check` says all that can be said without asking for a name; `Rules.check_address` has the last word, on each
address that is about to be connected to. Both read the same allow-list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from yarl import URL

from aioflow.delivery.addresses import Address, plain_address, refusing_rule
from aioflow.delivery.models import LONGEST_URL
from aioflow.delivery.outcomes import UrlRefused

SCHEMES = ("https", "http")
PORTS = (80, 443, 8080, 8443)
NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*")
NUMERIC_END = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)", re.IGNORECASE)
"""What a system may take for an IPv4 address, however it is spelled (WHATWG URL, "ends in a number")."""
QUAD = re.compile(r"(0|[1-9][0-9]{0,2})(\.(0|[1-9][0-9]{0,2})){3}")

SAID = {
    "metadata": "is where a cloud's machines ask for their credentials",
    "shared": "is shared address space of providers (100.64.0.0/10)",
    "tunnel": "is of a tunnel that carries another address",
    "translated": "is translated to another address",
}
"""Of the rules whose name says too little."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom a request is for: `host` is a lower-case name without a last dot, or an address."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def address(self) -> Address | None:
        """The address that the host is; None for a name."""
        try:
            return plain_address(self.host)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Allowed:
    """An entry of the allow-list: a name or a network, on one port or on all (None)."""

    where: str | IPv4Network | IPv6Network
    port: int | None

    def covers(self, port: int) -> bool:
        """Whether it holds for that port."""
        return self.port in (None, port)


def parse_allowed(entry: str) -> Allowed:
    """An entry such as hooks.internal, hooks.internal:8080, 10.1.0.0/16, 127.0.0.1:8080 or [fd00::/8]:443.

    Raises ValueError.
    """
    where, port = entry, ""
    if entry.startswith("["):
        where, closed, rest = entry[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError(f"{entry!r}: write [address]:port")
        port = rest[1:] if rest else ""
    elif entry.count(":") == 1:
        where, _, port = entry.partition(":")
        if not port:
            raise ValueError(f"{entry!r}: the port is missing")
    if port and not (re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
        raise ValueError(f"{entry!r}: a port is 1 to 65535")
    number = int(port) if port else None
    try:
        return Allowed(ip_network(where), number)
    except ValueError as error:
        name = where.lower().rstrip(".")
        if "/" in where or ":" in where or NUMERIC_END.fullmatch(name) or not NAME.fullmatch(name):
            raise ValueError(f"{entry!r} is no host, address or network: {error}") from error
        return Allowed(name, number)


class Rules:
    """What the settings allow. `allow` are entries as `parse_allowed` takes them; raises its ValueError."""

    def __init__(self, *, allow: Sequence[str] = (), http: bool = False, ports: Sequence[int] = PORTS) -> None:
        allowed = [parse_allowed(entry) for entry in allow]
        self._names = [(entry.where, entry) for entry in allowed if isinstance(entry.where, str)]
        self._networks = [(entry.where, entry) for entry in allowed if not isinstance(entry.where, str)]
        self._http = http
        self._ports = frozenset(ports)

    def check(self, url: str) -> tuple[URL, Target]:
        """The URL as it is asked for, and whom it is for. Raises UrlRefused."""
        parsed, target = parse(url)
        if target.address is not None:
            self.check_address(target, target.host)
        elif not self._allows_name(target) and not self._may_allow(target.port):
            self._check_general(target)
            if target.host == "localhost" or target.host.endswith(".localhost"):
                raise refused(target, "loopback", f"{target.host} is this machine")
        return parsed, target

    def check_address(self, target: Target, text: str) -> None:
        """Raise UrlRefused unless an address may be connected to for this target."""
        try:
            address = plain_address(text)
        except ValueError:
            raise refused(target, "address", f"it resolves to {text[:100]!r}, which is no address") from None
        if self._allows_name(target) or self._allows_address(address, target.port):
            return
        self._check_general(target)
        rule = refusing_rule(address)
        if rule is not None:
            raise refused(target, rule, f"{text} {SAID.get(rule, f'is a {rule} address')}")

    def _check_general(self, target: Target) -> None:
        if target.scheme != "https" and not self._http:
            raise refused(target, "scheme", "use https")
        if target.port not in self._ports:
            raise refused(target, "port", f"use port {', '.join(map(str, sorted(self._ports)))}")

    def _allows_name(self, target: Target) -> bool:
        return any(name == target.host and entry.covers(target.port) for name, entry in self._names)

    def _allows_address(self, address: Address, port: int) -> bool:
        return any(address in network and entry.covers(port) for network, entry in self._networks)

    def _may_allow(self, port: int) -> bool:
        """Whether a name could resolve into a network that is allowed; only the connection shows."""
        return any(entry.covers(port) for _, entry in self._networks)


def refused(target: Target, rule: str, why: str) -> UrlRefused:
    """The error; it names the host and no more of the URL, whose path may hold a secret."""
    return UrlRefused(rule, f"{target} is refused ({rule}): {why}")


def parse(url: str) -> tuple[URL, Target]:
    """Take a URL apart as the HTTP client does. Raises UrlRefused."""
    if len(url) > LONGEST_URL:
        raise UrlRefused("length", f"the URL is refused (length): it has more than {LONGEST_URL} characters")
    if not url.isprintable() or re.search(r"[\s\\]", url):
        raise UrlRefused("syntax", "the URL is refused (syntax): it holds a space, a backslash or a control character")
    try:
        parsed = URL(url)
        scheme, host, port = parsed.scheme, parsed.raw_host, parsed.port
    except (ValueError, IndexError):  # yarl counts on a letter between user and path where there are brackets
        raise UrlRefused("syntax", "the URL is refused (syntax): it cannot be read") from None
    if scheme not in SCHEMES:
        raise UrlRefused("scheme", f"the URL is refused (scheme): use https, not {scheme[:20] or 'none'!r}")
    if re.match(r"[^/?#]*//[^/?#]*@", url):
        raise UrlRefused("userinfo", "the URL is refused (userinfo): it holds a user or a password")
    if not host or port is None or port == 0:
        raise UrlRefused("host", "the URL is refused (host): it names no host, or port 0")
    target = Target(scheme, host.lower().removesuffix("."), port)
    if ":" in host or QUAD.fullmatch(host):
        if target.address is None or "%" in host:
            raise refused(target, "host", "it is no address, or one with a zone")
    elif NUMERIC_END.fullmatch(target.host):
        raise refused(target, "spelling", "write an IPv4 address as four decimal numbers")
    elif not NAME.fullmatch(target.host):
        raise refused(target, "host", "it is no host name")
    return parsed, target
