"""A tiny experiment, one finished run of it that tests may read, and processes to talk to."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from sqlalchemy import Engine, event

from experiments import Experiment, Resources, get_experiment
from pipelines.commands.run import run_experiment
from pipelines.console.console import make_console
from pipelines.execution import runners
from pipelines.execution.listener import NullListener
from pipelines.execution.scheduler import Pipeline
from pipelines.graph.graph import Graph
from pipelines.graph.node import closure
from pipelines.results.measurements import collect
from pipelines.stages.build import WORK
from pipelines.store.folder import FolderStore
from pipelines.store.home import Home

ROOT = Path(__file__).parent.parent.parent
OUTSIDE = (
    "IGDIT_HOME",
    "IGDIT_STORE",
    "IGDIT_CACHE",
    "IGDIT_STUDY_STORAGE",
    "IGDIT_SECRETS",
    "MLFLOW_TRACKING_URI",
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "AWS_ENDPOINT_URL",
)
"""Variables of the environment that would lead a test out of its folder."""


class InlineRunner(runners.InlineRunner):
    """The stages in this process, made without arguments as pipelines want it."""

    def __init__(self):
        super().__init__(WORK)


def tiny(**changes) -> Experiment:
    """Digits in seconds, inline. A dict changes fields of a part, anything else is the part."""
    digits, replace = get_experiment("digits"), dataclasses.replace
    base = replace(
        digits,
        name="tiny",
        model=replace(digits.model, depth=2, width=16, num_heads=2),
        train=replace(digits.train, steps=20, checkpoint_every=10, batch_size=16),
        guidance=replace(digits.guidance, ig_scale=1.5),
        ig_scales=(1.5,),
        sampler=replace(digits.sampler, method="euler", num_steps=2),
        evaluation=replace(
            digits.evaluation,
            num_samples=200,
            curve_samples=100,
            shard_size=100,
            groups=10,
            extractor_epochs=1,
            kid_subsets=2,
            kid_subset_size=50,
            isc_splits=2,
        ),
        resources=Resources(runner="inline", num_workers=1),
    )
    parts = {
        name: replace(getattr(base, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return replace(base, **parts)


def run_inline(
    store: FolderStore, experiment: Experiment, targets=None, runner=InlineRunner
) -> Graph:
    """Build what is missing in this process."""
    pipeline = Pipeline(store, experiment, runner, NullListener())
    pipeline.run(pipeline.graph.targets if targets is None else targets)
    return pipeline.graph


def events(store: FolderStore, event: str, kind: str | None = None) -> list[dict]:
    return [e for e in store.events() if e["event"] == event and kind in (None, e["kind"])]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: contents of files, None for folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def damage(path: Path) -> None:
    """Edit a file without changing its size."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@dataclass(frozen=True)
class Finished:
    """A run that is over."""

    experiment: Experiment
    home: Home
    output: str

    @property
    def graph(self) -> Graph:
        return Graph(self.experiment)

    @property
    def nodes(self) -> list:
        """Everything that it built."""
        return list(closure(collect(self.home.store, self.graph).targets))

    def copy_store(self, target: Path) -> FolderStore:
        """A store of one's own with the same artifacts."""
        return FolderStore(shutil.copytree(self.home.store.root, target))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Finished:
    """A finished run of `tiny()`, report and MLflow included. Read it, do not change it."""
    home, output = Home(tmp_path_factory.mktemp("finished")), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name in OUTSIDE:
            patch.delenv(name, raising=False)
        assert run_experiment(tiny(), home, make_console(file=output, width=200)) == 0
    return Finished(tiny(), home, output.getvalue())


@pytest.fixture
def store(finished, tmp_path) -> FolderStore:
    """A copy of the finished run's store, to be changed."""
    return finished.copy_store(tmp_path / "home" / "store")


def forget_databases(folder: Path) -> None:
    """Take away from MLflow what it keeps, for ever, of each database: some 15 MB."""
    if "mlflow.store.tracking.sqlalchemy_store" not in sys.modules:
        return
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking
    from mlflow.tracking._model_registry.registry import ModelRegistryStoreRegistry
    from mlflow.tracking._tracking_service.registry import TrackingStoreRegistry

    engines = [
        kept._engine_map.pop(uri)
        for kept in (Tracking, Registry)
        for uri in list(kept._engine_map)
        if str(folder) in uri
    ]
    for engine in engines:
        engine.dispose()
    if engines:
        TrackingStoreRegistry._get_store_with_resolved_uri.cache_clear()
        ModelRegistryStoreRegistry._get_store_with_resolved_uri.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def _unsynced():
    """Files and SQLite's commits are not pressed to the disk: no test cuts the power."""

    def leave_unsynced(connection, _) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", leave_unsynced)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield
    event.remove(Engine, "connect", leave_unsynced)


@functools.cache
def new_database() -> bytes:
    """An empty SQLite database as MLflow sets it up: creation and some 50 migrations, 1.5 s."""
    import mlflow.store.db.utils
    from sqlalchemy import create_engine

    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{folder}/mlflow.db")
        mlflow.store.db.utils._initialize_tables(engine)
        engine.dispose()
        return Path(folder, "mlflow.db").read_bytes()


def copy_new_database(monkeypatch) -> None:
    """Have MLflow copy what it would set up once more, if a test before has imported it."""
    utils = sys.modules.get("mlflow.store.db.utils")
    if utils is None:
        return
    set_up = utils._initialize_tables

    def initialize(engine) -> None:
        if engine.dialect.name != "sqlite":
            set_up(engine)
            return
        with (
            contextlib.closing(sqlite3.connect(":memory:")) as empty,
            contextlib.closing(engine.raw_connection()) as connection,
        ):
            empty.deserialize(template)
            empty.backup(connection.driver_connection)

    template = new_database()
    monkeypatch.setattr(utils, "_initialize_tables", initialize)


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch, tmp_path):
    """No test reads or writes outside its folder; threads and signals are as they were."""
    for name in OUTSIDE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IGDIT_HOME", str(tmp_path / "home"))
    copy_new_database(monkeypatch)
    threads = torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    torch.set_num_threads(1)
    # Where SIGINT is ignored when Python starts (a background job of a script), it stays so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    forget_databases(tmp_path)


class Child:
    """A Python process that a test talks to by lines."""

    def __init__(self, code: str, *arguments: object, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # A child that hangs fails its test instead of holding it up.
        self._watchdog = threading.Timer(120, self.process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    def read(self) -> str:
        """Next line it prints; empty if it ended."""
        return self.process.stdout.readline().strip()

    def say(self, line: str = "go") -> None:
        """What its `input()` returns."""
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def finish(self) -> int:
        """Wait for its end; returns the exit code."""
        return self.process.wait()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self._watchdog.cancel()
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def child():
    """Factory of `Child`; all are gone at the end of the test."""
    children = []

    def start(code: str, *arguments: object, **environment: str) -> Child:
        children.append(Child(code, *arguments, **environment))
        return children[-1]

    yield start
    for each in children:
        each.close()
