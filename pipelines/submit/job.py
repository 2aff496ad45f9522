"""Job that `igdit submit` sends to a cluster: a command, addresses and a folder, and no secrets.

Everything is checked on this machine before anything is sent.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipelines.common.errors import UsageError
from pipelines.common.redaction import has_secret, redact
from pipelines.common.settings import COMMIT, SECRETS_FILE
from pipelines.execution.ray_env import RAY_SETTINGS
from pipelines.graph.resolve import EVALUATION_FILES
from pipelines.store.keys import content_key
from pipelines.store.open import file_path, local_path
from pipelines.submit.uploads import SECRET_FILES, SECRET_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

EXCLUDES = (
    ".git",
    ".venv",
    "venv",
    "__pycache__",
    "*.egg-info",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "/runs",
    "/build",
    "/dist",
    "/mlruns",
    "/tests",
    "/docs",
    "/benchmarks",
    *SECRET_FILES,
)
"""Patterns (gitignore's) of files that no job needs, besides those of .gitignore and .rayignore."""
JOB_SETTINGS = {
    **RAY_SETTINGS,
    # Ray's default for a job that is stopped is 3 seconds: too few to end a step and free trials.
    "RAY_JOB_STOP_WAIT_TIME_S": "30",
    "COLUMNS": "100",  # of tables in the log, which is no terminal
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Variables of every job."""
FORWARDED_VARIABLES = (
    "IGDIT_HOME",
    "IGDIT_STORE",
    "IGDIT_CACHE",
    "IGDIT_CACHE_GIB",
    "IGDIT_LEASE_SECONDS",
    "IGDIT_STUDY_STORAGE",
    "MLFLOW_TRACKING_URI",
    "IGDIT_DEBUG",
)
"""Variables of this environment that a job gets, if they are set."""
PASSWORD_ADVICE = (
    f"passwords belong on the nodes: in the file that {SECRETS_FILE} names there "
    f"(NAME=VALUE lines, mode 0600), in PGPASSFILE, or in their environment"
)


@dataclass(frozen=True)
class Submission:
    """Job to submit, but for the number of the attempt."""

    kind: str
    name: str
    label: str
    """Part of the submission id after the name; may be empty."""
    identity: str
    """Digest of what the job does and where its results go (`job_identity`)."""
    words: tuple[str, ...]
    """Arguments after the kind on the command line."""
    python: str
    environment: dict[str, str]
    root: Path
    excludes: tuple[str, ...]
    commit: str = ""

    @property
    def entrypoint(self) -> str:
        """Command line of the job, for a shell."""
        return shlex.join([self.python, "-m", "pipelines", self.kind, *self.words])

    @property
    def prefix(self) -> str:
        """Beginning of the submission id; the number of the attempt follows."""
        parts = ["igdit", self.kind, _plain(self.name), self.label]
        return "-".join(part for part in parts if part) + "-"

    def metadata(self, attempt: int) -> dict[str, str]:
        """Return what the cluster's dashboard shows of the job."""
        metadata = {
            "igdit.kind": self.kind,
            "igdit.name": self.name,
            "igdit.identity": self.identity,
            "igdit.attempt": str(attempt),
            "igdit.commit": self.commit,
        }
        return {name: value for name, value in metadata.items() if value}

    def matches(self, metadata: Mapping[str, str]) -> bool:
        """Return whether a job with these metadata is an attempt at this one."""
        own = self.metadata(0)
        compared = ("igdit.kind", "igdit.name", "igdit.identity")
        return all(metadata.get(name) == own.get(name) for name in compared)

    @property
    def runtime_env(self) -> dict[str, Any]:
        """Ray's runtime environment."""
        # The upload is without its repository, and results name the commit that made them.
        commit = {COMMIT: self.commit} if self.commit else {}
        return {
            "working_dir": str(self.root),
            "excludes": list(self.excludes),
            "env_vars": commit | self.environment,
        }

    def check_nothing_secret(self) -> None:
        """Check that no secret is sent: everybody who sees the dashboard reads it.

        Raises:
            UsageError: If the command or a variable holds a secret.
        """
        for name, value in self.environment.items():
            if has_secret(value) or SECRET_NAME.search(name.removeprefix(SECRETS_FILE)):
                raise UsageError(
                    f"{name} would be readable in the job's description: {PASSWORD_ADVICE}"
                )
        for word in (self.entrypoint, *self.words):
            if has_secret(word):
                raise UsageError(
                    f"a password must not be in the command, but it is in "
                    f"{redact(word)!r}: {PASSWORD_ADVICE}"
                )


def job_environment(
    here: Mapping[str, str], extra: tuple[str, ...], secrets: str | None
) -> dict[str, str]:
    """Return the variables of the job.

    Args:
        here: Environment of this process.
        extra: Items NAME=VALUE, which go before those.
        secrets: File of secrets on the nodes.

    Raises:
        UsageError: If an item of `extra` is not NAME=VALUE, or the path of secrets is not absolute.
    """
    environment = JOB_SETTINGS | {
        name: here[name] for name in FORWARDED_VARIABLES if here.get(name, "").strip()
    }
    for item in extra:
        name, equals, value = item.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UsageError(f"--env must be NAME=VALUE, but got {redact(item)!r}")
        environment[name] = value
    path = secrets or here.get(SECRETS_FILE, "").strip()
    if path:
        if not path.startswith("/"):
            raise UsageError(
                f"{SECRETS_FILE} (or --secrets) must be an absolute path on the "
                f"nodes, but got {path!r}"
            )
        environment[SECRETS_FILE] = path
    return environment


def job_identity(content: object, environment: Mapping[str, str], storage: str | None) -> str:
    """Return a digest of what a job does and where its results go.

    A job that does the same but writes elsewhere is another: following it would bring no results.

    Args:
        content: All that changes the job's results, as JSON takes it.
        environment: Variables of the job.
        storage: The study's database if the command names one; None for that of the environment.
    """
    home = os.path.normpath(environment.get("IGDIT_HOME", ""))
    store = environment.get("IGDIT_STORE") or f"{home}/store"
    database = storage or environment.get("IGDIT_STUDY_STORAGE") or f"sqlite:///{home}/study.db"
    store = (file_path(store) or store).rstrip("/")
    return content_key([content, home, store, database])[:12]


def check_addresses(
    environment: Mapping[str, str], storage: str | None, cluster: str, *, shared: bool, study: bool
) -> None:
    """Check that the nodes of a cluster can reach the addresses of a job.

    Args:
        environment: Variables of the job.
        storage: Value of --storage, if given.
        cluster: Address of the dashboard.
        shared: True if all nodes see folders under the same path.
        study: True if the job is a study.

    Raises:
        UsageError: If an address exists on this machine only, or holds a password.
    """
    home = environment.get("IGDIT_HOME", "")
    if not home.startswith("/"):
        raise UsageError(
            f"IGDIT_HOME must be an absolute path on the cluster's nodes (reports are "
            f"written there), but got {home or 'nothing'!r}"
        )
    cache = environment.get("IGDIT_CACHE", "/")
    if not cache.startswith("/"):
        raise UsageError(f"IGDIT_CACHE must be an absolute path on the nodes, but got {cache!r}")
    wanted = {
        "IGDIT_STORE": (environment.get("IGDIT_STORE"), f"{home}/store", "s3://BUCKET/PREFIX"),
        "MLFLOW_TRACKING_URI": (
            environment.get("MLFLOW_TRACKING_URI"),
            f"sqlite:///{home}/mlflow.db",
            "http://HOST:PORT",
        ),
    }
    if study:
        name = "--storage" if storage else "IGDIT_STUDY_STORAGE"
        given = storage or environment.get("IGDIT_STUDY_STORAGE")
        default, example = f"sqlite:///{home}/study.db", "postgresql+psycopg://USER@HOST/DB"
        wanted[name] = (given, default, example)
    for name, (given, default, example) in wanted.items():
        _check_address(name, given or default, example, cluster, shared=shared, chosen=bool(given))


def _check_address(
    name: str, address: str, example: str, cluster: str, *, shared: bool, chosen: bool
) -> None:
    if has_secret(address):
        raise UsageError(
            f"{name} must be without a password or a token, but got {redact(address)!r}: "
            f"{PASSWORD_ADVICE}"
        )
    path = local_path(address)
    if path is None:
        host = urlsplit(address).hostname
        if _is_loopback(host) and not _is_loopback(urlsplit(cluster).hostname):
            raise UsageError(
                f"{name} must be an address that the cluster's nodes reach, but "
                f"{address!r} is each node itself"
            )
        return
    if not path.startswith("/"):
        raise UsageError(
            f"{name} must be absolute ({example}, or with --shared a path), but got {address!r}"
        )
    if not shared:
        which = f"is {address!r}" if chosen else f"is not set, which means {address!r}"
        raise UsageError(
            f"{name} {which}, a file: set it to {example}, or say by --shared that "
            f"all nodes see that folder under that path"
        )


def _is_loopback(host: str | None) -> bool:
    return host is not None and (host in ("localhost", "::1") or host.startswith("127."))


def check_files(config: object, *, shared: bool) -> None:
    """Check that the nodes find the files that an experiment or a study names.

    Raises:
        UsageError: If a path is relative, or `shared` is False and there is a path.
    """
    for name, value in _texts(config, ""):
        is_file = "/" in value or name.rpartition(".")[2] in EVALUATION_FILES
        if "://" in value or not is_file:
            continue
        if not value.startswith("/"):
            raise UsageError(f"{name} must be an absolute path on the nodes, but got {value!r}")
        if not shared:
            raise UsageError(
                f"{name} is {value!r}, a file: say by --shared that all nodes see it "
                f"under that path"
            )


def _texts(config: object, name: str) -> Iterator[tuple[str, str]]:
    """List the texts in a configuration, each with its field's name."""
    if isinstance(config, str):
        yield name, config
    elif dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            inner = f"{name}.{field.name}" if name else field.name
            yield from _texts(getattr(config, field.name), inner)


def find_root(start: Path) -> Path:
    """Find the folder to upload: the nearest one above that holds the project, else `start`."""
    for folder in (start, *start.parents):
        if (folder / "pipelines" / "__main__.py").is_file():
            return folder
    return start


def upload_excludes(root: Path, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the patterns of files that are not uploaded, with a home inside the folder."""
    home = Path(os.path.normpath(environment.get("IGDIT_HOME", "/")))
    if home != root and home.is_relative_to(root):
        return (*EXCLUDES, f"/{PurePosixPath(home.relative_to(root))}")
    return EXCLUDES


def _plain(name: str) -> str:
    """Replace characters that cannot stand in an address."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
