"""`igdit track rebuild` and `igdit ui`: rebuild MLflow's pages from the store, and serve them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from experiments.tables import TABLES
from pipelines.commands.parse import asks_for_help, parse_options
from pipelines.common.errors import ArtifactError, NoStudiesError, TrackingError, UsageError
from pipelines.common.redaction import redact, redact_error
from pipelines.console.console import log, make_console
from pipelines.console.paper_table import write_table
from pipelines.graph.garbage import in_use
from pipelines.graph.graph import Graph
from pipelines.reports.plots import write_report
from pipelines.reports.run_page import write_run_page
from pipelines.results.measurements import collect
from pipelines.results.paper_table import fill, named_runs, tracked_tables
from pipelines.store.home import Home
from pipelines.store.register import command_times, read_register
from pipelines.tracking.client import MlflowTracker
from pipelines.tracking.messages import damage_of
from pipelines.tracking.table import track_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from experiments import Experiment
    from pipelines.results.paper_table import Named
    from pipelines.study.storage import StoredStudy


TRACK_HELP = """\
usage: igdit track rebuild [--storage URL]

Rebuild MLflow's pages from the store and the studies' database; the server may be empty. Repeating
the command changes nothing. `igdit track rebuild --help` lists its options.
"""
CONFIRMATION_FILES = ("confirmed.parquet", "fid_confirmed.png")
"""Report files of a study that only its confirmation writes."""


@dataclass(frozen=True)
class TrackOptions:
    """Options of `igdit track rebuild`."""

    storage: str | None = None
    """Database of the studies (SQLAlchemy URL). None: IGDIT_STUDY_STORAGE, else study.db."""


def track_command(arguments: list[str]) -> int:
    """Run `igdit track rebuild`."""
    if asks_for_help(arguments):
        log(make_console(), TRACK_HELP.rstrip())
        return 0
    if not arguments or arguments[0] != "rebuild":
        raise UsageError(f"igdit track needs rebuild, but got {' '.join(arguments) or 'nothing'}")
    options = parse_options(TrackOptions, arguments[1:], "igdit track rebuild")
    return rebuild(Home.default(), options.storage, partial(log, make_console()))


@dataclass(frozen=True)
class UiOptions:
    """Options of `igdit ui`."""

    port: int = 5000
    """Port of the server, on loopback."""


def ui_command(arguments: list[str]) -> int:
    """Run `igdit ui`."""
    from pipelines.tracking.ui import serve_ui

    options = parse_options(UiOptions, arguments, "igdit ui")
    return serve_ui(Home.default(), options.port, partial(log, make_console()))


def rebuild(home: Home, storage: str | None, log: Callable[[str], None]) -> int:
    """Bring every page up to date, on an empty server as well; repeating it changes nothing.

    Args:
        home: Home of the results.
        storage: Database of the studies; None: IGDIT_STUDY_STORAGE, or study.db.
        log: Prints a line.

    Returns:
        Exit code: 1 if an artifact is damaged or the server refuses a page. That page then stays as
        it was, and the others are updated.

    Raises:
        TrackingError: If the server cannot be reached, or its database is damaged.
        ValueError: If the storage cannot be used.
    """
    failed = 0
    with in_use(home.store):
        studies = _studies(home, storage)
        tracker = _call_server(
            home, lambda: MlflowTracker(home.tracking_uri, home.mlartifacts, home.store)
        )
        register = read_register(home.store)
        updates = [
            (
                f"experiment {experiment.name} {key[:8]}",
                partial(_update_experiment, tracker, experiment, home),
            )
            for key, experiment in register.runs
        ]
        updates += [
            (
                f"study {stored.study.name}, {len(stored.trials)} trials",
                partial(_update_study, tracker, stored, home),
            )
            for stored in studies
        ]
        tables, tracked = named_runs(register), tracked_tables(register)
        updates += [
            (f"table {name}", partial(_update_table, tracker, name, tables.get(name, {}), home))
            for name in tracked
            if name in TABLES
        ]
        for name, update in updates:
            try:
                update()
                log(name)
            except ArtifactError as error:
                failed += 1
                log(redact(f"{name}: not updated: {error}"))
            except TrackingError as error:
                # Raises if the server is gone: then the other pages need not be tried.
                _call_server(home, tracker.client.search_experiments)
                failed += 1
                log(f"{name}: not updated: {error}")
    log(
        f"MLflow at {redact(home.tracking_uri)} is up to date for {len(updates) - failed} of "
        f"{len(updates)} experiments, studies and tables."
    )
    return 1 if failed else 0


def _call_server(home: Home, call: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Call the tracking server; an error that names its address hides its passwords."""
    try:
        return call()
    except ArtifactError:
        raise
    except Exception as error:  # noqa: BLE001 - any server, any failure
        damage = damage_of(home.tracking_uri)
        raise TrackingError(
            damage
            or redact(f"MLflow at {home.tracking_uri} could not be updated: {redact_error(error)}")
        ) from None


def _studies(home: Home, storage: str | None) -> list[StoredStudy]:
    from pipelines.study.storage import read_studies

    if storage is None and not home.has_studies:
        return []
    try:
        return read_studies(storage or home.study_storage, home.store)
    except NoStudiesError:
        if storage is not None:
            raise
        return []  # IGDIT_STUDY_STORAGE names the database before the first study


def _update_experiment(tracker: MlflowTracker, experiment: Experiment, home: Home) -> None:
    graph = Graph(experiment)
    results = collect(home.store, graph)
    files: list[Path] = []
    if results.complete:  # an interrupted experiment has no report yet
        directory = home.run_folder(graph.experiment.name, graph.run_key)
        files = [*write_report(results, directory), write_run_page(results, directory)]
    # A table may have asked for some scales only: then the run has ended without the others.
    times = command_times(home.store, graph.run_key)
    finished = results.complete or (times.started_ms is not None and not times.is_open)
    _call_server(home, lambda: tracker.sync(results, files, finished=finished))


def _update_study(tracker: MlflowTracker, stored: StoredStudy, home: Home) -> None:
    from pipelines.reports.study_page import write_study_page
    from pipelines.reports.study_plots import write_findings
    from pipelines.study.findings import findings
    from pipelines.tracking.study import StudyTracker

    study, trials = stored.study, stored.trials
    directory, files = home.study_folder(study.name), []
    if all(trial.state != "RUNNING" for trial in trials):
        found = findings(study, trials, stored.importances, home.store)
        files = write_findings(found, directory)
        files += [directory / name for name in CONFIRMATION_FILES if (directory / name).exists()]
        files.append(write_study_page(found, home.store, directory))
    page = StudyTracker(tracker, study, stored.identity, home.store)
    _call_server(home, lambda: page.sync(trials, files, finished=True, thorough=True))


def _update_table(tracker: MlflowTracker, name: str, named: Named, home: Home) -> None:
    lines = fill(TABLES[name](), home.store, named)
    path = write_table(lines, home.table_folder(name))
    _call_server(home, lambda: track_table(tracker, name, lines, [path]))
