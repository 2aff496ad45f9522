"""The program `igdit`, also as `python -m pipelines`.

Commands are imported when the program starts to run, not with this module: without the libraries of
the extra `run` it says which one is missing.
"""

from __future__ import annotations

import difflib
import logging
import signal
import sys
from typing import TYPE_CHECKING

from experiments import EXPERIMENTS
from experiments.tables import TABLES
from ig_core.files.extras import MissingLibraryError, extra
from pipelines.commands.help import HELP, asks_for_help, program_version
from pipelines.common.errors import PipelineError, UsageError
from pipelines.common.memory import explanation, ran_out_of_memory
from pipelines.common.redaction import DiscreetFormatter, discreet, load_secrets, print_discreetly
from pipelines.common.settings import is_debugging, unset_empty_settings
from pipelines.store.rights import explain

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


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code; 1 if libraries of the extra `run` are missing, or if nobody reads on
        (`igdit run --help | head`).
    """
    try:
        with extra("run"):
            commands = _commands()
            from pipelines.console.console import discard_output, has_reader
    except MissingLibraryError as error:
        sys.stderr.write(f"igdit: {error}\n")
        return 1
    try:
        try:
            return _main(commands, arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if has_reader(sys.stdout):
            raise
        discard_output(sys.stdout)
        return 1


def _commands() -> dict[str, Callable[[list[str]], int]]:
    """Import all commands."""
    from pipelines.commands.evaluate import evaluate_command
    from pipelines.commands.rebuild import track_command
    from pipelines.commands.report import export_command, report_command
    from pipelines.commands.run import parse_run, plan_command, run_command
    from pipelines.commands.store import inspect_command, status_command, store_command, ui_command
    from pipelines.commands.study import parse_study, study_command
    from pipelines.commands.submit import submit_command
    from pipelines.commands.table import table_command

    return {
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


def _main(commands: dict[str, Callable[[list[str]], int]], arguments: list[str] | None) -> int:
    from pipelines.console.console import has_reader, log, make_console

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    _speak_discreetly()
    unset_empty_settings()
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
    from pipelines.console.console import log, make_console

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


if __name__ == "__main__":
    sys.exit(main())
