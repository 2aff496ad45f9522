"""`igdit study`: start or resume a study, then report its findings."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments import STUDIES, Study, get_study
from pipelines.commands.parse import asks_for_help, list_names, parse_options
from pipelines.common.errors import PipelineError, UsageError
from pipelines.common.formatting import number
from pipelines.common.redaction import redact
from pipelines.console.console import ask, log, make_console
from pipelines.console.study import (
    print_confirmation,
    print_findings,
    print_forecast,
    study_progress,
)
from pipelines.execution.listener import NullListener
from pipelines.execution.runners import describe_runner
from pipelines.execution.scheduler import Pipeline
from pipelines.execution.session import RunnerSession
from pipelines.graph.garbage import in_use
from pipelines.graph.resolve import resolve
from pipelines.reports.study_page import headline, write_study_page
from pipelines.reports.study_plots import write_findings
from pipelines.results.measurements import read_holdout
from pipelines.stages.build import WORK
from pipelines.status.activity import Activity, Trials
from pipelines.store.home import Home
from pipelines.store.open import require_lasting
from pipelines.store.register import Record, command_times, record_end, record_start, remember
from pipelines.store.rights import explain
from pipelines.study.confirm import confirm, summarise
from pipelines.study.damage import rebuild_damaged
from pipelines.study.driver import Budget, StudyDriver
from pipelines.study.findings import Forecast, findings, forecast, holdout_of
from pipelines.tracking.messages import behind, where_to_compare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rich.console import Console

    from experiments.study import Study
    from pipelines.study.findings import Findings
    from pipelines.study.ledger import StudyLedger
    from pipelines.study.trials import Trial
    from pipelines.tracking.study import StudyTracker


STUDY_HELP = f"""\
usage: igdit study NAME [options]

Search the auxiliary layer, its loss weight and the internal guidance scale. The same command
resumes an interrupted study.

NAME is one of
{list_names(STUDIES)}

options: --trials, --parallel, --hours and others, and every setting of the study;
`igdit study NAME --help` lists them with their values.
"""


@dataclass(frozen=True)
class StudyOptions:
    """Options of `igdit study` that change no result."""

    trials: str | None = None
    """Trials to complete in all, or +N for N more than the last command asked for. None: as many as
    the last command asked for, at first the study's default."""
    parallel: int | None = None
    """Trainings that run at once. None: as many as there are cores for."""
    storage: str | None = None
    """Database of the study (SQLAlchemy URL). None: IGDIT_STUDY_STORAGE, else study.db."""
    hours: float | None = None
    """Start no new training after this many hours of the command."""
    target_fid: float | None = None
    """Start no new training once a trial reaches this FID."""
    confirm_seeds: int = 0
    """Number of other seeds (at least 2) from which to train, at the end, the best point of each
    layer and the model without auxiliary loss."""
    ask_above: float = 1.0
    """Ask before a study that is estimated to take more worker-hours than this."""
    yes: bool = False
    """Start without asking."""

    def __post_init__(self) -> None:
        if self.trials is not None:
            digits = self.trials.removeprefix("+")
            if not (digits.isascii() and digits.isdigit() and int(digits) > 0):
                raise ValueError(
                    f"trials must be a number, or +NUMBER, of at least 1, but got {self.trials!r}"
                )
        if self.parallel is not None and self.parallel < 1:
            raise ValueError(f"parallel must be at least 1, but got {self.parallel}")
        if self.confirm_seeds < 0 or self.confirm_seeds == 1:
            raise ValueError(f"confirm_seeds must be 0 or at least 2, but got {self.confirm_seeds}")
        for name in ("hours", "target_fid"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, but got {value}")
        if not self.ask_above >= 0:
            raise ValueError(f"ask_above must be at least 0, but got {self.ask_above}")

    def wanted(self, study: Study, trials: Sequence[Trial], goal: int = 0) -> int:
        """Return the number of trials that are to be complete.

        Args:
            study: The study.
            trials: Its trials so far.
            goal: The highest number asked for before. Until it is reached, +N adds nothing: the
                command is taken for a repetition after an interruption.
        """
        if self.trials is None:
            return goal or study.default_trials
        complete = sum(trial.state == "COMPLETE" for trial in trials)
        if not self.trials.startswith("+"):
            return int(self.trials)
        return goal if goal > complete else complete + int(self.trials)


@dataclass(frozen=True)
class StudyCommand:
    """Options of `igdit study`."""

    study: Annotated[Study, tyro.conf.arg(name="")]
    options: Annotated[StudyOptions, tyro.conf.arg(name="")]


def study_command(arguments: list[str]) -> int:
    """Run `igdit study`."""
    command = parse_study(arguments)
    return run_study(command.study, command.options, Home.default(), make_console())


def parse_study(arguments: list[str]) -> StudyCommand:
    """Parse the words after `igdit study`.

    Raises:
        UsageError: If there is no such study, or an option that takes values has none.
        SystemExit: If the options cannot be parsed, or ask for help.
    """
    if asks_for_help(arguments):
        log(make_console(), STUDY_HELP.rstrip())
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"igdit study needs a study: one of {', '.join(STUDIES)}")
    name, *overrides = arguments
    try:
        default = StudyCommand(get_study(name), StudyOptions())
    except ValueError as error:
        raise UsageError(str(error)) from error
    return parse_options(StudyCommand, overrides, f"igdit study {name}", default)


