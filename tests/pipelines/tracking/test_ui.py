"""`igdit ui`: where MLflow's pages are served, and which addresses are said."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import ClassVar

import pytest

from cluster.processes import descendants
from pipelines.store.home import Home
from pipelines.tracking.metrics import comparison_name
from pipelines.tracking.ui import GUARD, newest_pages, serve_ui
from tests.equipment.processes import alive, wait_for


@pytest.fixture
def port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """Stands in for the process of MLflow's server."""

    commands: ClassVar[list[list[str]]] = []
    environments: ClassVar[list[dict[str, str]]] = []
    pid = 12345

    def __init__(self, command, *, env, stdin, start_new_session) -> None:
        assert command[:3] == [sys.executable, "-I", str(GUARD)]
        assert (stdin, start_new_session) == (subprocess.PIPE, True)
        self.commands.append(command)
        self.environments.append(env)

    def wait(self) -> int:
        return 3


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", Server)
    monkeypatch.setattr(Server, "commands", [])
    monkeypatch.setattr(Server, "environments", [])
    return Server


def test_the_ui_is_served_on_loopback_from_the_run_folder(finished, server, port):
    said = []
    assert serve_ui(finished.home, port, said.append) == 3
    (command,) = server.commands
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == str(port)
    (environment,) = server.environments
    database = f"sqlite:///{finished.home.root / 'mlflow.db'}"
    assert environment["MLFLOW_BACKEND_STORE_URI"] == database
    assert f"http://127.0.0.1:{port}" in said[0]


def test_an_interrupt_ends_the_server_and_all_its_processes(finished, server, port, monkeypatch):
    ended = []

    def wait(self):
        if not ended:
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(server, "wait", wait)
    monkeypatch.setattr(os, "killpg", lambda *call: ended.append(call))
    assert serve_ui(finished.home, port, lambda _: None) == 0
    assert ended == [(Server.pid, signal.SIGTERM)]


def test_a_port_that_is_taken_is_named_and_nothing_is_started(finished, server):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port must be free.*{port}"):
            serve_ui(finished.home, port, print)
    assert server.commands == []


def test_without_results_there_is_no_ui(tmp_path):
    with pytest.raises(ValueError, match="no results"):
        serve_ui(Home(tmp_path), 5000, print)


def test_with_a_server_elsewhere_the_ui_is_there(finished, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:1")
    said = []
    assert serve_ui(finished.home, 5000, said.append) == 0
    assert "http://127.0.0.1:1: open it in a browser" in said[0]
    assert "could not be listed" in said[1]
    assert "s3cret" not in "".join(said)
    assert server.commands == []


def test_a_database_elsewhere_is_served_here_and_its_password_is_on_no_command_line(
    finished, server, port, monkeypatch
):
    address = "postgresql+psycopg://me:s3cret@127.0.0.1:1/tracking"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert serve_ui(finished.home, port, lambda _: None) == 3
    assert "s3cret" not in " ".join(server.commands[0])
    assert server.environments[0]["MLFLOW_BACKEND_STORE_URI"] == address


class Healthy(http.server.BaseHTTPRequestHandler):
    """A server that answers from its third request on."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200 if self.asked > 2 else 503)
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


def test_addresses_are_said_when_the_server_answers(finished, server, port, monkeypatch):
    """The server comes up after a while; it is asked until it does."""
    monkeypatch.setattr(Healthy, "asked", 0)
    said, over = [], threading.Event()

    def wait(self) -> int:
        with http.server.HTTPServer(("127.0.0.1", port), Healthy) as healthy:
            thread = threading.Thread(target=healthy.serve_forever, daemon=True)
            thread.start()
            over.wait(60)
            healthy.shutdown()
        return 0

    monkeypatch.setattr(server, "wait", wait)
    serving = threading.Thread(target=serve_ui, args=(finished.home, port, said.append))
    serving.start()
    wait_for(lambda: len(said) > 2)
    over.set()
    serving.join(60)
    assert Healthy.asked == 3
    title, address = said[1].split("\n")
    name = comparison_name(finished.graph)
    assert title == f"Runs measured as {name}: side by side (curves, scales, samples)"
    assert address.strip().startswith(f"http://127.0.0.1:{port}/#/experiments/")
    assert said[-1].startswith(f"MLflow is running at http://127.0.0.1:{port} "), "it comes last"


SERVE = """
import subprocess, sys
server = "import subprocess, sys, time; below = subprocess.Popen(['sleep', '600']);" \\
         "print(below.pid, flush=True); time.sleep(600)"
guard = subprocess.Popen([sys.executable, "-I", sys.argv[1], sys.executable, "-c", server],
                         stdin=subprocess.PIPE, start_new_session=True)
print(guard.pid, flush=True)
guard.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_of_the_server_outlives_the_command(child, number):
    command = child(SERVE, GUARD)
    pids = [int(command.read()), int(command.read())]
    pids += descendants(pids[0])
    command.process.send_signal(number)
    command.finish()
    wait_for(lambda: not any(map(alive, pids)), 30)


def test_requests_are_not_logged(finished, server, port):
    serve_ui(finished.home, port, lambda _: None)
    (command,) = server.commands
    assert command[command.index("--uvicorn-opts") + 1] == "--log-level warning"


def test_runs_are_compared_in_the_view_whose_charts_are_chosen(finished):
    """MLflow's own comparison begins with whatever metric was logged first."""
    (page,) = newest_pages(f"sqlite:///{finished.home.root / 'mlflow.db'}")
    assert "viewStateShareKey=igdit" in page.path


def test_a_damaged_database_is_said_before_anything_is_started(tmp_path, server):
    home = Home(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(ValueError, match=r"mlflow\.db is damaged .*mv .*track rebuild"):
        serve_ui(home, 5000, print)
    assert server.commands == []
