"""`igdit ui`: MLflow's pages on loopback, and where the newest things are compared."""

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

from pipelines.discretion import discreet, without_user
from pipelines.settings import setting
from pipelines.study.tracking import STUDY_TAG, TRIAL_TAG, view_name
from pipelines.tracking import RUN_TAG, VIEW, import_mlflow
from pipelines.views import compare_address, view_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.home import Home

START_SECONDS = 120.0
"""How long the server may take until it answers."""
GUARD = Path(__file__).with_name("ui_guard.py")
"""Program that ends the server when this process is gone."""
SIDE_BY_SIDE = 50
"""Runs that an address selects at most: the best ones."""


@dataclass(frozen=True)
class Page:
    """A place to open."""

    title: str
    path: str
    """Below the server's address."""


def newest_pages(tracking_uri: str) -> list[Page]:
    """Where the newest study and the newest experiment are compared; none of what there is not."""
    client = import_mlflow().MlflowClient(tracking_uri=tracking_uri)
    pages = []
    for title, tag, pages_of in (("Study", STUDY_TAG, _of_study),
                                 ("Experiment", RUN_TAG, _of_experiment)):  # fmt: skip
        experiments = [e.experiment_id for e in client.search_experiments()]
        newest = client.search_runs(experiments, f"tags.`{tag}` != ''", max_results=1,
                                    order_by=["attributes.start_time DESC"])  # fmt: skip
        for run in newest:
            name = client.get_experiment(run.info.experiment_id).name.removeprefix("study-")
            pages += pages_of(client, run, f"{title} {name}")
    return pages


def _of_study(client: Any, run: Any, title: str) -> list[Page]:  # noqa: ANN401
    key, experiment = run.data.tags[STUDY_TAG], run.info.experiment_id
    trials = f"tags.`{STUDY_TAG}` = '{key}' and tags.`{TRIAL_TAG}` != ''"
    charts = Page(f"{title}: curves, axes, samples", view_address(experiment, view_name(key)))
    return [charts, *_side_by_side(client, experiment, trials, f"{title}: trials side by side")]


def _of_experiment(client: Any, run: Any, title: str) -> list[Page]:  # noqa: ANN401
    experiment = run.info.experiment_id
    charts = Page(f"{title}: curves and samples", view_address(experiment, VIEW))
    runs = f"tags.`{RUN_TAG}` != ''"
    return [charts, *_side_by_side(client, experiment, runs, f"{title}: runs side by side")]


def _side_by_side(client: Any, experiment: str, which: str, title: str) -> list[Page]:  # noqa: ANN401
    """The comparison of finished runs, best first, if there are two."""
    found = client.search_runs(
        [experiment], f"{which} and attributes.status = 'FINISHED'",
        max_results=SIDE_BY_SIDE + 1, order_by=["metrics.fid_final ASC"],
    )  # fmt: skip
    if len(found) < 2:
        return []
    best = found[:SIDE_BY_SIDE]
    title += f" (the best {SIDE_BY_SIDE})" if len(best) < len(found) else ""
    return [Page(title, compare_address(experiment, [run.info.run_id for run in best]))]


def serve_ui(home: Home, port: int, say: Callable[[str], None]) -> int:
    """Serve MLflow's pages on loopback until interrupted; returns its exit code.

    With a server elsewhere nothing is started, and its pages are named.

    Raises:
        ValueError: there are no results yet, or the port is taken.
    """
    if home.tracking_uri.startswith(("http://", "https://")):
        base = without_user(home.tracking_uri).rstrip("/")
        say(f"Results are tracked by the server at {base}: open it there.")
        _say_pages(home, base, say)
        return 0
    own = setting("MLFLOW_TRACKING_URI") is None
    if own and not (home.root / "mlflow.db").exists():
        raise ValueError(f"there are no results in {home.root} yet: run an experiment first")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ValueError(f"port must be free, but something listens on 127.0.0.1:{port}")
    import_mlflow()
    base = f"http://127.0.0.1:{port}"
    say(f"MLflow starts at {base}, which takes some seconds")
    command = [
        sys.executable, "-I", str(GUARD),
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--artifacts-destination", home.mlartifacts.as_uri(),
        "--uvicorn-opts", "--log-level warning",
    ]  # fmt: skip
    # By the environment, as the address of a database may hold a password.
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": home.tracking_uri,
                   "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # fmt: skip
    # A session of its own: the server's many processes are ended together, also when this process
    # is killed, which closes the pipe.
    server = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True,
                              env=environment)  # fmt: skip
    ended = threading.Event()

    def announce() -> None:
        if _answers(port, ended):
            _say_pages(home, base, say)
            say(f"MLflow is at {base}   (Ctrl-C ends it)")

    threading.Thread(target=announce, daemon=True).start()
    try:
        return server.wait()
    except KeyboardInterrupt:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
        return 0
    finally:
        ended.set()


def _answers(port: int, ended: threading.Event) -> bool:
    """Wait until the server answers; whether it does."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and not ended.wait(0.3):
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


def _say_pages(home: Home, base: str, say: Callable[[str], None]) -> None:
    try:
        pages = newest_pages(home.tracking_uri)
    except Exception as error:  # noqa: BLE001 - the server is there to look at all the same
        say(f"What it holds could not be asked for: {discreet(error)}")
        return
    for page in pages:
        say(f"{page.title}\n    {base}/{page.path}")
