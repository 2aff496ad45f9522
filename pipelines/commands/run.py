"""`igdit run` and `igdit plan`: run an experiment, or show what a run would do."""

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
from pipelines.commands.parse import asks_for_help, list_names, parse_options
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


RUN_HELP = f"""\
usage: igdit run NAME [options]

Run an experiment. Artifacts that are in the store are not built again: the same command continues
an interrupted run, and prints the results of a finished one.

NAME is the experiment.json of an earlier run, or one of
{list_names(EXPERIMENTS)}

options: --rebuild and every setting of the experiment; `igdit run NAME --help` lists them with
their values.
"""
PLAN_HELP = f"""\
usage: igdit plan NAME [options]

Show which artifacts of an experiment are cached, what would run, and what it would cost. Nothing is
changed.

NAME is the experiment.json of an earlier run, or one of
{list_names(EXPERIMENTS)}

options: --assume-tflops, --assume-utilisation and every setting of the experiment; `igdit plan NAME
--help` lists them with their values.
"""


@dataclass(frozen=True)
class ExperimentOptions:
    """Options of every command that takes an experiment."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class RunOptions(ExperimentOptions):
    """Options of `igdit run`."""

    rebuild: bool = False
    """Check every artifact of the experiment, quarantine damaged ones and build them again."""


@dataclass(frozen=True)
class PlanOptions(ExperimentOptions):
    """Options of `igdit plan`."""

    assume_tflops: float | None = None
    """Peak of a GPU in fp16 or bf16, in TFLOP/s, for work of which nothing comparable was measured
    (TF32 has half of it, float32 a sixteenth). None: 312, an A100; for CPUs no estimate."""
    assume_utilisation: float = 0.3
    """Share of the peak that is assumed to be reached."""


Options = TypeVar("Options", bound=ExperimentOptions)


def run_command(arguments: list[str]) -> int:
    """Run `igdit run`."""
    options = _parse_run(arguments)
    console = make_console()
    return run_experiment(options.experiment, Home.default(), console, rebuild=options.rebuild)


def plan_command(arguments: list[str]) -> int:
    """Run `igdit plan`."""
    from pipelines.console.plan import print_costs, print_plan
    from pipelines.execution.machine import require_cores
    from pipelines.results.costs import Assumption
    from pipelines.results.measurements import collect

    if asks_for_help(arguments):
        log(make_console(), PLAN_HELP.rstrip())
        return 0
    options = parse_experiment(arguments, "plan", PlanOptions)
    assumption = Assumption(options.assume_tflops, options.assume_utilisation)
    store = Home.default().store
    results = collect(store, Graph(resolve(options.experiment, partly=True)))
    plan, console = make_plan(store, results.targets), make_console()
    resources = options.experiment.resources
    # The plan of a run on GPUs may be made on a machine without any.
    if plan.missing and not resources.use_gpu:
        require_cores(resources)
    print_plan(results, plan, console)
    print_costs(results, plan, assumption, console)
    return 0


def parse_run(arguments: list[str]) -> Experiment:
    """Parse the words after `igdit run`; returns the experiment."""
    return _parse_run(arguments).experiment


def _parse_run(arguments: list[str]) -> RunOptions:
    if asks_for_help(arguments):
        log(make_console(), RUN_HELP.rstrip())
        raise SystemExit(0)
    return parse_experiment(arguments, "run", RunOptions)


def parse_experiment(arguments: list[str], command: str, kind: type[Options]) -> Options:
    """Parse the name of an experiment, and the options that follow it.

    Raises:
        UsageError: If there is no such experiment, or an option that takes values has none.
        SystemExit: If the options cannot be parsed, or ask for help.
    """
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(
            f"igdit {command} needs an experiment: one of {', '.join(EXPERIMENTS)}, "
            f"or a file ending in .json"
        )
    name, *overrides = arguments
    try:
        default = kind(_find_experiment(name))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return parse_options(kind, overrides, f"igdit {command} {name}", default)


def _find_experiment(name: str) -> Experiment:
    """Return the experiment of that name, or read it from a JSON file."""
    if not name.endswith(".json"):
        return get_experiment(name)
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"experiment file {name} does not exist")
    return experiment_from_json(path.read_text(encoding="utf-8"))


def run_experiment(
    experiment: Experiment, home: Home, console: Console, *, rebuild: bool = False
) -> int:
    """Build the missing artifacts, then report and track the results; returns the exit code.

    Raises:
        ArtifactError: If an artifact that is needed is damaged, and `rebuild` is false.
        TrainingFailedError: If a loss is not finite.
    """
    # Before mlflow is imported, which adds its own folder to the PATH.
    program, started, began = _program(), time.monotonic(), time.time()
    home.prepare()
    experiment = resolve(experiment)
    graph, store = Graph(experiment), home.store
    with in_use(store), Activity(home, "run", experiment.name, graph.run_key) as activity:
        remember(store, Record.of_run(experiment, graph.run_key))
        store.sweep()
        quarantined = quarantine_corrupt(store, graph) if rebuild else []
        for node in quarantined:
            log(console, f"quarantined damaged {node.ref}")
        targets = (*collect(store, graph).targets, *quarantined)
        plan = make_plan(store, targets)
        has_work = _has_work(plan, store, graph)
        if has_work:
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
        if has_work:
            record_end(store, graph.run_key, began)
        page = _track(home, graph, files, console)
        log(console, f"Plots, samples and table: {directory}")
        log(console, f"Report, as one page:      {files[-1]}")
        if page is not None:
            log(console, where_to_compare(home.tracking_uri, page, "this run", program))
        log(console, f"Done in {time.monotonic() - started:.1f} s.")
    return 0


def measure_guidances(
    experiment: Experiment, guidances: Iterable[Guidance], home: Home, console: Console
) -> None:
    """Measure the last checkpoint under the given guidances, without the FID curve.

    Args:
        experiment: The experiment to measure.
        guidances: Guidances of the experiment. Once all of them are measured, the best one is
            measured on holdout noise.
        home: Home of the results.
        console: Console for the progress.

    Raises:
        ArtifactError: If an artifact that is needed is damaged.
        TrainingFailedError: If a loss is not finite.
    """
    home.prepare()
    began, experiment = time.time(), resolve(experiment)
    graph, store = Graph(experiment), home.store
    targets = [graph.final[guidance].evaluate for guidance in dict.fromkeys(guidances)]
    with in_use(store), Activity(home, "run", experiment.name, graph.run_key) as activity:
        remember(store, Record.of_run(experiment, graph.run_key))
        store.sweep()
        plan = make_plan(store, targets)
        has_work = _has_work(plan, store, graph)
        if has_work:
            record_start(store, graph.run_key, began)
        log(
            console,
            Text.assemble(
                (experiment.name, "bold"),
                f" {graph.run_key[:8]}: {len(plan.missing)} artifacts to build",
            ),
        )
        _execute(graph, targets, home, console, activity)
        if has_work:
            record_end(store, graph.run_key, began)
        _track(home, graph, (), console)


def _has_work(plan: Plan, store: Store, graph: Graph) -> bool:
    """Return whether this command has work to do; its times are then recorded as the run's."""
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
    """Return the nodes to build; any guidance stands in for the one that will be chosen."""
    missing = dict.fromkeys(make_plan(store, targets).missing)
    final = {point.evaluate for point in graph.final.values()}
    if final <= set(targets) and final & missing.keys():
        *_, stand_in = graph.final
        holdout = [p.evaluate for p in graph.chosen_holdout(stand_in).values()]
        missing |= dict.fromkeys(make_plan(store, holdout).missing)
    return missing


def _track(home: Home, graph: Graph, files: Sequence[Path], console: Console) -> str | None:
    """Bring MLflow up to date; a failure is logged and loses nothing.

    Returns:
        Path of the run's page below the tracking server's address; None if it failed.
    """
    from pipelines.tracking.client import MlflowTracker

    try:
        tracker = MlflowTracker(home.tracking_uri, home.mlartifacts, home.store)
        results = collect(home.store, graph)
        return tracker.sync(results, files, finished=True)
    except Exception as error:  # noqa: BLE001 - any server, any failure; the store has it all
        log(console, behind(home.tracking_uri, error), "yellow")
        return None


def _program() -> str:
    """Return the words that start this program in a shell: its name if it is on the PATH."""
    if shutil.which("igdit"):
        return "igdit"
    script = Path(sys.executable).with_name("igdit")
    if script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    return str(script) if script.exists() else "python -m pipelines"
