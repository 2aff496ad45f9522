"""Garbage collection: what no recorded experiment needs any more.

Every run leaves its resolved experiment in the store. Artifacts that one of them leads to are kept;
the rest can go. Runs hold a shared lock and collection an exclusive one, so that nothing is
deleted under a run.
"""

from __future__ import annotations

import shutil
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments import Experiment, experiment_from_json, experiment_to_json
from pipelines.errors import ArtifactError
from pipelines.files import write_durably
from pipelines.graph import Graph, closure
from pipelines.locks import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipelines.artifacts import Artifact, Store


IN_USE = ".in-use.lock"


@contextmanager
def in_use(store: Store) -> Iterator[None]:
    """Mark the store as used by a run.

    Raises:
        ArtifactError: it is being collected right now.
    """
    lock = FileLock(store.root / IN_USE, shared=True)
    if not lock.acquire():
        raise ArtifactError(f"the store {store.root} is being collected; try again in a moment")
    try:
        yield
    finally:
        lock.release()


def remember(store: Store, experiment: Experiment, run_key: str, *, shown: bool = False) -> None:
    """Record an experiment as a root of garbage collection (published whole, then renamed).

    Args:
        store: Where.
        experiment: What is run.
        run_key: Its key, which does not depend on its name.
        shown: Whether it has a page of its own in MLflow, under its name: not one of a study's.
    """
    targets = [store.root / ".runs" / f"{run_key}.json"]
    if shown:
        targets.append(store.root / ".shown" / f"{run_key}.{experiment.name}.json")
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            aside = target.parent / f".{run_key}.{uuid.uuid4().hex[:8]}.tmp"
            write_durably(aside, experiment_to_json(experiment))
            aside.replace(target)


def recorded_runs(store: Store) -> dict[str, Experiment]:
    """Experiments that were run, by run key.

    Raises:
        ValueError: a record cannot be read (so that nothing is taken for garbage by mistake).
    """
    return _records(store.root / ".runs")


def shown_runs(store: Store) -> list[tuple[str, Experiment]]:
    """Run key and experiment of what has a page of its own, under each of its names.

    Raises:
        ValueError: a record cannot be read.
    """
    records = _records(store.root / ".shown")
    return [(name.partition(".")[0], experiment) for name, experiment in records.items()]


def _records(folder: Path) -> dict[str, Experiment]:
    runs = {}
    for path in sorted(folder.glob("*.json")):
        try:
            runs[path.stem] = experiment_from_json(path.read_text())
        except ValueError as error:
            raise ValueError(f"the record {path} cannot be read: {error}") from error
    return runs


@dataclass(frozen=True)
class Garbage:
    """What can go."""

    artifacts: tuple[Artifact, ...]
    set_aside: tuple[Path, ...]
    """Damaged artifacts that were rebuilt."""


def find_garbage(store: Store, forget: tuple[str, ...] = ()) -> Garbage:
    """Artifacts that no recorded run leads to, except through the forgotten ones.

    Raises:
        ValueError: a run to forget is not recorded, or a record cannot be read.
    """
    runs = recorded_runs(store)
    kept = dict(runs)
    for prefix in forget:
        matching = [key for key in runs if key.startswith(prefix)]
        if len(matching) != 1:
            raise ValueError(f"--forget must name one recorded run ({', '.join(runs)}), but got "
                             f"{prefix!r}")  # fmt: skip
        kept.pop(matching[0], None)
    needed = {(n.kind, n.key) for e in kept.values() for n in closure(Graph(e).needed)}
    unneeded = tuple(a for a in store.list() if (a.kind, a.key) not in needed)
    return Garbage(unneeded, tuple(sorted((store.root / ".corrupt").glob("*"))))


def collect_garbage(store: Store, forget: tuple[str, ...] = ()) -> Garbage:
    """Delete garbage and forget runs; returns what was deleted.

    What is garbage is decided while no run can begin.

    Raises:
        ArtifactError: a run is using the store.
        ValueError: a run to forget is not recorded, or a record cannot be read.
    """
    lock = FileLock(store.root / IN_USE)
    if not lock.acquire():
        raise ArtifactError(f"a run is using the store {store.root}; nothing was deleted")
    try:
        garbage = find_garbage(store, forget)
        for prefix in forget:
            for folder in (".runs", ".shown"):
                for path in (store.root / folder).glob(f"{prefix}*.json"):
                    path.unlink()
        for artifact in garbage.artifacts:
            store.delete(artifact)
        for path in garbage.set_aside:
            shutil.rmtree(path)
        store.sweep()
    finally:
        lock.release()
    return garbage


def store_summary(store: Store) -> list[tuple[str, int, int]]:
    """(kind, number of artifacts, bytes) for each kind in the store."""
    totals: dict[str, tuple[int, int]] = {}
    for artifact in store.list():
        count, size = totals.get(artifact.kind, (0, 0))
        totals[artifact.kind] = (count + 1, size + artifact.size)
    return [(kind, count, size) for kind, (count, size) in sorted(totals.items())]
