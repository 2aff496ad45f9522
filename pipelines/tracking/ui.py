"""MLflow's server on loopback, and the pages of the newest comparisons."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.redaction import redact, without_user
from pipelines.common.settings import all_variables, tracking_uri
from pipelines.tracking.client import RUN_TAG, VIEW, import_mlflow
from pipelines.tracking.messages import damage_of
from pipelines.tracking.study import STUDY_TAG, view_name
from pipelines.tracking.views import view_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.store.home import Home


START_SECONDS = 120.0
"""Seconds that the server may take until it answers."""
GUARD = Path(__file__).with_name("ui_guard.py")
"""Program that ends the server when this process ends."""


def serve_ui(home: Home, port: int, log: Callable[[str], None]) -> int:
    """Serve MLflow's pages on loopback until interrupted; returns the server's exit code.

    If results are tracked by a server elsewhere, its pages are listed and nothing is started.

    Raises:
        ValueError: If there are no results yet, the database is damaged, or the port is taken.
    """
    if home.tracking_uri.startswith(("http://", "https://")):
        base = without_user(home.tracking_uri).rstrip("/")
        log(f"Results are tracked by the server at {base}: open it in a browser.")
        _log_pages(home, base, log)
        return 0
    own = tracking_uri() is None
    if own and not (home.root / "mlflow.db").exists():
        raise ValueError(f"there are no results in {home.root} yet: run an experiment first")
    damage = damage_of(home.tracking_uri)
    if damage is not None:
        raise ValueError(damage)
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ValueError(f"port must be free, but something listens on 127.0.0.1:{port}")
    import_mlflow()
    base = f"http://127.0.0.1:{port}"
    log(f"Starting MLflow at {base}, which takes some seconds")
    command = [
        sys.executable,
        "-I",
        str(GUARD),
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--artifacts-destination",
        home.mlartifacts.as_uri(),
        "--uvicorn-opts",
        "--log-level warning",
    ]
    # In the environment, as the address of a database may hold a password.
    environment = {
        **all_variables(),
        "MLFLOW_BACKEND_STORE_URI": home.tracking_uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    # In a session of its own, the server's processes can be ended together. The guard does so also
    # when this process is killed, which closes the pipe.
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, start_new_session=True, env=environment
    )
    ended = threading.Event()

    def announce() -> None:
        if _answers(port, ended):
            _log_pages(home, base, log)
            log(f"MLflow is running at {base} (Ctrl-C ends it)")

    threading.Thread(target=announce, daemon=True).start()
    try:
        return server.wait()
    except KeyboardInterrupt:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
        return 0
    finally:
        ended.set()


@dataclass(frozen=True)
class Page:
    """Page of MLflow."""

    title: str
    path: str
    """Path below the server's address."""


def newest_pages(tracking_uri: str) -> list[Page]:
    """Return the pages that compare the newest study's trials, and the newest run with others."""
    client = import_mlflow().MlflowClient(tracking_uri=tracking_uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    pages = []
    for tag, page_of in ((STUDY_TAG, _of_study), (RUN_TAG, _of_runs)):
        newest = client.search_runs(
            experiments,
            f"tags.`{tag}` != ''",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        pages += [page_of(client, run) for run in newest]
    return pages


def _of_study(client: Any, run: Any) -> Page:  # noqa: ANN401
    key, experiment = run.data.tags[STUDY_TAG], run.info.experiment_id
    name = client.get_experiment(experiment).name.removeprefix("study-")
    return Page(
        f"Study {name}: trials side by side (axes, curves, samples)",
        view_address(experiment, view_name(key)),
    )


def _of_runs(client: Any, run: Any) -> Page:  # noqa: ANN401
    experiment = run.info.experiment_id
    name = client.get_experiment(experiment).name
    return Page(
        f"Runs measured as {name}: side by side (curves, scales, samples)",
        view_address(experiment, VIEW),
    )


def _answers(port: int, ended: threading.Event) -> bool:
    """Wait until the server answers; returns False if it ended or took too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and not ended.wait(0.3):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return True
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()
    return False


def _log_pages(home: Home, base: str, log: Callable[[str], None]) -> None:
    try:
        pages = newest_pages(home.tracking_uri)
    except Exception as error:  # noqa: BLE001 - the server works without the list
        log(f"Its results could not be listed: {redact(error)}")
        return
    for page in pages:
        log(f"{page.title}\n    {base}/{page.path}")
