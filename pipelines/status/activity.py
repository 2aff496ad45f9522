"""Activity of a process, in a small file that `pipelines.status.read` reads.

    HOME/activity/ID.json    state of a run or a study; replaced atomically
    HOME/activity/ID.lock    lock of the process; the kernel releases it when the process dies
    HOME/activity/last.json  state of the process that ended last

A thread writes the file, at most once a second: the work never waits for the disk, and goes on if
the disk is full.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from experiments.schema import read_dataclass
from pipelines.common.errors import PipelineError, StoppedError
from pipelines.common.redaction import redact
from pipelines.store.files import replace_text
from pipelines.store.locks import FileLock, holder, wait_for_lock
from pipelines.store.rights import explain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from pipelines.execution.listener import Listener
    from pipelines.graph.graph import Graph
    from pipelines.graph.node import Node
    from pipelines.stages.jobs import TrainProgress
    from pipelines.store.home import Home


WRITE_SECONDS = 1.0
"""Seconds between two writes of the state."""
KEPT_SECONDS = 24 * 3600.0
"""Seconds for which the files of a killed process are kept, unless the same work starts again."""
LOCK_SECONDS = 10.0
"""Seconds to wait for the lock of this process, which only a reader may hold for a moment."""
LAST_FILE = "last.json"
MAX_FILE_BYTES = 1_000_000
"""Size above which a file is refused."""


class Activity:
    """Context in which the state of this process is published."""

    def __init__(self, home: Home, kind: str, name: str, key: str = "") -> None:
        now = time.time()
        self.ended = "finished"
        """Outcome of the process if nothing is raised."""
        self._folder, self._id = home.activity, uuid.uuid4().hex[:12]
        self._process_state = ProcessState(
            kind=kind,
            name=name,
            key=key,
            host=platform.node(),
            pid=os.getpid(),
            started=now,
            updated=now,
        )
        self._builds: dict[int, Build] = {}
        self._changed, self._lock, self._shown = False, threading.Lock(), False
        self._alive = FileLock(self._folder / f"{self._id}.lock")
        self._stop = threading.Event()
        self._writer = threading.Thread(target=self._loop, name="activity", daemon=True)

    def __enter__(self) -> Activity:
        # A reader may hold the lock for a moment. Without the lock this process would look dead, so
        # it then publishes nothing.
        deadline = time.monotonic() + LOCK_SECONDS
        with suppress(OSError, StoppedError):
            wait_for_lock(self._alive, 0.01, lambda: time.monotonic() > deadline)
            self._shown = True
            self._clear()
        self._write()
        self._writer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._writer.join(10 * WRITE_SECONDS)
        self.update(phase="ended", outcome=self.ended if error is None else _outcome(error))
        with suppress(OSError):  # also if the state was not published before
            replace_text(self._folder / LAST_FILE, self._text())
            self._path.unlink(missing_ok=True)
        with suppress(OSError):
            self._alive.release(delete=True)

    def update(self, **changes: Any) -> None:  # noqa: ANN401
        """Change fields of the state; passwords and tokens in texts are hidden."""
        texts: Any = {name: redact(v) for name, v in changes.items() if isinstance(v, str)}
        with self._lock:
            self._process_state = replace(
                self._process_state, updated=time.time(), **{**changes, **texts}
            )
            self._changed = True

    def follow(self, graph: Graph, listener: Listener, name: str) -> ActivityListener:
        """Return a listener that publishes progress and passes it on, until it is closed."""
        return ActivityListener(self, graph, listener, name)

    def put(self, number: int, build: Build | None) -> None:
        """Publish a build under a number; None removes it."""
        with self._lock:
            if build is None:
                self._builds.pop(number, None)
            else:
                self._builds[number] = build
        self.update(builds=tuple(self._builds.values()))

    @property
    def process(self) -> ProcessState:
        """Return the current state of this process."""
        with self._lock:
            return self._process_state

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._id}.json"

    def _text(self) -> str:
        with self._lock:
            self._changed = False
            return json.dumps(dataclasses.asdict(self._process_state))

    def _write(self) -> None:
        text = self._text()
        if self._shown:
            with suppress(OSError):
                replace_text(self._path, text)

    def _loop(self) -> None:
        while not self._stop.wait(WRITE_SECONDS):
            if self._changed:
                self._write()

    def _clear(self) -> None:
        """Delete the files of dead processes that did the same work, and old files."""
        for path in self._folder.glob("*.json"):
            if path.name == LAST_FILE or holder(path.with_suffix(".lock")) is not None:
                continue
            try:
                state = read_process_state(path)
                same_work = state is not None and state.title == self._process_state.title
            except ValueError:
                same_work = False
            if same_work or time.time() - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink(missing_ok=True)
                path.with_suffix(".lock").unlink(missing_ok=True)


class ActivityListener:
    """`Listener` that publishes progress in the activity, and passes it on to another."""

    def __init__(self, activity: Activity, graph: Graph, listener: Listener, name: str) -> None:
        self._activity, self._listener = activity, listener
        self._workers = graph.experiment.resources.num_workers
        self._lock = threading.Lock()
        self._build = Build(name=name, trajectory=graph.checkpoint(0).hash, started=time.time())
        self._put()

    def on_waiting(self, node: Node) -> None:
        """Publish that another process builds the node."""
        self._put(waiting=str(node.ref))
        self._listener.on_waiting(node)

    def on_started(self, nodes: Sequence[Node]) -> None:
        """Pass on that one task of this process builds the nodes."""
        self._listener.on_started(nodes)

    def on_training(self, progress: TrainProgress) -> None:
        """Publish the progress of the training."""
        training = Training(
            step=progress.step,
            steps=progress.steps,
            loss=progress.loss,
            steps_per_second=progress.steps_per_second,
            workers=self._workers,
            host=progress.host,
            reported_at=time.time(),
        )
        self._put(training=None if progress.step >= progress.steps else training)
        self._listener.on_training(progress)

    def on_finished(self, node: Node, done: int, total: int) -> None:
        """Publish that the artifact is there."""
        build = self._build
        waiting = "" if build.waiting == str(node.ref) else build.waiting
        # The last report of a training may be lost; its last checkpoint ends it as well.
        over = node.kind == "checkpoint" and build.training and node.step >= build.training.steps
        self._put(
            done=done, total=total, waiting=waiting, training=None if over else build.training
        )
        self._listener.on_finished(node, done, total)

    def close(self) -> None:
        """Remove the experiment from the activity."""
        self._activity.put(id(self), None)

    def _put(self, **changes: Any) -> None:  # noqa: ANN401
        with self._lock:
            self._build = replace(self._build, **changes)
            self._activity.put(id(self), self._build)


@dataclass(frozen=True, kw_only=True)
class ProcessState:
    """State of a process."""

    kind: str
    """`run` or `study`."""
    name: str
    key: str = ""
    """Key of a run; empty for a study."""
    host: str
    pid: int
    started: float
    updated: float
    phase: str = "starting"
    where: str = ""
    """Description of the workers that it runs on."""
    trials: Trials | None = None
    builds: tuple[Build, ...] = ()
    news: str = ""
    """Last result."""
    outcome: str = ""
    """Outcome; empty while the process runs."""

    @property
    def title(self) -> str:
        """Return the kind, the name and the first digits of the key."""
        return " ".join(part for part in (self.kind, self.name, self.key[:8]) if part)


@dataclass(frozen=True, kw_only=True)
class Build:
    """Progress of an experiment whose artifacts are being built."""

    name: str
    trajectory: str
    """Hash of its checkpoints, which names the training's lease."""
    started: float
    done: int = 0
    """Number of artifacts that were built."""
    total: int = 0
    """Number of artifacts that were missing."""
    training: Training | None = None
    waiting: str = ""
    """Artifact that another process builds."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Progress of a running training."""

    step: int
    steps: int
    loss: float
    steps_per_second: float
    workers: int
    host: str
    """Host of its first worker."""
    reported_at: float
    """Time of this report, in seconds since the epoch."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Counts of a study's trials when this process last read them."""

    complete: int
    running: int
    pruned: int
    failed: int
    wanted: int
    at_first: int
    """Number of trials that were complete when this process started."""


def read_process_state(path: Path) -> ProcessState | None:
    """Read the state of a process from its file; None if the file is gone.

    Raises:
        ValueError: If the file holds no valid state.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(str(error)) from error
    if len(text) > MAX_FILE_BYTES:
        raise ValueError("it is too large")
    try:
        state: ProcessState = read_dataclass(ProcessState, json.loads(text), "activity")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return state


def _outcome(error: BaseException) -> str:
    """Describe how a process ended by an error."""
    if isinstance(error, PipelineError | ValueError | OSError):
        text = explain(error) if isinstance(error, OSError) else str(error)
        return f"failed: {text.splitlines()[0][:300] if text else type(error).__name__}"
    return "stopped" if isinstance(error, KeyboardInterrupt) else f"failed: {type(error).__name__}"
