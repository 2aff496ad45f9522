"""`igdit study`: start or resume a study, then say what was found."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pipelines.activity import Activity, Trials
from pipelines.collection import in_use
from pipelines.command_times import command_times, record_end, record_start
from pipelines.console import ask, log
from pipelines.dag import NullListener, Pipeline
from pipelines.discretion import discreet
from pipelines.errors import PipelineError
from pipelines.number_format import number
from pipelines.pinned import resolve
from pipelines.report_command import study_folder
from pipelines.results import read_reported
from pipelines.rights import explain
from pipelines.runners import RunnerSession, describe_runner
from pipelines.stores import require_lasting
from pipelines.study.confirm import confirm, print_confirmation, summarise
from pipelines.study.damage import rebuild_damaged
from pipelines.study.driver import Budget, StudyDriver
from pipelines.study.forecast import Forecast, forecast
from pipelines.study.page import headline, write_study_page
from pipelines.study.progress import study_progress
from pipelines.study.report import (
    findings,
    print_findings,
    print_forecast,
    report_of,
    write_findings,
)
from pipelines.tracking_messages import behind, where_to_compare

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

    from experiments.study import Study
    from pipelines.home import Home
    from pipelines.study.book import StudyBook
    from pipelines.study.options import StudyOptions
    from pipelines.study.report import Findings
    from pipelines.study.tracking import StudyTracker


def run_study(study: Study, options: StudyOptions, home: Home, console: Console) -> int:
    """Work on a study until its budget is spent, then say what was found; returns the exit code.

    Raises:
        ValueError: the storage cannot be used, or holds another study of that name.
        StudyError: trainings failed one after the other, or the database went away.
        ArtifactError: the store cannot be used.
    """
    from pipelines.study.book import StudyBook

    home.prepare()
    if options.storage is not None:
        require_lasting("--storage", options.storage)
    study = replace(study, experiment=resolve(study.experiment))
    store, started, began = home.store, time.monotonic(), time.time()
    url = options.storage or home.study_storage
    with in_use(store), Activity(home, "study", study.name) as activity:
        store.sweep()
        book = StudyBook(study, url, store)
        try:
            budget = _budget(book, options, home, console)
            if budget is None:
                activity.ended = "not started"
                return 1
            works = _has_work(book, budget)
            if works:
                record_start(store, book.identity, began)
            try:
                _work(book, home, budget, options.parallel, console, activity)
            except PipelineError:
                log(console, "Stopped by an error (below). Found so far:")
                print_findings(findings(study, book.last_seen, {}, store), console)
                raise
            found = findings(study, book.trials(), book.importances(), store)
            identity = book.identity
        finally:
            book.close()
        if _is_over(found, budget):
            found = _measured_anew(found, home, partial(log, console), activity)
        else:
            log(console, _why_unfinished(found, budget))
            options = replace(options, confirm_seeds=0)
        activity.update(phase="reporting", news=headline(found))
        files = _report(found, options, home, console, activity)
        if works:
            record_end(store, identity, began)
        _track(found, identity, files, home, console)
        log(console, f"Done in {time.monotonic() - started:.1f} s.")
    return 0


def _budget(book: StudyBook, options: StudyOptions, home: Home, console: Console) -> Budget | None:
    """What there is to do; None: it is too much for the person who was asked."""
    study, trials = book.study, book.trials()
    wanted = options.wanted(study, trials, book.goal(0))
    cost = forecast(study, home.store, trials, wanted, options.confirm_seeds)
    complete = sum(trial.state == "COMPLETE" for trial in trials)
    log(
        console,
        f"Study {study.name}: {wanted} trials in all, {complete} are complete",
    )
    print_forecast(cost, console)
    if not _agreed(cost, options, console):
        return None
    book.goal(wanted)
    return Budget(wanted, options.hours, options.target_fid)


def _has_work(book: StudyBook, budget: Budget) -> bool:
    """Whether this command does anything, so that its times are those of the study's run."""
    times = command_times(book.store, book.identity)
    complete = sum(trial.state == "COMPLETE" for trial in book.trials())
    return complete < budget.trials or times.started_ms is None or times.is_open


def _is_over(found: Findings, budget: Budget) -> bool:
    """Whether the study has what was asked for: then its answer is worth measuring."""
    reached = (
        budget.target_fid is not None
        and found.best is not None
        and ((found.best.fid or 0.0) <= budget.target_fid)
    )
    return reached or sum(t.state == "COMPLETE" for t in found.trials) >= budget.trials


