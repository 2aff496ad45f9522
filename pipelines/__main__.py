"""Program `igdit`, also started by `python -m pipelines`.

A command is imported when it is called, not with this module: if a library of the extra `run` is
missing, the program names it.
"""

from __future__ import annotations

import difflib
import logging
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from textwrap import fill
from typing import TYPE_CHECKING

from experiments import EXPERIMENTS
from experiments.tables import TABLES
from ig_core.files.extras import MissingLibraryError, extra
from pipelines.commands.parse import HELP, asks_for_help
from pipelines.common.errors import PipelineError, UsageError
from pipelines.common.memory import explanation, ran_out_of_memory
from pipelines.common.redaction import RedactingFormatter, load_secrets, print_redacted, redact
from pipelines.common.settings import is_debugging, unset_empty_settings
from pipelines.store.rights import explain

if TYPE_CHECKING:
    from collections.abc import Callable


USAGE = f"""\
igdit - train, sample, sweep and compare diffusion transformers with Internal Guidance

  igdit run NAME [options]     run an experiment; artifacts in the store are not built again
  igdit plan NAME [options]    show what is cached, what would run and what it would cost
  igdit study NAME [options]   search the auxiliary layer, its weight and the guidance scale;
                               the same command resumes
  igdit table NAME [options]   compare own results with a table of the paper
                               ({", ".join(TABLES)});
                               --run runs the missing rows, --track compares them in MLflow;
                               without NAME: list the tables
  igdit report [RUN]           write the report of a run as one HTML page; RUN is a NAME or the
                               first digits of a run's key; without RUN: the last run
  igdit report study NAME      write the report of a study as one HTML page
  igdit status [--watch]       show the running processes, their progress and what they wait for
  igdit evaluate PATH [options]
                               compute FID and other metrics of images from any program: a
                               folder of PNG files, an .npz file, or a folder of .npz shards
  igdit inspect PATH           describe a checkpoint, a codec or a folder of latents, and list
                               its problems
  igdit export RUN TARGET      export the samples of a run as an .npz file of the ADM protocol,
                               or as PNG files
  igdit store ls|gc [options]  list artifacts, or delete those that no recorded run needs
  igdit ui                     open the results in MLflow
  igdit track rebuild          rebuild MLflow's pages from the store and the studies
  igdit submit study NAME --address http://HEAD:8265 [options]
                               run a study on a Ray cluster and follow its log (also: submit run)

NAME is the experiment.json of an earlier run, or one of
{fill(", ".join(EXPERIMENTS), 98, initial_indent="  ", subsequent_indent="  ")}

`igdit COMMAND --help` explains a command, `igdit run NAME --help` lists every setting with its
value, `igdit --version` prints the version. Results are kept in ./runs or $IGDIT_HOME.
"""
REMEDY = (
    "fewer programs on this machine, --resources.micro-batch, --resources.sample-batch or "
    "--resources.sample-tasks"
)
"""Options that save memory, for an error about memory in this process."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code; 1 if libraries of the extra `run` are missing, or if the reader of the
        output ended (`igdit run --help | head`).
    """
    try:
        with extra("run"):
            from pipelines.console.console import discard_output, has_reader
    except MissingLibraryError as error:
        sys.stderr.write(f"igdit: {error}\n")
        return 1
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


COMMANDS = (
    *("run", "plan", "study", "table", "report", "status", "evaluate", "export", "inspect"),
    *("store", "ui", "track", "submit"),
)


def _command(name: str) -> Callable[[list[str]], int]:  # noqa: C901 - one line a command
    """Import a command, and no other: `igdit status` does not wait for a study's libraries."""
    match name:
        case "run":
            from pipelines.commands.run import run_command as command
        case "plan":
            from pipelines.commands.run import plan_command as command
        case "study":
            from pipelines.commands.study import study_command as command
        case "table":
            from pipelines.commands.table import table_command as command
        case "report":
            from pipelines.commands.report import report_command as command
        case "status":
            from pipelines.commands.status import status_command as command
        case "evaluate":
            from pipelines.commands.evaluate import evaluate_command as command
        case "export":
            from pipelines.commands.report import export_command as command
        case "inspect":
            from pipelines.commands.inspect import inspect_command as command
        case "store":
            from pipelines.commands.store import store_command as command
        case "ui":
            from pipelines.commands.track import ui_command as command
        case "track":
            from pipelines.commands.track import track_command as command
        case "submit":
            from pipelines.commands.submit import submit_command as command
        case _:
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise UsageError(
                f"command must be one of {', '.join(COMMANDS)}, but got {name!r}{hint}"
            )
    return command


def _main(arguments: list[str] | None) -> int:
    from pipelines.console.console import has_reader, log, make_console

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    _redact_output()
    unset_empty_settings()
    if arguments[:1] == ["help"]:  # `igdit help run` is `igdit run --help`
        arguments = [*arguments[1:2], "--help"]
    if not arguments or asks_for_help(arguments):
        log(make_console(), USAGE)
        return 0
    if arguments[0] in ("-V", "--version"):
        log(make_console(), _version())
        return 0
    name, *rest = arguments
    try:
        with extra("run"):
            command = _command(name)
            # A submitted job reads the secrets of its node, not those of this machine.
            if name != "submit" and not set(HELP) & set(rest):
                load_secrets()
            return command(rest)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not has_reader(sys.stdout):
            raise
        code = None if is_debugging() else _explain(error)
        if code is None:
            raise
        return code
    except KeyboardInterrupt:
        _log_error("stopped; run the same command to continue from the published artifacts")
        return 130


def _version() -> str:
    """Return the program's name and the version of the installed package."""
    try:
        return f"igdit {version('igdit')}"
    except PackageNotFoundError:
        return "igdit, not installed: run from its folder"


def _explain(error: Exception) -> int | None:
    """Print an error in one line; returns the exit code, None if the error is a bug."""
    if isinstance(error, ValueError | OSError | PipelineError | MissingLibraryError):
        said = explain(error) if isinstance(error, OSError) else error
        _log_error(redact(said))
        if not isinstance(error, UsageError | PipelineError | MissingLibraryError):
            _log_error("set IGDIT_DEBUG=1 to see the traceback")
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


def _redact_output() -> None:
    """Redact log records and tracebacks, which others may read in a job's log or in a mail."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    sys.excepthook = print_redacted


def _interrupt(*_: object) -> None:
    """Handle SIGTERM as Ctrl-C: workers are stopped, published artifacts stay."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
