"""`igdit report` and `igdit export`: write the page, or the samples, of a run or a study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import EXPERIMENTS, get_experiment
from pipelines.commands.parse import asks_for_help, parse_options
from pipelines.commands.run import ExperimentOptions, parse_experiment
from pipelines.common.errors import UsageError
from pipelines.console.console import log, make_console
from pipelines.graph.garbage import in_use
from pipelines.graph.graph import Graph
from pipelines.graph.resolve import resolve
from pipelines.reports.run_page import write_run_page
from pipelines.results.measurements import collect
from pipelines.store.home import Home
from pipelines.store.register import read_register, record_times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from experiments import Experiment
    from ig_core.config import Guidance
    from pipelines.graph.graph import Point
    from pipelines.store.base import Store


REPORT_HELP = """\
usage: igdit report [RUN]
       igdit report NAME [options]
       igdit report study NAME [--storage URL]

Write the report of a run or a study as one self-contained HTML page, and print its path.

RUN is the name of an experiment or the first digits of a run's key (`igdit store ls` lists them);
without it the last run is reported. Options are those of `igdit run`: they select the run with
exactly these settings.
"""


@dataclass(frozen=True)
class StudyReportOptions:
    """Options of `igdit report study`."""

    storage: str | None = None
    """Database of the study (SQLAlchemy URL). None: IGDIT_STUDY_STORAGE, else study.db."""


def report_command(arguments: list[str]) -> int:
    """Run `igdit report`."""
    if asks_for_help(arguments):
        log(make_console(), REPORT_HELP.rstrip())
        return 0
    home, (word, *rest) = Home.default(), arguments or [""]
    if word == "study":
        if asks_for_help(rest):
            rest = ["NAME", *rest]
        if not rest or rest[0].startswith("-"):
            raise UsageError("igdit report study needs the name of a study")
        options = parse_options(StudyReportOptions, rest[1:], f"igdit report study {rest[0]}")
        log(make_console(), str(report_study(home, rest[0], options.storage)))
        return 0
    if rest or word.endswith(".json"):
        experiment = resolve(parse_experiment(arguments, "report", ExperimentOptions).experiment)
    else:
        exact = resolve(get_experiment(word)) if word in EXPERIMENTS else None
        experiment = find_run(home, word or None, exact)
    log(make_console(), str(report_run(home, experiment)))
    return 0


@dataclass(frozen=True)
class ExportOptions:
    """Options of `igdit export`."""

    ig_scale: float | None = None
    """Internal guidance scale of the samples. None: the experiment's own."""
    holdout: bool = False
    """Export the samples of the holdout noise; without --ig-scale those of the chosen scale."""


def export_command(arguments: list[str]) -> int:
    """Run `igdit export`."""
    if asks_for_help(arguments[:1]) or asks_for_help(arguments[1:2]):
        arguments = ["RUN", "TARGET", "--help"]
    if len(arguments) < 2 or any(word.startswith("-") for word in arguments[:2]):
        raise UsageError(
            "igdit export needs a run (a name, or the first digits of its key) and a "
            "target (FILE.npz, or a folder for PNG files)"
        )
    word, target, *rest = arguments
    options = parse_options(ExportOptions, rest, f"igdit export {word} {target}")
    home = Home.default()
    exact = resolve(get_experiment(word)) if word in EXPERIMENTS else None
    run = find_run(home, word, exact)
    count = export_samples(home, run, Path(target), options.ig_scale, holdout=options.holdout)
    log(make_console(), f"Exported {count:,} images to {target}")
    return 0


def report_run(home: Home, experiment: Experiment) -> Path:
    """Write the page of a run from the store; returns its path.

    Args:
        home: Home of the results.
        experiment: The resolved experiment of the run.

    Raises:
        ValueError: If nothing of it is measured.
        CorruptArtifactError: If an artifact that the page needs is damaged.
    """
    graph, store = Graph(experiment), home.store
    if store.exists():
        with in_use(store):
            results = collect(store, graph)
            if results.curve or results.final:
                return write_run_page(
                    results, home.run_folder(graph.experiment.name, graph.run_key)
                )
    raise ValueError(
        f"nothing of experiment {experiment.name} {graph.run_key[:8]} is measured in "
        f"{home.root} yet"
    )


def report_study(home: Home, name: str, storage: str | None = None) -> Path:
    """Write the page of a study from its storage and the store; returns its path.

    Raises:
        ValueError: If there is no such study, or its storage cannot be reached.
    """
    from pipelines.reports.study_page import write_study_page
    from pipelines.study.findings import findings
    from pipelines.study.storage import read_study

    if storage is None and not home.has_studies:
        raise ValueError(f"there is no study in {home.root} yet; name its database by --storage")
    stored = read_study(storage or home.study_storage, home.store, name)
    folder = home.study_folder(name)
    with in_use(home.store):
        found = findings(stored.study, stored.trials, stored.importances, home.store)
        return write_study_page(found, home.store, folder)


