"""Moderation on a real cluster: its scripts go to the node of its keys, and every process hears of its desks."""

from __future__ import annotations

from tests.cluster import Cluster
from tests.services.moderation.client import BEN, running


async def test_two_processes_share_a_line_in_a_cluster(cluster: Cluster, namespace: str) -> None:
    async with (
        running(redis=cluster.url, namespace=namespace) as one,
        running(redis=cluster.url, namespace=namespace) as other,
        one.desk() as ann,
        other.desk(**BEN) as ben,
    ):
        for number in range(3):
            assert (await other.item(f"i{number}")).status == 202
        first, second = await ann.expect("assignment"), await ben.expect("assignment")
        assert (first["item"], second["item"]) == ("i0", "i1")
        await ann.say("extend", item="i0", token=first["token"])
        await ann.expect("extended")
        await ann.decide(first)
        told = {message["type"]: message for message in (await ann.next(), await ann.next())}
        assert told["decided"]["outcome"] == "approved"
        assert told["assignment"]["item"] == "i2"
        assert (await other.decide(second, "skip")).status == 200
        for query in (
            "items",
            "items?category=spam&language=en&level=1",
            "overdue",
            "locks",
            "desks",
            "desks?state=waiting",
        ):
            await one.get(f"/moderation/{query}")
        assert len((await one.get("/moderation/decisions"))["decisions"]) == 2
        counts = await one.get("/moderation/counts")
        assert counts["items"] == {"open": 2, "waiting": 1, "locked": 1}
        assert await one.status("i0") == "approved"
