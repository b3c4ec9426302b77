"""redis+cluster://: services on different nodes, receipts of each node, and the operations of a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from aioflow import Handle, Job, Runtime, Service
from tests.cluster import Cluster
from tests.waiting import wait_until


@dataclass
class Shop:
    """Services on three nodes: `office` (the first), `shop` and `ledger`; an order is emitted from one to the next."""

    booked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.office, self.shop, self.ledger = Service("office"), Service("shop"), Service("ledger")
        self.made_by = self.shop.timeline("made_by")

        @self.office.task()
        async def order(number: int, job: Job) -> int:
            job.commit.submit("shop.sell", number)
            return number

        @self.shop.task()
        async def sell(number: int, job: Job) -> int:
            job.commit.record(self.made_by["all"], str(number))
            job.commit.hincrby("sold", job.id, 1)
            job.commit.submit("ledger.book", number)
            return number

        @self.ledger.task()
        async def book(number: int) -> int:
            self.booked.append(number)
            return -number

        self.order, self.sell, self.book = order, sell, book
        self.services = [self.office, self.shop, self.ledger]


@pytest.fixture
def shop() -> Shop:
    return Shop()


async def test_jobs_flow_over_services_on_three_nodes(cluster: Cluster, namespace: str, shop: Shop) -> None:
    async with Runtime(shop.services, redis=cluster.url, namespace=namespace) as runtime:
        handles = await shop.order.submit_many(list(range(50)))
        assert [await handle.result(10) for handle in handles if isinstance(handle, Handle)] == list(range(50))
        await wait_until(lambda: sorted(shop.booked) == list(range(50)))
        page = await shop.made_by["all"].page(limit=1000)
        assert sorted(int(member) for member, _ in page.entries) == list(range(50))
        assert await shop.made_by["all"].count() == 50
        sold = await runtime.redis.hgetall(runtime.key(shop.shop, "sold"))
        assert set(sold.values()) == {b"1"}
        assert len(sold) == 50
        for task in (shop.order, shop.sell, shop.book):
            overview = await runtime.overview(task)
            assert (overview.sizes.done, overview.sizes.open, overview.runtimes) == (50, 0, 1)
        assert (await runtime.jobs_page(shop.book, "done")).entries
