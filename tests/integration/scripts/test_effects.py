"""Sequences of effects against a model: all of a job's effects land, or none and the job is dead."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aioflow.commit import Effect
from aioflow.engine.keys import Queue
from aioflow.engine.records import Settlement
from aioflow.engine.store import Store
from tests.integration.scripts.state import NOW, data_of, look, plant, start

LARGEST = 2**53
EMPTY: dict[str, Callable[..., Any]] = {"zset": dict, "hash": dict, "set": set, "string": str}
KINDS = {
    "record": ("zset", 3),
    "zrem": ("zset", 1),
    "hset": ("hash", 2),
    "hdel": ("hash", 1),
    "hincrby": ("hash", 2),
    "sadd": ("set", 1),
    "srem": ("set", 1),
    "set": ("string", 1),
    "delete": (None, 0),
}


class BadEffect(Exception):
    """This effect makes its job dead."""


def whole(text: str) -> int:
    """The whole number within 2**53 that is written so and not otherwise."""
    try:
        number = int(text)
    except ValueError:
        raise BadEffect from None
    if str(number) != text or abs(number) > LARGEST:
        raise BadEffect
    return number


@dataclass
class Model:
    """The data of one service: name -> (type, content). An empty container is no key, as in Redis."""

    data: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def settle(self, effects: list[Effect]) -> bool:
        """Whether the effects land; they do so all or none."""
        draft = {name: (kind, EMPTY[kind](content)) for name, (kind, content) in self.data.items()}
        kinds: dict[str, str | None] = {}  # the first effect on a key fixes its type for the rest of the job
        try:
            for effect in effects:
                self._apply(draft, kinds, effect)
        except BadEffect:
            return False
        self.data = {name: (kind, content) for name, (kind, content) in draft.items() if content or kind == "string"}
        return True

    @staticmethod
    def _apply(draft: dict[str, tuple[str, Any]], kinds: dict[str, str | None], effect: Effect) -> None:
        kind, words = KINDS.get(effect.op, (None, -1))
        if words != len(effect.words):
            raise BadEffect
        name = effect.name
        if kind is None:
            kinds[name] = None
            draft.pop(name, None)
            return
        held = kinds.get(name, draft[name][0] if name in draft else None)
        if held not in {None, kind}:
            raise BadEffect
        kinds[name] = kind
        if name not in draft:
            draft[name] = kind, EMPTY[kind]()
        if kind == "string":
            draft[name] = kind, str(effect.words[0])
            return
        write(draft[name][1], effect.op, [str(word) for word in effect.words])
        if not draft[name][1]:
            del draft[name]


def write(content: Any, op: str, words: list[str]) -> None:
    """One effect on the content of a container."""
    match op, words:
        case "record", [time, member, keep]:
            at, keep_ms = whole(time) if time else NOW, whole(keep)
            if keep_ms < 0:
                raise BadEffect
            content[member] = at
            old = sorted((score, entry) for entry, score in content.items() if keep_ms and score <= NOW - keep_ms)
            for _, entry in old[:16]:
                del content[entry]
        case (("zrem" | "hdel"), [member]):
            content.pop(member, None)
        case "hset", [key, value]:
            content[key] = value
        case "hincrby", [key, step]:
            total = whole(content.get(key, "0")) + whole(step)
            if abs(total) > LARGEST:
                raise BadEffect
            content[key] = str(total)
        case "sadd", [member]:
            content.add(member)
        case "srem", [member]:
            content.discard(member)


NAMES = st.sampled_from(["k", "l"])
MEMBERS = st.sampled_from(["m", "n", ""])
NUMBERS = st.one_of(
    st.integers(-3, 3).map(str),
    st.sampled_from([str(LARGEST), str(LARGEST - 1), str(-LARGEST), str(LARGEST + 1), str(LARGEST + 2)]),
    st.sampled_from(["", "x", "1.5", "-0", "+1", " 1", "1e3", "0x1", "nan", "inf", "007", "9" * 30]),
)
TIMES = st.one_of(st.just(""), st.sampled_from([str(NOW), str(NOW - 50), str(NOW - 51), "0", "-7"]), NUMBERS)
# The server lets a key with a retention expire by its own clock: one of a few ms would be gone before it is looked at.
KEEPS = st.one_of(
    st.just("0"),
    st.sampled_from(["600000", str(LARGEST), "-1"]),
    NUMBERS.filter(lambda text: not (text.isdigit() and 0 < int(text) < 600_000)),
)


def effect(op: str, *words: st.SearchStrategy[str]) -> st.SearchStrategy[Effect]:
    return st.builds(Effect, st.just(op), NAMES, st.tuples(*words))


EFFECTS = st.one_of(
    effect("record", TIMES, MEMBERS, KEEPS),
    effect("record", st.just(""), MEMBERS, st.just("0")),
    effect("zrem", MEMBERS),
    effect("hset", MEMBERS, NUMBERS),
    effect("hdel", MEMBERS),
    effect("hincrby", MEMBERS, NUMBERS),
    effect("hincrby", MEMBERS, st.just("1")),
    effect("sadd", MEMBERS),
    effect("srem", MEMBERS),
    effect("set", MEMBERS),
    effect("delete"),
    effect("delete"),
    st.builds(Effect, st.sampled_from([*KINDS, "flushall", "del"]), NAMES, st.lists(MEMBERS, max_size=4).map(tuple)),
)
JOBS = st.lists(
    st.tuples(st.sampled_from(["done", "dead", "retry"]), st.lists(EFFECTS, max_size=6)), min_size=1, max_size=5
)
HELD = st.dictionaries(
    NAMES,
    st.sampled_from(
        [("string", "x"), ("hash", {"m": "x", "n": "41"}), ("zset", {"m": NOW - 60, "n": NOW}), ("set", {"m"})]
    ),
)
NUMBERED = itertools.count()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(held=HELD, jobs=JOBS)
@example(held={"k": ("string", "x")}, jobs=[("done", [Effect("delete", "k", ()), Effect("hincrby", "k", ("m", "1"))])])
@example(
    held={},
    jobs=[("done", [Effect("hincrby", "k", ("m", str(LARGEST)))]), ("done", [Effect("hincrby", "k", ("m", "1"))])],
)
@example(
    held={},
    jobs=[("done", [Effect("record", "k", ("", "m", str(8 * 10**15)))]), ("done", [Effect("zrem", "k", ("m",))])],
)
async def test_all_effects_of_a_job_land_or_none(
    clocked: Store, namespace: str, held: dict[str, tuple[str, Any]], jobs: list[tuple[Any, list[Effect]]]
) -> None:
    queue = Queue(f"{namespace}.{next(NUMBERED)}", "demo", "work")
    model = Model({name: (kind, EMPTY[kind](content)) for name, (kind, content) in held.items()})
    await plant(clocked, queue, {f"d:{name}": content for name, (_, content) in held.items()})
    ids = [f"j{number}" for number in range(len(jobs))]
    await start(clocked, queue, ids)
    settlements = [
        Settlement(job_id, "r.1", kind, effects=effects) for job_id, (kind, effects) in zip(ids, jobs, strict=True)
    ]
    expected = [model.settle(effects) for _, effects in jobs]
    answers = await clocked.settle(queue, settlements)
    assert [answer == 1 for answer in answers] == expected
    assert all(answer == 1 or str(answer).startswith("effect ") for answer in answers)
    state = await look(clocked, queue)
    assert data_of(state) == {f"d:{name}": content for name, (_, content) in model.data.items()}
    for job_id, (kind, _), landed in zip(ids, jobs, expected, strict=True):
        part = {"done": "done", "dead": "dead", "retry": "scheduled"}[kind] if landed else "dead"
        assert job_id in state[part]
        assert landed == ("BadEffect" not in state.get("results", {}).get(job_id, ""))
    # A repeat after a lost reply changes nothing.
    await clocked.settle(queue, settlements)
    assert await look(clocked, queue) == state
