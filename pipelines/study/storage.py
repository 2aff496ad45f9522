"""Optuna's storage: opening, retrying during outages, and reading the studies in it."""

from __future__ import annotations

import logging
import sqlite3
import sys
import time
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from experiments.study import Study
from pipelines.common.errors import NoStudiesError, StudyError
from pipelines.common.redaction import redact, redact_error
from pipelines.study.trials import SPEC, differences, own_trials, point_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from optuna.trial import FrozenTrial

    from pipelines.store.base import Store
    from pipelines.study.trials import Trial


OUTAGE_SECONDS = 120.0
"""Seconds that a storage may be unavailable (locked, restarting) before the study stops."""
OPTUNA_COLUMNS = {"studies": {"study_id", "study_name"}, "trials": {"trial_id", "study_id"}}
"""Table -> columns that identify it as Optuna's. Optuna's schema versions begin with a v; those of
other programs that use Alembic, such as MLflow, are hexadecimal."""
TRANSIENT_CLASSES = {"08", "40"}
"""SQLSTATE classes of transient errors: connections, and transactions to repeat."""
TRANSIENT_CODES = {
    # A shared file system that answers late is an I/O error to SQLite.
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_IOERR),
    # PostgreSQL: out of memory or connections, a lock, a statement cut off, restarts.
    *("53200", "53300", "55P03", "57014", "57P01", "57P02", "57P03", "57P05"),
    # MySQL: too many connections, shutdown, lock wait, deadlock, connections.
    *(1040, 1053, 1205, 1213, 2002, 2003, 2006, 2013, 2055),
}
"""Codes of transient errors."""
FULL_CODES = {sqlite3.SQLITE_FULL, "53100", 1021, 1114}
"""Codes of a full disk."""
READ_ONLY_CODES = {sqlite3.SQLITE_READONLY, "25006", "42501", 1142, 1290}
"""Codes of a database that this user may not write to."""
DAMAGED_CODES = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}
"""Codes of a damaged file."""


def open_storage(url: str, *, create: bool = True) -> RDBStorage:
    """Connect to a database of studies.

    Args:
        url: Database (SQLAlchemy URL).
        create: Set up a new database.

    Raises:
        ValueError: If the URL is invalid, its driver is missing, or the database cannot be reached,
            belongs to another program, or was set up by another version of Optuna.
        NoStudiesError: If the database is new and `create` is false.
    """
    try:
        parsed = make_url(url)
    except SQLAlchemyError as error:
        raise ValueError(
            f"the study's storage must be a database URL (sqlite:///FILE, "
            f"postgresql+psycopg://USER@HOST/NAME), but got {redact(url)!r}"
        ) from error
    shown = redact(parsed.render_as_string(hide_password=True))  # also hides parameters
    # SQLite: wait for another process's write instead of failing. Servers: detect a restart.
    options: dict[str, Any] = {"pool_pre_ping": True}
    if parsed.get_backend_name() == "sqlite":
        options = {"connect_args": {"timeout": 60}}
        if parsed.database in (None, "", ":memory:") or parsed.query.get("mode") == "memory":
            raise ValueError(
                f"the study's storage must be a file or a server, but {shown} is a database in "
                f"memory, which is gone when the command ends"
            )
        if not create and not parsed.query and not Path(str(parsed.database)).exists():
            raise NoStudiesError(f"the study's storage must be there, but {shown} does not exist")
    try:
        _require_studies(url, options, shown, create=create)
        storage = RDBStorage(url, engine_kwargs=options, skip_compatibility_check=True)
        _require_version(storage, shown)
    except ImportError as error:
        raise ValueError(f"the driver of {shown} is not installed: {error}") from error
    except ValueError:
        raise
    except Exception as error:  # of SQLAlchemy, Optuna, Alembic or the driver
        raise ValueError(
            f"the study's storage must be a database that can be reached, but {shown} is not: "
            f"{redact_error(_cause(error))}.{_mend(error)}"
        ) from error
    return storage


def _require_studies(url: str, options: dict[str, Any], shown: str, *, create: bool) -> None:
    """Check that a database is Optuna's or new, before anything is written to it.

    A database whose setup was interrupted passes: the next process completes the setup.

    Raises:
        ValueError: If it belongs to another program.
        NoStudiesError: If it holds no studies and `create` is false.
    """
    engine = create_engine(url, **options)
    try:
        found = inspect(engine)
        tables = set(found.get_table_names())
        foreign = [
            name
            for name, columns in OPTUNA_COLUMNS.items()
            if name in tables
            and not columns <= {column["name"] for column in found.get_columns(name)}
        ]
        if not foreign and "alembic_version" in tables:
            with engine.connect() as connection:
                versions = connection.execute(text("SELECT version_num FROM alembic_version"))
                foreign = [f"version {row[0]}" for row in versions if row[0][:1] != "v"]
    finally:
        engine.dispose()
    if foreign:
        raise ValueError(
            f"the study's storage must be a database of Optuna's or a new one, but {shown} belongs "
            f"to another program ({', '.join(foreign)}): name another one, or none for study.db"
        )
    if not create and "studies" not in tables:
        raise NoStudiesError(f"the study's storage must hold studies, but {shown} holds none yet")


