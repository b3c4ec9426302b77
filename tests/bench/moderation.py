"""How long Redis takes for a match, with 100,000 items waiting and 500 moderators; by the server's own measure."""

from __future__ import annotations

import random
from typing import Any

from aioflow import Runtime, Service
from aioflow.engine.scripts import load_file
from services.moderation.board import SCRIPTS, Board
from services.moderation.models import Choice, Decision, Item, Moderator
from services.moderation.settings import ModerationSettings
from tests.serving import ROOT
from tests.valkey import Valkey

ITEMS, MODERATORS, ROUNDS, BATCH = 100_000, 500, 6, 500
CATEGORIES = [f"category-{number}" for number in range(20)]
QUIET = [f"quiet-{number}" for number in range(6)]
LANGUAGES = ["en", "de", "fr", "es", "pl"]
DAY_MS = 86_400_000

keys = Service("moderation")
scripts = {name: keys.script(ROOT / "lua" / "moderation" / f"{name}.lua") for name in SCRIPTS}


class Batches(Board):
    """A board whose calls are gathered, and sent many at a time."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime, scripts, ModerationSettings(), "be")
        self.redis: Any = runtime.redis
        self._calls: list[tuple[str, tuple[Any, ...]]] = []

    async def _run(self, name: str, *words: Any) -> Any:
        self._calls.append((name, words))
        return 1 if name != "decide" else []

    async def flush(self, command: str = "EVAL") -> None:
        """Send what was gathered. What is measured goes by EVALSHA and one at a time, all else by EVAL and together."""
        pipeline = self.redis.pipeline(transaction=False)
        for name, words in self._calls:
            script = load_file(scripts[name].path)
            names = [self._runtime.key(keys, key) for key, _ in script.keys]
            code = script.sha if command == "EVALSHA" else script.source
            pipeline.execute_command(command, code, len(names), *names, 0, *words)
            if command == "EVALSHA":
                await pipeline.execute()
        self._calls.clear()
        await pipeline.execute()

    async def decide_all(self, names: list[str]) -> None:
        """What each of them holds."""
        pipeline = self.redis.pipeline(transaction=False)
        for name in names:
            pipeline.zrange(self._runtime.key(keys, f"held:{name}"), 0, 0)
        items = [held[0].decode() for held in await pipeline.execute()]
        for item in items:
            pipeline.hget(self._runtime.key(keys, f"item:{item}"), "token")
        for item, token in zip(items, await pipeline.execute(), strict=True):
            await self.decide(item, Decision(token=token.decode(), decision=Choice.APPROVE))

    async def measured(self) -> tuple[float, float]:
        """Milliseconds of an EVALSHA since the last reset, median and 99th percentile, as the server took them."""
        told = (await self.redis.info("latencystats"))["latency_percentiles_usec_evalsha"]
        return float(told["p50"]) / 1000, float(told["p99"]) / 1000


async def matches(server: Valkey) -> list[tuple[float, float]]:
    """Median and 99th percentile, in ms, of three kinds of match.

    A moderator who asks gets one of the items that wait; an item that comes goes to one of the moderators who wait; a
    decision is recorded, and the next item given in the same call. Last of an item that is known already, which does
    next to nothing: what there is of the machine in the others.
    """
    chance = random.Random(1)
    async with Runtime([keys], redis=server.url, workers=False) as runtime:
        board = Batches(runtime)
        await board.redis.flushall()
        for name in SCRIPTS:
            await board.redis.script_load(load_file(scripts[name].path).source)
        for first in range(0, ITEMS, BATCH):
            for number in range(first, first + BATCH):
                await board.submit(an_item(chance, number), b'{"content":"x"}')
            await board.flush()
        names = [f"m{number}" for number in range(MODERATORS)]
        for name in names:
            await board.join(a_moderator(chance, name), "socket", DAY_MS)
        await board.flush()
        await board.redis.config_resetstat()
        for _ in range(ROUNDS):
            await board.decide_all(names)
            await board.flush("EVALSHA")
        followed = await board.measured()
        assert await board.redis.zcard(runtime.key(keys, "locks")) == MODERATORS, "an item follows each decision"
        for name in names:  # everybody asks from now on
            await board.leave(name)
            await board.join(a_moderator(chance, name), "", DAY_MS)
        await board.flush()
        await board.redis.config_resetstat()
        for turn in range(ROUNDS):
            for name in names:
                await board.ask(name, f"request-{turn}", 0)
            await board.flush("EVALSHA")
            assert await board.redis.zcard(runtime.key(keys, "locks")) == MODERATORS, "each ask gives an item"
            await board.decide_all(names)
            await board.flush()
        asked = await board.measured()
        for name in names:  # everybody waits now for what nobody has sent
            await board.leave(name)
            await board.join(Moderator(name=name, categories=QUIET, languages=["en", "de"]), "socket", DAY_MS)
        await board.flush()
        await board.redis.config_resetstat()
        for turn in range(ROUNDS):
            for number in range(MODERATORS):
                item = Item(id=f"q{turn}-{number}", content="x", category=QUIET[1], language="en", author="zoe")
                await board.submit(item, b'{"content":"x"}')
            await board.flush("EVALSHA")
            await board.decide_all(names)
            await board.flush()
        came = await board.measured()
        await board.redis.config_resetstat()
        for _ in range(ROUNDS * MODERATORS):
            await board.submit(item, b'{"content":"x"}')
        await board.flush("EVALSHA")
        return [asked, came, followed, await board.measured()]


def an_item(chance: random.Random, number: int) -> Item:
    return Item(
        id=f"i{number}",
        content="x",
        category=chance.choice(CATEGORIES),
        language=chance.choice(LANGUAGES),
        author=f"m{chance.randrange(10 * MODERATORS)}",
        priority=chance.randrange(10),
        level=chance.choice([1, 1, 1, 2, 3]),
    )


def a_moderator(chance: random.Random, name: str) -> Moderator:
    categories, languages = chance.sample(CATEGORIES, 6), chance.sample(LANGUAGES, 2)
    return Moderator(name=name, categories=categories, languages=languages, level=chance.choice([1, 2, 3]))
