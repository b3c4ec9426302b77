"""queue/settle: keys before, settlements, answers, keys after; sequences of effects have a model in test_effects."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import pytest

from aioflow.commit import Effect
from aioflow.engine import scripts
from aioflow.engine.keys import PARTS, Queue, data_key, runtime_channels
from aioflow.engine.records import Settlement
from aioflow.engine.rows import parse_result
from aioflow.engine.store import Store
from aioflow.job import Failure
from aioflow.job import State as JobState
from tests.conftest import Clock
from tests.integration.scripts.state import (
    CANCELLED,
    NOW,
    OTHER,
    STEP,
    State,
    canonical,
    data_of,
    dump,
    finished,
    history,
    keys,
    lease,
    listening,
    look,
    new,
    of_other,
    plant,
    ready,
    refused,
    row,
    running,
    scheduled,
    start,
    submit,
)

FAILURE = b'{"error": "ValueError", "message": "no"}'
FAILED = history((NOW, FAILURE.decode()))
SET = Effect("set", "s", ("v",))


def done(job_id: str, token: str = "r.1", *effects: Effect) -> Settlement:
    return Settlement(job_id, token, "done", b'{"ok":true}', effects=effects)


def dead(job_id: str, token: str = "r.1", *effects: Effect) -> Settlement:
    return Settlement(job_id, token, "dead", FAILURE, effects=effects)


def retry(job_id: str, token: str = "r.1", *effects: Effect, delay_ms: int = 500, failed: bool = True) -> Settlement:
    return Settlement(job_id, token, "retry", FAILURE, delay_ms=delay_ms, failed=failed, effects=effects)


def bad_effect(message: str) -> str:
    return json.dumps({"error": "BadEffect", "message": message})


# ---- outcomes

STARTED = NOW - 50
SUBMITTED = NOW - 100
PLACE = 3 * STEP + SUBMITTED
ROW = row("r.1", 2, 1, 0, PLACE)
BEFORE = keys(running("a", NOW + 9000, ROW, started=STARTED, submitted=SUBMITTED))


@dataclass(frozen=True)
class Case:
    """Settlements of the job of BEFORE, or of another state."""

    name: str
    settlements: list[Settlement]
    answers: list[int]
    after: State
    before: State | None = None


def retried(due: int, *, failures: int) -> State:
    claim = row("retry/r.1", 2, failures, 0, 3 * STEP + due)
    failed = {"history": {"a": FAILED}} if failures > 1 else {}
    return scheduled("a", due, claim, submitted=SUBMITTED) | failed


CASES = [
    Case(
        "done takes its result, its times and its token to the results row",
        [done("a")],
        [1],
        keys(
            finished("done", "a", NOW, ROW, '{"ok":true}', submitted=SUBMITTED, started=STARTED),
            totals={"done": 1},
        ),
    ),
    Case(
        "dead the same",
        [dead("a")],
        [1],
        keys(
            finished("dead", "a", NOW, ROW, FAILURE.decode(), submitted=SUBMITTED, started=STARTED),
            totals={"dead": 1},
        ),
    ),
    Case(
        "a retry keeps its priority and stands where its due time puts it",
        [retry("a")],
        [1],
        keys(retried(NOW + 500, failures=2), totals={"retried": 1}, bell=True),
    ),
    Case(
        "a retry that the handler chose is no failure",
        [retry("a", failed=False)],
        [1],
        keys(retried(NOW + 500, failures=1), totals={"retried": 1}, bell=True),
    ),
    Case(
        "a retry at once is due now",
        [retry("a", delay_ms=0)],
        [1],
        keys(retried(NOW, failures=2), totals={"retried": 1}, bell=True),
    ),
    Case(
        "a paused queue is not rung by a retry",
        [retry("a")],
        [1],
        keys(retried(NOW + 500, failures=2), totals={"retried": 1}, paused=True),
        keys(BEFORE, paused=True),
    ),
    Case(
        "a retry that is due after the first scheduled job does not ring",
        [retry("a")],
        [1],
        keys(
            retried(NOW + 500, failures=2),
            scheduled("b", NOW + 500, row("-", 0)),
            totals={"retried": 1},
        ),
        keys(BEFORE, scheduled("b", NOW + 500, row("-", 0))),
    ),
    Case(
        "a retry that is due first rings",
        [retry("a", delay_ms=499)],
        [1],
        keys(
            retried(NOW + 499, failures=2),
            scheduled("b", NOW + 500, row("-", 0)),
            totals={"retried": 1},
            bell=True,
        ),
        keys(BEFORE, scheduled("b", NOW + 500, row("-", 0))),
    ),
    Case("another's token changes nothing", [done("a", "r.2", SET)], [0], BEFORE),
    Case("nor does the beginning of the token", [done("a", "r.", SET), dead("a", "r")], [0, 0], BEFORE),
    Case("nor the token with more behind it", [done("a", "r.12", SET), retry("a", "r.10")], [0, 0], BEFORE),
    Case(
        "nor one with the marks of a pattern", [done("a", "r%.1", SET), done("a", ".*"), dead("a", "")], [0] * 3, BEFORE
    ),
    Case("an unknown job is nobody's", [done("b", "r.1", SET), retry("c"), dead("d")], [0, 0, 0], BEFORE),
    Case(
        "a job in line is nobody's",
        [done("b"), retry("b"), dead("b", "-", SET)],
        [0, 0, 0],
        keys(BEFORE, ready("b")),
        keys(BEFORE, ready("b")),
    ),
    Case(
        "a batch is settled job by job",
        [dead("b"), done("a", "r.9"), retry("c"), done("a")],
        [1, 0, 1, 1],
        keys(
            finished("done", "a", NOW, ROW, '{"ok":true}', submitted=SUBMITTED, started=STARTED),
            finished("dead", "b", NOW, row("r.1"), FAILURE.decode()),
            scheduled("c", NOW + 500, row("retry/r.1", 1, 1, 0, NOW + 500)),
            totals={"done": 1, "dead": 1, "retried": 1},
            history={"c": FAILED},
            bell=True,
        ),
        keys(BEFORE, running("b", NOW + 9000, row("r.1")), running("c", NOW + 9000, row("r.1"))),
    ),
    Case(
        "totals grow",
        [done("a")],
        [1],
        keys(
            finished("done", "a", NOW, ROW, '{"ok":true}', submitted=SUBMITTED, started=STARTED),
            totals={"done": 8, "submitted": 9},
        ),
        keys(BEFORE, totals={"done": 7, "submitted": 9}),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_settle(clocked: Store, queue: Queue, case: Case) -> None:
    await plant(clocked, queue, BEFORE if case.before is None else case.before)
    assert await clocked.settle(queue, case.settlements) == case.answers
    assert await look(clocked, queue) == case.after


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_repeat_after_a_lost_reply_hears_the_same_and_changes_nothing(
    clocked: Store, queue: Queue, clock: Clock, case: Case
) -> None:
    await plant(clocked, queue, BEFORE if case.before is None else case.before)
    await clocked.settle(queue, case.settlements)
    clock.ms += 5
    assert await clocked.settle(queue, case.settlements) == case.answers
    assert await look(clocked, queue) == case.after


async def test_the_effects_of_a_repeat_do_not_land_again(clocked: Store, queue: Queue) -> None:
    count = Effect("hincrby", "h", ("f", "1"))
    await start(clocked, queue, "abc")
    settlements = [done("a", "r.1", count), dead("b", "r.1", count), retry("c", "r.1", count)]
    assert await clocked.settle(queue, settlements) == [1, 1, 1]
    before = await look(clocked, queue)
    assert before["d:h"] == {"f": "3"}
    assert await clocked.settle(queue, settlements) == [1, 1, 1]
    assert await look(clocked, queue) == before


async def test_a_retry_is_remembered_until_the_next_claim(clocked: Store, queue: Queue, clock: Clock) -> None:
    await start(clocked, queue, "a")
    assert await clocked.settle(queue, [retry("a")]) == [1]
    clock.ms += 500
    await clocked.promote(queue)
    assert await clocked.settle(queue, [retry("a")]) == [1], "in line again"
    assert await clocked.settle(queue, [done("a", "r.1", SET)]) == [0], "it was a retry"
    assert await lease(clocked, queue, "r.2") == ["a"]
    before = await look(clocked, queue)
    assert await clocked.settle(queue, [retry("a"), done("a", "r.1", SET)]) == [0, 0]
    assert await look(clocked, queue) == before


async def test_a_retry_counts_the_failure_once(clocked: Store, queue: Queue, clock: Clock) -> None:
    await clocked.submit([new(queue, "a", priority=4)])
    for attempt in range(1, 4):
        claimed = await clocked.claim(queue, 1, 9000, f"r.{attempt}")
        assert [(job.attempt, job.failures, job.crashes) for job in claimed.jobs] == [(attempt, attempt - 1, 0)]
        settlements = [retry("a", f"r.{attempt}", delay_ms=7)]
        assert await clocked.settle(queue, settlements) == await clocked.settle(queue, settlements) == [1]
        clock.ms += 7
        await clocked.promote(queue)
        assert (await look(clocked, queue))["ready"] == {"a": 4 * STEP + clock.ms}


# ---- fences


@pytest.mark.parametrize("kind", ["done", "retry", "dead"])
async def test_after_a_release_or_a_reap_the_token_is_void(
    clocked: Store, queue: Queue, clock: Clock, kind: Literal["done", "retry", "dead"]
) -> None:
    await start(clocked, queue, "ab", lease_ms=100)
    await clocked.release(queue, [("a", "r.1")])
    clock.ms += 100
    clocked.clock.hear(clock.ms)
    assert (await clocked.reap(queue, most_crashes=3, longest_ms=100)).jobs == 1
    before = await look(clocked, queue)
    late = [Settlement(job_id, "r.1", kind, effects=[SET]) for job_id in "ab"]
    assert await clocked.settle(queue, late) == [0, 0]
    assert await look(clocked, queue) == before
    await lease(clocked, queue, "r.2")
    before = await look(clocked, queue)
    assert await clocked.settle(queue, late) == [0, 0]
    assert await look(clocked, queue) == before


@pytest.mark.parametrize("kind", ["done", "retry", "dead"])
async def test_after_the_reap_that_ended_the_job_its_holder_hears_that_the_lease_is_lost(
    clocked: Store, queue: Queue, clock: Clock, kind: Literal["done", "retry", "dead"]
) -> None:
    await start(clocked, queue, "a", lease_ms=100)
    clock.ms += 100
    clocked.clock.hear(clock.ms)
    assert (await clocked.reap(queue, most_crashes=1, longest_ms=100)).dead == 1
    before = await look(clocked, queue)
    assert await clocked.settle(queue, [Settlement("a", "r.1", kind, FAILURE, effects=[SET])]) == [0]
    assert await look(clocked, queue) == before


async def test_a_lease_that_is_over_but_not_reaped_still_settles(clocked: Store, queue: Queue, clock: Clock) -> None:
    await start(clocked, queue, "a", lease_ms=100)
    clock.ms += 5000
    assert await clocked.settle(queue, [done("a")]) == [1]
    assert (await look(clocked, queue))["done"] == {"a": clock.ms}


async def test_the_token_of_another_life_is_void(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "a")
    await clocked.settle(queue, [dead("a")])
    await clocked.requeue(queue, [("a", "r.1")])
    before = await look(clocked, queue)
    assert await clocked.settle(queue, [dead("a"), done("a", "r.1", SET), retry("a")]) == [0, 0, 0]
    assert await look(clocked, queue) == before


# ---- the same job twice in one batch


@pytest.mark.parametrize("settle", [done, retry, dead])
async def test_twice_in_one_batch_is_once(clocked: Store, queue: Queue, settle: Any) -> None:
    await start(clocked, queue, "ab")
    twice: Settlement = settle("a", "r.1", Effect("hincrby", "h", ("f", "1")))
    assert await clocked.settle(queue, [twice, done("b"), replace(twice, token="r.0"), twice]) == [1, 1, 0, 1]
    state = await look(clocked, queue)
    assert state["d:h"] == {"f": "1"}
    assert sum(int(total) for total in state["totals"].values()) == 2 + 2, "two submitted, two ended"


async def test_the_first_of_two_outcomes_in_one_batch_stands(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "a")
    assert await clocked.settle(queue, [done("a"), retry("a", "r.1", SET), dead("a", "r.1", SET)]) == [1, 0, 0]
    assert await look(clocked, queue) == keys(
        finished("done", "a", NOW, row("r.1"), '{"ok":true}'), totals={"submitted": 1, "done": 1}, bell=True
    )


# ---- effects


OPS = [
    pytest.param([Effect("record", "t", ("", "m", "0"))], {"d:t": {"m": NOW}}, id="record now"),
    pytest.param([Effect("record", "t", (str(NOW - 9), "m", "0"))], {"d:t": {"m": NOW - 9}}, id="record at a time"),
    pytest.param([Effect("record", "t", ("-5", "m", "0"))], {"d:t": {"m": -5}}, id="record before 1970"),
    pytest.param(
        [Effect("record", "t", ("", "m", "0")), Effect("record", "t", ("7", "m", "0"))],
        {"d:t": {"m": 7}},
        id="record moves a member",
    ),
    pytest.param(
        [Effect("record", "t", ("", word, "0")) for word in ("m", "n")] + [Effect("zrem", "t", ("m",))],
        {"d:t": {"n": NOW}},
        id="zrem",
    ),
    pytest.param([Effect("zrem", "t", ("m",))], {}, id="zrem of nothing"),
    pytest.param([Effect("hset", "h", ("f", "v"))], {"d:h": {"f": "v"}}, id="hset"),
    pytest.param([Effect("hset", "h", ("f", b"\xff\x00\n"))], {"d:h": {"f": "\\xff\x00\n"}}, id="hset of any bytes"),
    pytest.param(
        [Effect("hset", "h", ("f", "v")), Effect("hset", "h", ("g", "w")), Effect("hdel", "h", ("f",))],
        {"d:h": {"g": "w"}},
        id="hdel",
    ),
    pytest.param(
        [Effect("hincrby", "h", ("f", "5")), Effect("hincrby", "h", ("f", "-7"))],
        {"d:h": {"f": "-2"}},
        id="hincrby",
    ),
    pytest.param(
        [Effect("hincrby", "h", ("f", str(2**53 - 1))), Effect("hincrby", "h", ("f", "1"))],
        {"d:h": {"f": str(2**53)}},
        id="hincrby up to 2^53",
    ),
    pytest.param(
        [Effect("hset", "h", ("f", "x")), Effect("hdel", "h", ("f",)), Effect("hincrby", "h", ("f", "1"))],
        {"d:h": {"f": "1"}},
        id="hincrby of a field that was deleted before",
    ),
    pytest.param(
        [Effect("hset", "h", ("f", "41")), Effect("hincrby", "h", ("f", "1"))],
        {"d:h": {"f": "42"}},
        id="hincrby of a field that was set before",
    ),
    pytest.param(
        [Effect("sadd", "z", (word,)) for word in ("a", "b")] + [Effect("srem", "z", ("a",))],
        {"d:z": {"b"}},
        id="sadd and srem",
    ),
    pytest.param([Effect("set", "s", ("v",)), Effect("set", "s", ("w",))], {"d:s": "w"}, id="set"),
    pytest.param([Effect("set", "s", ("v",)), Effect("delete", "s", ())], {}, id="delete"),
    pytest.param(
        [Effect("set", "k", ("v",)), Effect("delete", "k", ()), Effect("sadd", "k", ("m",))],
        {"d:k": {"m"}},
        id="after a delete a key may have another type",
    ),
    pytest.param([SET] * 1000, {"d:s": "v"}, id="1000 effects"),
]


@pytest.mark.parametrize(("effects", "data"), OPS)
async def test_effects_land_with_the_outcome(clocked: Store, queue: Queue, effects: list[Effect], data: State) -> None:
    await start(clocked, queue, "a")
    assert await clocked.settle(queue, [done("a", "r.1", *effects)]) == [1]
    assert data_of(await look(clocked, queue)) == data


@pytest.mark.parametrize(
    ("held", "effects", "data"),
    [
        pytest.param(
            {"d:k": "text"},
            [Effect("delete", "k", ()), Effect("hincrby", "k", ("f", "1"))],
            {"d:k": {"f": "1"}},
            id="a string becomes a hash of numbers",
        ),
        pytest.param(
            {"d:k": {"f": "text"}},
            [Effect("delete", "k", ()), Effect("hincrby", "k", ("f", "1"))],
            {"d:k": {"f": "1"}},
            id="a hash of text begins anew",
        ),
        pytest.param(
            {"d:k": {"f": "7"}},
            [Effect("delete", "k", ()), Effect("hincrby", "k", ("f", "1")), Effect("hincrby", "k", ("g", "2"))],
            {"d:k": {"f": "1", "g": "2"}},
            id="a count begins anew",
        ),
        pytest.param(
            {"d:k": {"m"}},
            [Effect("delete", "k", ()), Effect("hset", "k", ("f", "1")), Effect("hincrby", "k", ("g", "2"))],
            {"d:k": {"f": "1", "g": "2"}},
            id="a set becomes a hash",
        ),
    ],
)
async def test_what_a_delete_leaves_is_an_empty_key(
    clocked: Store, queue: Queue, held: State, effects: list[Effect], data: State
) -> None:
    await plant(clocked, queue, held)
    await start(clocked, queue, "ab")
    assert await clocked.settle(queue, [done("a", "r.1", SET), done("b", "r.1", *effects)]) == [1, 1]
    assert data_of(await look(clocked, queue)) == {"d:s": "v", **data}


HELD: State = {
    "d:string": "text",
    "d:hash": {"f": "text", "n": str(2**53), "m": str(-(2**53)), "r": "1.5"},
    "d:zset": {"m": 5},
    "d:set": {"m"},
    "d:list": ["m"],
}
NOT_WHOLE = "not a whole number within 2^53: "
BAD = [
    *(
        pytest.param(
            [Effect(op, key, words)], f"effect 1 ({op} on {key}): the key holds a {key}, not a {kind}", id=f"{op} {key}"
        )
        for op, words, kind in (
            ("record", ("", "m", "0"), "zset"),
            ("zrem", ("m",), "zset"),
            ("hset", ("f", "v"), "hash"),
            ("hdel", ("f",), "hash"),
            ("hincrby", ("f", "1"), "hash"),
            ("sadd", ("m",), "set"),
            ("srem", ("m",), "set"),
            ("set", ("v",), "string"),
        )
        for key in ("string", "hash", "zset", "set", "list")
        if key != kind
    ),
    pytest.param([Effect("flushall", "k", ())], "effect 1 (flushall on k): no such effect with 0 arguments", id="op"),
    pytest.param([Effect("", "k", ("v",))], "effect 1 ( on k): no such effect with 1 arguments", id="no op"),
    pytest.param(
        [Effect("hset", "k", ("f",))], "effect 1 (hset on k): no such effect with 1 arguments", id="few words"
    ),
    pytest.param(
        [Effect("set", "k", ("v", "EX", "1"))], "effect 1 (set on k): no such effect with 3 arguments", id="many words"
    ),
    pytest.param(
        [Effect("sadd", "k", tuple("m" * 9000))],
        "effect 1 (sadd on k): no such effect with 9000 arguments",
        id="more words than a call can have",
    ),
    pytest.param([Effect("delete", "k", ("x",))], "effect 1 (delete on k): no such effect with 1 arguments", id="word"),
    *(
        pytest.param(
            [Effect("record", "t", (time, "m", "0"))],
            f"effect 1 (record on t): the time is not a whole number of ms: {time[:40]}",
            id=f"time {time[:9]}",
        )
        for time in ("soon", "1.5", "nan", "inf", "1e3", "0x10", " 5", "-0", str(2**53 + 2), "9" * 60)
    ),
    *(
        pytest.param(
            [Effect("record", "t", ("", "m", keep))],
            f"effect 1 (record on t): keep is not a whole number of ms: {keep}",
            id=f"keep {keep}",
        )
        for keep in ("", "-1", "1.5", "nan", "inf", "ever")
    ),
    *(
        pytest.param(
            [Effect("hincrby", "hash", (field, step))],
            f"effect 1 (hincrby on hash): {NOT_WHOLE}{held} + {step}",
            id=f"{held} + {step}",
        )
        for field, held, step in (
            ("f", "text", "1"),
            ("r", "1.5", "1"),
            ("x", "0", "1.5"),
            ("x", "0", "nan"),
            ("x", "0", "inf"),
            ("x", "0", "-0"),
            ("x", "0", "+1"),
            ("x", "0", str(2**53 + 2)),
            ("n", str(2**53), "1"),
            ("n", str(2**53), "2"),
            ("m", str(-(2**53)), "-1"),
        )
    ),
    pytest.param(
        [SET, Effect("sadd", "s", ("m",))], "effect 2 (sadd on s): the key holds a string, not a set", id="own type"
    ),
    pytest.param(
        [Effect("hset", "k", ("f", "v")), Effect("hincrby", "k", ("f", "1"))],
        f"effect 2 (hincrby on k): {NOT_WHOLE}v + 1",
        id="own text",
    ),
    pytest.param(
        [Effect("hincrby", "k", ("f", str(2**53))), Effect("hincrby", "k", ("f", "1"))],
        f"effect 2 (hincrby on k): {NOT_WHOLE}{2**53} + 1",
        id="own sum",
    ),
    pytest.param(
        [Effect("delete", "string", ()), Effect("sadd", "string", ("m",)), Effect("hset", "string", ("f", "v"))],
        "effect 3 (hset on string): the key holds a set, not a hash",
        id="own type after a delete",
    ),
    pytest.param(
        [SET] * 999 + [Effect("hdel", "s", ("f",))],
        "effect 1000 (hdel on s): the key holds a string, not a hash",
        id="the last of many",
    ),
]


@pytest.mark.parametrize(("effects", "message"), BAD)
async def test_a_bad_effect_makes_its_job_dead_and_nothing_of_it_lands(
    clocked: Store, queue: Queue, effects: list[Effect], message: str
) -> None:
    await plant(clocked, queue, HELD)
    await start(clocked, queue, "abc")
    good = Effect("hincrby", "count", ("f", "1"))
    batch = [done("a", "r.1", good), done("b", "r.1", *[*effects, good][:1000]), retry("c", "r.1", good)]
    assert await clocked.settle(queue, batch) == [1, message, 1]
    assert await look(clocked, queue) == keys(
        HELD,
        finished("done", "a", NOW, row("r.1"), '{"ok":true}'),
        finished("dead", "b", NOW, row("r.1"), bad_effect(message)),
        scheduled("c", NOW + 500, row("retry/r.1", 1, 1, 0, NOW + 500)),
        {"d:count": {"f": "2"}},
        totals={"submitted": 3, "done": 1, "dead": 1, "retried": 1},
        history={"c": FAILED},
        bell=True,
    )


@pytest.mark.parametrize("settle", [done, retry, dead])
async def test_a_bad_effect_overrules_every_outcome(clocked: Store, queue: Queue, settle: Any) -> None:
    await start(clocked, queue, "a")
    message = "effect 2 (sadd on s): the key holds a string, not a set"
    assert await clocked.settle(queue, [settle("a", "r.1", SET, Effect("sadd", "s", ("m",)))]) == [message]
    assert await look(clocked, queue) == keys(
        finished("dead", "a", NOW, row("r.1"), bad_effect(message)), totals={"submitted": 1, "dead": 1}, bell=True
    )


@pytest.mark.parametrize("settle", [done, retry, dead])
async def test_a_repeat_of_a_refused_job_hears_the_same_message(clocked: Store, queue: Queue, settle: Any) -> None:
    await start(clocked, queue, "a")
    refused = settle("a", "r.1", Effect("set", "k", ()))
    answers = await clocked.settle(queue, [refused])
    assert answers == ["effect 1 (set on k): no such effect with 0 arguments"]
    before = await look(clocked, queue)
    assert await clocked.settle(queue, [refused]) == answers
    assert await look(clocked, queue) == before


async def test_twice_a_refused_job_in_one_batch_hears_the_same_message(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "a")
    refused = done("a", "r.1", Effect("set", "k", ()))
    assert (
        await clocked.settle(queue, [refused, refused]) == ["effect 1 (set on k): no such effect with 0 arguments"] * 2
    )
    assert (await look(clocked, queue))["totals"] == {"submitted": "1", "dead": "1"}


@pytest.mark.parametrize(
    "held", [pytest.param(b"\xff\xfe", id="no text"), pytest.param("ä" * 19 + "bää", id="text cut within a letter")]
)
async def test_a_message_is_text_whatever_a_field_held(clocked: Store, queue: Queue, held: str | bytes) -> None:
    await start(clocked, queue, "ab")
    effects = Effect("hset", "h", ("f", held)), Effect("hincrby", "h", ("f", "1"))
    answers = await clocked.settle(queue, [done("a", "r.1", *effects), done("b")])
    assert isinstance(answers[0], str)
    assert answers[0].startswith(f"effect 2 (hincrby on h): {NOT_WHOLE}")
    assert answers[1] == 1
    (info,) = await clocked.inspect(queue, ["a"])
    assert info is not None
    assert info.result is not None
    assert json.loads(info.result) == {"error": "BadEffect", "message": answers[0]}


@pytest.mark.parametrize(
    "name",
    [
        "x}:q:work:done",
        "../q:work:jobs",
        "{other.0}:d:x",
        ":q:work:dead",
        "",
        "x\r\nDEL y",
        "*",
        "%1",
        "naïve ключ",
    ],
)
async def test_no_name_reaches_a_key_outside_the_services_data(clocked: Store, queue: Queue, name: str) -> None:
    await start(clocked, queue, "a")
    before = await look(clocked, queue)
    assert await clocked.settle(queue, [retry("a", "r.1", Effect("set", name, ("v",)))]) == [1]
    after = await look(clocked, queue)
    assert set(after) - set(before) == {f"d:{name}", "scheduled", "history"}
    assert await clocked.redis.get(data_key(queue.namespace, queue.service, name)) == b"v"


async def test_a_delete_does_not_reach_a_key_outside_either(clocked: Store, queue: Queue) -> None:
    await submit(clocked, queue, "ab")
    await lease(clocked, queue, "r.1", count=1)
    names = ["x}:q:work:jobs", ":q:work:jobs", "../q:work:jobs", queue.keys["jobs"]]
    assert await clocked.settle(queue, [done("a", "r.1", *(Effect("delete", name, ()) for name in names))]) == [1]
    assert (await look(clocked, queue))["jobs"] == {"a": "\n1", "b": "\n1"}


async def test_effects_see_what_their_batch_mates_left(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "abc")
    answers = await clocked.settle(
        queue,
        [
            done("a", "r.1", Effect("set", "k", ("v",))),
            done("b", "r.1", Effect("sadd", "k", ("m",))),
            done("c", "r.1", Effect("delete", "k", ()), Effect("sadd", "k", ("m",))),
        ],
    )
    assert answers == [1, "effect 1 (sadd on k): the key holds a string, not a set", 1]
    assert (await look(clocked, queue))["d:k"] == {"m"}


async def test_1001_effects_are_refused_before_a_write(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "ab")
    async with refused(clocked, queue, "job b has more than 1000 effects"):
        await clocked.settle(queue, [done("a", "r.1", SET), done("b", "r.1", *[SET] * 1001)])


# ---- jobs that a handler submits


def child(job_id: str = "x", envelope: str = "\n2", priority: str = "4", delay: str = "0") -> Effect:
    return Effect("submit", "other", (job_id, envelope, priority, delay))


def emit(name: str = "shop.order", envelope: str = "\n2", priority: str = "4", delay: str = "0") -> Effect:
    return Effect("emit", name, (envelope, priority, delay))


def line(job_id: str = "x", *, priority: int = 4) -> State:
    return ready(job_id, priority * STEP + NOW, envelope="\n2")


@dataclass(frozen=True)
class Child:
    """Effects of a job, and the queue of the task `other` before and after them."""

    name: str
    before: State
    effects: list[Effect]
    after: State


CHILDREN = [
    Child("a job stands in line at once", {}, [child()], keys(line(), totals={"submitted": 1}, bell=True)),
    Child(
        "each by its priority, in the order of its id",
        {},
        [child("y"), child("x"), child("z", priority="0")],
        keys(line("y"), line("x"), line("z", priority=0), totals={"submitted": 3}, bell=True),
    ),
    Child(
        "or waits for its time",
        {},
        [child(delay="500", priority="9")],
        keys(
            scheduled("x", NOW + 500, row("-", 0, place=9 * STEP + NOW + 500), envelope="\n2"),
            totals={"submitted": 1},
            bell=True,
        ),
    ),
    Child(
        "the same job twice is one",
        {},
        [child(), child()],
        keys(line(), totals={"submitted": 1, "repeated": 1}, bell=True),
    ),
    Child(
        "one that is known is left as it is",
        keys(finished("done", "x", 5, row("r.0"), envelope="\n2")),
        [child(delay="7")],
        keys(finished("done", "x", 5, row("r.0"), envelope="\n2"), totals={"repeated": 1}),
    ),
    Child(
        "a bound holds back submits from outside only",
        keys(ready("w"), bound=1),
        [child()],
        keys(ready("w"), line(), bound=1, totals={"submitted": 1}, bell=True),
    ),
    Child(
        "a paused queue is not rung",
        keys(paused=True),
        [child(), child("y", delay="5")],
        keys(
            line(),
            scheduled("y", NOW + 5, row("-", 0, place=4 * STEP + NOW + 5), envelope="\n2"),
            paused=True,
            totals={"submitted": 2},
        ),
    ),
    Child(
        "a bell that rings gets no second token",
        keys(bell=True),
        [child()],
        keys(line(), totals={"submitted": 1}, bell=True),
    ),
]


@pytest.mark.parametrize("case", CHILDREN, ids=lambda case: case.name)
@pytest.mark.parametrize("settle", [done, retry, dead])
async def test_a_submitted_job_lands_with_the_outcome(clocked: Store, queue: Queue, settle: Any, case: Child) -> None:
    await plant(clocked, queue, {OTHER + part: content for part, content in case.before.items()})
    await start(clocked, queue, "a")
    for _ in range(2):  # a repeat lands nothing again
        assert await clocked.settle(queue, [settle("a", "r.1", SET, *case.effects)]) == [1]
        state = await look(clocked, queue)
        assert of_other(state) == case.after
        assert state["d:s"] == "v"


async def test_a_job_may_be_submitted_into_its_own_queue(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "ab")
    again = Effect("submit", "work", ("c", "\n2", "4", "0"))
    known = Effect("submit", "work", ("a", "\n1", "4", "0"))
    assert await clocked.settle(queue, [done("a", "r.1", again), retry("b", "r.1", known)]) == [1, 1]
    assert await look(clocked, queue) == keys(
        finished("done", "a", NOW, row("r.1"), '{"ok":true}'),
        scheduled("b", NOW + 500, row("retry/r.1", 1, 1, 0, NOW + 500)),
        ready("c", 4 * STEP + NOW, envelope="\n2"),
        history={"b": FAILED},
        totals={"submitted": 3, "repeated": 1, "done": 1, "retried": 1},
        bell=True,
    )


async def test_emits_lie_in_the_outbox_in_their_order(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "abc")
    batch = [
        done("a", "r.1", emit(), emit("ledger.book-2", "", "0", "7")),
        done("b", "r.1", emit(), emit(priority="10")),
        dead("c", "r.1", emit(envelope="\xff\n")),
        done("x", "r.1", emit()),
    ]
    refusal = "effect 2 (emit on shop.order): there is no such task, priority or delay: shop.order 10 0"
    for _ in range(2):
        assert await clocked.settle(queue, batch) == [1, refusal, 1, 0]
        assert (await look(clocked, queue))["outbox"] == [
            {"to": "shop.order", "envelope": "\n2", "priority": "4", "due": "0"},
            {"to": "ledger.book-2", "envelope": "", "priority": "0", "due": str(NOW + 7)},
            {"to": "shop.order", "envelope": "\xff\n", "priority": "4", "due": "0"},
        ]


async def test_without_a_lease_nothing_is_submitted(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "a")
    before = await look(clocked, queue)
    assert await clocked.settle(queue, [done("a", "r.2", child(), emit())]) == [0]
    assert await look(clocked, queue) == before


NO_TASK = "there is no such task, priority or delay: "
BAD_CHILDREN = [
    *(
        pytest.param(
            Effect("submit", name, ("x", "\n2", "4", "0")), f"(submit on {name}): {NO_TASK}{name} 4 0", id=name
        )
        for name in ("", "Other", "shop.order", "other:jobs", "a}b", "-a", "a b", "../x", "1")
    ),
    *(
        pytest.param(emit(name), f"(emit on {name}): {NO_TASK}{name} 4 0", id=f"emit {name}")
        for name in ("", "order", "shop.", ".order", "Shop.order", "shop.order.x", "shop:order", "shop.order ", "a}.b")
    ),
    *(
        pytest.param(
            effect, f"({effect.op} on {effect.name}): {NO_TASK}{effect.name} {priority} 0", id=f"p {priority!r}"
        )
        for priority in ("", "-1", "10", "1.5", "x", "nan", " 4")
        for effect in (child(priority=priority), emit(priority=priority))
    ),
    *(
        pytest.param(
            effect, f"({effect.op} on {effect.name}): {NO_TASK}{effect.name} 4 {delay[:20]}", id=f"d {delay[:9]!r}"
        )
        for delay in ("", "-1", "1.5", "nan", "inf", "1e3", "0x1", str(2**42), str(2**42 - NOW), "9" * 400)
        for effect in (child(delay=delay), emit(delay=delay))
    ),
    pytest.param(
        Effect("submit", "other", ("x", "\n2", "4")),
        "(submit on other): no such effect with 3 arguments",
        id="few words",
    ),
    pytest.param(
        Effect("emit", "shop.order", ("x", "\n2", "4", "0")),
        "(emit on shop.order): no such effect with 4 arguments",
        id="many words",
    ),
    pytest.param(
        child(envelope="\n3"), "(submit on other): job x exists with another payload", id="another payload before it"
    ),
    pytest.param(
        child("known"), "(submit on other): job known exists with another payload", id="another payload in the queue"
    ),
    pytest.param(child("ключ" * 9 + "known"), None, id="an id that is no ASCII"),
]


@pytest.mark.parametrize(("effect", "message"), BAD_CHILDREN)
async def test_a_bad_submit_makes_its_job_dead_and_nothing_of_it_lands(
    clocked: Store, queue: Queue, effect: Effect, message: str | None
) -> None:
    known = {OTHER + part: content for part, content in keys(ready("known"), ready("ключ" * 9 + "known")).items()}
    await plant(clocked, queue, known)
    await start(clocked, queue, "ab")
    before = await look(clocked, queue)
    refused = done("b", "r.1", SET, child(), emit(), effect)
    for _ in range(2):
        answers = await clocked.settle(queue, [done("a"), refused])
        assert answers[0] == 1
        assert str(answers[1]).startswith(f"effect 4 {message or '(submit on other): job ????'}")
        after = await look(clocked, queue)
        assert of_other(after) == of_other(before)
        assert set(after) - set(before) == {"done", "dead", "results"}, "neither data nor an outbox"
        assert after["results"]["b"].endswith(bad_effect(str(answers[1])))


QUEUE_TYPES = {
    part: PARTS[part] for part in ("jobs", "ready", "scheduled", "open", "claims", "totals", "config", "bell")
}


@pytest.mark.parametrize("part", QUEUE_TYPES)
async def test_a_foreign_key_in_the_queue_of_a_submit(clocked: Store, queue: Queue, part: str) -> None:
    await plant(clocked, queue, {OTHER + part: "foreign"})
    await start(clocked, queue, "ab")
    message = f"effect 2 (submit on other): its queue holds a string as {part}, not a {QUEUE_TYPES[part]}"
    assert await clocked.settle(queue, [done("b", "r.1", SET, child("y", delay="5")), done("a")]) == [message, 1]
    state = await dump(clocked, queue)
    assert {key for key in state if key.startswith((OTHER, "d:"))} == {OTHER + part}
    assert state["results"]["b"].endswith(bad_effect(message))


def test_a_submit_touches_no_other_part() -> None:
    # What the effect writes is what it looks at before; a part more in one is a part more in the other.
    source = (scripts.script_root() / "include" / "effects.lua").read_text()
    submits = source.partition("\nlocal function submit(")[2].partition("\nend\n")[0]
    assert set(re.findall(r"queue \.\. '(\w+)'", submits)) == set(QUEUE_TYPES)


async def test_1000_submits_and_1000_emits(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "ab")
    submits = [child(f"x{number:04}") for number in range(1000)]
    assert await clocked.settle(queue, [done("a", "r.1", *submits), done("b", "r.1", *[emit()] * 1000)]) == [1, 1]
    state = await look(clocked, queue)
    assert (len(of_other(state)["ready"]), len(state["outbox"])) == (1000, 1000)


# ---- how attempts failed


async def test_the_last_ten_failures_are_kept(clocked: Store, queue: Queue, clock: Clock) -> None:
    await submit(clocked, queue, "ab")
    failures = []
    for attempt in range(1, 14):
        await lease(clocked, queue, f"r.{attempt}")
        failure = f'{{"error": "E", "attempt": {attempt}}}'
        failures.append((clock.ms, failure))
        failed = Settlement("a", f"r.{attempt}", "retry", failure.encode(), failed=True)
        other_job = Settlement("b", f"r.{attempt}", "retry", b'{"error": "no failure"}')
        assert await clocked.settle(queue, [failed, other_job]) == [1, 1]
        assert (await look(clocked, queue))["history"] == {"a": history(*failures[-10:])}
        clock.ms += 1
    (info,) = await clocked.inspect(queue, ["a"])
    assert info is not None
    assert [(failure.attempt, failure.at_ms) for failure in info.history] == [(n, NOW + n - 1) for n in range(4, 14)]


async def test_a_failure_in_lines_is_one_line_of_the_history(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "a")
    spoilt = Settlement("a", "r.1", "retry", b'{"error":\r\n\n"E"}', failed=True)
    assert await clocked.settle(queue, [spoilt]) == [1]
    assert (await look(clocked, queue))["history"] == {"a": history((NOW, '{"error": "E"}'))}
    (info,) = await clocked.inspect(queue, ["a"])
    assert info is not None
    assert info.history == (Failure("E", "", at_ms=NOW),)


# ---- a job to be cancelled


@pytest.mark.parametrize("failed", [False, True])
async def test_a_job_to_be_cancelled_has_no_further_attempt(
    clocked: Store, queue: Queue, clock: Clock, *, failed: bool
) -> None:
    before = keys(BEFORE, running("b", NOW + 9000, row("r.1")), cancels={"a": NOW - 3, "b": NOW - 3})
    await plant(clocked, queue, before | {"waiters": {"a": "x:1:channel"}})
    settlements = [retry("a", "r.1", SET, failed=failed), dead("a"), done("a"), retry("a", "r.0"), retry("a")]
    for _ in range(2):  # a repeat hears the same
        assert await clocked.settle(queue, settlements) == [1, 0, 0, 0, 1]
        assert await look(clocked, queue) == keys(
            finished("dead", "a", NOW, f"retry/{ROW}", CANCELLED, submitted=SUBMITTED, started=STARTED),
            running("b", NOW + 9000, row("r.1")),
            {"d:s": "v"},
            cancels={"b": NOW - 3},
            totals={"dead": 1},
        )
        clock.ms += 5
    (info,) = await clocked.inspect(queue, ["a"])
    assert info is not None
    assert await clocked.requeue(queue, [("a", info.token)]) == [True]


@pytest.mark.parametrize("settle", [done, dead])
async def test_an_end_that_came_first_stands(clocked: Store, queue: Queue, settle: Any) -> None:
    await plant(clocked, queue, keys(BEFORE, cancels={"a": NOW - 3}))
    settlement: Settlement = settle("a", "r.1", SET)
    assert await clocked.settle(queue, [settlement]) == [1]
    assert await look(clocked, queue) == keys(
        finished(settlement.kind, "a", NOW, ROW, settlement.result.decode(), submitted=SUBMITTED, started=STARTED),
        {"d:s": "v"},
        totals={settlement.kind: 1},
    )


async def test_a_bad_effect_overrules_a_cancel(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, keys(BEFORE, cancels={"a": NOW - 3}))
    message = "effect 1 (set on k): no such effect with 0 arguments"
    for _ in range(2):
        assert await clocked.settle(queue, [retry("a", "r.1", Effect("set", "k", ()))]) == [message]
        state = await look(clocked, queue)
        assert state["results"]["a"].endswith(bad_effect(message))
        assert "cancels" not in state


# ---- timelines with a retention


async def test_a_timeline_forgets_as_it_records(clocked: Store, queue: Queue, clock: Clock) -> None:
    await plant(clocked, queue, {"d:t": {"old": NOW - 1001, "edge": NOW - 1000, "young": NOW - 999}})
    await start(clocked, queue, "a")
    assert await clocked.settle(queue, [done("a", "r.1", Effect("record", "t", ("", "m", "1000")))]) == [1]
    assert (await look(clocked, queue))["d:t"] == {"young": NOW - 999, "m": NOW}


async def test_a_timeline_without_a_retention_forgets_nothing(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, {"d:t": {"old": 1}})
    await start(clocked, queue, "a")
    assert await clocked.settle(queue, [done("a", "r.1", Effect("record", "t", ("", "m", "0")))]) == [1]
    assert (await look(clocked, queue))["d:t"] == {"old": 1, "m": NOW}
    assert await clocked.redis.pttl(data_key(queue.namespace, queue.service, "t")) == -1


async def test_a_record_forgets_at_most_16_and_the_oldest_first(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, {"d:t": {f"m{number:02}": number for number in range(20)}})
    await start(clocked, queue, "ab")
    record = Effect("record", "t", ("", "m", "1000"))
    assert await clocked.settle(queue, [done("a", "r.1", record)]) == [1]
    assert (await look(clocked, queue))["d:t"] == {**{f"m{number}": number for number in range(16, 20)}, "m": NOW}
    assert await clocked.settle(queue, [done("b", "r.1", record)]) == [1]
    assert (await look(clocked, queue))["d:t"] == {"m": NOW}


@pytest.mark.parametrize("keep_ms", [60_000, 10**15, 8 * 10**15, 9 * 10**15, 2**53])
async def test_an_idle_timeline_expires_as_a_whole(clocked: Store, queue: Queue, keep_ms: int) -> None:
    await start(clocked, queue, "a")
    record = Effect("record", "t", ("", "m", str(keep_ms)))
    assert await clocked.settle(queue, [done("a", "r.1", record)]) == [1]
    await look(clocked, queue)
    left = await clocked.redis.pttl(data_key(queue.namespace, queue.service, "t"))
    assert keep_ms - 30_000 < left <= keep_ms


# ---- who waits for a result


async def test_who_waits_is_told(clocked: Store, queue: Queue) -> None:
    channels = [runtime_channels(queue.namespace) + runtime for runtime in ("r", "s")]
    await start(clocked, queue, "abcd")
    for job_id, channel in (("a", 0), ("a", 1), ("b", 1), ("c", 0)):
        assert await clocked.await_result(queue, job_id, channels[channel]) is None
    refusal = "effect 1 (set on k): no such effect with 0 arguments"
    async with listening(clocked, *channels) as hear:
        settlements = [done("a"), dead("b", "r.1", Effect("set", "k", ())), retry("c"), done("d")]
        assert await clocked.settle(queue, settlements) == [1, refusal, 1, 1]
        heard = [(channel, text.split("\n", 3)) for channel, text in await hear(3)]
    state = await look(clocked, queue)
    told = [["result", queue.keys["waiters"], job_id, state["results"][job_id]] for job_id in "ab"]
    assert [(channel, [*words, canonical(line)]) for channel, (*words, line) in heard] == [
        (channels[0], told[0]),
        (channels[1], told[0]),
        (channels[1], told[1]),
    ]
    assert state["waiters"] == {"c": channels[0]}, "a retry is no finish"
    assert parse_result(told[0][3].encode(), "results", "a") == (JobState.DONE, b'{"ok": true}')


# ---- what is refused as a whole


async def test_1001_jobs_are_refused(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "a")
    async with refused(clocked, queue, "settle takes 1 to 1000 jobs"):
        await clocked.settle(queue, [done("a"), *(done(f"j{number}") for number in range(1000))])


async def test_1000_jobs_with_effects_are_settled(clocked: Store, queue: Queue) -> None:
    ids = [f"j{number:03}" for number in range(1000)]
    await start(clocked, queue, ids)
    count = Effect("hincrby", "h", ("f", "1"))
    assert await clocked.settle(queue, [done(job_id, "r.1", count) for job_id in ids]) == [1] * 1000
    state = await look(clocked, queue)
    assert (len(state["done"]), state["d:h"], state["totals"]["done"]) == (1000, {"f": "1000"}, "1000")


async def test_1000_failed_attempts_are_settled(clocked: Store, queue: Queue) -> None:
    ids = [f"j{number:03}" for number in range(1000)]
    await start(clocked, queue, ids)
    await plant(clocked, queue, {"cancels": dict.fromkeys(ids[:500], NOW), "history": dict.fromkeys(ids, FAILED)})
    assert await clocked.settle(queue, [retry(job_id) for job_id in ids]) == [1] * 1000
    state = await look(clocked, queue)
    assert (len(state["dead"]), len(state["scheduled"]), "cancels" in state) == (500, 500, False)
    assert set(state["history"].values()) == {FAILED, f"{FAILED}\n{FAILED}"}


@pytest.mark.parametrize("kind", ["cancelled", "ready", ""])
async def test_an_unknown_outcome_is_refused_before_a_write(clocked: Store, queue: Queue, kind: str) -> None:
    await start(clocked, queue, "abc")
    unknown = Settlement("c", "r.1", cast("Any", kind), effects=[SET])
    async with refused(clocked, queue, "job c .* unknown outcome"):
        await clocked.settle(queue, [done("a", "r.1", SET), retry("b"), unknown])


@pytest.mark.parametrize("settle", [done, retry, dead])
@pytest.mark.parametrize("foreign", ["r.1:nonsense", "r.1:1:0:0", "r.1:1:0:0:-1"])
async def test_a_foreign_row_is_refused_before_a_write(clocked: Store, queue: Queue, foreign: str, settle: Any) -> None:
    before = keys(running("a", NOW + 9000, row("r.1")), running("b", NOW + 9000, foreign))
    await plant(clocked, queue, before)
    async with refused(clocked, queue, "foreign row of job b"):
        await clocked.settle(queue, [done("a", "r.1", SET), settle("b", "r.1", SET)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["1", "a", "r.1", "done"], "fewer arguments than it counts", id="a job cut short"),
        pytest.param(["2", "a", "r.1", "done", "null"], "fewer arguments than it counts", id="a job missing"),
        pytest.param(
            ["1", "a", "r.1", "done:0:0:1", "null", "set", "k", "2", "v"],
            "fewer arguments than it counts",
            id="a word missing",
        ),
        pytest.param(["0"], "settle takes 1 to 1000 jobs", id="no job"),
    ],
)
async def test_arguments_that_do_not_add_up_are_refused(
    clocked: Store, queue: Queue, words: list[str], message: str
) -> None:
    await start(clocked, queue, "a")
    async with refused(clocked, queue, message):
        await clocked._call("queue/settle", queue, *words)


@pytest.mark.parametrize("delay_ms", [-1, -(10**17), 2**42, 10**400])
async def test_a_delay_out_of_range_is_refused_before_a_write(clocked: Store, queue: Queue, delay_ms: int) -> None:
    await start(clocked, queue, "ab")
    async with refused(clocked, queue, "job b has .* a delay that is no number of ms"):
        await clocked.settle(queue, [done("a", "r.1", SET), retry("b", "r.1", SET, delay_ms=delay_ms)])


async def test_a_count_of_words_is_not_believed(clocked: Store, queue: Queue) -> None:
    # A loop to such an end would outlast the deadline of the round trip.
    await start(clocked, queue, "a")
    words = ["1", "a", "r.1", "done:0:0:1", "null", "set", "k", str(2 * 10**8), "v"]
    async with refused(clocked, queue, "fewer arguments than it counts"):
        await clocked._call("queue/settle", queue, *words)


async def test_a_result_that_is_no_json_does_not_stop_the_batch(clocked: Store, queue: Queue) -> None:
    await start(clocked, queue, "ab")
    spoilt = Settlement("b", "r.1", "dead", b"no json")
    assert await clocked.settle(queue, [spoilt]) == [1]
    assert await clocked.settle(queue, [done("a", "r.1", SET), spoilt]) == [1, 1]
    assert (await look(clocked, queue))["d:s"] == "v"
