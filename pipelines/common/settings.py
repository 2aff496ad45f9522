"""Environment variables: all that igdit reads or sets. No other module touches the environment.

Values are read when they are asked for. A variable that is empty or holds nothing but spaces is
not set.

igdit's own, and what holds where they are not set:

    IGDIT_HOME              folder of all results: `runs` in the current directory
    IGDIT_STORE             artifact store, a folder or s3://BUCKET/PREFIX: `store` in the home
    IGDIT_STUDY_STORAGE     database of the studies, a SQLAlchemy URL: `study.db` in the home
    IGDIT_CACHE             copies of what lies in a bucket: `igdit` in XDG_CACHE_HOME or ~/.cache
    IGDIT_CACHE_GIB         size of these copies in GiB: 50
    IGDIT_LEASE_SECONDS     seconds until a silent holder of a bucket's lock counts as dead: 60
    IGDIT_SECRETS           file of NAME=VALUE lines, passwords and keys of this node: none
    IGDIT_DEBUG             set to anything, every error shows its traceback: one line
    IGDIT_COMMIT            commit of code that was sent without its repository: unknown

Read of libraries:

    MLFLOW_TRACKING_URI     MLflow's server or database: `mlflow.db` in the home
    RAY_ADDRESS             cluster to join: a local Ray is started. `igdit submit` takes an http
                            address for the dashboard
    RAY_API_SERVER_ADDRESS  dashboard that `igdit submit` sends to; also set, for Ray's client
    RAY_AUTH_TOKEN          Ray's token, or
    RAY_AUTH_TOKEN_PATH     the file of it: ~/.ray/auth_token
    RAY_RUNTIME_ENV_IGNORE_GITIGNORE
                            1 uploads also what .gitignore names: it stays here
    RAY_TRAIN_...           passed on to the process that starts a group of workers
    PGPASSFILE              a file that is never uploaded
    AWS_SHARED_CREDENTIALS_FILE
                            likewise
    SECRET_VARIABLES        (the tuple below) their values are shown nowhere

Set before Ray is imported and for submitted jobs, unless they are set:

    RAY_USAGE_STATS_ENABLED, RAY_TRAIN_METRICS_ENABLED, RAY_TRAIN_HEALTH_CHECK_INTERVAL_S,
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S, RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO,
    RAY_DISABLE_FAILURE_SIGNAL_HANDLER
    of a local Ray: RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER, RAY_TRAIN_ENABLE_PREEMPTION_WATCHER,
    GLOO_SOCKET_IFNAME
    of `igdit submit` with a token: RAY_AUTH_MODE
    of jobs: RAY_JOB_STOP_WAIT_TIME_S, COLUMNS, MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT

Set before MLflow is imported, unless they are set:

    MLFLOW_DISABLE_TELEMETRY, DO_NOT_TRACK, GIT_PYTHON_REFRESH,
    MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT
    of the server of `igdit ui`: MLFLOW_BACKEND_STORE_URI, MLFLOW_SERVER_ENABLE_JOB_EXECUTION

Everything else, such as AWS_..., PG... and MLFLOW_TRACKING_USERNAME, is read by the libraries
themselves.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMIT = "IGDIT_COMMIT"
SECRETS_FILE = "IGDIT_SECRETS"
SECRET_VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "RAY_AUTH_TOKEN",
)
"""Variables whose values are redacted."""
EMPTY_IS_UNSET = ("IGDIT_", "MLFLOW_")
"""Beginnings of the variables that `unset_empty_settings` looks at."""


def home_address() -> str:
    """Return `IGDIT_HOME`, the folder of all results, or `runs`."""
    return _value("IGDIT_HOME") or "runs"


def store_address() -> str | None:
    """Return `IGDIT_STORE`, the address of the artifact store, if it is set."""
    return _value("IGDIT_STORE")


def study_storage() -> str | None:
    """Return `IGDIT_STUDY_STORAGE`, the URL of the studies' database, if it is set."""
    return _value("IGDIT_STUDY_STORAGE")


def tracking_uri() -> str | None:
    """Return `MLFLOW_TRACKING_URI`, the address of MLflow's server or database, if it is set."""
    return _value("MLFLOW_TRACKING_URI")


