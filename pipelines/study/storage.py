"""Optuna's storage and samplers, as a study uses them."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from pipelines.discretion import discreet
from pipelines.errors import StudyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from experiments.study import Study

OUTAGE_SECONDS = 120.0
"""How long a storage may be away (locked, restarting) before the study stops."""


def open_storage(url: str) -> RDBStorage:
    """Connect to a database, setting it up if it is new.

    Raises:
        ValueError: the URL is none, its driver is missing, or the database cannot be reached.
    """
    try:
        parsed = make_url(url)
    except SQLAlchemyError as error:
        raise ValueError(
            f"the study's storage must be a database URL (sqlite:///FILE, "
            f"postgresql+psycopg://USER@HOST/NAME), but got {discreet(url)!r}"
        ) from error
    shown = discreet(parsed.render_as_string(hide_password=True))  # parameters as well
    # SQLite: wait for another process's write instead of failing. Servers: notice a restart.
    options: dict[str, Any] = {"pool_pre_ping": True}
    if parsed.get_backend_name() == "sqlite":
        options = {"connect_args": {"timeout": 60}}
    try:
        return RDBStorage(url, engine_kwargs=options)
    except ImportError as error:
        raise ValueError(f"the driver of {shown} is not installed: {error}") from error
    except (SQLAlchemyError, StorageInternalError, OSError) as error:
        raise ValueError(f"the study's storage must be a database that can be reached, but "
                         f"{shown} is not: {_first_line(error)}") from error  # fmt: skip


def make_sampler(study: Study, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that a study names."""
    if study.sampler == "random":
        return optuna.samplers.RandomSampler(seed)
    if study.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def importances(study: optuna.Study) -> dict[str, float]:
    """Optuna's parameter importances, largest first; empty while there are too few trials."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of few trials: they are counted elsewhere
            return dict(optuna.importance.get_param_importances(study))
    except (ValueError, RuntimeError):
        return {}


class _Outage:
    """Since when a storage has been away, for all threads of this process together."""

    def __init__(self) -> None:
        self.since: float | None = None

    def lasts_too_long(self) -> bool:
        """Called at each failure: whether the first one was long ago."""
        self.since = time.monotonic() if self.since is None else self.since
        return time.monotonic() - self.since > OUTAGE_SECONDS


_outage = _Outage()


def outlast(act: Callable[[], Any], stopped: Callable[[], bool] = lambda: False) -> Any:  # noqa: ANN401
    """Do something with the storage; while that is away, try again for a while.

    Args:
        act: What to do; doing it twice must be the same as doing it once.
        stopped: Whether to give up at once.

    Raises:
        StudyError: the storage stayed away.
    """
    while True:
        try:
            done = act()
        except (StorageInternalError, SQLAlchemyError) as error:
            if _outage.lasts_too_long() or stopped():
                raise StudyError(
                    f"the study's database failed: {_first_line(error)}. Nothing that was "
                    f"computed is lost: the same command goes on from there."
                ) from error
            time.sleep(1.0)
        else:
            _outage.since = None
            return done


def _first_line(error: BaseException) -> str:
    return discreet(str(error.__cause__ or error).strip().splitlines()[0][:200])
