"""What the tests of elastic training do to the nodes of a local cluster besides killing them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from cluster.local import LocalCluster
from cluster.processes import title

if TYPE_CHECKING:
    from collections.abc import Iterator


class Nodes(LocalCluster):
    """A local cluster whose nodes get notice, and tell what runs on them; use it in a `with`."""

    @property
    def environment(self) -> dict[str, str]:
        """What a driver on this machine needs."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "IGDIT_"))}
        address = f"{self.nodes[0].address}:{self.port}"
        return {**inherited, **self.node_environment, "RAY_ADDRESS": address}

    def drain(self, number: int, seconds: int) -> None:
        """Tell the cluster that a node will be taken away, as a cloud does with a spot instance."""
        code = (
            "import ray; ray.init(logging_level='ERROR')\n"
            "print(next(n['NodeID'] for n in ray.nodes() if n['Alive'] and "
            f"n['NodeManagerAddress'] == '{self.nodes[number].address}'))"
        )
        identity = self._run("-c", code).split()[-1]
        self._run(
            "-m",
            "ray.scripts.scripts",
            "drain-node",
            "--address",
            self.environment["RAY_ADDRESS"],
            "--node-id",
            identity,
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "spot",
            "--deadline-remaining-seconds",
            str(seconds),
        )

    def _run(self, *words: str) -> str:
        with (self.folder / "drain.log").open("a") as log:
            return subprocess.run(
                [sys.executable, *words],
                env=self.environment,
                check=True,
                timeout=180,
                text=True,
                stdout=subprocess.PIPE,
                stderr=log,
            ).stdout

    def runs(self, number: int, name: str) -> bool:
        """Whether a task or actor of that name runs on a node."""
        process = self.nodes[number].process
        return process is not None and any(
            f"ray::{name}" in title(each.pid) for each in process.below()
        )

    @property
    def alive_workers(self) -> Iterator[int]:
        """Numbers of the nodes with CPUs that were not killed, the newest first."""
        return (
            node.number for node in reversed(self.nodes[1:]) if node.process and node.process.alive
        )

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
