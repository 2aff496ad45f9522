"""The program `igdit`."""

from __future__ import annotations

import difflib
import logging
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro

from experiments import (
    EXPERIMENTS,
    STUDIES,
    Experiment,
    Study,
    experiment_from_json,
    get_experiment,
    get_study,
)
from experiments.tables import TABLES
from ig_core.extras import MissingLibraryError, extra
from pipelines.cli_help import HELP, asks_for_help, help_of, program_version
from pipelines.cli_parse import parse_options
from pipelines.cli_results import (
    evaluate_command,
    export_command,
    inspect_command,
    status_command,
    store_command,
    table_command,
    track_command,
    ui_command,
)
from pipelines.cli_submit import submit_command
from pipelines.console import discard_output, has_reader, log, make_console
from pipelines.dag import make_plan
from pipelines.discretion import DiscreetFormatter, discreet, print_discreetly
from pipelines.errors import PipelineError, UsageError
from pipelines.graph import Graph
from pipelines.home import Home
from pipelines.memory import explanation, ran_out_of_memory
from pipelines.pinned import resolve
from pipelines.rights import explain
from pipelines.secrets import load_secrets
from pipelines.settings import is_debugging, unset_empty_settings
from pipelines.study.options import StudyOptions

if TYPE_CHECKING:
    from collections.abc import Callable

USAGE = f"""\
igdit - train, sample, sweep and compare diffusion transformers with Internal Guidance

  igdit run NAME [options]     run an experiment; what is in the store is not done again
  igdit plan NAME [options]    say what is cached and what would run; changes nothing
  igdit study NAME [options]   search layer, weight and guidance scale; the same command resumes
  igdit table NAME [options]   one of the paper's tables ({", ".join(TABLES)}: both),
                               published numbers beside ours; --run runs the rows that are missing,
                               --track makes it one comparison in MLflow; without NAME the tables
                               are listed
  igdit report [RUN]           write a run as one HTML page that can be mailed; RUN is a NAME, the
                               first digits of a run's key, or none for the last run
  igdit report study NAME      the same of a study
  igdit status [--watch]       say what runs here, how far it is and who waits for whom
  igdit evaluate PATH [options]
                               judge images that any program made: a folder of PNG files, an .npz,
                               a folder of .npz shards
  igdit inspect PATH           say what a checkpoint, a codec or a folder of latents is, and what
                               would go wrong with it
  igdit export NAME TARGET     samples of a run as an .npz of the ADM protocol or as PNG files
  igdit store ls|gc [options]  list artifacts; collect what no experiment needs
  igdit ui                     open the results in MLflow
  igdit track rebuild          make MLflow's pages again, from the store and the studies
  igdit submit study NAME --address http://HEAD:8265 [options]
                               the same on a Ray cluster, followed from here (also: submit run NAME)

NAME is one of {", ".join(EXPERIMENTS)}, or the experiment.json of an earlier run.
`igdit COMMAND --help` says what a command takes, `igdit run NAME --help` lists every setting with
its value, `igdit --version` says the version. Results lie in ./runs or $IGDIT_HOME.
"""


REMEDY = (
    "fewer programs on this machine, --resources.micro-batch, --resources.sample-batch or "
    "--resources.sample-tasks"
)
"""What mends memory that ran out in the program itself."""


