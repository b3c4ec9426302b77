"""What goes wrong, and how often: a seed draws the whole schedule, so that a failure can be run again."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp
from redis.asyncio import Redis

from aioflow.engine import scripts
from tests.chaos.history import CLOCK, END, FREEZE, LINE, SERVER
from tests.chaos.server import STEPPED_IN
from tests.chaos.work import LEASE
from tests.chaos.world import HOUR, World
from tests.serving import Serve
from tests.waiting import wait_until

Fault = Callable[[], Awaitable[str]]
PAUSE = 0.5, 3.0
"""Seconds from one fault to the next, in which everybody recovers, or not quite."""
CALM = 4.0, LEASE + 1.5
"""Seconds before and after the kill whose aftermath nothing else may disturb."""
ENDING = 4.0
"""Seconds in which a runtime that was told to ends."""
CLOSE = 5
"""Seconds within which a clock shows what it was set to."""
SCRIPTS = ("submit", "claim", "settle", "relay", "renew", "reap")


class Mishaps:
    """The schedule, and what each fault does to the world. `left_out` has those that this machine does not allow."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._drawn = random.Random(seed)
        self.server_kills = 0
        self.wrong: list[str] = []
        self.left_out: dict[str, str] = {}
        self._deck: list[Fault] = []
        self._faults: dict[Fault, int] = {
            self.kill_a_runtime: 12,
            self.kill_a_runtime_and_wait: 3,
            self.kill_a_submitter: 4,
            self.end_a_runtime: 3,
            self.freeze_a_runtime: 3,
            self.kill_the_server: 6,
            self.freeze_the_server: 1,
            self.step_the_clock: 2,
            self.fill_the_disk: 1,
            self.crash_the_database: 1,
            self.cut_the_line: 2,
            self.half_close_the_line: 1,
            self.stall_the_line: 1,
            self.slow_the_line: 1,
            self.refuse_connections: 1,
            self.lose_replies: 4,
            self.kill_clients: 1,
            self.flush_scripts: 1,
            self.fill_the_memory: 1,
        }
        """How often each goes wrong of some fifty times, which are three minutes or four."""
        if not world.server.can_step:
            del self._faults[self.step_the_clock]
            self.left_out["step_the_clock"] = "libfaketime is not installed (Debian: apt-get install faketime)"
        if not world.server.can_fill:
            del self._faults[self.fill_the_disk]
            self.left_out["fill_the_disk"] = "this process may not mount a disk"

    def draw(self) -> tuple[float, Fault]:
        """After how many seconds what goes wrong next."""
        if not self._deck:
            self._deck = [fault for fault, times in self._faults.items() for _ in range(times)]
            self._drawn.shuffle(self._deck)
        return self._drawn.uniform(*PAUSE), self._deck.pop()

    # ---- processes

    def _some_runtime(self) -> Serve:
        return self._drawn.choice(self._world.runtimes)

    async def kill_a_runtime(self) -> str:
        """SIGKILL."""
        return self._world.kill(self._some_runtime().process)

    async def kill_a_runtime_and_wait(self) -> str:
        """SIGKILL in a calm, so that it is seen how soon its jobs start again."""
        before, after = CALM
        await asyncio.sleep(before)
        pid = self._world.kill(self._some_runtime().process)
        await asyncio.sleep(after)
        return pid

    async def kill_a_submitter(self) -> str:
        """SIGKILL."""
        return self._world.kill(self._drawn.choice(self._world.submitters).process)

    async def end_a_runtime(self) -> str:
        """SIGTERM."""
        process = self._some_runtime().process
        pid = self._world.signal(process, signal.SIGTERM)
        span = self._world.history.begin(END, int(pid))
        span.ended = span.began + ENDING
        return pid

    async def freeze_a_runtime(self) -> str:
        """For longer than the lease: it wakes as a zombie, and settles what is another's by now."""
        process = self._some_runtime().process
        assert process is not None
        with self._world.history.during(FREEZE, process.pid):
            self._world.signal(process, signal.SIGSTOP)
            await asyncio.sleep(self._drawn.uniform(1.2, 3.0) * LEASE)
            return self._world.signal(process, signal.SIGCONT)

    # ---- the server

    async def kill_the_server(self) -> str:
        """SIGKILL, and a restart."""
        with self._world.history.during(SERVER):
            await asyncio.to_thread(self._world.server.kill)
            await asyncio.sleep(self._drawn.uniform(0.0, 1.0))
            await asyncio.to_thread(self._world.server.start)
        self.server_kills += 1
        return ""

    async def freeze_the_server(self) -> str:
        """For longer than the lease."""
        with self._world.history.during(SERVER):
            self._world.server.signal(signal.SIGSTOP)
            await asyncio.sleep(self._drawn.uniform(1.2, 3.0) * LEASE)
            self._world.server.signal(signal.SIGCONT)
        return ""

    async def step_the_clock(self) -> str:
        """By an hour or two, forward or back."""
        server = self._world.server
        offset = self._drawn.choice([offset for offset in (-HOUR, 0, HOUR) if offset != server.offset])
        await self.set_the_clock(offset)
        return f"to {offset:+d} s"

    async def set_the_clock(self, offset: int) -> None:
        """So many seconds off, until it shows that."""

        async def stepped() -> bool:
            shown, _ = await self._asked("TIME")
            return bool(abs(int(shown) - time.time() - offset) < CLOSE)

        with self._world.history.during(CLOCK):
            self._world.server.step(offset)
            await wait_until(stepped, 3 * STEPPED_IN)

    async def fill_the_disk(self) -> str:
        """The server ends by design; nothing is accepted until it is started again, with room."""
        server = self._world.server
        with self._world.history.during(SERVER):
            await asyncio.to_thread(server.start_on_a_small_disk)
            code = await server.wait_for_a_full_disk()
            if not code:
                self.wrong.append(f"the server on a full disk ended with {code}")
            told = await self._asked_to_pay()
            if not {503} <= told <= {503, 0}:
                self.wrong.append(f"submits without a server were answered by {told}")
            await asyncio.to_thread(server.make_room)
        return f"exit {code}, submits answered {sorted(told)}"

    async def _asked_to_pay(self) -> set[int]:
        """What each runtime answers to a payment; 0 where it does not answer."""
        told = set()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            for port in self._world.ports:
                body = {"payer_id": "nobody", "recipient_id": "shop", "amount": 100}
                status = 0
                with suppress(aiohttp.ClientError, TimeoutError):
                    async with session.post(f"http://127.0.0.1:{port}/payments", json=body) as answer:
                        status = answer.status
                told.add(status)
        return told

    async def crash_the_database(self) -> str:
        """PostgreSQL, not Redis: the archive's batches fail and are tried again."""
        await asyncio.to_thread(self._world.database.stop, signal.SIGQUIT)
        await asyncio.sleep(self._drawn.uniform(0.0, 1.0))
        await asyncio.to_thread(self._world.database.start)
        return ""

    # ---- the line

    async def cut_the_line(self) -> str:
        """Of those behind the proxy."""
        self._brief(LINE)
        self._world.proxy.cut()
        return ""

    async def half_close_the_line(self) -> str:
        """The server's side says goodbye, and still takes what is written to it."""
        self._brief(LINE)
        self._world.proxy.half_close()
        return ""

    async def slow_the_line(self) -> str:
        """Each part of a request or of a reply takes its time."""
        with self._world.history.during(LINE):
            self._world.proxy.delay = self._drawn.uniform(0.01, 0.3)
            await asyncio.sleep(self._drawn.uniform(1.0, 4.0))
            self._world.proxy.delay = 0.0
        return ""

    async def refuse_connections(self) -> str:
        """Those that there were are cut, and there are no others."""
        with self._world.history.during(LINE):
            self._world.proxy.refusing = True
            self._world.proxy.cut()
            await asyncio.sleep(self._drawn.uniform(0.2, 2.0))
            self._world.proxy.refusing = False
        return ""

    async def stall_the_line(self) -> str:
        """Nothing comes through, and nothing breaks."""
        with self._world.history.during(LINE):
            self._world.proxy.stall()
            await asyncio.sleep(self._drawn.uniform(0.5, 6.0))
            self._world.proxy.flow()
        return ""

    async def lose_replies(self) -> str:
        """The server did it, and nobody hears so."""
        name = self._drawn.choice(SCRIPTS)
        times = self._drawn.randint(1, 3)
        self._world.lose(scripts.load(f"queue/{name}").sha.encode(), times)
        return f"{times} of {name}"

    async def kill_clients(self) -> str:
        """All connections of all processes."""
        self._brief(LINE)
        return str(await self._asked("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))

    async def flush_scripts(self) -> str:
        """The server knows no script any more."""
        return str(await self._asked("SCRIPT", "FLUSH"))

    async def fill_the_memory(self) -> str:
        """At maxmemory submits are refused, and the rest goes on."""
        with self._world.history.during(SERVER):
            await self._asked("CONFIG", "SET", "maxmemory", "1mb")
            told = await self._asked_to_pay()
            if not {503} <= told <= {503, 0}:
                self.wrong.append(f"submits to a server that is full were answered by {told}")
            await asyncio.sleep(self._drawn.uniform(0.2, 1.0))
            await self._asked("CONFIG", "SET", "maxmemory", "0")
        return f"submits answered {sorted(told)}"

    def _brief(self, kind: str) -> None:
        with self._world.history.during(kind):
            pass

    async def _asked(self, *words: str) -> Any:
        async with Redis.from_url(self._world.server.admin_url) as redis:
            return await redis.execute_command(*words)