def cache_folder() -> Path:
    """Return the folder where this machine keeps copies of what lies in a bucket."""
    default = Path(_value("XDG_CACHE_HOME") or Path.home() / ".cache") / "igdit"
    return Path(_value("IGDIT_CACHE") or default).expanduser().absolute()


def cache_bytes(default: float) -> int:
    """Return the size that the cache may have, in bytes.

    Args:
        default: Size in GiB if `IGDIT_CACHE_GIB` is not set.

    Raises:
        ValueError: If the variable is not a positive number.
    """
    return int(_number("IGDIT_CACHE_GIB", default) * 2**30)


def lease_seconds(default: float) -> float:
    """Return the seconds after which a silent holder of a bucket's lock counts as dead.

    Args:
        default: Seconds if `IGDIT_LEASE_SECONDS` is not set.

    Raises:
        ValueError: If the variable is not a number of at least 2.
    """
    return _number("IGDIT_LEASE_SECONDS", default, least=2)


def secrets_file() -> str | None:
    """Return `IGDIT_SECRETS`, the path of the file of this node's secrets, if it is set."""
    return _value(SECRETS_FILE)


def is_debugging() -> bool:
    """Return True if `IGDIT_DEBUG` asks for the traceback of every error."""
    return _value("IGDIT_DEBUG") is not None


def sent_commit() -> str:
    """Return `IGDIT_COMMIT`, the commit of code that came without its repository, or ""."""
    return _value(COMMIT) or ""


def ray_address() -> str | None:
    """Return `RAY_ADDRESS`, the address of the Ray cluster to join, if it is set."""
    return _value("RAY_ADDRESS")


def ray_train_settings() -> dict[str, str]:
    """Return all `RAY_TRAIN_` variables; Ray Train reads them where it starts workers."""
    return {k: v for k, v in os.environ.items() if k.startswith("RAY_TRAIN_")}


def dashboard_address() -> tuple[str, str] | None:
    """Return the variable that names the dashboard of a Ray cluster, and its value.

    `RAY_ADDRESS` counts only if it is an http address.
    """
    api = _value("RAY_API_SERVER_ADDRESS")
    if api:
        return "RAY_API_SERVER_ADDRESS", api
    address = ray_address() or ""
    return ("RAY_ADDRESS", address) if address.startswith("http") else None


def has_ray_token() -> bool:
    """Return True if `RAY_AUTH_TOKEN` holds a token for Ray."""
    return _value("RAY_AUTH_TOKEN") is not None


def ray_token_path() -> str | None:
    """Return `RAY_AUTH_TOKEN_PATH`, the file of a token for Ray, if it is set."""
    return _value("RAY_AUTH_TOKEN_PATH")


def upload_obeys_gitignore() -> bool:
    """Return False if `RAY_RUNTIME_ENV_IGNORE_GITIGNORE` tells Ray to upload ignored files too."""
    return _value("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") != "1"


def secret_values() -> set[str]:
    """Return the values of `SECRET_VARIABLES` that are set."""
    return {value for name in SECRET_VARIABLES if (value := _value(name)) is not None}


def all_variables() -> dict[str, str]:
    """Return a copy of the environment, for a child process or a job."""
    return dict(os.environ)


def set_defaults(values: Mapping[str, str]) -> None:
    """Set the variables that are not set yet; must precede the import of a library that reads them.

    A variable that is set to nothing stays so.
    """
    for name, value in values.items():
        os.environ.setdefault(name, value)


def override(values: Mapping[str, str]) -> None:
    """Set variables, whatever they were before."""
    os.environ.update(values)


def unset_empty_settings() -> None:
    """Remove empty variables of igdit and of MLflow, which takes an empty one for a value."""
    for name in [name for name in os.environ if name.startswith(EMPTY_IS_UNSET)]:
        if _value(name) is None:
            del os.environ[name]


def _value(name: str) -> str | None:
    value = os.environ.get(name, "")
    return value if value.strip() else None


def _number(name: str, default: float, least: float = 0.0) -> float:
    text = _value(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = float("nan")
    if not max(least, 1e-9) <= value < float("inf"):
        expected = f"at least {least:g} (seconds)" if least else "a positive number"
        raise ValueError(f"{name} must be {expected}, but got {text!r}")
    return value
