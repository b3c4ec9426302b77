"""The check of what is left in Redis can fail: each kind of loss and of double, planted, is named."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aioflow import Runtime
from aioflow.engine.keys import Queue
from services.payments.api import charge
from services.payments.api import service as payments
from services.payments.models import Payment
from tests.chaos import ledger
from tests.chaos.check import TASKS, Check
from tests.chaos.judge import Findings
from tests.chaos.work import SQLITE, Order, archive, book, books, is_filed, sell, shop, stock
from tests.valkey import Valkey
from tests.waiting import wait_until

BOOKED = next(name for name in map(str, range(100)) if not is_filed(name))
FILED = next(name for name in map(str, range(100)) if is_filed(name))
PAID = "paid"
SHOP, STOCK, BOOKS, PAYMENTS = ("{%s.0}" % name for name in ("shop", "stock", "books", "payments"))  # noqa: UP031


@dataclass
class Left:
    """What a run may have left: receipts, and rows of both databases."""

    receipts: dict[str, list[str]] = field(default_factory=lambda: {"order": [BOOKED], "payment": [PAID]})
    written: list[str] = field(default_factory=lambda: [BOOKED])
    filed: list[str] = field(default_factory=list)


COMMANDS = [
    ("accepted jobs not sold", f"HDEL {SHOP}:d:sold {BOOKED}"),
    ("accepted jobs not taken", f"HDEL {STOCK}:d:taken {BOOKED}"),
    ("accepted jobs not booked", f"HDEL {BOOKS}:d:booked {BOOKED}"),
    ("jobs sold more than once", f"HINCRBY {SHOP}:d:sold {BOOKED} 1"),
    ("jobs booked more than once", f"HINCRBY {BOOKS}:d:booked another 2"),
    ("payments with two outcomes", f"ZADD {PAYMENTS}:d:api_errors 1 {PAID}"),
    ("not what the gateway's ledger says", f'HSET {PAYMENTS}:d:gateway_ledger {PAID} {{"txn_id":"other"}}'),
    ("amiss in the timeline successful_txns", f"ZADD {PAYMENTS}:d:successful_txns 1 ghost"),
    ("amiss in the timeline payments_made_by:a", f"DEL {PAYMENTS}:d:payments_made_by:a"),
    ("charges in the gateway's ledger", f'HSET {PAYMENTS}:d:gateway_ledger ghost {{"txn_id":"other"}}'),
    ("queues with ready left", f"ZADD {SHOP}:q:sell:ready 1 {BOOKED}"),
    ("queues with claims left", f"HSET {SHOP}:q:sell:claims {BOOKED} -:1:0:0:1"),
    ("queues with outbox left", f"XADD {SHOP}:q:sell:outbox * to stock.take"),
    ("jobs in two states", f"ZADD {SHOP}:q:sell:dead 1 {BOOKED}"),
    ("jobs without a record", f"HDEL {SHOP}:q:sell:jobs {BOOKED}"),
    ("records without a job", f"HSET {SHOP}:q:sell:jobs ghost x"),
    ("results without a finished job", f"HSET {SHOP}:q:sell:results ghost x"),
    ("submitted is not done + dead", f"HINCRBY {SHOP}:q:sell:totals submitted 1"),
    ("emits are not one each", f"HINCRBY {SHOP}:q:sell:totals done 1"),
    ("keys that no rule accounts for", f"SET {SHOP}:d:unheard_of 1"),
    ("keys that no rule accounts for", f"SET {SHOP}:q:sell:history 1"),
    ("keys that no rule accounts for", f"ZADD {SHOP}:q:sell:unheard_of 1 x"),
    ("keys that no rule accounts for", "HSET {fleet}:orders:gone quiet 1"),
]
REPORTS = [
    ("", Left()),
    ("receipts of one order twice", Left({"order": [BOOKED, BOOKED], "payment": [PAID]})),
    ("accepted jobs not sold", Left({"order": [BOOKED, FILED], "payment": [PAID]}, filed=[FILED])),
    ("accepted jobs not filed", Left({"order": [BOOKED, FILED], "payment": [PAID]}, filed=[FILED])),
    ("accepted jobs not waited", Left({"order": [BOOKED], "payment": [PAID], "wait": ["nobody"]})),
    ("accepted orders without a row", Left(written=[])),
    ("orders with two rows", Left(filed=[BOOKED])),
    ("rows in the wrong database", Left(written=[], filed=[BOOKED])),
    ("jobs of shop.die that are not dead of three crashes", Left({"order": [BOOKED], "die": ["alive"]})),
    ("accepted payments without an outcome", Left({"order": [BOOKED], "payment": [PAID, "nobody"]})),
]


@pytest.fixture
async def after_a_run(
    own_valkey: Valkey, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Runtime]:
    """One order and one payment were accepted and done, and every runtime has ended."""
    monkeypatch.setenv(SQLITE, str(tmp_path / "books"))
    monkeypatch.setenv(ledger.FOLDER, str(tmp_path))
    monkeypatch.setattr(ledger, "watch", lambda: None)  # a thread for as long as its process
    services = [shop, stock, books, archive, payments]
    async with Runtime(services, redis=own_valkey.url, namespace=namespace) as working:
        await (await working.submit(charge, Payment(payer_id="a", recipient_id="b", amount=1), id=PAID)).result(10)
        await working.submit(sell, Order(name=BOOKED), id=BOOKED)

        async def done() -> bool:
            views = [await working.overview(task) for task in TASKS]
            return views[TASKS.index(book)].totals.get("done", 0) == 1 and not any(
                view.sizes.open or view.outbox for view in views
            )

        await wait_until(done)
    try:
        async with Runtime(services, redis=own_valkey.url, namespace=namespace, workers=False) as looking:
            yield looking
    finally:
        for name in [ledger.BLOCKS, *(f"{part:02}" for part in range(ledger.PARTS))]:
            if (tmp_path / name).exists():
                os.close(ledger._opened(name))
        ledger._opened.cache_clear()


async def found(runtime: Runtime, left: Left) -> str:
    """All that the check has to say."""
    findings = Findings()
    await Check(runtime, left.receipts, findings).all(left.written, left.filed)
    return "\n".join(findings.lines())


@pytest.mark.timeout(120)
async def test_each_kind_of_loss_and_double_is_named(after_a_run: Runtime) -> None:
    redis: Any = after_a_run.redis
    for words, left in REPORTS:
        said = await found(after_a_run, left)
        assert (words in said) if words else not said, said
    saved = {key: await redis.dump(key) for key in await redis.keys()}
    prefix = Queue(after_a_run.namespace, "shop", "sell").keys["jobs"].partition("{")[0]
    for words, command in COMMANDS:
        name, key, *rest = command.split()
        await redis.execute_command(name, prefix + key, *rest)
        said = await found(after_a_run, Left())
        assert words in said, f"{command}: {said}"
        await redis.flushdb()
        for key, value in saved.items():
            await redis.restore(key, 0, value)
    assert not await found(after_a_run, Left()), "the planting itself is undone"
