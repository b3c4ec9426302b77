"""TLS to the server: what a URL's query may say of it, and the connections that come of it.

The certificate and the host name are checked unless the URL says otherwise.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redis.asyncio.connection import Connection, SSLConnection

OPTIONS = {
    "ssl_ca_certs": "a file",
    "ssl_certfile": "a file",
    "ssl_keyfile": "a file",
    "ssl_cert_reqs": "none|optional|required",
    "ssl_check_hostname": "true|false|True|False",
}
"""What a URL's query may set, and to what."""


def wrong_options(given: Mapping[str, str], allowed: Mapping[str, str]) -> list[str]:
    """What is wrong with the values of a query; `allowed` are the options that it may have."""
    wrong = [
        f"{name}={value!r}: use {allowed[name]}"
        for name, value in given.items()
        if name in allowed and not _fits(value, allowed[name])
    ]
    if "ssl_keyfile" in given and "ssl_certfile" not in given:
        wrong.append("ssl_keyfile needs ssl_certfile")
    return wrong


def _fits(value: str, kind: str) -> bool:
    match kind:
        case "a number":
            return value.isascii() and value.isdigit()
        case "a file":
            return Path(value).is_file()
        case _:
            return value in kind.split("|")


def arguments_of(query: Mapping[str, str]) -> dict[str, Any]:
    """The driver's arguments that options of a query mean."""
    arguments: dict[str, Any] = {name: value for name, value in query.items() if name in OPTIONS}
    if "ssl_check_hostname" in arguments:
        arguments["ssl_check_hostname"] = arguments["ssl_check_hostname"].lower() == "true"
    return arguments


def connection(options: Mapping[str, Any] | None) -> type[Connection]:
    """What connects: over TLS where there are options of it, be they empty."""
    return Connection if options is None else SSLConnection


def reason_of(error: BaseException) -> str:
    """What is said of a line that broke; of a TLS handshake that failed, what to change."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            mend = "ssl_ca_certs= in its URL names the file of the CA that has signed it"
            if "match" in cause.verify_message.lower():
                mend = "connect by a name or an address that the certificate has"
            return f"its certificate is refused: {cause.verify_message}; {mend}"
        if isinstance(cause, ssl.SSLError):
            what = f"no TLS with it ({cause.reason or cause})"
            return f"{what}; is that its tls-port, and does it want a certificate (ssl_certfile=, ssl_keyfile=)?"
        cause = cause.__cause__ or cause.__context__
    return str(error)
