"""What an ACL has to allow: the line for the server's ACL, and the check at the start that names what is missing.

A right that is noticed only when it is first needed is noticed in the middle of the work. So the server is asked for
all of them at once, by a script that runs nothing: `redis.acl_check_cmd` needs no right of its own, which ACL DRYRUN
would.

Every command is asked for with as many words as it takes: Valkey 9.1 dies of `acl_check_cmd` with a bare EVALSHA.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from aioflow.engine import scripts
from aioflow.engine.keys import LAYOUT, Queue, data_key, fleet_key, runtime_channels
from aioflow.errors import ConfigError

if TYPE_CHECKING:
    from aioflow.engine.store import Store

CONNECTION = {
    "client|setname": ("NAME",),
    "evalsha": ("SHA", "0"),
    "exec": (),
    "info": ("memory",),
    "multi": (),
    "ping": (),
    "script|load": ("SOURCE",),
    "time": (),
}
"""Always needed, beside those of a key; with words as they may follow."""
OPTIONAL = {
    "asking": "a cluster",
    "client|setinfo": "the name of the driver in CLIENT LIST",
    "cluster|slots": "a cluster",
    "config|get": "receipts of fsync",
    "role": "Sentinel",
    "select": "a database other than 0",
    "wait": "receipts of replicated:N",
    "waitaof": "receipts of fsync",
}
"""What each is for; without the others are missed where that is asked for."""
CHANNELS = ("publish", "subscribe")
ONE_KEY = (
    *("hdel", "hexists", "hget", "hgetall", "hincrby", "hlen", "hmget", "hset", "hsetnx", "llen", "pexpire", "rpush"),
    *("sadd", "set", "srem", "type", "xadd", "xdel", "xlen", "xrange"),
    *("zadd", "zcard", "zcount", "zmscore", "zrange", "zrangebyscore", "zrank", "zrem", "zremrangebyrank"),
    *("zrevrangebyscore", "zscore"),
)
SOME_KEYS = {"blpop": ("0",), "del": ()}
"""With what follows the keys."""
MOST_KEYS = 800
"""That are asked for: the script takes 1,000 commands."""


def acl_line(namespace: str, password: str, user: str = "aioflow") -> str:
    """A user who may do what aioflow does, as a line of the server's configuration or its ACL file."""
    prefix = f"{namespace}:{LAYOUT}:*"
    commands = sorted({*CONNECTION, *OPTIONAL, *CHANNELS, *ONE_KEY, *SOME_KEYS})
    return " ".join([f"user {user} on >{password} ~{prefix} &{prefix} -@all", *(f"+{name}" for name in commands)])


async def check_rights(store: Store, queues: Sequence[Queue]) -> None:
    """Raise ConfigError that names every right which this user lacks for queues of one part of a store."""
    if store.in_memory or not queues:
        return
    script, first = scripts.load("server/allowed"), queues[0]
    asked = list(_asked(queues, script.sha, in_cluster=store.has_parts))
    words = [str(len(asked)), *(word for _, command in asked for word in (str(len(command)), *command))]
    try:
        refused = await store.run_script(script, [first.keys["config"]], words)
    except ConfigError as error:
        if _pattern("~", "NAMESPACE") not in rights_in(str(error)):
            raise
        raise not_allowed(store.user, [_pattern("~", first.namespace)]) from error
    lacking = list(dict.fromkeys(asked[position - 1][0] for position in refused))
    if lacking[-2:] == ["+publish", "+subscribe"]:
        lacking.append(_pattern("&", first.namespace))  # most often it is the channel that is not allowed
    if lacking:
        raise not_allowed(store.user, lacking)


def _asked(queues: Sequence[Queue], sha: str, *, in_cluster: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What an ACL would have to say, beside a command that it would then allow."""
    namespace, key = queues[0].namespace, queues[0].keys["config"]
    own = [name for queue in queues for name in (queue.keys["jobs"], data_key(namespace, queue.service, "x"))]
    for name in dict.fromkeys([*own[:MOST_KEYS], fleet_key(namespace, "seen", "")]):
        yield _pattern("~", namespace), ("evalsha", sha, "1", name)
    # Of a command it is known that the key is allowed: the script that asks has declared it.
    yield from ((f"+{name}", (*name.split("|"), *words)) for name, words in CONNECTION.items())
    yield from ((f"+{name}", (name, key, "0", "0", "0")) for name in ONE_KEY)
    yield from ((f"+{name}", (name, key, *words)) for name, words in SOME_KEYS.items())
    if in_cluster:
        yield "+asking", ("asking",)
    yield "+publish", ("publish", runtime_channels(namespace), "")
    yield "+subscribe", ("subscribe", runtime_channels(namespace))


def _pattern(mark: str, namespace: str) -> str:
    return f"{mark}{namespace}:{LAYOUT}:*"


def not_allowed(user: str, lacking: Sequence[str]) -> ConfigError:
    """What is lacking, and the command that mends it."""
    words = " ".join(lacking)
    return ConfigError(
        f"redis does not allow the user {user} all that aioflow needs: ACL SETUSER {user} {words}, also in its "
        "configuration or ACL file; the README has the whole line"
    )


def rights_in(message: str) -> list[str]:
    """What a refusal of the server names, as an ACL says it; of a key or a channel the server names no more."""
    commands = [f"+{name.lower()}" for name in re.findall(r"permissions to run the '([^' ]+)' command", message)]
    places = {"~": r"access (a|one of the) keys?\b", "&": r"access (a|one of the) channels?\b"}
    return commands + [_pattern(mark, "NAMESPACE") for mark, words in places.items() if re.search(words, message)]
