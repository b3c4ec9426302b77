"""Whose request it is: the peer's address, or what trusted proxies say of it in X-Forwarded-For.

The header is read from the right, as long as it was written by somebody trusted; the first other address is the client.
The middlewares of aiohttp-remotes, whose rules these are, do not fit here: they are made for a whole application, and
ours has routes of other services; XForwardedFiltered believes the header of any peer, trusted or not, and
XForwardedStrict answers 400 unless exactly as many proxies as configured were passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from aiohttp import web

from services.tracking.models import address_of
from services.tracking.settings import Network

MOST_HOPS = 20


def client_address(request: web.Request, trusted: Sequence[Network]) -> str | None:
    """The client's IP address; None where there is none, as behind a unix socket."""
    client = _address(request.remote or "")
    if client is None or not trusted:
        return client
    told = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
    for hop in reversed(told[-MOST_HOPS:]):
        if not _is_trusted(client, trusted):
            break
        before = _address(hop.strip())
        if before is None:  # whoever is trusted says no more
            break
        client = before
    return client


def _address(text: str) -> str | None:
    try:
        return address_of(text)
    except ValueError:
        return None


def _is_trusted(text: str, trusted: Sequence[Network]) -> bool:
    address = ip_address(text)
    return any(address in network for network in trusted)
