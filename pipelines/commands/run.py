"""`igdit run`: one experiment from what is in the store to its report."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro
from rich.text import Text

from experiments import EXPERIMENTS, Experiment, experiment_from_json, get_experiment
from pipelines.commands.help import asks_for_help, help_of
from pipelines.commands.parse import parse_options
from pipelines.common.errors import UsageError
from pipelines.console.console import log, make_console
from pipelines.console.progress import ProgressDisplay
from pipelines.console.results import print_report
from pipelines.execution.runners import describe_runner
from pipelines.execution.scheduler import Pipeline
from pipelines.execution.session import RunnerSession
from pipelines.graph.garbage import in_use
from pipelines.graph.graph import Graph
from pipelines.graph.plan import make_plan, quarantine_corrupt
from pipelines.graph.resolve import resolve
from pipelines.reports.plots import write_report
from pipelines.reports.run_page import headline, write_run_page
from pipelines.results.measurements import collect
from pipelines.stages.build import WORK
from pipelines.status.activity import Activity
from pipelines.store.home import Home
from pipelines.store.register import Record, command_times, record_end, record_start, remember
from pipelines.tracking.messages import behind, where_to_compare

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from ig_core.config import Guidance
    from pipelines.execution.runner import Runner
    from pipelines.graph.node import Node
    from pipelines.graph.plan import Plan
    from pipelines.results.measurements import Results
    from pipelines.store.base import Store


def run_experiment(
    experiment: Experiment, home: Home, console: Console, *, rebuild: bool = False
) -> int:
    """Build what is missing, then report and track the results; returns the exit code.

    Raises:
        ArtifactError: an artifact that is needed is damaged (and `rebuild` was not asked for).
        TrainingFailedError: a loss was not finite.
    """
    # Asked first: mlflow adds its own folder to the PATH.
    command, started, began = _command(), time.monotonic(), time.time()
    home.prepare()
    experiment = resolve(experiment)
    graph, store = Graph(experiment), home.store
    with in_use(store), Activity(home, "run", experiment.name, graph.run_key) as activity:
        remember(store, Record.of_run(experiment, graph.run_key))
        store.sweep()
        aside = quarantine_corrupt(store, graph) if rebuild else []
        for node in aside:
            log(console, f"quarantined damaged {node.ref}")
        targets = (*collect(store, graph).targets, *aside)
        plan = make_plan(store, targets)
        works = _has_work(plan, store, graph)
        if works:
            record_start(store, graph.run_key, began)
        log(
            console,
            Text.assemble(
                (experiment.name, "bold"),
                f" {graph.run_key[:8]}: {len(plan.missing)} artifacts to build, "
                f"results in {home.root}",
            ),
        )
        results = _execute(graph, targets, home, console, activity)
        activity.update(phase="reporting", where="")
        directory = home.run_folder(graph.experiment.name, graph.run_key)
        files = [*write_report(results, directory), write_run_page(results, directory)]
        activity.update(news=headline(results))
        print_report(results, console)
        if works:
            record_end(store, graph.run_key, began)
        page = _track(home, graph, files, console)
        where = page and where_to_compare(home.tracking_uri, page, "this run", command)
        _print_end(console, files[-1], where, time.monotonic() - started)
    return 0


def measure_guidances(
    experiment: Experiment, wanted: Iterable[Guidance], home: Home, console: Console
) -> None:
    """Measure the last checkpoint under some guidances, and nothing else.

    Args:
        experiment: The experiment to measure.
        wanted: Guidances of the experiment. If all of them are, the best is then measured on
            holdout noise.
        home: Where to store results.
        console: Where to show progress.

    Raises:
        ArtifactError: an artifact that is needed is damaged.
        TrainingFailedError: a loss was not finite.
    """
    home.prepare()
    began, experiment = time.time(), resolve(experiment)
    graph, store = Graph(experiment), home.store
    targets = [graph.final[guidance].evaluate for guidance in dict.fromkeys(wanted)]
    with in_use(store), Activity(home, "run", experiment.name, graph.run_key) as activity:
        remember(store, Record.of_run(experiment, graph.run_key))
        store.sweep()
        plan = make_plan(store, targets)
        if works := _has_work(plan, store, graph):
            record_start(store, graph.run_key, began)
        log(
            console,
            Text.assemble(
                (experiment.name, "bold"),
                f" {graph.run_key[:8]}: {len(plan.missing)} artifacts to build",
            ),
        )
        _execute(graph, targets, home, console, activity)
        if works:
            record_end(store, graph.run_key, began)
        _track(home, graph, (), console)


def _has_work(plan: Plan, store: Store, graph: Graph) -> bool:
    """Return whether this command has work to do: then its times are those of the run."""
    times = command_times(store, graph.run_key)
    return bool(plan.missing) or times.started_ms is None or times.is_open


def _execute(
    graph: Graph, targets: Sequence[Node], home: Home, console: Console, activity: Activity
) -> Results:
    """Build the targets, then measure the guidance with the lowest FID on holdout noise."""
    from pipelines.tracking.background import BackgroundSync
    from pipelines.tracking.client import MlflowTracker

    store, experiment = home.store, graph.experiment

    def sync() -> None:
        MlflowTracker(home.tracking_uri, home.mlartifacts, home.store).sync(
            collect(store, graph), finished=False
        )

    background = BackgroundSync(sync)
    session = RunnerSession(WORK, experiment.resources, home.scratch, 1)
    try:
        with ProgressDisplay(console, store, graph, background.request) as display:

            def start_runner() -> Runner:
                where = describe_runner(experiment.resources)
                activity.update(phase="running", where=where)
                display.log(f"start     {where}")
                return session.runner()

            display.expect(_all_missing(graph, targets, store))
            listener = activity.follow(graph, display, experiment.name)
            try:
                Pipeline(store, experiment, start_runner, listener).run(targets)
                chosen = collect(store, graph).chosen
                if chosen is not None:
                    holdout = [p.evaluate for p in graph.chosen_holdout(chosen).values()]
                    display.expect(make_plan(store, holdout).missing)
                    Pipeline(store, experiment, session.runner, listener).run(holdout)
            finally:
                listener.close()
    finally:
        session.close()
        background.close(seconds=15)
    return collect(store, graph)


def _all_missing(graph: Graph, targets: Iterable[Node], store: Store) -> dict[Node, None]:
    """Return all that is to be built; any guidance stands in for the one that will be chosen."""
    missing = dict.fromkeys(make_plan(store, targets).missing)
    final = {point.evaluate for point in graph.final.values()}
    if final <= set(targets) and final & missing.keys():
        *_, any_of_them = graph.final
        holdout = [p.evaluate for p in graph.chosen_holdout(any_of_them).values()]
        missing |= dict.fromkeys(make_plan(store, holdout).missing)
    return missing


def _track(home: Home, graph: Graph, files: Sequence[Path], console: Console) -> str | None:
    """Bring MLflow up to date at the end; a failure is logged and loses nothing."""
    from pipelines.tracking.client import MlflowTracker

    try:
        tracker = MlflowTracker(home.tracking_uri, home.mlartifacts, home.store)
        results = collect(home.store, graph)
        return tracker.sync(results, files, finished=True)
    except Exception as error:  # noqa: BLE001 - any server, any failure; the store has it all
        log(console, behind(home.tracking_uri, error), "yellow")
        return None


def _print_end(console: Console, report: Path, where: str | None, seconds: float) -> None:
    log(console, f"Plots, samples and table: {report.parent}")
    log(console, f"Report, as one page:      {report}")
    if where is not None:
        log(console, where)
    log(console, f"Done in {seconds:.1f} s.")


def _command() -> str:
    """Return how to call this program from here: by name if a shell finds it."""
    if shutil.which("igdit"):
        return "igdit"
    script = Path(sys.executable).with_name("igdit")
    if script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    return str(script) if script.exists() else "python -m pipelines"


@dataclass(frozen=True)
class RunOptions:
    """Options of `igdit run` and `igdit plan`."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    rebuild: bool = False
    """Check every artifact of the experiment, quarantine damaged ones and build them again."""


