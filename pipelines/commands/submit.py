"""`igdit submit`: run a command as a job of a Ray cluster."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro  # noqa: TC002 - in an annotation that is read at run time

from experiments import EXPERIMENTS, STUDIES
from pipelines.commands.parse import HELP, asks_for_help, parse_options
from pipelines.common.errors import UsageError
from pipelines.common.redaction import has_secret, redact
from pipelines.common.revision import commit_of
from pipelines.common.settings import all_variables, dashboard_address
from pipelines.console.console import ask, make_console
from pipelines.graph.graph import Graph
from pipelines.graph.resolve import files_elsewhere, resolve
from pipelines.store.keys import content_key
from pipelines.submit.job import (
    Submission,
    check_addresses,
    check_files,
    find_root,
    job_environment,
    job_identity,
    upload_excludes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from experiments import Experiment


@dataclass(frozen=True)
class SubmitOptions:
    """Options of `igdit submit` itself; those of the submitted command are passed on."""

    address: str | None = None
    """Address of the cluster's dashboard, http://HOST:8265. None: RAY_API_SERVER_ADDRESS, or
    RAY_ADDRESS if it starts with http."""
    detach: bool = False
    """Submit the job and do not follow its log."""
    dry_run: bool = False
    """Print what would be submitted, and submit nothing."""
    again: bool = False
    """Submit another attempt even if one is running."""
    shared: bool = False
    """Confirm that all nodes see the named folders and files under the same path."""
    python: str = "python"
    """Python interpreter on the nodes; an absolute path is safest."""
    working_dir: Path | None = None
    """Folder to upload. None: the project's folder, searched from here upwards."""
    secrets: str | None = None
    """File of secrets on the nodes. None: IGDIT_SECRETS."""
    env: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE for the job's environment, not for secrets; may be given several times."""


FLAGS = tuple(f.name for f in dataclasses.fields(SubmitOptions) if f.type == "bool")
"""Options of `igdit submit` without a value."""
VALUES = tuple(f.name for f in dataclasses.fields(SubmitOptions) if f.name not in FLAGS)
"""Options of `igdit submit` with a value."""


def submit_command(arguments: list[str]) -> int:
    """Run `igdit submit`; the submitted command is read by its own parser."""
    from pipelines.submit.client import submit

    own, words = split_words(arguments)
    program = "igdit submit run|study NAME"
    if not words or words[0] not in ("study", "run"):
        if asks_for_help(words):
            own = [*own, words[0]]
        parse_options(SubmitOptions, own, program)
        raise UsageError(_missing_command(words))
    options = parse_options(SubmitOptions, own, program)
    kind, rest = words[0], words[1:]
    if kind == "study":
        from pipelines.commands.study import parse_study
    else:
        from pipelines.commands.run import parse_run
    if set(HELP) & set(rest):
        (parse_study if kind == "study" else parse_run)(rest)
    root = (options.working_dir or find_root(Path.cwd())).absolute()
    if not root.is_dir():
        raise UsageError(f"--working-dir must be a folder, but got {str(root)!r}")
    address, console = _address(options), make_console()
    environment = job_environment(all_variables(), options.env, options.secrets)
    if kind == "study":
        command = parse_study(rest)
        name, label, storage = command.study.name, "", command.options.storage
        config: Experiment = command.study.experiment
    else:
        config = parse_run(rest)
        name, storage = config.name, None
        rest = _uploaded(rest, root)
    check_files(config, shared=options.shared)
    elsewhere = files_elsewhere(config)
    config = resolve(config, partly=True, skip=elsewhere)
    if kind == "study":
        content: object = dataclasses.replace(command.study, experiment=config).fixed()
        content = [content, elsewhere] if elsewhere else content
    else:
        content = _key_of_run(config, elsewhere)
        label = content[:8]
    check_addresses(environment, storage, address, shared=options.shared, study=kind == "study")
    submission = Submission(
        kind,
        name,
        label,
        job_identity(content, environment, storage),
        tuple(rest),
        options.python,
        environment,
        root,
        upload_excludes(root, environment),
        commit_of(root),
    )
    submission.check_nothing_secret()
    if kind == "study" and not command.options.yes and not options.dry_run:
        submission = _agreed(submission, command.options.ask_above, console)
    return submit(
        submission,
        address,
        console,
        detach=options.detach,
        again=options.again,
        dry_run=options.dry_run,
    )