def run_study(study: Study, options: StudyOptions, home: Home, console: Console) -> int:
    """Run a study until its budget is spent, then report; returns the exit code.

    Raises:
        ValueError: If the storage cannot be used, or holds another study of that name.
        StudyError: If trainings failed one after the other, or the database went away.
        ArtifactError: If the store cannot be used.
    """
    from pipelines.study.ledger import StudyLedger

    home.prepare()
    if options.storage is not None:
        require_lasting("--storage", options.storage)
    study = replace(study, experiment=resolve(study.experiment))
    store, started, began = home.store, time.monotonic(), time.time()
    url = options.storage or home.study_storage
    with in_use(store), Activity(home, "study", study.name) as activity:
        store.sweep()
        ledger = StudyLedger(study, url, store)
        try:
            budget = _budget(ledger, options, home, console)
            if budget is None:
                activity.ended = "not started"
                return 1
            identity = ledger.identity
            remember(store, Record.of_study(study.name, identity))
            has_work = _has_work(ledger, budget)
            if has_work:
                record_start(store, identity, began)
            try:
                _drive(ledger, home, budget, options.parallel, console, activity)
            except PipelineError:
                log(console, "The study stopped at the error below. Findings so far:")
                print_findings(findings(study, ledger.last_seen, {}, store), console)
                raise
            found = findings(study, ledger.trials(), ledger.importances(), store)
        finally:
            ledger.close()
        if _reached_goal(found, budget):
            found = _with_holdout(found, home, partial(log, console), activity)
        else:
            log(console, _why_unfinished(found, budget))
            options = replace(options, confirm_seeds=0)
        activity.update(phase="reporting", news=headline(found))
        files = _report(found, identity, options, home, console, activity)
        if has_work:
            record_end(store, identity, began)
        _track(found, identity, files, home, console)
        log(console, f"Done in {time.monotonic() - started:.1f} s.")
    return 0


def _budget(
    ledger: StudyLedger, options: StudyOptions, home: Home, console: Console
) -> Budget | None:
    """Return the budget of this command; None if the user declined it."""
    study, trials = ledger.study, ledger.trials()
    wanted = options.wanted(study, trials, ledger.goal(0))
    cost = forecast(study, home.store, trials, wanted, options.confirm_seeds)
    complete = sum(trial.state == "COMPLETE" for trial in trials)
    log(
        console,
        f"Study {study.name}: {complete} of {wanted} trials are complete",
    )
    print_forecast(cost, console)
    if not _agreed(cost, options, console):
        return None
    ledger.goal(wanted)
    return Budget(wanted, options.hours, options.target_fid)


def _has_work(ledger: StudyLedger, budget: Budget) -> bool:
    """Return whether this command has work to do; its times are then recorded as the study's."""
    times = command_times(ledger.store, ledger.identity)
    complete = sum(trial.state == "COMPLETE" for trial in ledger.trials())
    return complete < budget.trials or times.started_ms is None or times.is_open


def _reached_goal(found: Findings, budget: Budget) -> bool:
    """Return whether the target FID is reached, or all trials are complete."""
    reached = (
        budget.target_fid is not None
        and found.best is not None
        and ((found.best.fid or 0.0) <= budget.target_fid)
    )
    return reached or sum(t.state == "COMPLETE" for t in found.trials) >= budget.trials


def _why_unfinished(found: Findings, budget: Budget) -> str:
    """Explain why the study stopped before all trials are complete."""
    complete = sum(t.state == "COMPLETE" for t in found.trials)
    why = "the hours are spent" if budget.hours is not None else "the space has no new point"
    return (
        f"{complete} of {budget.trials} trials are complete: {why}. The best point is measured "
        f"on holdout noise, and confirmed, when all trials are complete."
    )