def _require_version(storage: RDBStorage, shown: str) -> None:
    """Check that a database has the tables that the installed Optuna expects.

    Raises:
        ValueError: If it was set up by an older or a newer Optuna.
    """
    current, expected = storage.get_current_version(), storage.get_head_version()
    if current == expected:
        return
    storage.engine.dispose()
    if current in storage.get_all_versions():
        raise ValueError(
            f"the study's storage {shown} was set up by an older Optuna (tables {current}, "
            f"expected {expected}). This command upgrades it, once nobody uses it: "
            f"optuna storage upgrade --storage '{shown}'"
        )
    raise ValueError(
        f"the study's storage {shown} was set up by a newer Optuna (tables {current}; Optuna "
        f"{optuna.__version__} knows up to {expected}). This command installs the newest: "
        f"{Path(sys.executable).name} -m pip install --upgrade optuna"
    )


def importances(trials: Iterable[FrozenTrial]) -> dict[str, float]:
    """Return Optuna's parameter importances, largest first; empty if there are too few trials."""
    study = optuna.create_study(direction="minimize")
    study.add_trials([trial for trial in trials if trial.state.name == "COMPLETE"])
    try:
        with warnings.catch_warnings(action="ignore"):  # Optuna warns of few trials
            return dict(optuna.importance.get_param_importances(study))
    except (ValueError, RuntimeError):
        return {}


def retry_while_unavailable(
    act: Callable[[], Any], stopped: Callable[[], bool] = lambda: False
) -> Any:  # noqa: ANN401
    """Call `act` on the storage, and retry it for OUTAGE_SECONDS while the storage is unavailable.

    Args:
        act: Idempotent call.
        stopped: Returns True to end the retries at once.

    Raises:
        StudyError: If the storage stays unavailable, or the error is not transient.
    """
    first: float | None = None
    while True:
        try:
            return act()
        except (StorageInternalError, SQLAlchemyError) as error:
            now = time.monotonic()
            first = now if first is None else first
            if not can_pass(error) or now - first > OUTAGE_SECONDS or stopped():
                raise StudyError(
                    f"the study's database failed: {redact_error(_cause(error))}.{_mend(error)} "
                    f"Nothing that was computed is lost: the same command goes on from there."
                ) from error
            time.sleep(1.0)
        except KeyError as error:  # Optuna raises it for missing rows
            raise StudyError(
                f"the study is not in its database any more ({error.args[0]}): another program "
                f"deleted it"
            ) from error


def can_pass(error: BaseException) -> bool:
    """Return whether a database error is transient: an outage, a lock, a race.

    A full disk, a missing table or right, and a damaged file are not.
    """
    cause = _cause(error)
    if not isinstance(cause, DBAPIError):
        # A pool without a free connection is transient. Optuna names the cause of what it wraps.
        return isinstance(cause, StorageInternalError | PoolTimeoutError | PendingRollbackError)
    if cause.connection_invalidated or isinstance(cause, IntegrityError):
        return True
    code = _code(cause)
    if code is None:  # the connection failed or broke
        return isinstance(cause, OperationalError | InterfaceError)
    return code in TRANSIENT_CODES or (isinstance(code, str) and code[:2] in TRANSIENT_CLASSES)


def _cause(error: BaseException) -> BaseException:
    """Return the error of the database that Optuna wrapped."""
    return error.__cause__ or error if isinstance(error, StorageInternalError) else error


def _code(error: DBAPIError) -> int | str | None:
    """Return the error number of SQLite or MySQL, or the SQLSTATE of a PostgreSQL driver."""
    raised = error.orig
    number = getattr(raised, "sqlite_errorcode", None)
    if number is not None:
        return int(number) & 0xFF  # the primary code, without its extension
    state = getattr(raised, "sqlstate", None) or getattr(raised, "pgcode", None)
    if state:
        return str(state)
    first = raised.args[0] if isinstance(raised, Exception) and raised.args else None
    return first if isinstance(first, int) else None


def _mend(error: BaseException) -> str:
    """Return the remedy of an error as a sentence after a space; empty if none is known."""
    cause = _cause(error)
    code = _code(cause) if isinstance(cause, DBAPIError) else None
    if code in FULL_CODES:
        return " Make room on its disk."
    if code in DAMAGED_CODES:
        return (
            " Restore it from a backup, or move it away: the study then begins anew, and what it "
            "trained is still in the store."
        )
    return " Give this user the right to write there." if code in READ_ONLY_CODES else ""


