"""Help of the commands that need a word before their options, and the program's version."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from experiments import EXPERIMENTS, STUDIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HELP = ("-h", "--help")


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether the first word after a command asks what the command takes."""
    return bool(arguments) and arguments[0] in HELP


def help_of(command: str) -> str:
    """Say what a command takes that was given without the word that it needs."""
    return HELP_TEXTS[command]().rstrip()


def program_version() -> str:
    """Name the version of the installed package."""
    try:
        return f"igdit {version('igdit')}"
    except PackageNotFoundError:
        return "igdit, not installed: run from its folder"


def _names(table: Mapping[str, Callable[..., object]]) -> str:
    """Names with the first lines of what they build."""
    return "\n".join(
        f"  {name:<24}{(make.__doc__ or '').strip().splitlines()[0]}"
        for name, make in table.items()
    )


def _run() -> str:
    return f"""\
usage: igdit run NAME [options]

Run an experiment: what is in the store is not done again, so that the same command continues what
was interrupted, and of a finished experiment prints the results.

NAME is the experiment.json of an earlier run, or one of
{_names(EXPERIMENTS)}

options: every setting of the experiment, and --rebuild. `igdit run NAME --help` lists them with
their values.
"""


def _plan() -> str:
    return f"""\
usage: igdit plan NAME [options]

Say what of an experiment is in the store, what would run, and what that is going to take. Changes
nothing.

NAME is the experiment.json of an earlier run, or one of
{_names(EXPERIMENTS)}

options: those of `igdit run`, --assume-tflops and --assume-utilisation. `igdit plan NAME --help`
lists them with their values.
"""


def _study() -> str:
    return f"""\
usage: igdit study NAME [options]

Search the auxiliary layer, the auxiliary weight and the guidance scale. The same command resumes.

NAME is one of
{_names(STUDIES)}

options: --trials, --parallel, --hours and others, and every setting of the study. `igdit study NAME
--help` lists them with their values.
"""


def _report() -> str:
    return """\
usage: igdit report [RUN]
       igdit report NAME [options]
       igdit report study NAME [--storage URL]

Write a run or a study as one HTML page that can be mailed; the page's path is printed.

RUN is the name of an experiment or the first digits of a run's key (`igdit store ls` lists them);
without it the last run is taken. With options, those of `igdit run`, it is that very experiment.
"""


def _inspect() -> str:
    return """\
usage: igdit inspect PATH

Say what lies at PATH, and what would go wrong with it: a checkpoint (SiT, LightningDiT, REPA), a
codec (SD-VAE, VA-VAE), or a folder of latents. Exit code 1 if something would.
"""


def _store() -> str:
    return """\
usage: igdit store ls
       igdit store gc [options]

  ls    List recorded runs, and what the store holds of each kind.
  gc    Say what no recorded run needs; with --delete, delete it. --forget KEY drops the record of a
        run. `igdit store gc --help` lists its options.
"""


def _track() -> str:
    return """\
usage: igdit track rebuild [--storage URL]

Make MLflow's pages again, from the store and the studies' database, also on an empty server. Doing
it again changes nothing. `igdit track rebuild --help` lists its options.
"""


def _table() -> str:
    return """\
usage: igdit table NAME [options]

Show one of the paper's tables, published numbers beside what was measured here. With --run the rows
that are missing are run.

options: --run, --rows and files that rows need. `igdit table NAME --help` lists them.
NAME is one of these:
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
