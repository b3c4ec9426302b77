"""50 moderators over real WebSockets, random drops, and processes killed by SIGKILL under them.

Every item is decided exactly once, none is ever with two moderators, and each assignment was the right one: told from
the log that the scripts write, one entry after the other as they ran.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

import pytest

from aioflow import Runtime, Service
from tests.chaos.moderators import Moderators, submit_all
from tests.serving import Serve, bound
from tests.valkey import Valkey
from tests.waiting import wait_until

ITEMS, MODERATORS, KILLS = 1200, 50, 4
FINAL = {"approved", "rejected"}
CATEGORIES, LANGUAGES = ["ads", "spam", "abuse"], ["en", "de"]
SETTINGS = {"MODERATION_GRACE": "1", "MODERATION_LOCK": "4", "MODERATION_TWO_PERSON": "abuse"}
keys = Service("moderation")


def free_port() -> int:
    with bound() as probe:
        return int(probe.getsockname()[1])


def profiles(chance: random.Random) -> list[dict[str, Any]]:
    """Who knows what; some know everything, so that nothing waits for ever."""
    made = []
    for number in range(MODERATORS):
        some = number % 3
        made.append(
            {
                "name": f"m{number}",
                "categories": chance.sample(CATEGORIES, 2) if some else CATEGORIES,
                "languages": chance.sample(LANGUAGES, 1) if some else LANGUAGES,
                "level": 1 + number % 2 if some else 5,
                "holds": 1 + number % 2,
            }
        )
    return made


def items(chance: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "id": f"i{number}",
            "content": f"text {number}",
            "category": chance.choice(CATEGORIES),
            "language": chance.choice(LANGUAGES),
            "author": f"m{chance.randrange(2 * MODERATORS)}",
            "priority": chance.choice([0, 4, 4, 4, 9]),
        }
        for number in range(ITEMS)
    ]


@pytest.mark.timeout(240)
async def test_50_moderators_decide_every_item_once_whatever_drops_and_dies(valkey: Valkey, namespace: str) -> None:
    chance = random.Random(7)
    environment = {"AIOFLOW_NAMESPACE": namespace, **SETTINGS}
    ports = [free_port() for _ in range(2)]
    serves = [
        Serve("services.moderation:service", "--redis", valkey.url, "--port", str(port), environment=environment)
        for port in ports
    ]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    moderators, given, who = Moderators(urls, seed=8), items(chance), profiles(chance)
    try:
        await asyncio.gather(*(serve.start() for serve in serves))
        async with Runtime([keys], redis=valkey.url, namespace=namespace, workers=False) as runtime:
            redis: Any = runtime.redis

            async def decided(least: int) -> bool:
                counts = [await redis.zcard(runtime.key(keys, f"decisions_by_outcome:{name}")) for name in FINAL]
                return bool(sum(counts) >= least)

            working = asyncio.create_task(moderators.run(who))
            submitting = asyncio.create_task(submit_all(lambda: chance.choice(urls), given, 20))
            for kill in range(KILLS):
                least = ITEMS * (kill + 1) // (KILLS + 1)
                await wait_until(lambda least=least: decided(least), 120)  # type: ignore[misc]
                killed = serves[kill % 2]
                await asyncio.to_thread(killed.kill)
                await killed.start()
            await submitting
            await wait_until(lambda: decided(ITEMS), 120)
            began = time.monotonic()
            assert [await serve.stop() for serve in serves] == [0, 0], "with open WebSockets"
            assert time.monotonic() - began < 10
            moderators.stopped.set()
            await working
            log = [entry for _, entry in await redis.xrange(runtime.key(keys, "log"))]
            check(log, given, who, moderators)
            left = [name.decode() async for name in redis.scan_iter(f"{runtime.key(keys, '')}*")]
            names = {name.removeprefix(runtime.key(keys, "")).partition(":")[0] for name in left}
            assert not names & {"waiting", "line", "open", "locks", "held"}, names
    finally:
        moderators.stopped.set()
        for serve in serves:
            serve.close()
    assert moderators.seen["dropped"] > 10
    assert moderators.seen["assignment"] > ITEMS


def check(
    log: list[dict[bytes, bytes]], given: list[dict[str, Any]], who: list[dict[str, Any]], moderators: Moderators
) -> None:
    """Replay the log."""
    by_id, by_name = {item["id"]: item for item in given}, {profile["name"]: profile for profile in who}
    came: dict[str, int] = {}
    level: Counter[str] = Counter()
    waiting: set[str] = set()
    held: dict[str, tuple[str, str]] = {}  # item -> moderator, token
    excluded: dict[str, set[str]] = {item["id"]: {item["author"]} for item in given}
    tokens: set[str] = set()
    ends: dict[str, tuple[str, str]] = {}  # token -> item, event
    for entry in log:
        event, item, token, name, at = (
            entry[key].decode() for key in (b"event", b"item", b"token", b"moderator", b"at")
        )
        if event == "came":
            assert item not in came
            came[item], level[item] = by_id[item]["priority"] * 2**42 + int(at), 1
            waiting.add(item)
        elif event == "assigned":
            assert item in waiting, f"{item} is with two moderators"
            assert token not in tokens, "a token is used again"
            assert name not in excluded[item]
            tokens.add(token)
            waiting.discard(item)
            held[item] = name, token
            may = by_name[name]
            assert sum(holder == name for holder, _ in held.values()) <= may["holds"]
            earlier = [
                other
                for other in waiting
                if (came[other], other) < (came[item], item)
                and by_id[other]["category"] in may["categories"]
                and by_id[other]["language"] in may["languages"]
                and level[other] <= may["level"]
                and name not in excluded[other]
            ]
            assert not earlier, f"{name} was given {item} before {earlier}"
        else:
            assert held.pop(item) == (name, token), "it ended for somebody else"
            ends[token] = item, event
            if event not in FINAL:
                waiting.add(item)
            if event in {"skipped", "voted", "escalated"}:
                excluded[item].add(name)
            if event == "escalated":
                level[item] += 1
    assert not held
    assert not waiting
    finals = Counter(item for item, event in ends.values() if event in FINAL)
    assert finals == Counter(item["id"] for item in given), "every item is decided exactly once"
    assert all(ends[token][1] == outcome for token, outcome in moderators.acked.items())
    assert len({ends[token][0] for token, outcome in moderators.acked.items() if outcome in FINAL}) > ITEMS / 2


def test_the_log_is_read_as_it_should_be() -> None:
    """That the check fails on a log that is wrong."""
    item = {"id": "i1", "author": "zoe", "priority": 4, "category": "ads", "language": "en"}
    may = {"name": "m1", "categories": ["ads"], "languages": ["en"], "level": 1, "holds": 1}

    def entry(event: str, token: str = "", name: str = "m1") -> dict[bytes, bytes]:
        values = {"event": event, "item": "i1", "token": token, "moderator": name, "at": "1"}
        return {key.encode(): value.encode() for key, value in values.items()}

    twice = [entry("came"), entry("assigned", "t1"), entry("assigned", "t2", "m2")]
    with pytest.raises(AssertionError, match="two moderators"):
        check(twice, [item], [may], Moderators([], 0))
    lost = [entry("came"), entry("assigned", "t1"), entry("expired", "t1")]
    with pytest.raises(AssertionError):
        check(lost, [item], [may], Moderators([], 0))