STORE, POINT_KEY, IDENTITY = "igdit.store", "igdit.point_key", "igdit.identity"
GOAL = "igdit.goal"
"""Attributes of a study in Optuna: name of the store, key of a point's evaluation, identity in
MLflow and the register, and number of trials that were asked for."""
DRIVERS, STORE_ID = ".drivers/", "store-id"
"""Folder of a store with the locks of its studies' drivers, and the record with its name."""


def store_name(store: Store) -> str | None:
    """Return the name of a store, which all its users share; None if it has none yet."""
    return store.records(DRIVERS + STORE_ID).get("")


def name_store(store: Store) -> str:
    """Return the name of a store, created if it has none; call it under the storage's lock."""
    store.write_record(DRIVERS + STORE_ID, uuid.uuid4().hex)
    return store.records(DRIVERS + STORE_ID)[""]


def check_same(found: optuna.Study, study: Study, store: str) -> None:
    """Record the settings of a new study, or check that a recorded study has the same settings.

    The caller holds the lock of the storage.

    Args:
        found: The study of that name in the storage.
        study: The wanted study.
        store: Name of the store that its drivers share.

    Raises:
        ValueError: If its settings, store or code differ, or igdit did not create it.
    """
    known, fixed = retry_while_unavailable(lambda: found.user_attrs).get(SPEC), study.fixed()
    if known is None:
        directions = [
            direction.name for direction in retry_while_unavailable(lambda: found.directions)
        ]
        if directions != ["MINIMIZE"] or retry_while_unavailable(
            lambda: found.get_trials(deepcopy=False)
        ):
            raise ValueError(
                f"study {study.name!r} in that database is not igdit's: choose "
                f"another name with --name"
            )
        retry_while_unavailable(lambda: found.set_user_attr(SPEC, fixed))
    _check(
        found,
        STORE,
        store,
        "another store (its drivers keep their locks there): use the same "
        "IGDIT_HOME, or another study with --name",
    )
    if known is not None and known != fixed:
        raise ValueError(
            f"study {study.name!r} was started with other settings: "
            f"{'; '.join(differences(known, fixed)[:8])}. A study compares like with like: "
            f"go on with the old settings, or start another one with --name."
        )
    _check(
        found,
        POINT_KEY,
        point_key(study),
        "code that gives other results: start another study with --name",
    )
    if IDENTITY not in retry_while_unavailable(lambda: found.user_attrs):
        retry_while_unavailable(lambda: found.set_user_attr(IDENTITY, uuid.uuid4().hex))


def _check(found: optuna.Study, name: str, value: str, meaning: str) -> None:
    known = retry_while_unavailable(lambda: found.user_attrs).get(name)
    if known is None:
        retry_while_unavailable(lambda: found.set_user_attr(name, value))
    elif known != value:
        raise ValueError(f"study {found.study_name!r} belongs to {meaning}")


logger = logging.getLogger(__name__)


class StoredStudy(NamedTuple):
    """Study that was read from its storage."""

    study: Study
    identity: str
    """Name in MLflow and the register (`StudyLedger.identity`)."""
    trials: list[Trial]
    importances: dict[str, float]


def read_studies(url: str, store: Store) -> list[StoredStudy]:
    """Read the studies of a store; changes nothing.

    Args:
        url: Database (SQLAlchemy URL).
        store: Store of their artifacts.

    Raises:
        ValueError: If the database cannot be reached or used.
        NoStudiesError: If the database does not exist, or is new.
    """
    name_of_store = store_name(store)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(url, create=False)
    try:
        names = retry_while_unavailable(lambda: optuna.get_all_study_names(storage))
        studies = [_read(storage, name) for name in names]
    finally:
        storage.remove_session()
    return [
        stored for stored, where in studies if stored is not None and where in (None, name_of_store)
    ]


def _read(storage: RDBStorage, name: str) -> tuple[StoredStudy | None, str | None]:
    """Read a study, None if igdit did not create it, and the name of its store."""
    study = retry_while_unavailable(lambda: optuna.load_study(study_name=name, storage=storage))
    known = study.user_attrs
    if SPEC not in known:
        return None, None
    try:
        spec = Study.from_fixed(name, known[SPEC])
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("study %r was written by another version and is left out: %s", name, error)
        return None, None
    own = own_trials(retry_while_unavailable(study.get_trials))
    trials, found = [trial for trial, _ in own], importances([trial for _, trial in own])
    return StoredStudy(spec, known[IDENTITY], trials, found), known.get(STORE)


def read_study(url: str, store: Store, name: str) -> StoredStudy:
    """Read the study of that name in a store.

    Raises:
        ValueError: If there is no such study, or the database cannot be reached.
    """
    studies = read_studies(url, store)
    found = next((stored for stored in studies if stored.study.name == name), None)
    if found is None:
        known = ", ".join(stored.study.name for stored in studies) or "none"
        raise ValueError(f"study must be one that was begun ({known}), but got {name!r}")
    return found