Options = TypeVar("Options", bound=RunOptions)


@dataclass(frozen=True)
class PlanOptions(RunOptions):
    """Options of `igdit plan`."""

    assume_tflops: float | None = None
    """Peak of a GPU in fp16 or bf16, in TFLOP/s, for work of which nothing comparable was measured
    (TF32 has half of it, float32 a sixteenth). None: 312, an A100; for CPUs no estimate."""
    assume_utilisation: float = 0.3
    """Share of the peak that is assumed to be reached."""


def _options(arguments: list[str], command: str, kind: type[Options]) -> Options:
    if asks_for_help(arguments):
        log(make_console(), help_of(command))
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(
            f"igdit {command} needs an experiment: one of {', '.join(EXPERIMENTS)}, "
            f"or a file ending in .json"
        )
    name, *overrides = arguments
    try:
        default = kind(_named(name))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return parse_options(kind, overrides, f"igdit {command} {name}", default)


def _named(name: str) -> Experiment:
    """Return the experiment of a name or of a JSON file."""
    if not name.endswith(".json"):
        return get_experiment(name)
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"experiment file {name} does not exist")
    return experiment_from_json(path.read_text(encoding="utf-8"))


def run_command(arguments: list[str]) -> int:
    """Run `igdit run`."""
    options = _options(arguments, "run", RunOptions)
    console = make_console()
    return run_experiment(options.experiment, Home.default(), console, rebuild=options.rebuild)


def plan_command(arguments: list[str]) -> int:
    """Run `igdit plan`."""
    from pipelines.console.plan import print_costs, print_plan
    from pipelines.execution.machine import require_cores
    from pipelines.results.costs import Assumption
    from pipelines.results.measurements import collect

    options = _options(arguments, "plan", PlanOptions)
    assumption = Assumption(options.assume_tflops, options.assume_utilisation)
    store = Home.default().store
    results = collect(store, Graph(resolve(options.experiment, partly=True)))
    plan, console = make_plan(store, results.targets), make_console()
    resources = options.experiment.resources
    if plan.missing and not resources.use_gpu:  # of GPUs a machine without any may ask
        require_cores(resources)
    print_plan(results, plan, console)
    print_costs(results, plan, assumption, console)
    return 0


def parse_run(arguments: list[str]) -> Experiment:
    """Parse the words after `igdit run`."""
    return _options(arguments, "run", RunOptions).experiment
