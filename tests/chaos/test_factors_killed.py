"""500 numbers, a receiver that fails, a process killed, a runtime stopped: every answer is posted back."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aioflow import Runtime, delivery
from services.factors.compute import compute
from services.factors.compute import service as factors
from tests.chaos.journal import JOURNAL, Note, most_at_once, notes_in
from tests.primes import check_answer, prime_of
from tests.receiver import SECRET, Got, Receiver, receiver
from tests.serving import ROOT, Serve
from tests.valkey import Valkey
from tests.waiting import wait_until

REQUESTS = 500
CAP = 2
KILLED, FROZEN = 200, 201
"""Where in the line the numbers stand whose processes are killed and, until their runtime is stopped, frozen."""
MOST_REFUSALS = 4
"""Of one webhook, by the receiver; far fewer than its attempts, so that none of them dies of bad luck."""


def numbers(drawn: random.Random) -> list[int]:
    """Of all sizes, most of them easy; those at KILLED and FROZEN take a second or more each."""
    found = [drawn.randrange(1, 10 ** drawn.randrange(1, 31)) for _ in range(REQUESTS)]
    for position in range(0, REQUESTS, 25):
        found[position] = prime_of(20, drawn) * prime_of(20, drawn)
    for position in range(FROZEN + 1, REQUESTS, 30):
        found[position] = prime_of(22, drawn) * prime_of(22, drawn)
    rich = math.prod((2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43))
    found[10:18] = [1, 2, 10**60 - 1, 10**59, 2**199, rich, 30**9 * 99991**9, 10**59 + 19]
    for position in (KILLED, FROZEN):
        found[position] = prime_of(27, drawn) * prime_of(27, drawn)
    return found


class Gone(web.Response):
    """No answer: the connection ends."""

    async def prepare(self, request: web.BaseRequest) -> Any:
        assert request.transport is not None
        request.transport.abort()
        return await super().prepare(request)


class Unsteady:
    """Answers at random: often with an error, or with nothing at all, although it has read the webhook."""

    def __init__(self, drawn: random.Random) -> None:
        self._drawn = drawn
        self.refused: Counter[str] = Counter()
        self.answers: dict[str, Any] = {}
        """By webhook-id, what was signed for; the same each time."""

    async def __call__(self, there: Receiver, got: Got) -> web.Response:
        answer = got.verified()
        assert self.answers.setdefault(got.id, answer) == answer
        if self.refused[got.id] < MOST_REFUSALS and self._drawn.random() < 0.3:
            self.refused[got.id] += 1
            match self._drawn.randrange(4):
                case 0:
                    return web.Response(status=500, text="not now")
                case 1:
                    return web.Response(status=503, headers={"Retry-After": "0"})
                case 2:
                    return web.Response(status=302, headers={"Location": "/elsewhere"})
                case _:
                    return Gone()
        return web.Response(status=204)


async def ask(session: aiohttp.ClientSession, url: str, number: int, hook: str, *, by_get: bool) -> str:
    """The tracking id of a question that was accepted at once."""
    question = {"number": str(number), "post_back_url": hook}
    there = f"{url}/compute_factors"
    asked = session.get(there, params=question) if by_get else session.post(there, json=question)
    async with asked as answer:
        told = await answer.json(content_type=None)
        assert answer.status == 202, told
        tracking_id: str = told["tracking_id"]
        return tracking_id


async def begun(journal: Path, job_id: str) -> Note:
    """Where a computation runs, once it does."""

    def there() -> Note | None:
        return next((noted for noted in notes_in(journal) if noted.job_id == job_id), None)

    found = await wait_until(there, 60)
    assert found is not None
    return found


async def stop_by_order(runtime: Runtime, served: Serve) -> None:
    """By the command line, as from any other machine."""
    assert served.process is not None
    pid = served.process.pid
    _, live = await runtime.fleet().list()
    (runtime_id,) = [info.id for info in live if info.pid == pid]
    ordering = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aioflow", "stop", "--runtime", runtime_id, "--redis", runtime.settings.redis),
        *("--namespace", runtime.namespace),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await ordering.communicate()
    assert ordering.returncode == 0, said
    assert await asyncio.to_thread(served.process.wait, 20) == 0
    assert "order: stop" in served.said


def check_posted(there: Receiver, unsteady: Unsteady, asked: dict[str, int]) -> None:
    """Fail unless every question was answered at least once, rightly, signed, and under one webhook-id."""
    for got in there.got:
        got.verified()
    answers = {answer["tracking_id"]: answer for answer in unsteady.answers.values()}
    assert answers.keys() == asked.keys()
    assert len(unsteady.answers) == len(asked), "one webhook-id for each"
    assert len(there.got) >= len(asked) + unsteady.refused.total()
    assert unsteady.refused.total() > len(asked) // 10
    for tracking_id, number in asked.items():
        check_answer(answers[tracking_id], number)


# Two serving processes with two computing ones each share the machine's cores with the rest of the suite.
@pytest.mark.timeout(150)
async def test_every_answer_is_posted_back_whatever_is_killed(valkey: Valkey, namespace: str, tmp_path: Path) -> None:
    drawn = random.Random(20261121)
    line, journal, unsteady = numbers(drawn), tmp_path / "journal", Unsteady(drawn)
    environment = {
        "AIOFLOW_NAMESPACE": namespace,
        "AIOFLOW_DELIVERY_SECRETS": SECRET,
        "AIOFLOW_DELIVERY_ALLOW": "127.0.0.1",
        "AIOFLOW_DELIVERY_BASE": "0.05",
        "AIOFLOW_DELIVERY_LONGEST": "0.5",
        "AIOFLOW_DELIVERY_PER_HOST": "50",
        "FACTORS_WORKERS": str(CAP),
        JOURNAL: str(journal),
    }
    services = ("tests.chaos.noted_factors:service", "aioflow.delivery:service")
    options = ("--redis", valkey.url, "--port", "0", "--grace", "0.2")
    both = [Serve(*services, *options, environment=environment) for _ in range(2)]
    observer = Runtime([factors, delivery.make_service()], redis=valkey.url, namespace=namespace, workers=False)
    try:
        async with receiver(unsteady) as there, observer as runtime, aiohttp.ClientSession() as session:
            await asyncio.gather(*[served.start() for served in both])
            turns = asyncio.Semaphore(20)

            async def in_turn(position: int) -> str:
                async with turns:
                    url = both[position % 2].url
                    return await ask(session, url, line[position], there.url, by_get=position % 3 == 0)

            tracking_ids = await asyncio.gather(*[in_turn(position) for position in range(REQUESTS)])

            victim = await begun(journal, tracking_ids[KILLED])
            os.kill(victim.process, signal.SIGKILL)
            killed = Note(time.monotonic_ns(), victim.runtime, victim.process, "end", victim.job_id)
            frozen = await begun(journal, tracking_ids[FROZEN])
            os.kill(frozen.process, signal.SIGSTOP)
            (leaving,) = [served for served in both if served.process and served.process.pid == frozen.runtime]
            await stop_by_order(runtime, leaving)

            async def all_delivered() -> bool:
                return await runtime.jobs_count("delivery.post", "done") == REQUESTS

            await wait_until(all_delivered, 90)
            check_posted(there, unsteady, dict(zip(tracking_ids, line, strict=True)))

            # The kill cost one attempt of one job, and the stop none of any.
            infos = [info for info in await runtime.inspect_many(compute, tracking_ids) if info is not None]
            assert {info.id: info.failures for info in infos if info.failures} == {victim.job_id: 1}
            assert not any(info.crashes for info in infos)

            notes = notes_in(journal)
            died, *cut_short, again, ended = [noted for noted in notes if noted.job_id == victim.job_id]
            assert [noted.what for noted in (died, again, ended)] == ["begin", "begin", "end"]
            assert all((noted.what, noted.runtime) == ("begin", frozen.runtime) for noted in cut_short), "by the stop"
            first, again, _ = [noted for noted in notes if noted.job_id == frozen.job_id]
            assert (first.runtime, again.what) == (frozen.runtime, "begin")
            assert again.runtime != first.runtime, "what the stop has cut short went on elsewhere"
            assert most_at_once([*notes, killed]) == {served.process.pid: CAP for served in both if served.process}
    finally:
        for served in both:
            served.close()
