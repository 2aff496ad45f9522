"""Nodes of a Ray cluster on one machine."""

from __future__ import annotations

import json
import sys
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.processes import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.processes import Process

START = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
OBJECT_STORE_BYTES = 150_000_000
"""Bytes of Ray's object store on each node: results go to our store, not through Ray's."""
FAST_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""Ray's settings with which a lost node is noticed within seconds."""


@dataclass
class Node:
    """Node of the cluster: one `ray start --block`."""

    number: int
    cpus: int
    process: Process | None = None

    @property
    def address(self) -> str:
        """Loopback address of the node; that of the head is 127.0.0.2."""
        return f"127.0.0.{self.number + 2}"

    def head_command(self, port: int, dashboard_port: int, folder: Path) -> list[str]:
        """Return the command that starts a head; Ray's files of all nodes lie in the folder."""
        return [
            *START,
            "--head",
            f"--port={port}",
            "--disable-usage-stats",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard_port}",
            f"--temp-dir={folder / 'ray'}",
            *self._size(),
        ]

    def worker_command(self, head: Node, port: int, folder: Path) -> list[str]:
        """Return the command that starts a worker."""
        # In a common folder each node would replace the uploaded code that others run.
        return [
            *START,
            f"--address={head.address}:{port}",
            f"--temp-dir={folder / f'ray{self.number}'}",
            *self._size(),
        ]

    def _size(self) -> list[str]:
        # By default the agent takes a port that another cluster's agent may use on this machine.
        return [
            f"--node-ip-address={self.address}",
            f"--num-cpus={self.cpus}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--dashboard-agent-listen-port={free_port(self.address)}",
        ]


def alive_nodes(dashboard: str, token: str) -> set[str]:
    """Ask the dashboard for the addresses of live nodes; empty if it does not answer."""
    only = "filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
    request = urllib.request.Request(
        f"{dashboard}/api/v0/nodes?{only}", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
    except (OSError, ValueError, TypeError):
        return set()
    return {node["node_ip"] for node in nodes}
