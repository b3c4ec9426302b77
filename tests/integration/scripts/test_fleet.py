"""fleet/beat, leave, list, order: the list of runtimes before, the call, the answer, the list after."""

from __future__ import annotations

from typing import Any

import pytest

from aioflow.engine import scripts
from aioflow.engine.keys import fleet_key
from aioflow.engine.store import Store
from aioflow.errors import ProtocolError

NOW = 1_800_000_000_000
GONE = 60_000


class Keys:
    """The keys of one namespace, and raw calls on them."""

    def __init__(self, store: Store, namespace: str) -> None:
        self.store = store
        self.namespace = namespace

    def key(self, part: str, runtime_id: str = "a") -> str:
        return fleet_key(self.namespace, part, runtime_id)

    async def call(self, name: str, *words: str, runtime_id: str = "a") -> Any:
        script = scripts.load(f"fleet/{name}", plain=self.store.in_memory)
        await self.store.redis.script_load(script.source)
        return await self.store.run_script(script, [self.key(key, runtime_id) for key, _ in script.keys], words)

    async def plant(self, **seen: int) -> None:
        """Runtimes, by their last beat."""
        for runtime_id, at_ms in seen.items():
            await self.store.redis.zadd(self.key("seen"), {runtime_id: at_ms})
            await self.store.redis.hset(self.key("about"), runtime_id, f'"{runtime_id}"')

    async def seen(self) -> dict[str, int]:
        redis: Any = self.store.redis
        return {name.decode(): int(at) for name, at in await redis.zrange(self.key("seen"), 0, -1, withscores=True)}

    async def about(self) -> dict[str, str]:
        found: Any = await self.store.redis.hgetall(self.key("about"))
        return {name.decode(): value.decode() for name, value in found.items()}


@pytest.fixture
def keys(store: Store, namespace: str) -> Keys:
    return Keys(store, namespace)


async def test_beat(keys: Keys) -> None:
    assert await keys.call("beat", str(NOW), "a", '"one"', str(GONE)) == [NOW, 1]
    await keys.plant(silent=NOW - GONE, gone=NOW - GONE - 1)
    assert await keys.call("beat", str(NOW + 1), "a", '"two"', str(GONE)) == [NOW + 1, 1]
    assert await keys.seen() == {"a": NOW + 1}, "one that was silent for so long is forgotten a moment later"
    await keys.plant(silent=NOW - GONE, gone=NOW - GONE - 1)
    assert await keys.call("beat", str(NOW), "a", '"two"', str(GONE)) == [NOW, 2]
    assert await keys.seen() == {"a": NOW, "silent": NOW - GONE}
    assert await keys.about() == {"a": '"two"', "silent": '"silent"'}
    assert await keys.store.redis.pttl(keys.key("seen")) > 80_000_000, "nothing is left for ever"
    assert await keys.store.redis.pttl(keys.key("about")) > 80_000_000


async def test_beat_of_one_that_was_itself_away(keys: Keys) -> None:
    await keys.plant(a=NOW - 2 * GONE)
    assert await keys.call("beat", str(NOW), "a", "{}", str(GONE)) == [NOW, 1]
    assert (await keys.seen(), await keys.about()) == ({"a": NOW}, {"a": "{}"})


async def test_beat_forgets_a_few_at_a_time(keys: Keys) -> None:
    await keys.plant(**{f"r{number:03}": number for number in range(250)})
    left = [(await keys.call("beat", str(NOW), "a", "{}", str(GONE)))[1] for _ in range(4)]
    assert left == [151, 51, 1, 1]
    assert len(await keys.about()) == 1


async def test_order(keys: Keys) -> None:
    assert await keys.call("order", "a", "x:1:channel", "stop", "1 x") == 0, "there is no such runtime"
    assert await keys.store.redis.exists(keys.key("orders")) == 0
    await keys.plant(a=NOW, b=NOW)
    listener = keys.store.pubsub()
    await listener.subscribe("x:1:channel")
    await listener.get_message(timeout=5)
    for _ in range(2):  # a repeat has no second effect
        assert await keys.call("order", "a", "x:1:channel", "scale demo.work", "5 x") == 1
    message = await listener.get_message(timeout=5)
    assert message is not None
    assert message["data"] == b"order\n"
    await listener.aclose()
    assert await keys.call("order", "a", "x:1:channel", "stop", "1 y") == 1
    now_ms, runtimes, *orders = await keys.call("beat", str(NOW), "a", "{}", str(GONE))
    assert (now_ms, runtimes, orders) == (NOW, 2, [b"scale demo.work", b"5 x", b"stop", b"1 y"])
    assert await keys.call("beat", str(NOW), "b", "{}", str(GONE), runtime_id="b") == [NOW, 2], "they are a's"
    assert await keys.store.redis.pttl(keys.key("orders")) > 80_000_000


async def test_leave(keys: Keys) -> None:
    await keys.plant(a=NOW, b=NOW)
    await keys.call("order", "a", "x:1:channel", "stop", "1 y")
    assert [await keys.call("leave", "a") for _ in range(2)] == [1, 0]
    assert (await keys.seen(), await keys.about()) == ({"b": NOW}, {"b": '"b"'})
    assert await keys.store.redis.exists(keys.key("orders")) == 0


async def test_list(keys: Keys) -> None:
    assert await keys.call("list", str(NOW), "10") == [NOW]
    await keys.plant(b=NOW - 5, a=NOW, c=NOW - 7)
    await keys.store.redis.hdel(keys.key("about"), "b")
    found = [b"c", str(NOW - 7).encode(), b'"c"', b"b", str(NOW - 5).encode(), b"{}", b"a", str(NOW).encode(), b'"a"']
    assert await keys.call("list", str(NOW), "10") == [NOW, *found]
    assert await keys.call("list", str(NOW), "2") == [NOW, *found[:6]]
    for limit in ("0", "1001"):
        with pytest.raises(ProtocolError, match="list takes 1 to 1000 runtimes"):
            await keys.call("list", str(NOW), limit)


CALLS = {
    "beat": ("0", "a", "{}", "60000"),
    "leave": ("a",),
    "list": ("0", "10"),
    "order": ("a", "x:1:channel", "stop", "1"),
}


@pytest.mark.parametrize(
    ("name", "part"), [(name, part) for name in CALLS for part, _ in scripts.load(f"fleet/{name}").keys]
)
async def test_a_key_of_a_foreign_type_is_found_before_anything_is_written(keys: Keys, name: str, part: str) -> None:
    await keys.plant(a=NOW, b=NOW)
    await keys.store.redis.delete(keys.key(part))
    await keys.store.redis.set(keys.key(part), "foreign")
    before = {key: await keys.store.redis.dump(key) for key in map(keys.key, ("seen", "about", "orders"))}
    with pytest.raises(ProtocolError, match="holds a string, not a"):
        await keys.call(name, *CALLS[name])
    assert {key: await keys.store.redis.dump(key) for key in before} == before
