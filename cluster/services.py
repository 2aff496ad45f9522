"""Services that a cluster uses besides Ray, on loopback: S3, PostgreSQL, MLflow.

Each can be stopped and started again on the same port with its data, as in an outage.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.processes import Process, free_port, wait_for, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "127.0.0.1"
ROOT = Path(__file__).parent.parent


@dataclass
class Service(ABC):
    """Server with its own port and log."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: Process | None = None
    helper: Process | None = None
    changed: Callable[[], None] = lambda: None
    """Called when new processes serve, so that they can be found again."""

    def __post_init__(self) -> None:
        self.port = self.port or free_port()

    @property
    def name(self) -> str:
        """Name of the service."""
        return type(self).__name__.lower()

    @property
    def log(self) -> Path:
        """File of the server's output."""
        return self.folder / f"{self.name}.log"

    @property
    def running(self) -> bool:
        """True if the server runs."""
        return self.process is not None and self.process.alive

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command that serves on the port."""

    def start(self) -> None:
        """Start the server, with the data that it had before."""
        if self.running:
            return
        self.process = Process.start(self.command(), self.log, self._python_path())
        self.changed()
        wait_for_port(HOST, self.port, self.process, self.log, 120.0)

    def stop(self) -> None:
        """Stop the server: connections are refused until it is started again."""
        if self.process is not None:
            self.process.end()

    def close(self) -> None:
        """Stop the server and its helper."""
        self.stop()
        if self.helper is not None:
            self.helper.end()

    def _python_path(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return {**self.environment, "PYTHONPATH": path}


@dataclass
class S3(Service):
    """moto in memory behind a relay; `stop` stops the relay, so that the objects stay."""

    access_key: str = "igdit"
    secret_key: str = ""
    target: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.target = self.target or free_port()

    @property
    def url(self) -> str:
        """Value of AWS_ENDPOINT_URL."""
        return f"http://{HOST}:{self.port}"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "cluster.relay", HOST, str(self.port), str(self.target)]

    def start(self) -> None:
        if self.helper is None or not self.helper.alive:
            words = [sys.executable, "-m", "cluster.s3_server", HOST, str(self.target)]
            log = self.folder / "s3_server.log"
            self.helper = Process.start(words, log, self._python_path())
            self.changed()
            wait_for_port(HOST, self.target, self.helper, log, 120.0)
        super().start()

    def make_bucket(self, name: str) -> None:
        """Create a bucket, unless it exists."""
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=name)


@dataclass
class Postgres(Service):
    """PostgreSQL with a password and the databases `igdit` and `mlflow`."""

    password: str = ""

    @property
    def url(self) -> str:
        """URL for SQLAlchemy, without the password, which is in PGPASSWORD."""
        return f"postgresql+psycopg://igdit@{HOST}:{self.port}/igdit"

    @property
    def mlflow_url(self) -> str:
        """URL of MLflow's database."""
        return self.url.removesuffix("igdit") + "mlflow"

    @property
    def data(self) -> Path:
        """Folder of the data: in the cluster's, or in one that the user postgres can read."""
        if self._place.exists():
            return Path(self._place.read_text(encoding="utf-8")) / "data"
        return self.folder / "postgres"

    @property
    def _place(self) -> Path:
        return self.folder / "postgres.place"

    def command(self) -> list[str]:
        return [
            *self._user(),
            self._program("postgres"),
            "-D",
            str(self.data),
            "-p",
            str(self.port),
            "-h",
            HOST,
            "-c",
            "unix_socket_directories=",
        ]

    def start(self) -> None:
        new = not self.data.exists()
        if new:
            self._initialise()
        super().start()
        ready = [self._program("pg_isready"), "-q", "-h", HOST, "-p", str(self.port)]
        wait_for(
            lambda: subprocess.run(ready, check=False).returncode == 0,
            self.process,
            self.log,
            120.0,
        )
        if new:
            for database in ("igdit", "mlflow"):
                self._run(
                    self._program("createdb"),
                    "-h",
                    HOST,
                    "-p",
                    str(self.port),
                    "-U",
                    "igdit",
                    database,
                )

    def stop(self) -> None:
        """Stop the server at once, also with clients connected; the data are safe."""
        if self.process is not None and self.process.alive:
            self._run(
                *self._user(), self._program("pg_ctl"), "-D", str(self.data), "-m", "fast", "stop"
            )
            self.process.end()

    def delete(self) -> None:
        """Delete the data."""
        shutil.rmtree(self.data, ignore_errors=True)
        if self._place.exists():
            shutil.rmtree(self.data.parent, ignore_errors=True)
            self._place.unlink()

    def _initialise(self) -> None:
        password = self.folder / "postgres.password"
        if self._user():
            # Other users cannot read root's folders: those of postgres lie beside them.
            place = Path(tempfile.mkdtemp(prefix="igdit-postgres-"))
            shutil.chown(place, "postgres", "postgres")
            self._place.write_text(str(place), encoding="utf-8")
            password = place / "password"
        self.data.mkdir(mode=0o700)
        password.touch(mode=0o600)
        password.write_text(self.password, encoding="utf-8")
        if self._user():
            for path in (self.data, password):
                shutil.chown(path, "postgres", "postgres")
        self._run(
            *self._user(),
            self._program("initdb"),
            "-D",
            str(self.data),
            "-U",
            "igdit",
            "-A",
            "scram-sha-256",
            "--pwfile",
            str(password),
            "--encoding",
            "UTF8",
        )
        password.unlink()

    def _user(self) -> list[str]:
        """Return the prefix of commands that drops root, as which PostgreSQL does not run."""
        root = os.geteuid() == 0
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if root else []

    def _program(self, name: str) -> str:
        folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        found = [*filter(None, [shutil.which(name)]), *(str(f / name) for f in folders)]
        if not found:
            raise RuntimeError(
                f"{name} of PostgreSQL must be on the PATH or in /usr/lib/postgresql"
            )
        return found[0]

    def _run(self, *words: str) -> None:
        run = subprocess.run(
            words,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PGPASSWORD": self.password},
        )
        if run.returncode:
            raise RuntimeError(
                f"{Path(words[-1]).name}: {' '.join(words[:3])} failed: {run.stderr[-800:]}"
            )


@dataclass
class Mlflow(Service):
    """MLflow's server, with its database in PostgreSQL or in a file."""

    backend: str = ""

    @property
    def url(self) -> str:
        """Value of MLFLOW_TRACKING_URI."""
        return f"http://{HOST}:{self.port}"

    def command(self) -> list[str]:
        backend = self.backend or f"sqlite:///{self.folder / 'mlflow.db'}"
        return [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            backend,
            "--artifacts-destination",
            str(self.folder / "mlartifacts"),
            "--host",
            HOST,
            "--port",
            str(self.port),
            "--workers",
            "1",
        ]
