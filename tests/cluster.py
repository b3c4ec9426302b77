"""A real cluster for tests: three primaries, each with a replica where asked for, on ports of their own."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from redis import Redis

from tests import acl
from tests.valkey import Valkey

SLOTS = ((0, 5460), (5461, 10922), (10923, 16383))
PASSWORD = "p@ss,word/"
BUS = 10_000
"""So far above its port a node's bus listens."""
PORTS = range(10_240, 22_528)
"""They and those of buses are below the ports that the kernel gives to clients, of which any may come and go."""
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
WORKERS = 8
"""Tests that run side by side take every so-manieth port, and none from one another."""


def free_ports(count: int) -> list[int]:
    """Ports that are free, and so are those of their buses."""
    found: list[int] = []
    own = PORTS[WORKER % WORKERS :: WORKERS]
    for port in random.SystemRandom().sample(own, len(own)):  # not as a test is seeded, or two would have the same
        if len(found) < count and all(abs(port - other) != BUS for other in found) and is_free(port):
            found.append(port)
    assert len(found) == count
    return found


def is_free(port: int) -> bool:
    """Whether nobody listens there, nor where its bus would."""
    with socket.socket() as first, socket.socket() as bus:
        try:
            first.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + BUS))
        except OSError:
            return False
    return True


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Ask until it is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(0.02)


class Node:
    """One server of a cluster."""

    def __init__(self, port: int, *arguments: str) -> None:
        self.port = port
        self.server = Valkey(
            arguments=(
                *("--port", str(port), "--bind", "127.0.0.1", "--cluster-enabled", "yes"),
                *("--cluster-node-timeout", "1000", "--cluster-replica-validity-factor", "0"),
                *("--cluster-require-full-coverage", "no"),
                *("--repl-diskless-sync-delay", "0", "--requirepass", PASSWORD, "--masterauth", PASSWORD),
                *("--appendonly", "yes", "--appendfsync", "always", *arguments),
            )
        )
        self.admin = Redis(host="127.0.0.1", port=port, password=PASSWORD, protocol=2, decode_responses=True)

    def ask(self, *words: str | int) -> Any:
        """Send a command."""
        return self.admin.execute_command(*words)

    @property
    def id(self) -> str:
        """What the cluster calls it."""
        return str(self.ask("CLUSTER", "MYID"))

    def knows(self) -> dict[str, str]:
        """CLUSTER INFO."""
        told: dict[str, str] = self.admin.cluster("INFO")
        return told

    def owns(self, slot: int) -> bool:
        """Whether a slot is its own."""
        ranges = self.ask("CLUSTER", "SLOTS")
        return any(low <= slot <= high and primary[1] == self.port for low, high, primary, *_ in ranges)

    def in_step(self) -> bool:
        """Whether it follows its primary."""
        return bool(self.admin.info("replication").get("master_link_status") == "up")

    def leads(self) -> bool:
        """Whether it is a primary."""
        return bool(self.admin.info("replication")["role"] == "master")

    def close(self) -> None:
        """End it."""
        self.admin.close()
        self.server.close()


class Cluster:
    """Three primaries that share the slots, then their replicas in the same order, behind a password."""

    def __init__(self, *arguments: str, replicas: bool = False) -> None:
        self.nodes = [Node(port, *arguments) for port in free_ports(6 if replicas else 3)]

    @property
    def url(self) -> str:
        """Where it is; at the first seed nobody answers."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in (*free_ports(1), self.nodes[0].port, self.nodes[1].port))
        return acl.of_user(f"redis+cluster://:{quote(PASSWORD, safe='')}@{hosts}")

    def start(self) -> None:
        """Start it and wait until all nodes serve."""
        for node in self.nodes:
            node.server.start()
        first, primaries = self.nodes[0], self.nodes[:3]
        for node, (low, high) in zip(primaries, SLOTS, strict=True):
            node.ask("CLUSTER", "ADDSLOTSRANGE", low, high)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", primaries.index(node) + 1)
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", first.port)
        wait_for(lambda: all(node.knows()["cluster_known_nodes"] == str(len(self.nodes)) for node in self.nodes))
        for primary, replica in zip(primaries, self.nodes[3:], strict=False):
            replica.ask("CLUSTER", "REPLICATE", primary.id)
        wait_for(lambda: all(node.knows()["cluster_state"] == "ok" for node in self.nodes))
        wait_for(lambda: all(replica.in_step() for replica in self.nodes[3:]))

    def begin_move(self, slot: int, source: Node, target: Node) -> None:
        """A slot is on its way from here on."""
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    def move_key(self, source: Node, target: Node, key: str) -> None:
        """Move one key of such a slot."""
        source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000, "AUTH", PASSWORD)

    def move_keys(self, slot: int, source: Node, target: Node) -> None:
        """Move what is left of it."""
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 5):
            for key in keys:
                self.move_key(source, target, key)

    def end_move(self, slot: int, target: Node) -> None:
        """The slot is the target's."""
        target.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        for node in self.nodes:
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def close(self) -> None:
        """End it."""
        for node in self.nodes:
            node.close()
