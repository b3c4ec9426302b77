"""Each script against a stage of desks and items: what foreign keys, wrong arguments and long walks do to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aioflow import ProtocolError, Runtime
from services.moderation.board import Board, Refused
from services.moderation.models import Choice, Decision, Item, Moderator
from tests.conftest import Clock
from tests.services.moderation.conftest import bare, scripts

Call = Callable[[Board], Awaitable[Any]]
MakeBoard = Callable[..., Board]
BODY = b'{"content":"x"}'


def item(item_id: str, category: str = "spam", **fields: Any) -> Item:
    given = {"content": "x", "language": "en", "author": "zoe", **fields}
    return Item(id=item_id, category=category, **given)


def moderator(name: str, *categories: str, **fields: Any) -> Moderator:
    return Moderator(name=name, categories=list(categories or ("spam",)), languages=["en"], **fields)


def decision(token: str, choice: Choice, **fields: Any) -> Decision:
    return Decision(token=token, decision=choice, **fields)


async def refused(call: Awaitable[Any]) -> int:
    """The code of a refusal."""
    with pytest.raises(Refused) as caught:
        await call
    return caught.value.code


async def held(board: Board, name: str) -> list[str]:
    """The items that a moderator holds."""
    desk = await board.look(name)
    assert desk is not None
    return [lock.item for lock in desk.locks]


class Stage:
    """ann holds i1, ben waits for spam, cid has a desk without a wait, i3 waits for somebody who knows ads."""

    def __init__(self, board: Board, runtime: Runtime) -> None:
        self.board = board
        self.redis: Any = runtime.redis
        self.prefix = runtime.key(bare, "")

    async def set_up(self) -> None:
        await self.redis.flushdb()
        board = self.board
        await board.join(moderator("ann", "spam", "slow"), "w1", 6000)
        for item_id in ("i0", "i1"):
            await board.submit(item(item_id), BODY)
            if item_id == "i0":
                await board.decide("i0", decision((await self.locks("ann"))[0], Choice.APPROVE))
        await board.join(moderator("ben", holds=2, level=2), "w2", 6000)
        await board.join(moderator("cid", "ads"))
        await board.join(moderator("dan", "dull"))
        await board.submit(item("i2", level=3), BODY)
        await board.submit(item("i3", "ads"), BODY)
        assert (await self.locks("ann"), await self.locks("ben")) == (["abc.2"], [])

    async def locks(self, name: str) -> list[str]:
        desk = await self.board.look(name)
        assert desk is not None
        return [lock.token for lock in desk.locks]

    async def dump(self) -> dict[str, Any]:
        """Every key with its type and contents."""
        return {key.decode(): await self.redis.dump(key) for key in sorted(await self.redis.keys(f"{self.prefix}*"))}

    async def plant(self, key: str, kind: bytes = b"none") -> None:
        """Something else at a key; `kind` is what it should be where it is not there."""
        found = await self.redis.type(key)
        kind = kind if found == b"none" else found
        await self.redis.delete(key)
        await (self.redis.rpush if kind == b"string" else self.redis.set)(key, "foreign")


@pytest.fixture
async def stage(make_board: MakeBoard, bare_runtime: Runtime) -> Stage:
    made = Stage(make_board(results="ledger.book", two_person=frozenset({"slow"})), bare_runtime)
    await made.set_up()
    return made


CALLS: dict[str, Call] = {
    "submit to a moderator": lambda board: board.submit(item("i9"), BODY),
    "submit to the line": lambda board: board.submit(item("i9", "ads"), BODY),
    "join": lambda board: board.join(moderator("dora", "ads"), "w4", 6000),
    "join again": lambda board: board.join(moderator("ben", "ads"), "w5", 6000),
    "join and wait": lambda board: board.join(moderator("dora", "spam", "dull"), "w4", 6000),
    "ask": lambda board: board.ask("cid", "r1", 0),
    "ask and wait": lambda board: board.ask("dan", "r1", 1000),
    "rest": lambda board: board.rest("ben", "w2", 5000),
    "drop": lambda board: board.drop("ann", "w1"),
    "leave": lambda board: board.leave("ann"),
    "beat": lambda board: board.beat([("ann", "w1"), ("ben", "w2")], 6000),
    "extend": lambda board: board.extend("i1", "abc.2"),
    "approve": lambda board: board.decide("i1", decision("abc.2", Choice.APPROVE)),
    "reject": lambda board: board.decide("i1", decision("abc.2", Choice.REJECT, reason="no")),
    "skip": lambda board: board.decide("i1", decision("abc.2", Choice.SKIP)),
    "escalate": lambda board: board.decide("i1", decision("abc.2", Choice.ESCALATE, level=4)),
}
IN_STEPS = {"drop", "leave"}
"""What has several steps, each of which stands for itself."""


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_that_meets_a_foreign_key_changes_nothing(stage: Stage, clock: Clock, name: str) -> None:
    before = await stage.dump()
    clock.ms += 1
    await CALLS[name](stage.board)
    after = await stage.dump()
    written = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert written
    kinds = {key: await stage.redis.type(key) for key in written}
    for key in sorted(written):
        await stage.set_up()
        await stage.plant(key, kinds[key])
        planted = await stage.dump()
        with pytest.raises(ProtocolError):
            await CALLS[name](stage.board)
        if name not in IN_STEPS:
            assert await stage.dump() == planted, key


async def test_whatever_a_tick_meets_is_put_off_and_done_once_it_is_mended(stage: Stage, clock: Clock) -> None:
    keys = sorted(await stage.dump())
    begun = clock.ms
    for key in keys:
        clock.ms = begun
        await stage.set_up()
        clock.ms += 120_000
        kept = await stage.redis.dump(key)
        await stage.plant(key)
        try:
            ticked = await stage.board.tick(100, judges=True)
        except ProtocolError:
            ticked = None
        await stage.redis.delete(key)
        await stage.redis.restore(key, 0, kept)
        clock.ms += 60_000
        for _ in range(2):
            assert (await stage.board.tick(100, judges=True)).failure == "", (key, ticked)
        names = {name.removeprefix(stage.prefix) for name in await stage.dump()}
        assert names >= {"waiting", "item:i1", "item:i2", "item:i3", "desk:cid"}
        assert not names & {"locks", "held:ann", "desk:ann", "desk:ben", "seats", "held:ben"}, (key, names)
        waiting = await stage.redis.zrange(f"{stage.prefix}waiting", 0, -1)
        assert sorted(waiting) == [b"i1", b"i2", b"i3"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("submit", ["0", "n", "1", "9", "i", "{}", "a", "s:e", "6", "4", "0"]),
        ("submit", ["0", "n", "1", "9", "i", "{}", "a", "s:e", "1", "10", "0"]),
        ("submit", ["0", "n", "1", "x", "i", "{}", "a", "s:e", "1", "4", "0"]),
        ("join", ["0", "n", "1", "ann", "", "http", "h", "", "1", "1", "9"]),
        ("join", ["0", "n", "1", "ann", "", "http", "h", "s:e " * 33, "1", "1", "9"]),
        ("join", ["0", "n", "1", "ann", "", "http", "h", "s:e", "1", "11", "9"]),
        ("beat", ["0", "9", "0"]),
        ("beat", ["0", "9", "2", "ann", "w"]),
        ("tick", ["0", "n", "1", "0", "1", "9"]),
        ("tick", ["0", "n", "1", "1001", "1", "9"]),
    ],
)
async def test_wrong_arguments_are_refused(bare_runtime: Runtime, name: str, words: list[str]) -> None:
    with pytest.raises(ProtocolError, match=f"PROTOCOL {name} takes"):
        await bare_runtime.run_script(bare, scripts[name].path, None, words)
    assert await bare_runtime.redis.keys(f"{bare_runtime.key(bare, '')}*") == []


# ---- order and places


async def test_a_priority_goes_first_and_then_who_waits_longest(board: Board, clock: Clock) -> None:
    for number, priority in enumerate([4, 9, 0, 4, 0]):
        clock.ms += 1
        await board.submit(item(f"i{number}", priority=priority), BODY)
    await board.join(moderator("ann", holds=5), "w1", 6000)
    desk = await board.look("ann")
    assert desk is not None
    assert sorted(int(lock.token.partition(".")[2]) for lock in desk.locks) == [1, 2, 3, 4, 5]
    by_token = sorted(desk.locks, key=lambda lock: int(lock.token.partition(".")[2]))
    assert [lock.item for lock in by_token] == ["i2", "i4", "i0", "i3", "i1"]


async def test_an_item_that_comes_back_stands_where_it_stood(board: Board, clock: Clock, bare_runtime: Runtime) -> None:
    for number in range(3):
        clock.ms += 10
        await board.submit(item(f"i{number}"), BODY)
    line = bare_runtime.key(bare, "line:spam:en:1")
    before = await bare_runtime.redis.zrange(line, 0, -1, withscores=True)
    for end in ("skip", "expire", "leave"):
        await board.join(moderator(f"m-{end}"), "w1", 600_000)
        desk = await board.look(f"m-{end}")
        assert desk is not None
        assert desk.locks[0].item == "i0"
        if end == "skip":
            await board.rest(f"m-{end}", "w1", 600_000)
            await board.decide("i0", decision(desk.locks[0].token, Choice.SKIP))
        elif end == "expire":
            await board.rest(f"m-{end}", "w1", 600_000)
            clock.ms += 120_000
            await board.tick(100, judges=True)
        else:
            await board.leave(f"m-{end}")
        assert await bare_runtime.redis.zrange(line, 0, -1, withscores=True) == before, end


async def test_a_time_of_submission_is_the_place_and_the_future_is_now(board: Board, clock: Clock) -> None:
    await board.submit(item("now"), BODY)
    await board.submit(item("old", submitted_at="2026-01-31T12:00:00Z"), BODY)
    await board.submit(item("future", submitted_at="2100-01-31T12:00:00Z"), BODY)
    await board.join(moderator("ann", holds=3), "w1", 6000)
    desk = await board.look("ann")
    assert desk is not None
    by_token = sorted(desk.locks, key=lambda lock: int(lock.token.partition(".")[2]))
    assert [lock.item for lock in by_token] == ["old", "future", "now"], "of the same ms by id"


async def test_a_request_that_is_dropped_gives_back_what_it_got_and_nothing_else(board: Board) -> None:
    await board.join(moderator("ann", holds=3))
    await board.submit(item("i0"), BODY)
    await board.ask("ann", "r1", 0)
    await board.ask("ann", "r2", 60_000)
    await board.submit(item("i1"), BODY)
    assert await held(board, "ann") == ["i0", "i1"]
    assert await board.drop("ann", "r1") == 0, "i0 was shown to r2 as well"
    assert await board.drop("ann", "r3") == 0
    await board.submit(item("i2"), BODY)
    await board.ask("ann", "r3", 60_000)
    assert await held(board, "ann") == ["i0", "i1", "i2"]
    assert await board.drop("ann", "r2") == 0
    assert await board.drop("ann", "r3") == 3
    assert await board.drop("ann", "r3") == 0
    assert await held(board, "ann") == []


async def test_a_request_that_is_dropped_waits_no_longer(board: Board) -> None:
    await board.join(moderator("ann"))
    await board.ask("ann", "r1", 60_000)
    assert await board.drop("ann", "r1") == 0
    await board.submit(item("i0"), BODY)
    assert await held(board, "ann") == []


async def test_what_is_put_off_does_not_touch_the_lock_of_whoever_has_the_item_now(stage: Stage, clock: Clock) -> None:
    board, redis, prefix = stage.board, stage.redis, stage.prefix
    await board.leave("ann")  # i1 goes to ben
    await board.join(moderator("ben", "spam", "odd"), "w2", 600_000)
    await board.join(moderator("eve"), "w6", 600_000)
    await redis.hset(f"{prefix}heads", "odd:en", "foreign")
    clock.ms += board.settings.lock_ms + 1
    ticked = await board.tick(20, judges=True)
    assert "foreign row in" in ticked.failure
    assert await held(board, "eve") == ["i1"]
    assert await redis.zscore(f"{prefix}locks", "i1") == clock.ms + board.settings.lock_ms


# ---- bounds


async def test_a_long_walk_stops_and_goes_on_with_the_next_tick(
    board: Board, clock: Clock, bare_runtime: Runtime
) -> None:
    for number in range(450):
        clock.ms += number % 2
        await board.submit(item(f"own-{number}", ("spam", "ads")[number % 2], author="ann"), BODY)
    await board.submit(item("other", priority=9), BODY)
    redis: Any = bare_runtime.redis
    await redis.config_resetstat()
    await board.join(moderator("ann", "spam", "ads"), "w1", 600_000)
    looked = (await redis.info("commandstats"))["cmdstat_hmget"]["calls"]
    assert looked <= 203, "the desk, the heads twice at most, and a call passes over 200 items"
    assert (await redis.zcard(bare_runtime.key(bare, "seats"))) == 1
    for _ in range(2):
        assert await held(board, "ann") == []
        await board.tick(20, judges=True)
    assert await held(board, "ann") == ["other"]
    names = [key async for key in redis.scan_iter(f"{bare_runtime.key(bare, 'walk')}*")]
    assert names == []


async def test_what_comes_during_a_walk_is_offered_by_itself(board: Board, clock: Clock) -> None:
    for number in range(250):
        await board.submit(item(f"own-{number:03}", author="ann"), BODY)
    await board.join(moderator("ann"), "w1", 600_000)
    await board.submit(item("new", priority=0), BODY)
    desk = await board.look("ann")
    assert desk is not None
    assert [lock.item for lock in desk.locks] == ["new"]
    assert not (await board.tick(20, judges=True)).more


async def test_a_walk_that_finds_nothing_ends(board: Board, bare_runtime: Runtime) -> None:
    for number in range(250):
        await board.submit(item(f"own-{number:03}", author="ann"), BODY)
    await board.join(moderator("ann"), "w1", 600_000)
    for _ in range(3):
        await board.tick(20, judges=True)
    names = [key async for key in bare_runtime.redis.scan_iter(f"{bare_runtime.key(bare, 'walk')}*")]
    assert names == []


async def test_a_desk_is_kept_for_as_long_as_a_request_waits(make_board: MakeBoard, clock: Clock) -> None:
    board = make_board(idle=1)
    await board.join(moderator("ann"))
    await board.ask("ann", "r1", 30_000)
    clock.ms += 29_000
    await board.tick(20, judges=True)
    await board.submit(item("i1"), BODY)
    assert await held(board, "ann") == ["i1"]
    clock.ms += 2_001
    assert (await board.tick(20, judges=True)).left == 1


@pytest.mark.parametrize("wait_ms", [0, 1000])
async def test_a_request_goes_on_with_the_search_that_one_before_left(
    board: Board, clock: Clock, bare_runtime: Runtime, wait_ms: int
) -> None:
    for number in range(450):
        await board.submit(item(f"own-{number:03}", author="ann"), BODY)
    await board.submit(item("other", priority=9), BODY)
    await board.join(moderator("ann"))
    for asked in range(3):
        assert await held(board, "ann") == []
        await board.ask("ann", f"r{asked}", wait_ms)
        await board.rest("ann", f"r{asked}", 600_000)
    assert await held(board, "ann") == ["other"]
    names = [key async for key in bare_runtime.redis.scan_iter(f"{bare_runtime.key(bare, 'walk')}*")]
    assert names == []


async def test_what_came_back_between_two_requests_is_found(board: Board, bare_runtime: Runtime) -> None:
    for number in range(250):
        await board.submit(item(f"own-{number:03}", author="ann"), BODY)
    await board.join(moderator("ann"))
    await board.ask("ann", "r1", 0)
    await board.submit(item("early", priority=0), BODY)
    await board.ask("ann", "r2", 60_000)
    await board.tick(20, judges=True)
    assert await held(board, "ann") == ["early"]
    await board.leave("ann")
    names = [key async for key in bare_runtime.redis.scan_iter(f"{bare_runtime.key(bare, 'walk')}*")]
    assert names == []


async def test_an_item_may_be_skipped_a_hundred_times(board: Board) -> None:
    await board.submit(item("i1"), BODY)
    for number in range(101):
        await board.join(moderator(f"m{number}"), "w1", 600_000)
        desk = await board.look(f"m{number}")
        assert desk is not None
        skip = board.decide("i1", decision(desk.locks[0].token, Choice.SKIP))
        if number < 100:
            assert (await skip)["outcome"] == "skipped"
        else:
            assert await refused(skip) == -3


async def test_the_bound_counts_every_undecided_item(make_board: MakeBoard) -> None:
    board = make_board(bound=2)
    await board.join(moderator("ann"), "w1", 6000)
    assert [await board.submit(item(f"i{number}"), BODY) for number in range(2)] == [1, 1]
    assert await refused(board.submit(item("i2"), BODY)) == -2
    assert await board.submit(item("i0"), BODY) == 0
    assert await refused(board.submit(item("i0"), b"{}")) == -1


# ---- two must agree


@pytest.mark.parametrize(
    ("choices", "outcomes", "level"),
    [
        (["approve", "approve"], ["voted", "approved"], 1),
        (["reject", "reject"], ["voted", "rejected"], 1),
        (["approve", "reject", "reject", "reject"], ["voted", "escalated", "voted", "rejected"], 2),
        (["approve", "skip", "approve"], ["voted", "skipped", "approved"], 1),
        (["approve", "escalate", "approve", "approve"], ["voted", "escalated", "voted", "approved"], 5),
    ],
)
async def test_two_must_agree(make_board: MakeBoard, choices: list[str], outcomes: list[str], level: int) -> None:
    board = make_board(two_person=frozenset({"spam"}))
    await board.submit(item("i1"), BODY)
    made = [await once(board, f"m{number}", choice) for number, choice in enumerate(choices)]
    assert [record["outcome"] for record in made] == outcomes
    assert made[-1]["level"] == str(level)


async def test_at_the_highest_level_a_third_vote_decides(make_board: MakeBoard) -> None:
    board = make_board(two_person=frozenset({"spam"}))
    await board.submit(item("i1", level=5), BODY)
    made = [await once(board, f"m{number}", choice) for number, choice in enumerate(["approve", "reject", "approve"])]
    assert [record["outcome"] for record in made] == ["voted", "voted", "approved"]
    assert made[-1]["votes"] == "approve:m0\nreject:m1\napprove:m2"


async def once(board: Board, name: str, choice: str) -> dict[str, str]:
    """A moderator comes, decides what they get, and leaves."""
    await board.join(moderator(name, level=5), "w1", 6000)
    desk = await board.look(name)
    assert desk is not None
    needed: dict[str, dict[str, Any]] = {"reject": {"reason": "no"}, "escalate": {"level": 5}}
    fields = needed.get(choice, {})
    record = await board.decide("i1", decision(desk.locks[0].token, Choice(choice), **fields))
    assert await held(board, name) == [], "never again to the same"
    await board.leave(name)
    return record
