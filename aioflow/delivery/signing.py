"""Signatures of the Standard Webhooks scheme (standardwebhooks.com), by its library, and where the secrets come from.

A secret is held here and nowhere else, and is neither logged nor shown.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aioflow.errors import ConfigError
from aioflow.job import EMITTED_ID
from aioflow.policy import Discard

SECRET_FILE = "delivery-secret"  # noqa: S105 - the name of a file
HOW_TO_MAKE = (
    "python -c \"import base64, secrets; print('whsec_' + base64.b64encode(secrets.token_bytes(32)).decode())\""
)
SAFE_ID = re.compile(r"[A-Za-z0-9_:=+/@~-]{1,200}")


def library() -> Any:
    """The class that signs. Raises ConfigError where the library is not installed."""
    try:
        from standardwebhooks import Webhook
    except ModuleNotFoundError as error:
        raise ConfigError("aioflow.delivery signs by standardwebhooks: pip install 'aioflow[delivery]'") from error
    return Webhook


class Signer:
    """Signs bodies with every one of its secrets, `whsec_...`, so that receivers may have any of them."""

    def __init__(self, secrets: Sequence[str]) -> None:
        webhook = library()
        self._webhooks = [webhook(secret) for secret in secrets]

    def __repr__(self) -> str:
        return f"<Signer secrets={len(self._webhooks)}>"

    def headers(self, webhook_id: str, body: bytes) -> dict[str, str]:
        """The three headers of the scheme, for an attempt that is made now."""
        now, text = datetime.now(UTC), body.decode()
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(webhook.sign(webhook_id, now, text) for webhook in self._webhooks),
        }


def webhook_id_of(job_id: str) -> str:
    """The job's id, as webhook-id. Raises Discard where somebody chose one that must not be signed.

    The scheme signs id, timestamp and body with full stops between them; an id that somebody has chosen must hold none.
    """
    if not SAFE_ID.fullmatch(job_id) and not EMITTED_ID.fullmatch(job_id):
        raise Discard("the job's id cannot be a webhook-id: use ASCII letters and digits, and any of _ : = + / @ ~ -")
    return job_id


def secret_of_folder(folder: Path) -> str:
    """The secret that is kept in a file of this folder, made where there is none; only the owner may read it.

    Several processes may ask at once: all get the same. Raises ConfigError where it cannot be read or written.
    """
    path = folder / SECRET_FILE
    try:
        if not path.exists():
            _make(path)
        found = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the secret of deliveries in {path} cannot be had: {type(error).__name__}") from error
    if not re.fullmatch(r"whsec_[A-Za-z0-9+/]{32,88}={0,2}", found):
        raise ConfigError(f"{path} holds no secret: remove it, or put one there: {HOW_TO_MAKE}")
    return found


def _make(path: Path) -> None:
    """Write a new secret in whole, unless another process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name) as file:  # mode 0600
        file.write(b"whsec_" + base64.b64encode(secrets.token_bytes(32)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(file.name, path)
        except FileExistsError:
            return
