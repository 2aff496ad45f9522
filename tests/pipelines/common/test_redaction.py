"""Passwords and tokens are said nowhere; a server that hangs or is away holds nothing up."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import io
import logging
import threading
import time

import pytest

from pipelines.commands.run import run_experiment
from pipelines.common.redaction import redact, without_user
from pipelines.console.console import make_console
from pipelines.store.home import Home
from pipelines.tracking.background import BackgroundSync
from pipelines.tracking.messages import behind, where_to_compare
from tests.equipment.shown import shown
from tests.pipelines.conftest import tiny, tree

SAID = [
    ("http://me:s3cret@host:5000/x", "http://me:***@host:5000/x"),
    ("at https://me:s3/cr:et@host failed", "at https://me:***@host failed"),
    ("postgresql+psycopg://u:s3cret@h/db and http://v:s3cret@i", None),
    ("http://host:5000/a", "http://host:5000/a"),
    ("http://s3cret@host/", "http://***@host/"),
    ("HTTPS://s3cret@host/ and s3://s3cret@b/x", "HTTPS://***@host/ and s3://***@b/x"),
    ("git+https://s3cret@host/x", "git+https://***@host/x"),
    ("postgresql+psycopg://me@h/d", "postgresql+psycopg://me@h/d"),
    ("abfs://container@account/x", "abfs://container@account/x"),
    ("postgresql://u@h/d?password=s3cret&sslmode=on", "postgresql://u@h/d?password=***&sslmode=on"),
    ("'http://h/x?a=b&token=s3cret' failed", "'http://h/x?a=b&token=***' failed"),
    ("http://h:1/d?password=s3cret@i", "http://h:1/d?password=***"),
    ("http://h:1/d?%70assword=s3cret", "http://h:1/d?%70assword=***"),
    ("url: /api?access_key=s3cret (caused by x)", "url: /api?access_key=*** (caused by x)"),
    ("sqlite:////data/a@b:c.db?mode=ro", "sqlite:////data/a@b:c.db?mode=ro"),
    ("host='h', url: /api?x=a:b@c", "host='h', url: /api?x=a:b@c"),
]


@pytest.mark.parametrize(("text", "expected"), SAID)
def test_passwords_in_addresses_are_hidden(text, expected):
    found = redact(text)
    assert "s3cret" not in found
    assert "cr:et" not in found
    assert expected in (None, found)


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"])
def test_values_of_the_environment_are_hidden(name, monkeypatch):
    monkeypatch.setenv(name, "s3cret")
    assert redact(ValueError("header 'Bearer s3cret' refused")) == "header 'Bearer ***' refused"


def test_addresses_to_open_have_no_user():
    assert without_user("https://me:s3cret@host:1/x") == "https://host:1/x"
    assert without_user("https://me@host/x@y") == "https://host/x@y"
    assert without_user("http://127.0.0.1:5000") == "http://127.0.0.1:5000"


def test_results_are_compared_on_the_server_that_has_them():
    page = "#/experiments/1/runs"
    assert (
        where_to_compare("https://me:s3cret@host:1/", page, "this run")
        == "Compare in MLflow: https://host:1/#/experiments/1/runs"
    )
    assert (
        where_to_compare("sqlite:///x.db", page, "this run", ".venv/bin/igdit")
        == "Compare in MLflow: .venv/bin/igdit ui    (this run: #/experiments/1/runs)"
    )


def test_what_is_behind_is_said_as_it_is(monkeypatch):
    """Brackets of an error are not markup."""
    screen = io.StringIO()
    text = behind("http://me:s3cret@h", ValueError("[red] http://me:s3cret@h/api [Errno 111]"))
    make_console(file=screen, width=500).print(text)
    assert "[red] http://me:***@h/api [Errno 111]" in screen.getvalue()


def test_a_background_sync_says_no_password(caplog):
    def sync() -> None:
        raise ConnectionError("http://me:s3cret@host/api refused")

    background = BackgroundSync(sync, pause_seconds=0.0)
    background.request()
    background.close(60)
    assert "http://me:***@host/api refused" in caplog.text


class Hanging(http.server.BaseHTTPRequestHandler):
    """Takes requests and answers none."""

    free = threading.Event()
    asked: list[str | None]

    def _hang(self) -> None:
        self.asked.append(self.headers.get("Authorization"))
        self.free.wait(60)

    do_GET = do_POST = do_PUT = do_PATCH = _hang  # noqa: N815

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hanging(monkeypatch):
    """A tracking server that hangs, with a password in its address and short patience."""
    monkeypatch.setattr(Hanging, "asked", [], raising=False)
    monkeypatch.setattr(Hanging, "free", threading.Event())
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hanging) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        port = server.server_address[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:s3cret@127.0.0.1:{port}")
        yield
        Hanging.free.set()
        server.shutdown()


def test_a_server_that_hangs_holds_nothing_up_and_misses_nothing(
    hanging, store, finished, tmp_path, monkeypatch, caplog
):
    """Afterwards the same command, with a server that answers, logs what is missing."""
    home, screen = Home(tmp_path / "home"), io.StringIO()
    node = finished.graph.headline.evaluate
    store.quarantine(node.ref)
    caplog.set_level(logging.DEBUG)
    started = time.monotonic()
    assert run_experiment(tiny(), home, make_console(file=screen, width=400)) == 0
    assert time.monotonic() - started < 60
    assert store.find(node.ref) is not None
    assert Hanging.asked, "the server was asked"
    assert all(header and header.startswith("Basic ") for header in Hanging.asked)
    assert "could not be updated" in screen.getvalue()
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("pipelines", "mlflow"))]
    assert "s3cret" not in screen.getvalue() + "".join(ours)
    written = (content for content in tree(home.root).values() if content)
    assert not any(b"s3cret" in content for content in written)

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert run_experiment(tiny(), home, make_console(file=io.StringIO())) == 0
    (page,) = shown(home.root).values()
    assert page["status"] == "FINISHED"
    assert [step for step, _, _ in page["metrics"]["fid_curve"]] == [10, 20]


def test_training_goes_on_while_the_server_hangs(hanging, tmp_path):
    """The thread that hangs is not waited for: closing has its own patience."""
    from pipelines.tracking.client import MlflowTracker

    def sync() -> None:
        tracker = MlflowTracker(Home(tmp_path).tracking_uri, tmp_path / "mlartifacts")
        tracker.client.get_experiment_by_name("x")

    background = BackgroundSync(sync)
    started = time.monotonic()
    background.request()
    with contextlib.suppress(TimeoutError):
        while not Hanging.asked and time.monotonic() - started < 30:
            time.sleep(0.01)
    assert Hanging.asked
    closing = time.monotonic()
    background.close(0.1)
    assert time.monotonic() - closing < 5
    Hanging.free.set()
    background.close(60)


def test_nothing_of_the_environment_is_among_what_is_logged(store, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    home = Home(tmp_path / "home")
    other = dataclasses.replace(finished.experiment, name="other")
    assert run_experiment(other, home, make_console(file=io.StringIO())) == 0
    for content in tree(home.root).values():
        assert content is None or (b"s3cret" not in content and b"t0ken" not in content)


def test_the_stores_address_is_tagged_without_its_secret(store, tmp_path, monkeypatch):
    """`store` lies in that home already: nothing is to be done but to log it."""
    home = Home(tmp_path / "home")
    monkeypatch.setattr(home.store, "uri", "s3://KEY:s3cretword@bucket/x")
    assert run_experiment(tiny(), home, make_console(file=io.StringIO())) == 0
    contents = b"".join(content for content in tree(home.root).values() if content)
    assert b"s3://KEY:***@bucket/x" in contents
    assert b"s3cretword" not in contents
