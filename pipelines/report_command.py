"""`igdit report`: find what is meant, and write its page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.collection import RUNS, in_use, recorded_runs
from pipelines.graph import Graph
from pipelines.results import collect
from pipelines.run_page import write_run_page

if TYPE_CHECKING:
    from pathlib import Path

    from experiments import Experiment
    from pipelines.home import Home


def run_folder(home: Home, graph: Graph) -> Path:
    """Where the report of an experiment lies."""
    return home.report / f"{graph.experiment.name}-{graph.run_key[:8]}"


def study_folder(home: Home, name: str) -> Path:
    """Where the report of a study lies."""
    return home.report / f"study-{name}"


def report_run(home: Home, experiment: Experiment) -> Path:
    """Write the page of an experiment that was resolved, from what is in the store.

    Raises:
        ValueError: nothing of it is measured.
        CorruptArtifactError: what it needs is damaged.
    """
    graph, store = Graph(experiment), home.store
    if store.exists():
        with in_use(store):
            results = collect(store, graph)
            if results.curve or results.final:
                return write_run_page(results, run_folder(home, graph))
    raise ValueError(
        f"nothing of experiment {experiment.name} {graph.run_key[:8]} is measured in "
        f"{home.root} yet"
    )


def find_run(home: Home, word: str | None, exact: Experiment | None = None) -> Experiment:
    """The recorded run that is meant.

    Args:
        home: Where to look.
        word: Its name or the first digits of its key; None: whichever was recorded last.
        exact: The experiment of that name in the registry, which goes before others of the name.

    Raises:
        ValueError: there is none, or the digits fit several.
    """
    runs = recorded_runs(home.store)
    if exact is not None and Graph(exact).run_key in runs:
        return exact
    if word is not None and exact is None:
        fitting = [key for key in runs if key.startswith(word)]
        if len(fitting) == 1:
            return runs[fitting[0]]
        if len(fitting) > 1:
            raise ValueError(f"{word!r} fits several runs: {', '.join(k[:12] for k in fitting)}")
    named = [key for key, experiment in runs.items() if word in (None, experiment.name)]
    if named:
        times = home.store.record_times(RUNS)
        own = {
            key: (run_folder(home, Graph(runs[key])) / "experiment.json").exists() for key in named
        }
        # Newest last; what was run for itself after what was a part of a study.
        return runs[max(named, key=lambda key: (own[key], times.get(f"{key}.json", 0.0)))]
    known = ", ".join(f"{e.name} {key[:8]}" for key, e in runs.items()) or "none yet"
    raise ValueError(
        f"a report needs a run that is recorded in {home.root} ({known}), a file "
        f"ending in .json, or study NAME, but got {word!r}"
    )


def report_study(home: Home, name: str, storage: str | None = None) -> Path:
    """Write the page of a study, from its storage and the store.

    Raises:
        ValueError: there is no such study, or its storage cannot be reached.
    """
    from pipelines.study.page import write_study_page
    from pipelines.study.report import findings
    from pipelines.study.shelf import stored_study

    if storage is None and not home.has_studies:
        raise ValueError(f"there is no study in {home.root} yet; name its database by --storage")
    found = stored_study(storage or home.study_storage, home.store, name)
    folder = study_folder(home, name)
    with in_use(home.store):
        put_together = findings(found.study, found.trials, found.importances, home.store)
        return write_study_page(put_together, home.store, folder)
