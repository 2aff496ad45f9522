"""Help of commands that need a word before their options, and the program's version."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from experiments import EXPERIMENTS, STUDIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HELP = ("-h", "--help")


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Return whether the first word after a command asks for help."""
    return bool(arguments) and arguments[0] in HELP


def help_of(command: str) -> str:
    """Return the help of a command that was given without the word that it needs."""
    return HELP_TEXTS[command]().rstrip()


def program_version() -> str:
    """Return the version of the installed package."""
    try:
        return f"igdit {version('igdit')}"
    except PackageNotFoundError:
        return "igdit, not installed: run from its folder"


def _names(table: Mapping[str, Callable[..., object]]) -> str:
    """Format names with the first line of the docstring of what they build."""
    return "\n".join(
        f"  {name:<24}{(make.__doc__ or '').strip().splitlines()[0]}"
        for name, make in table.items()
    )


def _run() -> str:
    return f"""\
usage: igdit run NAME [options]

Run an experiment. Artifacts that are in the store are not built again: the same command continues
an interrupted run, and prints the results of a finished one.

NAME is the experiment.json of an earlier run, or one of
{_names(EXPERIMENTS)}

options: --rebuild and every setting of the experiment; `igdit run NAME --help` lists them with
their values.
"""


def _plan() -> str:
    return f"""\
usage: igdit plan NAME [options]

Show which artifacts of an experiment are cached, what would run, and what it would cost. Nothing is
changed.

NAME is the experiment.json of an earlier run, or one of
{_names(EXPERIMENTS)}

options: those of `igdit run`, --assume-tflops and --assume-utilisation; `igdit plan NAME --help`
lists them with their values.
"""


def _study() -> str:
    return f"""\
usage: igdit study NAME [options]

Search the auxiliary layer, its loss weight and the internal guidance scale. The same command
resumes an interrupted study.

NAME is one of
{_names(STUDIES)}

options: --trials, --parallel, --hours and others, and every setting of the study;
`igdit study NAME --help` lists them with their values.
"""


def _report() -> str:
    return """\
usage: igdit report [RUN]
       igdit report NAME [options]
       igdit report study NAME [--storage URL]

Write the report of a run or a study as one self-contained HTML page, and print its path.

RUN is the name of an experiment or the first digits of a run's key (`igdit store ls` lists them);
without it the last run is reported. Options are those of `igdit run`: they select the run with
exactly these settings.
"""


def _inspect() -> str:
    return """\
usage: igdit inspect PATH

Describe what is at PATH - a checkpoint (SiT, LightningDiT, REPA), a codec (SD-VAE, VA-VAE) or a
folder of latents - and list its problems. The exit code is 1 if there are problems.
"""


def _store() -> str:
    return """\
usage: igdit store ls
       igdit store gc [options]

  ls    List what was run (runs, studies, tables, evaluations), and the artifacts of each kind.
  gc    List the artifacts that nothing that was run needs; --delete deletes them. --forget NAME
        first deletes the record of a run, of a study with all its trials, of a table or of an
        evaluation. `igdit store gc --help` lists its options.
"""


def _track() -> str:
    return """\
usage: igdit track rebuild [--storage URL]

Rebuild MLflow's pages from the store and the studies' database; the server may be empty. Repeating
the command changes nothing. `igdit track rebuild --help` lists its options.
"""


def _table() -> str:
    return """\
usage: igdit table NAME [options]

Compare a table of the paper with own results, row by row. --run runs the rows that are missing.

options: --run, --track, --rows and the files that rows need; `igdit table NAME --help` lists them.

NAME is one of
"""


HELP_TEXTS: dict[str, Callable[[], str]] = {
    "run": _run,
    "plan": _plan,
    "study": _study,
    "report": _report,
    "inspect": _inspect,
    "store": _store,
    "track": _track,
    "table": _table,
}
"""Command -> its help."""
