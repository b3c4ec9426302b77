"""A real cluster for tests: three primaries, each with a replica where asked for, on ports of their own."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from redis import Redis

from tests.valkey import Valkey

SLOTS = ((0, 5460), (5461, 10922), (10923, 16383))
LAST_PORT = 55_535
"""A node's bus listens 10,000 above its port."""


def free_ports(count: int) -> list[int]:
    """Ports that are free, and so are those of their buses."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as taken, socket.socket() as bus:
            taken.bind(("127.0.0.1", 0))
            port = 20_000 + taken.getsockname()[1] % (LAST_PORT - 20_000)
            try:
                with socket.socket() as tried:
                    tried.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            if all(abs(port - other) not in (0, 10_000) for other in found):
                found.append(port)
    return found


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
                *("--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"),
                *("--cluster-replica-validity-factor", "0", "--repl-timeout", "60", *arguments),
            )
        )
        self.admin = Redis(host="127.0.0.1", port=port, protocol=2, decode_responses=True)

    def ask(self, *words: Any) -> Any:
        """Send a command."""
        return self.admin.execute_command(*words)

    def info(self) -> dict[str, str]:
        """CLUSTER INFO."""
        told: dict[str, str] = self.admin.cluster("INFO")
        return told

    def close(self) -> None:
        """End it."""
        self.admin.close()
        self.server.close()


def in_step(replica: Node) -> bool:
    """Whether a replica follows."""
    return bool(replica.admin.info("replication").get("master_link_status") == "up")


class Cluster:
    """Three primaries that share the slots, then their replicas in the same order."""

    def __init__(self, *arguments: str, replicas: bool = False, login: str = "") -> None:
        self.nodes = [Node(port, *arguments) for port in free_ports(6 if replicas else 3)]
        self._login = login

    @property
    def url(self) -> str:
        """Where it is; the first seed answers nothing."""
        return f"redis+cluster://{self._login}127.0.0.1:{free_ports(1)[0]},127.0.0.1:{self.nodes[0].port}"

    def start(self) -> None:
        """Start it and wait until all nodes serve."""
        for node in self.nodes:
            node.server.start()
        first, primaries = self.nodes[0], self.nodes[:3]
        for node, (low, high) in zip(primaries, SLOTS, strict=True):
            node.ask("CLUSTER", "ADDSLOTSRANGE", low, high)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", node.port)
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", first.port)
        wait_for(lambda: all(node.info()["cluster_known_nodes"] == str(len(self.nodes)) for node in self.nodes))
        for primary, replica in zip(primaries, self.nodes[3:], strict=False):
            replica.ask("CLUSTER", "REPLICATE", primary.ask("CLUSTER", "MYID"))
        wait_for(lambda: all(node.info()["cluster_state"] == "ok" for node in self.nodes))
        for replica in self.nodes[3:]:
            wait_for(partial(in_step, replica))

    def of(self, slot: int) -> Node:
        """The primary that has a slot at first."""
        return next(node for node, (low, high) in zip(self.nodes, SLOTS, strict=False) if low <= slot <= high)

    def close(self) -> None:
        """End it."""
        for node in self.nodes:
            node.close()
