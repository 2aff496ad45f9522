"""`igdit study`: start or resume a study, then say what was found."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines.collection import in_use
from pipelines.discretion import behind
from pipelines.graph import resolve
from pipelines.study.confirm import confirm, print_confirmation, summarise
from pipelines.study.driver import Budget, StudyDriver
from pipelines.study.forecast import Forecast, forecast
from pipelines.study.report import findings, print_findings, print_forecast, write_findings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

    from experiments import Experiment
    from experiments.study import Study
    from pipelines.home import Home
    from pipelines.study.book import StudyBook
    from pipelines.study.options import StudyOptions
    from pipelines.study.report import Findings
    from pipelines.study.tracking import StudyTracker


def default_parallel(experiment: Experiment) -> int:
    """Trainings that this machine has the cores for."""
    resources = experiment.resources
    if resources.runner == "inline":
        return 1
    return max(1, (os.cpu_count() or 1) // (resources.num_workers * resources.cpus_per_worker))


def run_study(study: Study, options: StudyOptions, home: Home, console: Console) -> int:
    """Work on a study until its budget is spent, then say what was found; returns the exit code.

    Raises:
        ValueError: the storage cannot be used, or holds another study of that name.
        StudyError: trainings failed one after the other, or the database went away.
        ArtifactError: the store cannot be used.
    """
    from pipelines.study.book import StudyBook

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    study = replace(study, experiment=resolve(study.experiment))
    store, started = home.store, time.monotonic()
    home.root.mkdir(parents=True, exist_ok=True)
    url = options.storage or f"sqlite:///{home.root / 'study.db'}"
    with in_use(store):
        store.sweep()
        book = StudyBook(study, url, store.root / ".drivers")
        try:
            trials = book.trials()
            wanted = options.wanted(study, trials)
            cost = forecast(study, store, trials, wanted)
            say(f"Study {study.name}: {wanted} trials in all, {wanted - cost.trials} are complete")
            print_forecast(cost, console)
            if not _agreed(cost, options, console):
                return 1
            budget = Budget(wanted, options.hours, options.target_fid)
            parallel = options.parallel or default_parallel(study.experiment)
            _work(book, home, budget, parallel, say)
            found = findings(study, book.trials(), book.importances(), store)
        finally:
            book.close()
        print_findings(found, console)
        directory = home.report / f"study-{study.name}"
        files, confirmed = write_findings(found, directory), None
        if options.confirm_seeds and found.best is not None:
            confirmed = confirm(study, found.trials, options.confirm_seeds, home, parallel, say)
            print_confirmation(summarise(confirmed), console)
            files = write_findings(found, directory, confirmed)
        say(f"Table and plots: {directory}")
        _track(found, files, home, console)
        say(f"Done in {time.monotonic() - started:.1f} s.")
    return 0


def _work(
    book: StudyBook, home: Home, budget: Budget, parallel: int, say: Callable[[str], None]
) -> None:
    """Drive the study, with MLflow following in the background."""
    from pipelines.tracking import BackgroundSync

    def sync() -> None:
        _tracker(book.study, home).sync(book.trials(), finished=False)

    background = BackgroundSync(sync)
    try:
        StudyDriver(book, home, budget, parallel, say, background.request).run()
    finally:
        background.close(seconds=15)


def _tracker(study: Study, home: Home) -> StudyTracker:
    from pipelines.study.tracking import StudyTracker
    from pipelines.tracking import MlflowTracker

    return StudyTracker(MlflowTracker(home.tracking_uri, home.mlartifacts), study, home.store)


def _track(found: Findings, files: list[Path], home: Home, console: Console) -> None:
    """Bring MLflow up to date; being unable to is said, and loses nothing."""
    try:
        page = _tracker(found.study, home).sync(found.trials, files, finished=True)
        console.print(f"Compare in MLflow: igdit ui    (this study: {page})", highlight=False,
                      soft_wrap=True)  # fmt: skip
    except Exception as error:  # noqa: BLE001 - any server, any failure; nothing is lost
        console.print(behind(home.tracking_uri, error))


def _agreed(cost: Forecast, options: StudyOptions, console: Console) -> bool:
    """Whether to go on; asks a person if it becomes expensive."""
    if options.yes or cost.hours is None or cost.hours <= options.ask_above:
        return True
    if not console.is_terminal:
        raise ValueError(
            f"the study is to take {cost.hours:.1f} worker-hours, more than "
            f"--ask-above {options.ask_above:g}: add --yes to start it"
        )
    return console.input(f"Spend {cost.hours:.1f} worker-hours? [y/N] ").strip().lower() == "y"