def _key_of_run(experiment: Experiment, elsewhere: Mapping[str, str]) -> str:
    """Return the key of the run that a job will do.

    It is the run's own key if this machine reads every file that the experiment names; files
    elsewhere enter the key by their paths.
    """
    key = Graph(experiment).run_key
    return content_key([key, dict(elsewhere)]) if elsewhere else key


def split_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words into options of `submit`, wherever they stand, and all others.

    All words after `--` are others.
    """
    own: list[str] = []
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            others += words
            break
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if not word.startswith("--") or name not in (*FLAGS, *VALUES):
            others.append(word)
            continue
        own.append(word)
        if name in VALUES and "=" not in word:
            value = next(words, None)
            own += [] if value is None else [value]
    return own, others


def _missing_command(words: Sequence[str]) -> str:
    """Explain that the words name no command to submit."""
    text = (
        f"igdit submit needs a command: study NAME ({', '.join(STUDIES)}) or run NAME "
        f"({', '.join(EXPERIMENTS)})"
    )
    if not words:
        return text
    known = [f"--{name.replace('_', '-')}" for name in (*FLAGS, *VALUES)]
    close = difflib.get_close_matches(words[0], ["study", "run", *known], n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{text}, but got {words[0]!r}{hint}"


def _address(options: SubmitOptions) -> str:
    """Return the dashboard's address from the option or the environment.

    Raises:
        UsageError: If it is missing or malformed, or holds a password.
    """
    given, name = options.address, "--address"
    if given is None:
        found = dashboard_address()
        if found is None:
            raise UsageError(
                "igdit submit needs the address of the cluster's dashboard: --address "
                "http://HOST:8265, or RAY_API_SERVER_ADDRESS"
            )
        name, given = found
    if not given.startswith(("http://", "https://")) or not given.partition("://")[2].strip("/"):
        raise UsageError(
            f"{name} must be http://HOST:PORT or https://HOST:PORT of the cluster's "
            f"dashboard, but got {redact(given)!r}"
        )
    if "@" in given or has_secret(given):
        raise UsageError(
            f"{name} must be without a user and a password; Ray's token is named by "
            f"RAY_AUTH_TOKEN_PATH"
        )
    return given.rstrip("/")


def _uploaded(words: list[str], root: Path) -> list[str]:
    """Return the words with the experiment's file relative to the folder that is uploaded.

    Raises:
        UsageError: If the file lies outside of it.
    """
    if not words or not words[0].endswith(".json"):
        return words
    path = Path(words[0]).absolute()
    if not path.is_relative_to(root):
        raise UsageError(
            f"the experiment's file must lie in the folder that is uploaded ({root}), "
            f"but got {words[0]}"
        )
    return [path.relative_to(root).as_posix(), *words[1:]]


def _agreed(submission: Submission, ask_above: float, console: Console) -> Submission:
    """Ask whether the study may exceed --ask-above; returns the submission with --yes added.

    Raises:
        UsageError: If nobody can be asked, or the answer is no.
    """
    if not console.is_terminal or not sys.stdin.isatty():
        raise UsageError(
            f"study {submission.name} may take more than --ask-above {ask_above:g} worker-hours, "
            f"and nobody can be asked on the cluster: add --yes to allow it"
        )
    question = (
        f"Nobody can be asked on the cluster. May study {submission.name} take more than "
        f"{ask_above:g} worker-hours?"
    )
    if not ask(console, question):
        raise UsageError("nothing was submitted")
    return dataclasses.replace(submission, words=(*submission.words, "--yes"))
