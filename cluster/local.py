"""Ray cluster of several nodes on this machine, to try things on.

    python -m cluster.local up --nodes 3 [--cpus 1] [--s3] [--postgres] [--mlflow]
    eval "$(python -m cluster.local env)"      # a client's variables, for this shell
    python -m cluster.local status|down

The nodes have addresses of their own (127.0.0.2, .3, ...) and need Ray's token; the dashboard and
all services are on loopback. Token, secrets, pids and logs lie in one folder.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from cluster.nodes import FAST_HEALTH_CHECKS, Node, alive_nodes
from cluster.processes import Process, free_port, wait_for, wait_for_port
from cluster.services import HOST, S3, Mlflow, Postgres, Service

SERVICES: dict[str, type[Service]] = {"postgres": Postgres, "s3": S3, "mlflow": Mlflow}
"""Name -> service, in the order in which they start."""
BUCKET = "igdit"


class LocalCluster:
    """Ray nodes and services; a new object of the same folder finds those that another started."""

    def __init__(self, folder: Path) -> None:
        """Open a folder; nothing is started.

        Args:
            folder: Folder of the cluster's files; its path must be short, since Ray's sockets lie
                in it.
        """
        self.folder = folder.absolute()
        self.port, self.dashboard_port = 6431, 8331
        self.nodes: list[Node] = []
        self.services: dict[str, Service] = {}
        if self._state.exists():
            self._load()

    def start(
        self,
        nodes: int = 3,
        cpus: int = 1,
        services: tuple[str, ...] = (),
        *,
        port: int = 0,
        dashboard_port: int = 0,
    ) -> None:
        """Start a head, `nodes` - 1 workers, and services by their names in `SERVICES`.

        The head has no CPUs if there are workers. A port of 0 is any free one.

        Raises:
            RuntimeError: If a node or service does not start; those that did are ended again.
        """
        if any(node.process and node.process.alive for node in self.nodes):
            raise RuntimeError(f"a cluster runs in {self.folder} already: stop it by `down`")
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.port, self.dashboard_port = port or free_port(), dashboard_port or free_port()
        if not self.token.exists():
            _write_private(self.token, secrets.token_hex(32))
        try:
            self._start_services(services)
            self.nodes = [Node(n, cpus if n or nodes == 1 else 0) for n in range(nodes)]
            for node in self.nodes:
                self.start_node(node.number)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all nodes and services by pid; the folder stays."""
        if not self.folder.exists():
            return
        for node in reversed(self.nodes):
            if node.process is not None:
                node.process.end()
        for service in reversed(self.services.values()):
            service.close()
        self._save()

    def start_node(self, number: int) -> None:
        """Start a node: one that was killed, or the next one."""
        if number == len(self.nodes):
            self.nodes.append(Node(number, self.nodes[-1].cpus))
        node = self.nodes[number]
        if node.process is not None and node.process.alive:
            return
        log = self.folder / f"node{number}.log"
        node.process = Process.start(self._ray_start(node), log, self.node_environment)
        self._save()
        if number == 0:
            wait_for_port(node.address, self.port, node.process, log, 120.0)
            wait_for_port(HOST, self.dashboard_port, node.process, log, 120.0)
        # One after another: nodes that start on one machine at once take each other's sockets.
        wait_for(lambda: node.address in self.alive(), node.process, log, 120.0)

    def kill_node(self, number: int) -> None:
        """Kill all processes of a node at once, as if its machine were lost."""
        process = self.nodes[number].process
        if process is not None:
            process.kill()
        self._save()

    def alive(self) -> set[str]:
        """Return the addresses of the nodes that Ray takes to be alive."""
        return alive_nodes(self.address, self.token.read_text(encoding="utf-8"))

    @property
    def address(self) -> str:
        """Address of the dashboard."""
        return f"http://{HOST}:{self.dashboard_port}"

    def delete(self) -> None:
        """Delete the folder and the services' files; the cluster must be stopped."""
        if "postgres" in self.services:
            self.postgres.delete()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def client_environment(self) -> dict[str, str]:
        """Variables for a client on this machine."""
        environment = {
            "RAY_API_SERVER_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "IGDIT_HOME": str(self.folder / "home"),
        }
        if "s3" in self.services:
            environment["IGDIT_STORE"] = f"s3://{BUCKET}/store"
        if "postgres" in self.services:
            environment["IGDIT_STUDY_STORAGE"] = self.postgres.url
        if "mlflow" in self.services:
            environment["MLFLOW_TRACKING_URI"] = self.mlflow.url
        return environment

    @property
    def node_environment(self) -> dict[str, str]:
        """Variables of the nodes, with the paths of the token and of their secrets."""
        environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            **FAST_HEALTH_CHECKS,
        }
        if self.services:
            environment["IGDIT_SECRETS"] = str(self.secrets)
        if "s3" in self.services:
            environment |= {"AWS_ENDPOINT_URL": self.s3.url, "AWS_DEFAULT_REGION": "us-east-1"}
        return environment

    @property
    def s3(self) -> S3:
        """The S3 service."""
        return self._service("s3", S3)

    @property
    def postgres(self) -> Postgres:
        """The PostgreSQL service."""
        return self._service("postgres", Postgres)

    @property
    def mlflow(self) -> Mlflow:
        """The MLflow service."""
        return self._service("mlflow", Mlflow)

    @property
    def token(self) -> Path:
        """File of Ray's token."""
        return self.folder / "token"

    @property
    def secrets(self) -> Path:
        """File of the nodes' secrets (IGDIT_SECRETS)."""
        return self.folder / "secrets"

    def _ray_start(self, node: Node) -> list[str]:
        if node.number:
            return node.worker_command(self.nodes[0], self.port, self.folder)
        return node.head_command(self.port, self.dashboard_port, self.folder)

    def _start_services(self, names: tuple[str, ...]) -> None:
        known = self._known_secrets()
        environment = {**known, "MLFLOW_DISABLE_TELEMETRY": "true"}
        for name in (name for name in SERVICES if name in names):
            if name not in self.services:
                self.services[name] = SERVICES[name](self.folder, environment)
        if "s3" in self.services:
            self.s3.secret_key = known["AWS_SECRET_ACCESS_KEY"]
        if "postgres" in self.services:
            self.postgres.password = known["PGPASSWORD"]
            if "mlflow" in self.services:
                self.mlflow.backend = self.postgres.mlflow_url
        for name, service in self.services.items():
            service.changed = self._save
            service.start()
            if name == "s3":
                self.s3.make_bucket(BUCKET)

    def _known_secrets(self) -> dict[str, str]:
        """Return the services' passwords, made once and stored in a private file."""
        if not self.secrets.exists():
            made = {
                "AWS_ACCESS_KEY_ID": "igdit",
                "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
                "PGPASSWORD": secrets.token_hex(16),
            }
            _write_private(self.secrets, "".join(f"{k}={v}\n" for k, v in made.items()))
        lines = self.secrets.read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def _service(self, name: str, kind: type[Any]) -> Any:  # noqa: ANN401
        service = self.services.get(name)
        if not isinstance(service, kind):
            raise KeyError(f"{name} was not started; it is an argument of start")
        return service

    @property
    def _state(self) -> Path:
        return self.folder / "state.json"

    def _save(self) -> None:
        def identity(process: Process | None) -> list[Any] | None:
            return None if process is None else [process.pid, process.start_time]

        state = {
            "port": self.port,
            "dashboard_port": self.dashboard_port,
            "nodes": [[n.number, n.cpus, identity(n.process)] for n in self.nodes],
            "services": {
                name: [
                    s.port,
                    identity(s.process),
                    identity(s.helper),
                    getattr(s, "target", 0),
                    getattr(s, "backend", ""),
                ]
                for name, s in self.services.items()
            },
        }
        new = self._state.with_suffix(".new")
        new.write_text(json.dumps(state, indent=1), encoding="utf-8")
        new.replace(self._state)

    def _load(self) -> None:
        state = json.loads(self._state.read_text(encoding="utf-8"))
        self.port, self.dashboard_port = state["port"], state["dashboard_port"]
        self.nodes = [Node(n, c, p and Process(*p)) for n, c, p in state["nodes"]]
        known = self._known_secrets() if state["services"] else {}
        for name, (port, process, helper, target, backend) in state["services"].items():
            service = SERVICES[name](
                self.folder,
                {**known, "MLFLOW_DISABLE_TELEMETRY": "true"},
                port,
                process and Process(*process),
                helper and Process(*helper),
            )
            self.services[name], service.changed = service, self._save
            if isinstance(service, S3):
                service.target, service.secret_key = target, known["AWS_SECRET_ACCESS_KEY"]
            elif isinstance(service, Postgres):
                service.password = known["PGPASSWORD"]
            elif isinstance(service, Mlflow):
                service.backend = backend


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, from its first byte on."""
    with os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write(text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.local",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("command", choices=["up", "env", "status", "down"])
    parser.add_argument(
        "--folder",
        type=Path,
        help="folder of the cluster's files",
        default=Path(tempfile.gettempdir()) / f"igdit-{os.getuid()}",
    )
    parser.add_argument("--nodes", type=int, default=3, help="number of nodes, including the head")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of each node but the head")
    parser.add_argument("--port", type=int, default=6431)
    parser.add_argument("--dashboard-port", type=int, default=8331)
    parser.add_argument("--clean", action="store_true", help="with down: delete the folder too")
    for name in SERVICES:
        parser.add_argument(f"--{name}", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.nodes < 1 or chosen.cpus < 1:
        parser.error(f"nodes and cpus must be at least 1, but got {chosen.nodes}, {chosen.cpus}")
    cluster = LocalCluster(chosen.folder)
    if chosen.command == "up":
        services = tuple(name for name in SERVICES if getattr(chosen, name))
        cluster.start(
            chosen.nodes,
            chosen.cpus,
            services,
            port=chosen.port,
            dashboard_port=chosen.dashboard_port,
        )
    if chosen.command in ("up", "env"):
        for name, value in cluster.client_environment.items():
            print(f"export {name}={shlex.quote(value)}")
    elif chosen.command == "down":
        cluster.stop()
        if chosen.clean:
            cluster.delete()
    else:
        alive = cluster.alive() if cluster.nodes else set()
        for node in cluster.nodes:
            print(
                f"node {node.number}  {node.address}  "
                f"{'running' if node.address in alive else 'stopped'}"
            )
        for name, service in cluster.services.items():
            print(f"{name}  port {service.port}  {'running' if service.running else 'stopped'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
