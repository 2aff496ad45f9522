"""Status of a home, read from its files alone.

No process is contacted and no file is changed. Every host that sees the folder can read the states
that processes publish, the locks that the kernel holds for them, and the store's event log.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments import experiment_from_json
from pipelines.graph.graph import Graph
from pipelines.graph.node import closure
from pipelines.status.activity import LAST_FILE, ProcessState, read_process_state
from pipelines.store.file_names import EXPERIMENT_FILE
from pipelines.store.keys import Ref
from pipelines.store.locks import Holder, holder

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.store.base import Store
    from pipelines.store.home import Home


MAX_EVENTS = 5
"""Number of events that are shown."""


@dataclass(frozen=True)
class Status:
    """Status of a home at a moment."""

    root: Path
    now: float
    working: tuple[ProcessState, ...]
    gone: tuple[ProcessState, ...]
    """Processes that died, with their last states."""
    last: ProcessState | None
    """Process that ended last."""
    tasks: tuple[Task, ...]
    events: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    """Files that could not be read, and why."""


@dataclass(frozen=True)
class Task:
    """Artifact that is being built, or waits for a worker."""

    ref: Ref
    label: str
    """Experiment and part of it; empty if not known."""
    lease: Holder | None
    """Process that leased the artifact."""
    worker: Holder | None
    """Process that builds the artifact."""

    @property
    def since(self) -> float:
        """Return when it was leased or started, in seconds since the epoch."""
        return min(h.since for h in (self.worker, self.lease) if h is not None)


def read_status(home: Home) -> Status:
    """Read the status of a home."""
    notes: list[str] = []
    working, gone = [], []
    for path in sorted(home.activity.glob("*.json")):
        if path.name == LAST_FILE:
            continue
        process = _read(path, notes)
        if process is None:
            continue
        if holder(path.with_suffix(".lock")) is not None:
            working.append(process)
        elif path.exists():  # else it ended after its file was read
            gone.append(process)
    events = [event for event in home.store.events(4 * MAX_EVENTS) if _is_event(event)]
    return Status(
        home.root,
        time.time(),
        tuple(sorted(working, key=lambda process: process.started)),
        tuple(sorted(gone, key=lambda process: process.started)),
        _read(home.activity / LAST_FILE, notes),
        tuple(sorted(_tasks(home.store), key=lambda task: task.since)),
        tuple(events[-MAX_EVENTS:]),
        tuple(notes),
    )


def _read(path: Path, notes: list[str]) -> ProcessState | None:
    try:
        return read_process_state(path)
    except ValueError as error:
        notes.append(f"{path.name} is left out: {error}")
        return None


def _tasks(store: Store) -> list[Task]:
    """Return the artifacts that are leased or being built."""
    leases, workers, staged = {}, {}, {}
    for name, process in store.held(".leases/").items():
        with suppress(ValueError):  # not the lease of an artifact
            leases[Ref.parse_flat(name)] = process
    for lock, process in store.held(".staging/").items():
        name = lock.removesuffix(".lock")
        with suppress(ValueError):  # not an artifact, but a folder that is being deleted
            ref = Ref.parse_flat(name.rpartition("-")[0])
            workers[ref], staged[ref] = process, name
    labels = _Labels(store)
    return [
        Task(ref, labels.of(staged.get(ref), ref), leases.get(ref), workers.get(ref))
        for ref in {**leases, **workers}
    ]


class _Labels:
    """Labels of artifacts that are being built, from the experiment file beside each."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._graphs: dict[str, Graph | None] = {}

    def of(self, staged: str | None, ref: Ref) -> str:
        graph = None if staged is None else self._graph(staged)
        if graph is None:
            return ""
        name = graph.experiment.name
        if ref.has_step:
            return f"{name}, step {ref.step}"
        for point in dict.fromkeys((*graph.curve.values(), *graph.final.values())):
            own = (n for n in closure([point.evaluate]) if n.stage in ("sample", "evaluate"))
            if any(node.ref == ref for node in own):
                return f"{name}, step {point.step}, scale {point.guidance.ig_scale:g}"
        return name

    def _graph(self, staged: str) -> Graph | None:
        try:
            text = self._store.read_staged(staged, EXPERIMENT_FILE)
            if text is None:
                return None  # not written yet, or already published
            if text not in self._graphs:
                self._graphs[text] = Graph(experiment_from_json(text))
            return self._graphs[text]
        except (OSError, ValueError):
            return None


def _is_event(event: object) -> bool:
    """Return whether a line of the event log is complete and valid."""
    try:
        float(event["time"]), str(event["event"]), Ref(event["kind"], event["key"])  # type: ignore[index]
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
    return True