def _with_holdout(
    found: Findings, home: Home, log: Callable[[str], None], activity: Activity
) -> Findings:
    """Measure the best point on holdout noise; returns the findings with it."""
    if found.best is None or found.holdout is not None:
        return found
    graph, chosen = holdout_of(found.study, found.best)
    experiment = graph.experiment
    activity.update(phase="measuring the best point on holdout noise")
    session = RunnerSession(WORK, experiment.resources, home.scratch, 1)
    try:
        listener = activity.follow(graph, NullListener(), found.best.point.training_name)
        targets = [point.evaluate for point in graph.holdout(chosen).values()]
        pipeline = Pipeline(home.store, experiment, session.runner, listener)
        rebuild_damaged(home.store, lambda: pipeline.run(targets), log)
    except (PipelineError, OSError) as error:  # the study itself is safe
        reason = explain(error) if isinstance(error, OSError) else error
        log(redact(f"The best point could not be measured on holdout noise: {reason}"))
    finally:
        session.close()
    return replace(found, holdout=read_holdout(home.store, graph, chosen))


def _report(
    found: Findings,
    identity: str,
    options: StudyOptions,
    home: Home,
    console: Console,
    activity: Activity,
) -> list[Path]:
    """Print the findings, confirm them if asked to, and write the report."""
    print_findings(found, console)
    directory = home.study_folder(found.study.name)
    files = write_findings(found, directory)
    if options.confirm_seeds and found.best is not None:
        activity.update(phase="confirming on other seeds")
        confirmed = confirm(
            found.study,
            identity,
            found.trials,
            options.confirm_seeds,
            home,
            RunnerSession(WORK, found.study.experiment.resources, home.scratch, options.parallel),
            partial(log, console),
            activity,
        )
        print_confirmation(summarise(confirmed), console)
        files = write_findings(found, directory, confirmed)
    files.append(write_study_page(found, home.store, directory))
    log(console, f"Table and plots:     {directory}\nReport, as one page: {files[-1]}")
    return files


def _drive(
    ledger: StudyLedger,
    home: Home,
    budget: Budget,
    parallel: int | None,
    console: Console,
    activity: Activity,
) -> None:
    """Run the study; MLflow and the state for `igdit status` follow in the background."""
    from pipelines.tracking.background import BackgroundSync

    def sync() -> None:
        _tracker(ledger.study, ledger.identity, home).sync(ledger.trials(), finished=False)

    def log_progress(text: str) -> None:
        if not text.startswith("start"):
            activity.update(news=text)
        log(console, text)

    def on_change() -> None:
        states = Counter(trial.state for trial in ledger.trials())
        activity.update(
            trials=Trials(
                complete=states["COMPLETE"],
                running=states["RUNNING"],
                pruned=states["PRUNED"],
                failed=states["FAIL"],
                wanted=budget.trials,
                at_first=at_first,
            )
        )
        background.request()

    at_first = sum(trial.state == "COMPLETE" for trial in ledger.trials())
    activity.update(phase="running", where=describe_runner(ledger.study.experiment.resources))
    session = RunnerSession(WORK, ledger.study.experiment.resources, home.scratch, parallel)
    background = BackgroundSync(sync)
    try:
        with study_progress(console, activity):
            StudyDriver(ledger, home, budget, session, log_progress, on_change, activity).run()
    finally:
        background.close(seconds=15)


def _tracker(study: Study, identity: str, home: Home) -> StudyTracker:
    from pipelines.tracking.client import MlflowTracker
    from pipelines.tracking.study import StudyTracker

    tracker = MlflowTracker(home.tracking_uri, home.mlartifacts, home.store)
    return StudyTracker(tracker, study, identity, home.store)


def _track(found: Findings, identity: str, files: list[Path], home: Home, console: Console) -> None:
    """Bring MLflow up to date; a failure is logged and loses nothing."""
    try:
        page = _tracker(found.study, identity, home).sync(found.trials, files, finished=True)
        log(console, where_to_compare(home.tracking_uri, page, "this study"))
    except Exception as error:  # noqa: BLE001 - any server, any failure; nothing is lost
        log(console, behind(home.tracking_uri, error), "yellow")


def _agreed(cost: Forecast, options: StudyOptions, console: Console) -> bool:
    """Return whether to start the study; asks the user if it is expensive.

    Raises:
        ValueError: If it is expensive and there is no terminal to ask on.
    """
    if options.yes or cost.hours is None or cost.hours <= options.ask_above:
        return True
    if not console.is_terminal:
        raise ValueError(
            f"the study is estimated to take {number(cost.hours, separator=',')} worker-hours, "
            f"more than --ask-above {options.ask_above:g}: add --yes to start it"
        )
    return ask(console, f"Spend {number(cost.hours, separator=',')} worker-hours?")