def find_run(home: Home, word: str | None, exact: Experiment | None = None) -> Experiment:
    """Find a recorded run.

    Args:
        home: Home of the results.
        word: Name of the run or the first digits of its key; None: the last run.
        exact: The experiment of that name in the registry; a run of it is preferred to others of
            the same name.

    Raises:
        ValueError: If there is no such run, or the digits match several.
    """
    register = read_register(home.store)
    runs = register.experiments
    if exact is not None and Graph(exact).run_key in runs:
        return exact
    if word is not None and exact is None:
        matches = [key for key in runs if key.startswith(word)]
        if len(matches) == 1:
            return runs[matches[0]]
        if len(matches) > 1:
            raise ValueError(f"{word!r} matches several runs: {', '.join(k[:12] for k in matches)}")
    named = [
        (record, record.experiment)
        for record in register.records
        if record.run and record.experiment and word in (None, record.experiment.name)
    ]
    if named:
        times = record_times(home.store)
        # The newest; runs by `igdit run` are preferred to trials of studies.
        return max(named, key=lambda n: (n[0].kind == "run", times.get(n[0].file, 0.0)))[1]
    known = ", ".join(f"{e.name} {key[:8]}" for key, e in runs.items()) or "none yet"
    raise ValueError(
        f"a report needs a run that is recorded in {home.root} ({known}), a file "
        f"ending in .json, or study NAME, but got {word!r}"
    )


def export_samples(
    home: Home, experiment: Experiment, target: Path, ig_scale: float | None, *, holdout: bool
) -> int:
    """Write the samples of the last checkpoint as an ADM .npz or as a folder of PNG files.

    Args:
        home: Home of the results.
        experiment: Experiment whose samples are in the store.
        target: `NAME.npz` (arr_0 images, arr_1 labels), or a folder for `000000.png`, ...
        ig_scale: Internal guidance scale; None: the experiment's own.
        holdout: Export the samples of the holdout noise.

    Returns:
        Number of images written.

    Raises:
        ValueError: If there are no such samples, or the target exists.
    """
    from ig_core.images.folders import write_folder, write_npz
    from ig_core.images.sets import read_images
    from pipelines.store.file_names import IMAGES_FILE

    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise ValueError(f"target must be new, but {target} exists")
    store, graph = home.store, Graph(experiment)
    with in_use(store):
        guidance = None if ig_scale is None else experiment.guidance_at(ig_scale)
        point = _point(store, graph, guidance, holdout=holdout)
        rows, labels = _sampled_rows(graph, point)

        def batches() -> Iterator[Tensor]:
            """Yield the images of each shard, so that a set need not fit into memory."""
            start = 0
            for node in point.images:
                images = read_images([store.open(node.ref).path / IMAGES_FILE]).image
                own = rows[(rows >= start) & (rows < start + len(images))] - start
                yield images[own]
                start += len(images)

        if target.suffix == ".npz":
            write_npz(target, batches(), len(rows), labels)
        else:
            write_folder(target, batches())
    return len(rows)


def _point(store: Store, graph: Graph, guidance: Guidance | None, *, holdout: bool) -> Point:
    """Return the point of a guidance whose samples are all in the store.

    Raises:
        ValueError: If it was not sampled.
    """
    if guidance is None:
        chosen = collect(store, graph).chosen if holdout else None
        guidance = graph.experiment.guidance.canonical() if chosen is None else chosen
    points = graph.holdout(*graph.final, guidance) if holdout else graph.final
    sampled = {
        each: point
        for each, point in points.items()
        if all(store.find(node.ref) for node in point.images)
    }
    if guidance not in sampled:
        there = ", ".join(f"{each.ig_scale:g}" for each in sampled)
        raise ValueError(
            f"ig_scale must be one that was sampled ({there or 'none'}), "
            f"but got {guidance.ig_scale:g}"
        )
    return sampled[guidance]


def _sampled_rows(graph: Graph, point: Point) -> tuple[Tensor, Tensor]:
    """Return the rows (N,) of the concatenated shards that belong to the set, and their labels."""
    import torch

    from ig_core.data.label_pools import beyond_balanced, random_pool, rows_of

    classes, index = graph.experiment.model.num_classes, torch.arange(point.num_samples)
    if graph.experiment.evaluation.labels == "balanced":
        return index, index % classes
    pool = random_pool(point.images[0].config["seed"], point.num_samples, classes)
    stored = torch.cat([index, torch.from_numpy(beyond_balanced(pool))])
    rows = torch.from_numpy(rows_of(pool)).sort().values
    return rows, stored[rows] % classes
