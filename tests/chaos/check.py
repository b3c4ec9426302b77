"""What a run has left in Redis and in the books, against the receipts that were given: broken promises in words."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from aioflow import Runtime
from aioflow.engine.keys import PARTS, Queue
from services.payments.api import charge
from services.payments.api import service as payments
from tests.chaos.work import book, books, die, sell, shop, stock, take

MOST_SHOWN = 5
STATES = ("scheduled", "ready", "running", "done", "dead")
LEFT = ("scheduled", "ready", "running", "started", "open", "claims", "cancels", "outbox", "waiters")
"""Parts of a queue that are empty once nothing is left to do."""


class Check:
    """Collects what is wrong."""

    def __init__(self, runtime: Runtime, receipts: dict[str, list[str]], sqlite: Path) -> None:
        self._runtime = runtime
        self._redis: Any = runtime.redis
        self._receipts = receipts
        self._sqlite = sqlite
        self.wrong: list[str] = []
        self.lost = 0
        self.doubled = 0

    def _say(self, what: str, names: set[str]) -> int:
        if names:
            self.wrong.append(f"{len(names)} {what}: {', '.join(sorted(names)[:MOST_SHOWN])}")
        return len(names)

    async def all(self) -> list[str]:
        """Everything that is wrong; nothing, if all promises were kept."""
        await self._receipts_were_given_once()
        await self._orders()
        await self._deadly()
        await self._payments()
        for task in (sell, die, take, book, charge):
            await self._queue(task)
        await self._keys()
        return self.wrong

    async def _receipts_were_given_once(self) -> None:
        for kind, names in self._receipts.items():
            counted = Counter(names)
            self._say(f"receipts of one {kind} twice", {name for name, count in counted.items() if count > 1})

    async def _orders(self) -> None:
        """Each accepted order was sold, taken and booked, once each; what got no receipt, at most once each."""
        accepted = set(self._receipts.get("order", ()))
        for service, note in ((shop, "sold"), (stock, "taken"), (books, "booked")):
            found = await self._hash(self._runtime.key(service, note))
            self.lost += self._say(f"accepted orders not {note}", accepted - found.keys())
            self.doubled += self._say(
                f"orders {note} more than once", {name for name, count in found.items() if count != b"1"}
            )
        self._say("orders sold too early", set(await self._hash(self._runtime.key(shop, "early"))))
        connection = sqlite3.connect(self._sqlite)
        written = {name for (name,) in connection.execute("SELECT name FROM orders")}
        connection.close()
        self.lost += self._say("accepted orders not in the books", accepted - written)

    async def _deadly(self) -> None:
        """What kills its process is dead after three times, and says so."""
        names = self._receipts.get("die", [])
        infos = [info for info in await self._runtime.inspect_many(die, names) if info is not None] if names else []
        crashed = {info.id for info in infos if info.state == "dead" and info.crashes == 3}
        self._say("jobs that kill their process and are not dead of three crashes", set(names) - crashed)

    async def _payments(self) -> None:
        """Each accepted payment has one outcome, or is dead where its process was killed ten times under it."""
        outcomes: Counter[str] = Counter()
        for name in ("txns", "insufficient_funds_records"):
            for record in (await self._hash(self._runtime.key(payments, name))).values():
                outcomes[str(orjson.loads(record)["tracking_id"])] += 1
        failed = await self._redis.zrange(self._runtime.key(payments, "api_errors"), 0, -1)
        outcomes.update(member.decode() for member in failed)
        missing = sorted(set(self._receipts.get("payment", ())) - outcomes.keys())
        infos = await self._runtime.inspect_many(charge, missing) if missing else []
        dead = {info.id for info in infos if info is not None and info.state == "dead"}
        self.lost += self._say("accepted payments without an outcome", set(missing) - dead)
        self.doubled += self._say("payments with two outcomes", {name for name, count in outcomes.items() if count > 1})

    async def _queue(self, task: Any) -> None:
        """Nothing is left to do, each job is in one state and has its record, and the counters agree."""
        queue = Queue(self._runtime.namespace, *task.full_name.split("."))
        for part in LEFT:
            kind = PARTS[part]
            size = {"zset": "ZCARD", "hash": "HLEN", "stream": "XLEN"}[kind]
            left = await self._redis.execute_command(size, queue.keys[part])
            if left:
                self.wrong.append(f"{task.full_name}: {left} left in {part}")
        ended = [set(await self._redis.zrange(queue.keys[state], 0, -1)) for state in ("done", "dead")]
        records = set(await self._redis.hkeys(queue.keys["jobs"]))
        results = set(await self._redis.hkeys(queue.keys["results"]))
        if ended[0] & ended[1]:
            self.wrong.append(f"{task.full_name}: {len(ended[0] & ended[1])} jobs are done and dead")
        if not records == results == ended[0] | ended[1]:
            self.wrong.append(
                f"{task.full_name}: {len(records)} records, {len(results)} results, {sum(map(len, ended))} ends"
            )
        totals = await self._hash(queue.keys["totals"])
        counted = {name: int(count) for name, count in totals.items()}
        if counted.get("submitted", 0) != counted.get("done", 0) + counted.get("dead", 0):
            self.wrong.append(f"{task.full_name}: submitted is not done + dead: {counted}")

    async def _keys(self) -> None:
        """No key is there that should not be."""
        namespace = self._runtime.namespace
        known = {f"{namespace}:1:{{fleet}}:{part}" for part in ("seen", "about")}
        foreign = set()
        async for raw in self._redis.scan_iter(match="*", count=1000):
            key = raw.decode()
            part = key.rpartition(":")[2]
            is_queue = ":q:" in key and part in PARTS
            if not (key in known or is_queue or ":d:" in key or ":{fleet}:orders:" in key):
                foreign.add(key)
        self._say("keys that nobody knows", foreign)

    async def _hash(self, key: str) -> dict[str, bytes]:
        return {field.decode(): value async for field, value in self._redis.hscan_iter(key, count=1000)}
