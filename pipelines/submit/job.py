"""What `igdit submit` sends to a cluster: a command, addresses and a folder, and nothing secret.

Everything is checked here, where the person is, before anything is sent.
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
from pipelines.submit.uploads import KEPT_BACK, SECRET_NAME

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
    *KEPT_BACK,
)
"""What no job needs (gitignore's patterns), besides what .gitignore and .rayignore name."""
SETTINGS = {
    **RAY_SETTINGS,
    # Ray gives a job that is stopped 3 seconds: too few to end a step and let trials go.
    "RAY_JOB_STOP_WAIT_TIME_S": "30",
    "COLUMNS": "100",  # of tables in the log, which is no terminal
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""What every job gets."""
ADDRESSES = (
    "IGDIT_HOME",
    "IGDIT_STORE",
    "IGDIT_CACHE",
    "IGDIT_CACHE_GIB",
    "IGDIT_LEASE_SECONDS",
    "IGDIT_STUDY_STORAGE",
    "MLFLOW_TRACKING_URI",
    "IGDIT_DEBUG",
)
"""What a job gets of the environment here, if it is set."""
SAFELY = (
    f"passwords belong on the nodes: in the file that {SECRETS_FILE} names there "
    f"(NAME=VALUE lines, mode 0600), in PGPASSFILE, or in their environment"
)


@dataclass(frozen=True)
class Submission:
    """A job as it is sent, but for the number of the attempt."""

    kind: str
    name: str
    label: str
    """Part of its submission ids after the name; may be empty."""
    identity: str
    """Tells it from others of that kind and name: what it is, and where its results go."""
    words: tuple[str, ...]
    """What follows the kind on the command line."""
    python: str
    environment: dict[str, str]
    root: Path
    excludes: tuple[str, ...]
    commit: str = ""

    @property
    def entrypoint(self) -> str:
        """The command line of the job, for a shell."""
        return shlex.join([self.python, "-m", "pipelines", self.kind, *self.words])

    @property
    def prefix(self) -> str:
        """Submission ids begin with it; the number of the attempt follows."""
        parts = ["igdit", self.kind, _plain(self.name), self.label]
        return "-".join(part for part in parts if part) + "-"

    def metadata(self, attempt: int) -> dict[str, str]:
        """What the cluster's dashboard shows of the job."""
        found = {
            "igdit.kind": self.kind,
            "igdit.name": self.name,
            "igdit.identity": self.identity,
            "igdit.attempt": str(attempt),
            "igdit.commit": self.commit,
        }
        return {name: value for name, value in found.items() if value}

    def is_of(self, metadata: Mapping[str, str]) -> bool:
        """Whether these are the metadata of an attempt at the same."""
        mine = self.metadata(0)
        same = ("igdit.kind", "igdit.name", "igdit.identity")
        return all(metadata.get(name) == mine.get(name) for name in same)

    @property
    def runtime_env(self) -> dict[str, Any]:
        """Ray's runtime environment."""
        # What is sent is without its repository, and results name the code that made them.
        commit = {COMMIT: self.commit} if self.commit else {}
        return {
            "working_dir": str(self.root),
            "excludes": list(self.excludes),
            "env_vars": commit | self.environment,
        }

    def check_nothing_secret(self) -> None:
        """Everybody who sees the dashboard reads what is sent.

        Raises:
            UsageError: If the command or a variable holds a secret.
        """
        for name, value in self.environment.items():
            if has_secret(value) or SECRET_NAME.search(name.removeprefix(SECRETS_FILE)):
                raise UsageError(f"{name} would be readable in the job's description: {SAFELY}")
        for word in (self.entrypoint, *self.words):
            if has_secret(word):
                raise UsageError(
                    f"a password must not be in the command, but it is in "
                    f"{redact(word)!r}: {SAFELY}"
                )


def environment_for(
    here: Mapping[str, str], extra: tuple[str, ...], secrets: str | None
) -> dict[str, str]:
    """Variables of the job.

    Args:
        here: The environment of this process.
        extra: NAME=VALUE, which go before those.
        secrets: The file of secrets on the nodes.

    Raises:
        UsageError: If an item of `extra` is not NAME=VALUE, or the path of secrets is not absolute.
    """
    found = SETTINGS | {name: here[name] for name in ADDRESSES if here.get(name, "").strip()}
    for item in extra:
        name, equals, value = item.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UsageError(f"--env must be NAME=VALUE, but got {redact(item)!r}")
        found[name] = value
    path = secrets or here.get(SECRETS_FILE, "").strip()
    if path:
        if not path.startswith("/"):
            raise UsageError(
                f"{SECRETS_FILE} (or --secrets) must be an absolute path on the "
                f"nodes, but got {path!r}"
            )
        found[SECRETS_FILE] = path
    return found


def identity_of(what: object, environment: Mapping[str, str], storage: str | None) -> str:
    """A digest of what a job does and where its results go.

    Whoever follows a job that does the same elsewhere finds nothing at home in the end.

    Args:
        what: All that changes its results, as JSON takes it.
        environment: Variables of the job.
        storage: The study's database if the command names one; None: that of the environment.
    """
    home = os.path.normpath(environment.get("IGDIT_HOME", ""))
    store = environment.get("IGDIT_STORE") or f"{home}/store"
    database = storage or environment.get("IGDIT_STUDY_STORAGE") or f"sqlite:///{home}/study.db"
    store = (file_path(store) or store).rstrip("/")
    return content_key([what, home, store, database])[:12]


def check_addresses(
    environment: Mapping[str, str], storage: str | None, cluster: str, *, shared: bool, study: bool
) -> None:
    """Whether the nodes of a cluster find what the addresses name.

    Args:
        environment: Variables of the job.
        storage: What --storage says, if it does.
        cluster: Address of the dashboard.
        shared: Whether folders are seen by all nodes under the same path.
        study: Whether it is a study.

    Raises:
        UsageError: If an address exists on this machine only, or holds a password.
    """
    home = environment.get("IGDIT_HOME", "")
    if not home.startswith("/"):
        raise UsageError(
            f"IGDIT_HOME must be an absolute path on the cluster's nodes (reports go "
            f"there), but got {home or 'nothing'!r}"
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
            f"{name} must be without a password or a token, but got {redact(address)!r}: {SAFELY}"
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


def check_files_of(config: object, *, shared: bool) -> None:
    """Whether the nodes find the files that an experiment or a study names.

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
    """Every text in a configuration with its name."""
    if isinstance(config, str):
        yield name, config
    elif dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            inner = f"{name}.{field.name}" if name else field.name
            yield from _texts(getattr(config, field.name), inner)


def find_root(start: Path) -> Path:
    """The folder to upload: the next one above that holds the project, else this one."""
    for folder in (start, *start.parents):
        if (folder / "pipelines" / "__main__.py").is_file():
            return folder
    return start


def excludes_for(root: Path, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Patterns of what is not uploaded: results may lie in the folder under any name."""
    home = Path(os.path.normpath(environment.get("IGDIT_HOME", "/")))
    if home != root and home.is_relative_to(root):
        return (*EXCLUDES, f"/{PurePosixPath(home.relative_to(root))}")
    return EXCLUDES


def _plain(name: str) -> str:
    """A name as it can stand in an address."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
