"""What a run has left in Redis and in its databases, against the receipts that were given."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from aioflow import Runtime
from aioflow.engine.keys import PARTS, Queue
from services.payments.api import charge
from services.payments.api import service as payments
from tests.chaos.judge import Findings
from tests.chaos.keyspace import EMPTY, foreign, rules
from tests.chaos.work import archive, book, books, die, eat, file, is_filed, sell, shop, step, stock, take, wait

TASKS: Any = (sell, die, eat, step, wait, take, book, file, charge)
DEADLY: Any = (die, eat)
FUNDS = "insufficient_funds"
INSUFFICIENT = "insufficient_funds_records"


class Check:
    """Looks at everything; what is wrong goes to the findings."""

    def __init__(self, runtime: Runtime, receipts: Mapping[str, list[str]], findings: Findings) -> None:
        self._runtime = runtime
        self._redis: Any = runtime.redis
        self._receipts = receipts
        self._say = findings.say
        self.lost = 0
        self.doubled = 0
        self.emitted = 0
        self.excused = 0
        """Accepted payments without an outcome that died as they should, of too many killed processes."""
        self.done: dict[str, set[str]] = {}
        """The ids of the jobs of each task that are done."""

    async def all(self, written: Iterable[str], filed: Iterable[str]) -> None:
        """Everything; `written` and `filed` are the rows that SQLite and PostgreSQL have."""
        self._receipts_were_given_once()
        await self._orders()
        self._rows(list(written), list(filed))
        for task in DEADLY:
            await self._deadly(task)
        await self._payments()
        for task in TASKS:
            await self._queue(task)
        await self._emits()
        await self._keys()

    def _accepted(self, kind: str) -> set[str]:
        return set(self._receipts.get(kind, ()))

    def _receipts_were_given_once(self) -> None:
        for kind, names in self._receipts.items():
            counted = Counter(names)
            self._say(f"receipts of one {kind} twice", [name for name, count in counted.items() if count > 1])

    async def _orders(self) -> None:
        """Each accepted order was sold, taken and written down, once each; what got no receipt, at most once each."""
        accepted = self._accepted("order")
        notes = [(shop, "sold", accepted), (stock, "taken", accepted)]
        notes.append((shop, "waited", self._accepted("wait")))
        notes.append((books, "booked", {name for name in accepted if not is_filed(name)}))
        notes.append((archive, "filed", {name for name in accepted if is_filed(name)}))
        for service, note, expected in notes:
            found = await self._hash(self._runtime.key(service, note))
            self.lost += self._say(f"accepted jobs not {note}", expected - found.keys())
            self.doubled += self._say(
                f"jobs {note} more than once", [name for name, count in found.items() if count != b"1"]
            )

    def _rows(self, written: list[str], filed: list[str]) -> None:
        """Each accepted order has one row, by its name, in the one database that it belongs to."""
        counted = Counter([*written, *filed])
        self.lost += self._say("accepted orders without a row", self._accepted("order") - counted.keys())
        self.doubled += self._say("orders with two rows", [name for name, count in counted.items() if count > 1])
        misplaced = [name for name in written if is_filed(name)] + [name for name in filed if not is_filed(name)]
        self._say("rows in the wrong database", misplaced)

    async def _deadly(self, task: Any) -> None:
        """What kills its process is dead after three times, and says so."""
        names = self._receipts.get(task.name, [])
        wrong = set(names)
        for first in range(0, len(names), 1000):
            for info in await self._runtime.inspect_many(task, names[first : first + 1000]):
                if info is not None and info.state == "dead" and info.crashes == 3:
                    told = orjson.loads(info.result or b"{}")
                    wrong -= {info.id} if told.get("message") == "lease expired 3 times" else set()
        self._say(f"jobs of {task.full_name} that are not dead of three crashes", wrong)

    async def _payments(self) -> None:
        """Each accepted payment has one outcome, or is dead where its process was killed ten times under it."""
        outcomes: Counter[str] = Counter()
        decided: dict[str, str] = {}
        for name in ("txns", INSUFFICIENT):
            for record in (await self._hash(self._runtime.key(payments, name))).values():
                told = orjson.loads(record)
                outcomes[told["tracking_id"]] += 1
                decided[told["tracking_id"]] = told["txn_id"]
        failed = await self._redis.zrange(self._runtime.key(payments, "api_errors"), 0, -1)
        outcomes.update(member.decode() for member in failed)
        missing = sorted(self._accepted("payment") - outcomes.keys())
        dead = set()
        for first in range(0, len(missing), 1000):
            for info in await self._runtime.inspect_many(charge, missing[first : first + 1000]):
                if info is not None and info.state == "dead" and info.crashes == charge.options.most_crashes:
                    dead.add(info.id)
        self.excused = len(dead)
        self.lost += self._say("accepted payments without an outcome", set(missing) - dead)
        self.doubled += self._say("payments with two outcomes", [name for name, count in outcomes.items() if count > 1])
        ledger = await self._hash(self._runtime.key(payments, "gateway_ledger"))
        charged = {name: orjson.loads(entry)["txn_id"] for name, entry in ledger.items()}
        differing = [name for name, txn in decided.items() if charged.get(name) != txn]
        self._say("payments whose outcome is not what the gateway's ledger says", differing)
        taken = charged.keys() - decided.keys() - dead
        self._say("charges in the gateway's ledger that no outcome tells of", taken - set(missing))
        await self._timelines()

    async def _timelines(self) -> None:
        """Each decided payment is in the timelines of its outcome, its payer and its recipient, which hold no other."""
        for name, txns, kind in (("txns", "successful_txns", "payments"), (INSUFFICIENT, f"{FUNDS}_txns", FUNDS)):
            expected: dict[str, set[str]] = {txns: set()}
            for record in (await self._hash(self._runtime.key(payments, name))).values():
                told = orjson.loads(record)
                made, received = f"{kind}_made_by:{told['payer_id']}", f"{kind}_received_by:{told['recipient_id']}"
                for timeline in (txns, made, received):
                    expected.setdefault(timeline, set()).add(told["txn_id"])
            for timeline, members in expected.items():
                key = self._runtime.key(payments, timeline)
                found = {member.decode() async for member, _ in self._redis.zscan_iter(key, count=1000)}
                self._say(f"payments amiss in the timeline {timeline}", found ^ members)

    async def _queue(self, task: Any) -> None:
        """Nothing is left to do, each job is in one state and has its record, and the counters agree."""
        name, keys = task.full_name, Queue(self._runtime.namespace, *task.full_name.split(".")).keys
        for part in EMPTY:
            size = {"zset": "ZCARD", "hash": "HLEN", "stream": "XLEN"}[PARTS[part]]
            left = await self._redis.execute_command(size, keys[part])
            if left:
                self._say(f"queues with {part} left", [f"{name} ({left})"])
        states = {}
        for part in ("scheduled", "ready", "running", "done", "dead"):
            states[part] = {member async for member, _ in self._redis.zscan_iter(keys[part], count=1000)}
        counted = Counter(member for members in states.values() for member in members)
        self._say("jobs in two states", [f"{name} {job.decode()}" for job, count in counted.items() if count > 1])
        records = {job async for job in self._redis.hscan_iter(keys["jobs"], count=1000, no_values=True)}
        results = {job async for job in self._redis.hscan_iter(keys["results"], count=1000, no_values=True)}
        ended = states["done"] | states["dead"]
        self.done[name] = {job.decode() for job in states["done"]}
        self._say("jobs without a record", [f"{name} {job.decode()}" for job in counted.keys() - records])
        self._say("records without a job", [f"{name} {job.decode()}" for job in records - counted.keys()])
        self._say("results without a finished job", [f"{name} {job.decode()}" for job in results ^ ended])
        totals = await self._runtime.totals(task)
        if totals.get("submitted", 0) != totals.get("done", 0) + totals.get("dead", 0):
            self.lost += self._say("queues whose submitted is not done + dead", [f"{name}: {totals}"])

    async def _emits(self) -> None:
        """Each job that emits has one child, of those that are done."""
        totals = {task.full_name: await self._runtime.totals(task) for task in (sell, take, book, file)}
        submitted = {name: of.get("submitted", 0) for name, of in totals.items()}
        self.emitted = submitted["stock.take"] + submitted["books.book"] + submitted["archive.file"]
        for parent, children in (("shop.sell", ["stock.take"]), ("stock.take", ["books.book", "archive.file"])):
            emits, taken = totals[parent].get("done", 0), sum(submitted[child] for child in children)
            if emits != taken:
                self._say("tasks whose emits are not one each", [f"{parent}: {emits} done, {taken} emitted"])

    async def _keys(self) -> None:
        """No key is there that should not be."""
        keys = {}
        async for key in self._redis.scan_iter(match="*", count=1000):
            keys[key.decode()] = (await self._redis.type(key)).decode()
        allowed = rules(self._runtime.namespace, [task.full_name for task in TASKS])
        self._say("keys that no rule accounts for", foreign(keys, allowed))

    async def _hash(self, key: str) -> dict[str, bytes]:
        return {field.decode(): value async for field, value in self._redis.hscan_iter(key, count=1000)}


def rows_of(books: Path) -> list[str]:
    """The rows that SQLite has."""
    if not books.exists():
        return []
    connection = sqlite3.connect(books)
    try:
        return [str(name) for (name,) in connection.execute("SELECT name FROM orders")]
    finally:
        connection.close()
