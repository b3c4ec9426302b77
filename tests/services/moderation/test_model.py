"""Hypothesis drives the scripts and a model without indexes by the same calls; they agree after every step.

Two boards stand for two processes; a crash is a process whose WebSockets beat no more. The clock is the test's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aioflow import Runtime
from services.moderation import models
from services.moderation.board import Board, Refused
from services.moderation.settings import ModerationSettings
from tests.services.moderation.conftest import bare, scripts
from tests.services.moderation.model import GRACE, IDLE, LOCK, STEP, Desk, Item, Model
from tests.valkey import Valkey

T = TypeVar("T")
NAMES = ["ann", "ben", "cid", "dora"]
SKILLS = ["ads:en", "spam:en", "spam:de"]
TWO_PERSON = frozenset({"ads"})
names = st.sampled_from(NAMES)


class Machine(RuleBasedStateMachine):
    """One example: the calls that hypothesis chooses, made to both."""

    runner: asyncio.Runner
    runtime: Runtime

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(1_800_000_000_000, TWO_PERSON)
        chosen = ModerationSettings(two_person=TWO_PERSON, lock=LOCK / 1000, idle=IDLE / 1000)
        self.boards = [Board(self.runtime, scripts, chosen, nonce, lambda: self.model.now) for nonce in ("a1", "b2")]
        self.sockets: dict[str, tuple[int, str]] = {}  # of living processes: moderator -> process, by
        self.asks: list[tuple[str, str]] = []
        self.made = 0
        self.tokens: dict[str, str] = {}  # every token that was ever seen: its item
        self.live: dict[str, str] = {}  # item -> token, as last read
        self.run(self._empty())

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    async def _empty(self) -> None:
        await self.runtime.redis.flushdb()

    def new(self) -> str:
        self.made += 1
        return f"n{self.made}"

    def refusal(self, call: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self.run(call)
        except Refused as refused:
            return refused.code

    @initialize(first=st.integers(0, 4), second=st.integers(0, 4))
    def begin(self, first: int, second: int) -> None:
        """Most examples begin with somebody and something there."""
        for number in range(first):
            self.submit(0, SKILLS[number % 2], 1, 4, "zoe")
        for name in NAMES[: second // 2]:
            self.join(1, name, SKILLS, 5, 1 + second % 2, True)
        self.run(self._compare())

    # ---- calls

    @rule(
        process=st.integers(0, 1),
        name=names,
        skills=st.sampled_from([SKILLS, SKILLS[:2], SKILLS[2:]]),
        level=st.sampled_from([5, 2, 1]),
        holds=st.integers(1, 3),
        socket=st.sampled_from([True, True, False]),
    )
    def join(self, process: int, name: str, skills: list[str], level: int, holds: int, socket: bool) -> None:
        by = self.new() if socket else ""
        keep = GRACE if socket else IDLE
        kind = "socket" if socket else "http"
        desk = Desk(name, sorted(skills), level, holds, kind, by, self.model.now + keep)
        categories, languages = ({skill.split(":")[part] for skill in skills} for part in (0, 1))
        moderator = models.Moderator(
            name=name, categories=sorted(categories), languages=sorted(languages), level=level, holds=holds
        )
        desk.skills = moderator.skills
        self.run(self.boards[process].join(moderator, by, keep))
        self.model.join(desk)
        self.sockets.pop(name, None)
        if socket:
            self.sockets[name] = (process, by)

    @precondition(lambda self: self.sockets)
    @rule(pick=st.integers(0, 3))
    def drop(self, pick: int) -> None:
        name = sorted(self.sockets)[pick % len(self.sockets)]
        process, by = self.sockets.pop(name)
        assert self.run(self.boards[process].rest(name, by, 5000)) == self.model.rest(name, by, 5000)

    @precondition(lambda self: self.sockets)
    @rule(process=st.integers(0, 1))
    def crash(self, process: int) -> None:
        self.sockets = {name: socket for name, socket in self.sockets.items() if socket[0] != process}

    @precondition(lambda self: self.model.desks)
    @rule(process=st.integers(0, 1), name=names)
    def leave(self, process: int, name: str) -> None:
        assert self.run(self.boards[process].leave(name)) == self.model.leave(name)
        self.sockets.pop(name, None)

    @rule(process=st.integers(0, 1), name=names, wait=st.sampled_from([0, 1000, 30_000]))
    def ask(self, process: int, name: str, wait: int) -> None:
        by = self.new()
        assert self.refusal(self.boards[process].ask(name, by, wait)) == self.model.ask(name, by, wait)
        self.asks.append((name, by))

    @precondition(lambda self: self.asks)
    @rule(process=st.integers(0, 1), back=st.integers(1, 3))
    def client_goes(self, process: int, back: int) -> None:
        name, by = self.asks[-min(back, len(self.asks))]
        assert self.run(self.boards[process].drop(name, by)) == self.model.drop(name, by)

    @precondition(lambda self: self.sockets)
    @rule(process=st.integers(0, 1))
    def beat(self, process: int) -> None:
        mine = [(name, by) for name, (where, by) in self.sockets.items() if where == process]
        if mine:
            answers = self.run(self.boards[process].beat(mine, GRACE))
            assert [min(0, answer) for answer in answers] == [self.model.beat(name, by) for name, by in mine]

    @rule(
        process=st.integers(0, 1),
        skill=st.sampled_from(SKILLS),
        level=st.sampled_from([1, 1, 3]),
        priority=st.sampled_from([0, 4, 4, 9]),
        author=st.sampled_from(["zoe", "zoe", *NAMES]),
    )
    def submit(self, process: int, skill: str, level: int, priority: int, author: str) -> None:
        category, language = skill.split(":")
        item = models.Item(
            id=self.new(),
            content="x",
            category=category,
            language=language,
            author=author,
            level=level,
            priority=priority,
        )
        made = Item(item.id, skill, level, priority * STEP + self.model.now, author)
        assert self.run(self.boards[process].submit(item, b"{}")) == self.model.submit(made)

    @precondition(lambda self: self.live)
    @rule(process=st.integers(0, 1), pick=st.integers(0, 50), choice=st.sampled_from(["approve", "reject", "skip"]))
    def decide_simply(self, process: int, pick: int, choice: str) -> None:
        self.decide(process, pick, choice, 1)

    @precondition(lambda self: self.live)
    @rule(
        process=st.integers(0, 1),
        pick=st.integers(0, 50),
        choice=st.sampled_from(["approve", "skip", "escalate"]),
        level=st.integers(2, 5),
    )
    def decide(self, process: int, pick: int, choice: str, level: int) -> None:
        locked = sorted(self.live)
        item_id = locked[pick % len(locked)]
        decision = models.Decision.model_construct(
            token=self.live[item_id],
            decision=models.Choice(choice),
            reason="why" if choice == "reject" else None,
            level=level if choice == "escalate" else None,
        )
        answer = self.refusal(self.boards[process].decide(item_id, decision))
        expected = self.model.decide(self.model.items[item_id], choice, level)
        assert (answer if isinstance(answer, int) else answer["outcome"]) == expected
        if not isinstance(answer, int):
            assert self.refusal(self.boards[1 - process].decide(item_id, decision)) == answer, "the same answer again"

    @rule(pick=st.integers(0, 200), choice=st.sampled_from(["approve", "skip"]))
    def decide_late(self, pick: int, choice: str) -> None:
        """Under a token whose lock is over, without a decision or with another."""
        over = sorted(token for token, item in self.tokens.items() if self.live.get(item) != token)
        if over:
            token = over[pick % len(over)]
            decision = models.Decision.model_construct(
                token=token, decision=models.Choice(choice), reason="another", level=None
            )
            answer = self.refusal(self.boards[0].decide(self.tokens[token], decision))
            assert answer in (-1, -2) or answer["decision"] == choice == "skip"

    @precondition(lambda self: self.live)
    @rule(process=st.integers(0, 1), pick=st.integers(0, 50))
    def extend(self, process: int, pick: int) -> None:
        locked = sorted(self.live)
        item_id = locked[pick % len(locked)]
        answer = self.refusal(self.boards[process].extend(item_id, self.live[item_id]))
        assert (answer > 0) == self.model.extend(self.model.items[item_id])

    @rule(
        process=st.integers(0, 1),
        ms=st.sampled_from([1, 1000, 5000, 6000, LOCK - 1, LOCK, IDLE]),
        then=st.sampled_from(["tick", "beat and tick", "beat and tick", "nothing"]),
    )
    def time_passes(self, process: int, ms: int, then: str) -> None:
        self.model.now += ms
        if then.startswith("beat"):
            self.beat(0)
            self.beat(1)
        if then.endswith("tick"):
            ticked = self.run(self.boards[process].tick(1000, judges=True))
            assert ticked.failure == ""
            self.model.tick()

    # ---- what holds

    @invariant()
    def they_agree(self) -> None:
        self.run(self._compare())

    async def _compare(self) -> None:
        redis: Any = self.runtime.redis
        model = self.model
        prefix = self.runtime.key(bare, "")
        keys = [key.decode().removeprefix(prefix) for key in await redis.keys()]
        indexes = [
            name for name in keys if not name.startswith(("item:", "desk:", "decision:", "totals", "heads", "log"))
        ]
        pipeline = redis.pipeline(transaction=False)
        for name in indexes:
            pipeline.zrange(prefix + name, 0, -1, withscores=True)
        for item in model.items.values():
            pipeline.hmget(f"{prefix}item:{item.id}", "state", "level", "moderator", "token")
        pipeline.hgetall(prefix + "heads")
        answers = await pipeline.execute()
        zsets = {
            name: [(member.decode(), int(score)) for member, score in entries]
            for name, entries in zip(indexes, answers, strict=False)
        }
        items = model.items.values()
        waiting = sorted((item.place, item.id) for item in items if item.state == "waiting")
        assert zsets.get("waiting", []) == [(item_id, place) for place, item_id in waiting]
        locked = sorted((item.deadline, item.id) for item in items if item.state == "assigned")
        assert zsets.get("locks", []) == [(item_id, deadline) for deadline, item_id in locked]
        unfinished = {item.id for item in items if item.state in ("waiting", "assigned")}
        assert {item_id for item_id, _ in zsets.get("open", [])} == unfinished
        seated = sorted((desk.since, desk.name) for desk in model.desks.values() if desk.since is not None)
        assert zsets.get("seats", []) == [(name, since) for since, name in seated]
        assert dict(zsets.get("beats", [])) == {desk.name: desk.deadline for desk in model.desks.values()}
        asking = {desk.name: desk.asks_until for desk in model.desks.values() if desk.asks_until is not None}
        assert dict(zsets.get("asks", [])) == asking
        lines: dict[str, dict[str, int]] = {}
        for item in items:
            if item.state == "waiting":
                lines.setdefault(f"line:{item.skill}:{item.level}", {})[item.id] = item.place
        for desk in model.desks.values():
            for skill in desk.skills if desk.since is not None else []:
                lines.setdefault(f"seats:{skill}:{desk.level}", {})[desk.name] = desk.since or 0
            if held := model.held(desk.name):
                assert zsets.get(f"held:{desk.name}") == [(item.id, item.since) for item in held]
        assert {name: dict(zsets[name]) for name in indexes if name.startswith(("line:", "seats:"))} == lines
        assert {name for name in indexes if name.startswith("held:")} == {
            f"held:{item.holder}" for item in items if item.holder
        }
        assert answers[-1] == heads_of(lines)
        self.live = {}
        for item, row in zip(items, answers[len(indexes) :], strict=False):
            assert (row[0].decode(), int(row[1])) == (item.state, item.level)
            if item.state == "assigned":
                token = row[3].decode()
                assert row[2].decode() == item.holder
                assert self.tokens.setdefault(token, item.id) == item.id, "a token is never used again"
                self.live[item.id] = token
        assert len({item_id for item_id, _ in model.decided}) == len(model.decided)
        # Nobody waits who could have what waits.
        for item in items:
            if item.state == "waiting":
                assert not [d.name for d in model.desks.values() if d.since is not None and model.may_take(d, item)]


def heads_of(lines: dict[str, dict[str, int]]) -> dict[bytes, bytes]:
    """What `heads` should hold: for each skill the first of each of its lines, in order."""
    heads: dict[bytes, list[bytes]] = {}
    for name, line in lines.items():
        if name.startswith("line:"):
            skill, _, level = name.removeprefix("line:").rpartition(":")
            place, item_id = min((place, item_id) for item_id, place in line.items())
            heads.setdefault(skill.encode(), []).append(f"{place:014} {item_id}\t{level}".encode())
    return {skill: b"\n".join(sorted(entries)) for skill, entries in heads.items()}


@pytest.mark.timeout(120)
def test_the_scripts_and_the_model_agree(valkey: Valkey) -> None:
    with asyncio.Runner() as runner:
        Machine.runner = runner
        Machine.runtime = Runtime([bare], redis=valkey.url, workers=False)
        runner.run(Machine.runtime.start())
        try:
            run_state_machine_as_test(
                Machine,
                settings=settings(
                    max_examples=50,
                    stateful_step_count=50,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(Machine.runtime.stop())
