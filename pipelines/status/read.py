"""`igdit status`: what runs in a home, read from its files alone.

Nothing is asked and nothing is changed: what processes publish about themselves, the locks that
the kernel holds for them, and the store's event log say it all, from any host that sees the folder.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments import experiment_from_json
from pipelines.graph.graph import Graph
from pipelines.graph.node import closure
from pipelines.status.activity import LAST, ProcessState, read_process_state
from pipelines.store.file_names import EXPERIMENT_FILE
from pipelines.store.keys import Ref
from pipelines.store.locks import Holder, holder

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.store.base import Store
    from pipelines.store.home import Home

EVENTS = 5
"""Events that are shown."""


@dataclass(frozen=True)
class Task:
    """Something that is being built, or waits for a worker."""

    ref: Ref
    what: str
    """Which part of which experiment, where that is known."""
    lease: Holder | None
    """The process that saw to it."""
    worker: Holder | None
    """The process that builds it."""

    @property
    def since(self) -> float:
        """When it began."""
        return min(h.since for h in (self.worker, self.lease) if h is not None)


@dataclass(frozen=True)
class Status:
    """What is known of a home at a moment."""

    root: Path
    now: float
    working: tuple[ProcessState, ...]
    gone: tuple[ProcessState, ...]
    """Processes that died at work, by their last words."""
    last: ProcessState | None
    """What ended last."""
    tasks: tuple[Task, ...]
    events: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    """What could not be understood."""


def read_status(home: Home) -> Status:
    """Look at everything once."""
    notes: list[str] = []
    working, gone = [], []
    for path in sorted(home.activity.glob("*.json")):
        if path.name == LAST:
            continue
        process = _read(path, notes)
        if process is None:
            continue
        if holder(path.with_suffix(".lock")) is not None:
            working.append(process)
        elif path.exists():  # else it ended between the two looks
            gone.append(process)
    return Status(
        home.root,
        time.time(),
        tuple(sorted(working, key=lambda d: d.started)),
        tuple(sorted(gone, key=lambda d: d.started)),
        _read(home.activity / LAST, notes),
        tuple(sorted(_tasks(home.store), key=lambda t: t.since)),
        tuple(event for event in home.store.events(4 * EVENTS) if _is_event(event))[-EVENTS:],
        tuple(notes),
    )


def _read(path: Path, notes: list[str]) -> ProcessState | None:
    try:
        return read_process_state(path)
    except ValueError as error:
        notes.append(f"{path.name} is left out: {error}")
        return None


def _tasks(store: Store) -> list[Task]:
    """What is leased or under construction right now."""
    leases, workers, staged = {}, {}, {}
    for name, found in store.held(".leases/").items():
        with suppress(ValueError):  # no lease of an artifact
            leases[Ref.parse_flat(name)] = found
    for lock, found in store.held(".staging/").items():
        name = lock.removesuffix(".lock")
        with suppress(ValueError):  # something that is being deleted
            ref = Ref.parse_flat(name.rpartition("-")[0])
            workers[ref], staged[ref] = found, name
    labels = _Labels(store)
    return [
        Task(ref, labels.of(staged.get(ref), ref), leases.get(ref), workers.get(ref))
        for ref in {**leases, **workers}
    ]


class _Labels:
    """Names for artifacts under construction, from the experiments that lie beside them."""

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
                return None  # not written yet, or published meanwhile
            if text not in self._graphs:
                self._graphs[text] = Graph(experiment_from_json(text))
            return self._graphs[text]
        except (OSError, ValueError):
            return None


def _is_event(event: object) -> bool:
    """Whether a line of the log is whole, and ours."""
    try:
        float(event["time"]), str(event["event"]), Ref(event["kind"], event["key"])  # type: ignore[index]
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
    return True
