"""A service for tests that kill its process while what it emits is delivered."""

from __future__ import annotations

from aioflow import Job, Service, delivery

service = Service("orders")


@service.task()
async def sell(url: str, job: Job) -> None:
    """Tell a receiver of it."""
    job.commit.submit("delivery.post", delivery.Delivery(url=url, type="orders.sold", data={"order": job.id}))
