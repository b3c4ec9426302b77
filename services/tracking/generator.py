"""`aioflow load tracking`: realistic events, posted one by one, all of which must arrive in the table.

What is drawn depends on the seed alone: visitors that come back, pages of which few are seen often, user agents in
their usual shares, times within the last hour. The table is asked through the API, with the token.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from itertools import accumulate
from typing import Any

import aiohttp
import orjson

from aioflow import ConfigError, StoreUnavailable
from aioflow.load import HttpTarget, Load, LoadOptions, Seen, open_session
from services.tracking.service import service
from services.tracking.settings import load_settings

VISITORS = 5000
PAGES = 400
IDS_OF_LOOK = 150
"""Of one question: as many as a request line takes."""
SITES = ("www.example.org", "shop.example.com", "docs.example.net")
SECTIONS = ("news", "products", "blog", "help", "account", "search", "checkout")
REFERRERS = (
    None,
    None,
    None,
    "https://search.example/?q=tea",
    "https://news.example/today",
    "https://www.example.org/",
)
CHROME = "Mozilla/5.0 ({}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{}.0.0.0 Safari/537.36"
FIREFOX = "Mozilla/5.0 ({}; rv:{}.0) Gecko/20100101 Firefox/{}.0"
SAFARI = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_{} like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.{} "
    "Mobile/15E148 Safari/604.1"
)
BOT = "Mozilla/5.0 (compatible; Examplebot/2.{}; +https://bot.example/)"
SYSTEMS = ("Windows NT 10.0; Win64; x64", "Macintosh; Intel Mac OS X 10_15_7", "X11; Linux x86_64", "Linux; Android 14")
SHARES = (CHROME, CHROME, CHROME, SAFARI, SAFARI, FIREFOX, BOT)


class Events:
    """Draws events."""

    def __init__(self, seed: int, now: Callable[[], float] = time.time) -> None:
        self._random = draw = random.Random(seed)  # noqa: S311 - likeness, not secrecy
        self._now = now
        self._visitors = [(self._address(), self._agent()) for _ in range(VISITORS)]
        self._pages = [
            f"https://{draw.choice(SITES)}/{draw.choice(SECTIONS)}/{draw.randrange(10_000)}" for _ in range(PAGES)
        ]
        self._shares = list(accumulate(1 / place for place in range(1, PAGES + 1)))  # as Zipf has it

    def draw(self) -> dict[str, Any]:
        """The next event."""
        draw = self._random
        ip, agent = self._visitors[min(VISITORS - 1, int(draw.expovariate(4 / VISITORS)))]
        page = draw.choices(self._pages, cum_weights=self._shares)[0]
        query = f"?page={draw.randrange(20)}" if draw.random() < 0.2 else ""
        event: dict[str, Any] = {
            "url": page + query,
            "ip": ip,
            "user_agent": agent,
            "occurred_at": round(self._now() - draw.random() * 3600, 3),
            "properties": {"width": draw.choice((390, 768, 1280, 1920)), "visit": draw.randrange(1, 30)},
        }
        referrer = draw.choice(REFERRERS)
        if referrer is not None:
            event["referrer"] = referrer
        return event

    def _address(self) -> str:
        draw = self._random
        if draw.random() < 0.2:
            return f"2001:db8:{draw.randrange(1 << 16):x}::{draw.randrange(1, 1 << 16):x}"
        return f"{draw.choice((198, 203))}.{draw.choice((18, 51))}.{draw.randrange(256)}.{draw.randrange(1, 255)}"

    def _agent(self) -> str:
        draw = self._random
        form, minor = draw.choice(SHARES), draw.randrange(7)
        if form is CHROME:
            return form.format(draw.choice(SYSTEMS), 120 + minor)
        if form is FIREFOX:
            return form.format(draw.choice(SYSTEMS[:3]), 122 + minor, 122 + minor)
        return form.format(minor, minor)


class Arrivals:
    """Whether events are in the table, as the API says."""

    batch = IDS_OF_LOOK
    arrive = True
    can_tell = True

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str) -> None:
        self._session = session
        self._url = url
        self._bearer = {"Authorization": f"Bearer {token}"}

    async def look(self, ids: Sequence[str]) -> list[Seen | None]:
        """Those that are there are done; others may still be on their way. Raises StoreUnavailable."""
        query = {"ids": ",".join(ids), "limit": str(len(ids))}
        try:
            async with self._session.get(
                f"{self._url}/track/requests", params=query, headers=self._bearer, raise_for_status=False
            ) as answer:
                said = await answer.read()
                if answer.status != 200:
                    told = said[:300].decode(errors="replace")
                    raise StoreUnavailable(f"GET {self._url}/track/requests answered {answer.status}: {told}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StoreUnavailable(f"GET {self._url}/track/requests: {error!r}") from error
        try:
            there = {row["id"] for row in orjson.loads(said)["requests"]}
        except (ValueError, TypeError, KeyError) as error:
            raise StoreUnavailable(f"GET {self._url}/track/requests: the answer holds no list of requests") from error
        return [Seen("done") if tracking_id in there else Seen("awaited") for tracking_id in ids]

    async def totals(self) -> None:
        """None: the table is asked for each."""

    async def synchronize(self) -> None:
        """Nothing: no times are known."""


@service.load
@asynccontextmanager
async def generate(options: LoadOptions) -> AsyncIterator[Load]:
    """Post to a URL and ask there. Raises ConfigError where there is no token to ask with, or it is refused."""
    settings = load_settings()
    if settings.token is None:
        raise ConfigError("set TRACKING_TOKEN, as where tracking is served: the table is asked whether all has arrived")
    events = Events(options.seed)
    async with open_session(options.submitters) as session:
        arrivals = Arrivals(session, options.url, settings.token.get_secret_value())
        try:
            await arrivals.look(["none"])
        except StoreUnavailable as error:
            raise ConfigError(str(error)) from error
        with closing(HttpTarget(f"{options.url}/track", lambda: orjson.dumps(events.draw()))) as target:
            yield Load(f"POST {options.url}/track", target, arrivals)
