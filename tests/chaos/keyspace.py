"""Which keys a run may leave in Redis: each is accounted for by a rule of the data model (lua/README.md), or named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from aioflow.engine.keys import LAYOUT, PARTS

EMPTY = ("scheduled", "ready", "running", "started", "open", "claims", "cancels", "outbox", "waiters")
"""Parts of a queue that are empty once nothing is left to do; all but a stream are gone then."""
PAYMENTS = {
    "txns|insufficient_funds_records|gateway_ledger": "hash",
    "(successful|insufficient_funds)_txns|api_errors": "zset",
    "(payments|insufficient_funds)_(made|received)_by:.+": "zset",
}
DATA: Mapping[str, Mapping[str, str]] = {
    "shop": {"sold|waited": "hash"},
    "stock": {"taken": "hash"},
    "books": {"booked": "hash"},
    "archive": {"filed": "hash"},
    "payments": PAYMENTS,
}
"""By service, its own keys and their types."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Keys of this form are there for that reason, and have that type."""

    form: re.Pattern[str]
    type: str


def rules(namespace: str, tasks: list[str]) -> list[Rule]:
    """For a namespace whose tasks, as "service.task", have nothing left to do, and whose runtimes have ended."""
    found = [(rf"{{fleet}}:{part}", kind) for part, kind in (("seen", "zset"), ("about", "hash"))]
    for name in tasks:
        service, _, task = name.partition(".")
        for part, kind in PARTS.items():
            if part not in EMPTY or kind == "stream":
                found.append((rf"{{{service}\.0}}:q:{task}:{part}", kind))
    for service, names in DATA.items():
        found += [(rf"{{{service}\.0}}:d:({name})", kind) for name, kind in names.items()]
    prefix = rf"{re.escape(namespace)}:{LAYOUT}:"
    return [Rule(re.compile(prefix + form.replace("{", r"\{").replace("}", r"\}")), kind) for form, kind in found]


def foreign(keys: Mapping[str, str], allowed: list[Rule]) -> set[str]:
    """The keys, given with their types, that no rule accounts for."""
    return {
        f"{key} ({kind})"
        for key, kind in keys.items()
        if not any(rule.type == kind and rule.form.fullmatch(key) for rule in allowed)
    }
