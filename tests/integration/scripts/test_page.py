"""timeline/page: a sorted set, since, until, limit and cursor; the entries."""

from __future__ import annotations

import pytest

from aioflow.engine.keys import Queue, data_key
from aioflow.engine.store import Store
from aioflow.errors import ProtocolError
from tests.integration.scripts.state import plant

ENTRIES = {"a": 10, "b": 20, "c": 20, "d": 20, "e": 30, "f": 40}
ALL = list(ENTRIES.items())
LATEST = 2**42


@pytest.fixture
async def key(clocked: Store, queue: Queue) -> str:
    """A timeline that holds ENTRIES."""
    await plant(clocked, queue, {"d:t": ENTRIES})
    return data_key(queue.namespace, queue.service, "t")


@pytest.mark.parametrize(
    ("since", "until", "limit", "after", "entries"),
    [
        pytest.param(0, LATEST, 1000, None, ALL, id="all"),
        pytest.param(0, LATEST, 2, None, ALL[:2], id="limit"),
        pytest.param(20, 40, 9, None, ALL[1:5], id="from since, up to but not at until"),
        pytest.param(21, 30, 9, None, [], id="nothing between"),
        pytest.param(40, 20, 9, None, [], id="until before since"),
        pytest.param(41, LATEST, 9, None, [], id="beyond the end"),
        pytest.param(-(2**42), 11, 9, None, ALL[:1], id="before 1970"),
        pytest.param(0, LATEST, 9, (20, "c"), ALL[3:], id="after the cursor, within equal scores"),
        pytest.param(0, LATEST, 2, (20, "b"), ALL[2:4], id="after the cursor, limit"),
        pytest.param(0, 30, 9, (20, "d"), [], id="after the cursor, until"),
        pytest.param(0, LATEST, 9, (40, "f"), [], id="after the last"),
        pytest.param(0, LATEST, 9, (20, "bb"), ALL[1:], id="an entry that is gone: its score comes again"),
        pytest.param(0, LATEST, 9, (25, "x"), ALL[4:], id="an entry that is gone, and its score with it"),
        pytest.param(0, LATEST, 9, (20, "a"), ALL[1:], id="an entry that has moved back"),
        pytest.param(0, LATEST, 9, (20, "e"), ALL[1:], id="an entry that has moved on"),
        pytest.param(0, LATEST, 9, (0, "x"), ALL, id="a cursor before all"),
        pytest.param(0, LATEST, 9, (99, "x"), [], id="a cursor behind all"),
        pytest.param(20, LATEST, 9, (10, "a"), ALL[1:], id="a cursor of another page does not go before since"),
        pytest.param(25, LATEST, 9, (20, "x"), ALL[4:], id="nor one whose entry is gone"),
    ],
)
async def test_page(
    clocked: Store,
    key: str,
    since: int,
    until: int,
    limit: int,
    after: tuple[int, str] | None,
    entries: list[tuple[str, int]],
) -> None:
    for _ in range(2):  # a repeat hears the same
        assert await clocked.page(key, since, until, limit, after) == entries
    assert await clocked.redis.zcard(key) == len(ENTRIES)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 7])
async def test_pages_put_together_are_the_whole(clocked: Store, key: str, limit: int) -> None:
    seen: list[tuple[str, int]] = []
    while page := await clocked.page(key, 0, LATEST, limit, (seen[-1][1], seen[-1][0]) if seen else None):
        seen += page
    assert seen == ALL


async def test_no_entry_is_skipped_while_others_come_and_go(clocked: Store, key: str) -> None:
    first = await clocked.page(key, 0, LATEST, 3, None)
    assert first == ALL[:3]
    # An entry before the cursor goes, one comes; by rank alone one would be skipped and one come twice.
    await clocked.redis.zrem(key, "a", "b")
    await clocked.redis.zadd(key, {"aa": 5})
    assert await clocked.page(key, 0, LATEST, 3, (20, "c")) == ALL[3:]
    # The cursor's own entry goes: what has its score comes again, nothing is left out.
    await clocked.redis.zrem(key, "c")
    assert await clocked.page(key, 0, LATEST, 3, (20, "c")) == ALL[3:]
    await clocked.redis.zadd(key, {"b": 20})
    assert await clocked.page(key, 0, LATEST, 3, (20, "c")) == [ALL[1], *ALL[3:5]]


async def test_places_in_line_are_paged_exactly(clocked: Store, queue: Queue) -> None:
    places = {f"j{number}": 9 * 2**42 + 1_800_000_000_000 + number for number in range(5)}
    await plant(clocked, queue, {"ready": places})
    key, seen = queue.keys["ready"], dict[str, int]()
    after: tuple[int, str] | None = None
    while page := await clocked.page(key, 0, 10 * 2**42, 2, after):
        seen.update(page)
        after = page[-1][1], page[-1][0]
    assert seen == places


async def test_a_set_that_is_not_there_is_empty(clocked: Store, queue: Queue) -> None:
    key = data_key(queue.namespace, queue.service, "none")
    assert await clocked.page(key, 0, LATEST, 10, None) == []
    assert await clocked.page(key, 0, LATEST, 10, (5, "x")) == []
    assert await clocked.count(key, 0, LATEST) == 0


async def test_count_has_the_limits_of_a_page(clocked: Store, key: str) -> None:
    assert await clocked.count(key, 20, 40) == 4
    assert await clocked.count(key, 0, LATEST) == 6


@pytest.mark.parametrize("limit", [0, 1001])
async def test_other_limits_are_refused(clocked: Store, key: str, limit: int) -> None:
    with pytest.raises(ProtocolError, match="page takes 1 to 1000 entries"):
        await clocked.page(key, 0, LATEST, limit, None)


async def test_another_kind_of_key_is_refused(clocked: Store, queue: Queue) -> None:
    await plant(clocked, queue, {"d:t": {"f": "v"}})
    with pytest.raises(ProtocolError, match="holds a hash, not a"):
        await clocked.page(data_key(queue.namespace, queue.service, "t"), 0, LATEST, 10, None)
