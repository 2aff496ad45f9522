"""A Ray cluster of several nodes on one machine, each with its address, killed by process trees."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.processes import alive, children, kill_tree, title, wait_for

RAY = str(Path(sys.executable).with_name("ray"))
QUICK = {
    # A node that does not answer is given up within seconds; Ray reads these where it is started.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


class Cluster:
    """`ray start` for a head without CPUs and for nodes that come and go; use it in a `with`."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.2:{port}"
        self.folder = Path(tempfile.mkdtemp(prefix="igx"))  # socket paths must be short
        token = self.folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment = {
            **inherited,
            **QUICK,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.nodes: dict[str, subprocess.Popen] = {}
        self._cpus: dict[str, int] = {}
        self._log = (self.folder / "log").open("w")

    def start(self, host: str, cpus: int, *options: str) -> None:
        """Start a node at 127.0.0.HOST and wait for it; the first one is the head.

        One at a time: nodes of one machine that start at once can take each other's ports.
        """
        ip, port = f"127.0.0.{host}", self.address.partition(":")[2]
        where = (
            ["--address", self.address]
            if self.nodes
            else ["--head", "--port", port, "--include-dashboard=false", "--temp-dir",
                  str(self.folder / "ray")]
        )  # fmt: skip
        command = [RAY, "start", *where,
                   "--node-ip-address", ip, "--num-cpus", str(cpus), "--block",
                   "--object-store-memory", "100000000", "--disable-usage-stats",
                   *options]  # fmt: skip
        first = not self.nodes
        self.nodes[host] = subprocess.Popen(command, env=self.environment, stdout=self._log,
                                            stderr=self._log)  # fmt: skip
        self._cpus[host] = cpus
        if first:
            wait_for(self._answers, 60)
        else:
            self._wait_cpus(sum(self._cpus[name] for name in self.nodes))

    def _answers(self) -> bool:
        host, _, port = self.address.partition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return False
        return True

    def _wait_cpus(self, count: int) -> None:
        """Wait until nodes with so many CPUs have joined."""
        self._ask("import time\nwhile ray.cluster_resources().get('CPU', 0) < "
                  f"{count}: time.sleep(0.2)")  # fmt: skip

    def drain(self, host: str, seconds: int) -> None:
        """Tell the cluster that a node will be taken away, as a cloud does with a spot instance."""
        name = self._ask("print(next(n['NodeID'] for n in ray.nodes() if n['Alive'] and "
                         f"n['NodeManagerAddress'] == '127.0.0.{host}'))")  # fmt: skip
        self._run(RAY, "drain-node", "--address", self.address, "--node-id", name.split()[-1],
                  "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
                  "--deadline-remaining-seconds", str(seconds))  # fmt: skip

    def _ask(self, code: str) -> str:
        return self._run(
            sys.executable, "-c", f"import ray; ray.init(logging_level='ERROR')\n{code}"
        )

    def _run(self, *command: str) -> str:
        environment = {**self.environment, "RAY_ADDRESS": self.address}
        return subprocess.run(command, env=environment, check=True, timeout=180, text=True,
                              stdout=subprocess.PIPE, stderr=self._log).stdout  # fmt: skip

    def runs(self, host: str, name: str) -> bool:
        """Whether a task or actor of that name runs on a node."""
        return any(f"ray::{name}" in title(pid) for pid in children(self.nodes[host].pid))

    def kill(self, host: str) -> None:
        """A node is gone at once, with all its processes."""
        node = self.nodes.pop(host)
        kill_tree(node.pid)
        node.wait()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for host in list(self.nodes):
            if alive(self.nodes[host].pid):
                self.kill(host)
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