@dataclass(frozen=True)
class RunOptions:
    """What `igdit run` and `igdit plan` take."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    rebuild: bool = False
    """Check every artifact of the experiment, set damaged ones aside and build them again."""


Options = TypeVar("Options", bound=RunOptions)


@dataclass(frozen=True)
class PlanOptions(RunOptions):
    """What `igdit plan` takes besides."""

    assume_tflops: float | None = None
    """Peak of a GPU in fp16 or bf16, in TFLOP/s, for work that nothing comparable was measured of
    (half of it in TF32, a sixteenth in float32); None: 312, an A100, and nothing for CPUs."""
    assume_utilisation: float = 0.3
    """Part of that peak that is taken to be reached."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code, 1 if nobody reads on (`igdit run --help | head`)."""
    try:
        try:
            return _main(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if has_reader(sys.stdout):
            raise
        discard_output(sys.stdout)
        return 1


def _main(arguments: list[str] | None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    _speak_discreetly()
    unset_empty_settings()
    commands: dict[str, Callable[[list[str]], int]] = {
        "run": run_command,
        "plan": plan_command,
        "study": study_command,
        "table": table_command,
        "report": report_command,
        "status": status_command,
        "evaluate": evaluate_command,
        "export": export_command,
        "inspect": inspect_command,
        "store": store_command,
        "ui": ui_command,
        "track": track_command,
        "submit": lambda rest: submit_command(rest, parse_study, parse_run),
    }
    if arguments[:1] == ["help"]:  # `igdit help run` is `igdit run --help`
        arguments = [*arguments[1:2], "--help"]
    if not arguments or asks_for_help(arguments):
        log(make_console(), USAGE)
        return 0
    if arguments[0] in ("-V", "--version"):
        log(make_console(), program_version())
        return 0
    name, *rest = arguments
    try:
        if name not in commands:
            close = difflib.get_close_matches(name, commands, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise UsageError(
                f"command must be one of {', '.join(commands)}, but got {name!r}{hint}"
            )
        if name != "submit" and not set(HELP) & set(rest):  # its secrets are those of the nodes
            load_secrets()
        with extra("run"):
            return commands[name](rest)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not has_reader(sys.stdout):
            raise
        code = None if is_debugging() else _explain(error)
        if code is None:
            raise
        return code
    except KeyboardInterrupt:
        _log_error("stopped; the same command continues from what was published")
        return 130


def _explain(error: Exception) -> int | None:
    """Say in a line what went wrong; returns the exit code, None for what is a fault of ours."""
    if isinstance(error, ValueError | OSError | PipelineError | MissingLibraryError):
        said = explain(error) if isinstance(error, OSError) else error
        _log_error(discreet(said))
        if not isinstance(error, UsageError | PipelineError | MissingLibraryError):
            _log_error("(IGDIT_DEBUG=1 shows where)")
        return 2 if isinstance(error, ValueError) else 1
    cause = ran_out_of_memory(error)
    if cause is None:
        return None
    _log_error(explanation(cause, "in this process", REMEDY))
    return 1


def _log_error(text: str) -> None:
    """Print a line about an error to standard error."""
    log(make_console(sys.stderr), f"igdit: {text}")


def _speak_discreetly() -> None:
    """Log records and tracebacks are shown to others as well: in a job's log, in a mail."""
    handler = logging.StreamHandler()
    handler.setFormatter(DiscreetFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    sys.excepthook = print_discreetly


def _interrupt(*_: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: workers are let go, what is published stays."""
    raise KeyboardInterrupt


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
    options = parse_options(kind, overrides, f"igdit {command} {name}", default)
    _check_curve(options.experiment)
    return options


def _named(name: str) -> Experiment:
    """The experiment of that name, or of that file."""
    if not name.endswith(".json"):
        return get_experiment(name)
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"experiment file {name} does not exist")
    return experiment_from_json(path.read_text(encoding="utf-8"))


def run_command(arguments: list[str]) -> int:
    """`igdit run`."""
    from pipelines.experiment_run import run_experiment

    options = _options(arguments, "run", RunOptions)
    console = make_console()
    return run_experiment(options.experiment, Home.default(), console, rebuild=options.rebuild)


def plan_command(arguments: list[str]) -> int:
    """`igdit plan`."""
    from pipelines.outlook import Assumption, print_costs
    from pipelines.report import print_plan
    from pipelines.results import collect
    from pipelines.runners import require_cores

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


@dataclass(frozen=True)
class StudyCommand:
    """What `igdit study` takes."""

    study: Annotated[Study, tyro.conf.arg(name="")]
    options: Annotated[StudyOptions, tyro.conf.arg(name="")]


def study_command(arguments: list[str]) -> int:
    """`igdit study`."""
    from pipelines.study.command import run_study

    command = parse_study(arguments)
    return run_study(command.study, command.options, Home.default(), make_console())


def parse_study(arguments: list[str]) -> StudyCommand:
    """What the words after `igdit study` mean."""
    if asks_for_help(arguments):
        log(make_console(), help_of("study"))
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"igdit study needs a study: one of {', '.join(STUDIES)}")
    name, *overrides = arguments
    try:
        default = StudyCommand(get_study(name), StudyOptions())
    except ValueError as error:
        raise UsageError(str(error)) from error
    command = parse_options(StudyCommand, overrides, f"igdit study {name}", default)
    _check_curve(command.study.experiment)
    return command


def _check_curve(experiment: Experiment) -> None:
    """Refuse more samples on the curve than there are; records of older runs may have that.

    Raises:
        UsageError: there are more.
    """
    samples, points = experiment.evaluation.num_samples, experiment.evaluation.curve_samples
    if points > samples:
        raise UsageError(
            f"evaluation.curve_samples must be at most num_samples={samples:,}, the "
            f"first of which are on the curve, but got {points:,}"
        )


def parse_run(arguments: list[str]) -> Experiment:
    """The experiment that the words after `igdit run` mean."""
    return _options(arguments, "run", RunOptions).experiment


@dataclass(frozen=True)
class StudyReportOptions:
    """What `igdit report study NAME` takes."""

    storage: str | None = None
    """Database of the study (SQLAlchemy URL); None: that of IGDIT_STUDY_STORAGE, or study.db."""


def report_command(arguments: list[str]) -> int:
    """`igdit report`."""
    from pipelines.report_command import find_run, report_run, report_study

    if asks_for_help(arguments):
        log(make_console(), help_of("report"))
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
        experiment = resolve(_options(arguments, "report", RunOptions).experiment)
    else:
        exact = resolve(get_experiment(word)) if word in EXPERIMENTS else None
        experiment = find_run(home, word or None, exact)
    log(make_console(), str(report_run(home, experiment)))
    return 0