def _why_unfinished(found: Findings, budget: Budget) -> str:
    complete = sum(t.state == "COMPLETE" for t in found.trials)
    why = "the hours are spent" if budget.hours is not None else "no new point is left in the space"
    return (
        f"{complete} of {budget.trials} trials are complete: {why}. The best point is measured "
        f"on other noise, and confirmed, when all are."
    )


def _measured_anew(
    found: Findings, home: Home, log: Callable[[str], None], activity: Activity
) -> Findings:
    """The findings with the best point measured on noise that had no part in the choice."""
    if found.best is None or found.reported is not None:
        return found
    graph, scale = report_of(found.study, found.best)
    experiment = graph.experiment
    activity.update(phase="measuring the best point on other noise")
    session = RunnerSession(experiment.resources, home.scratch, 1)
    try:
        listener = activity.follow(graph, NullListener(), found.best.point.training_name)
        targets = [point.evaluate for point in graph.report(scale)]
        pipeline = Pipeline(home.store, experiment, session.runner, listener)
        rebuild_damaged(home.store, lambda: pipeline.run(targets), log)
    except (PipelineError, OSError) as error:  # the study itself is safe
        reason = explain(error) if isinstance(error, OSError) else error
        log(discreet(f"The best point could not be measured on other noise: {reason}"))
    finally:
        session.close()
    return replace(found, reported=read_reported(home.store, graph, scale))


def _report(
    found: Findings, options: StudyOptions, home: Home, console: Console, activity: Activity
) -> list[Path]:
    """Say what was found, confirm it if that is asked for, and write it all down."""
    print_findings(found, console)
    directory = study_folder(home, found.study.name)
    files = write_findings(found, directory)
    if options.confirm_seeds and found.best is not None:
        activity.update(phase="confirming on other seeds")
        confirmed = confirm(
            found.study,
            found.trials,
            options.confirm_seeds,
            home,
            options.parallel,
            partial(log, console),
            activity,
        )
        print_confirmation(summarise(confirmed), console)
        files = write_findings(found, directory, confirmed)
    files.append(write_study_page(found, home.store, directory))
    log(console, f"Table and plots: {directory}\nAll of it in one page: {files[-1]}")
    return files


def _work(
    book: StudyBook,
    home: Home,
    budget: Budget,
    parallel: int | None,
    console: Console,
    activity: Activity,
) -> None:
    """Drive the study, with MLflow and `igdit status` following in the background."""
    from pipelines.background import BackgroundSync

    def sync() -> None:
        _tracker(book.study, book.identity, home).sync(book.trials(), finished=False)

    def log_progress(text: str) -> None:
        if not text.startswith("start"):
            activity.update(news=text)
        log(console, text)

    def changed() -> None:
        states = Counter(trial.state for trial in book.trials())
        activity.update(
            trials=Trials(
                complete=states["COMPLETE"],
                running=states["RUNNING"],
                given_up=states["PRUNED"],
                failed=states["FAIL"],
                wanted=budget.trials,
                at_first=at_first,
            )
        )
        background.request()

    at_first = sum(trial.state == "COMPLETE" for trial in book.trials())
    activity.update(phase="at work", where=describe_runner(book.study.experiment.resources))
    background = BackgroundSync(sync)
    try:
        with study_progress(console, activity):
            StudyDriver(book, home, budget, parallel, log_progress, changed, activity).run()
    finally:
        background.close(seconds=15)


def _tracker(study: Study, identity: str, home: Home) -> StudyTracker:
    from pipelines.study.tracking import StudyTracker
    from pipelines.tracking import MlflowTracker

    tracker = MlflowTracker(home.tracking_uri, home.mlartifacts, home.store)
    return StudyTracker(tracker, study, identity, home.store)


def _track(found: Findings, identity: str, files: list[Path], home: Home, console: Console) -> None:
    """Bring MLflow up to date; being unable to is said, and loses nothing."""
    try:
        page = _tracker(found.study, identity, home).sync(found.trials, files, finished=True)
        log(console, where_to_compare(home.tracking_uri, page, "this study"))
    except Exception as error:  # noqa: BLE001 - any server, any failure; nothing is lost
        log(console, behind(home.tracking_uri, error), "yellow")


def _agreed(cost: Forecast, options: StudyOptions, console: Console) -> bool:
    """Whether to go on; asks a person if it becomes expensive."""
    if options.yes or cost.hours is None or cost.hours <= options.ask_above:
        return True
    if not console.is_terminal:
        raise ValueError(
            f"the study is to take {number(cost.hours, separator=',')} worker-hours, more than "
            f"--ask-above {options.ask_above:g}: add --yes to start it"
        )
    return ask(console, f"Spend {number(cost.hours, separator=',')} worker-hours?")
