"""Optuna's storage and samplers, as a study uses them."""

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
"""How long a storage may be away (locked, restarting) before the study stops."""
OPTUNA_COLUMNS = {"studies": {"study_id", "study_name"}, "trials": {"trial_id", "study_id"}}
"""Table -> columns by which it is known as Optuna's. Its schema versions begin with a v, those of
other programs that use Alembic, MLflow among them, are hexadecimal."""
PASSING_CLASSES = {"08", "40"}
"""SQLSTATE classes of errors that pass: connections, and transactions to be tried again."""
PASSING_CODES = {
    # A shared file system that answers late is an I/O error to SQLite.
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_IOERR),
    # PostgreSQL: out of memory or connections, a lock, a statement cut off, restarts.
    *("53200", "53300", "55P03", "57014", "57P01", "57P02", "57P03", "57P05"),
    # MySQL: too many connections, shutdown, lock wait, deadlock, connections.
    *(1040, 1053, 1205, 1213, 2002, 2003, 2006, 2013, 2055),
}
FULL_CODES = {sqlite3.SQLITE_FULL, "53100", 1021, 1114}
READ_ONLY_CODES = {sqlite3.SQLITE_READONLY, "25006", "42501", 1142, 1290}
DAMAGED_CODES = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}
"""Codes of a full disk, of a database that this user may not write to, and of a damaged file."""


def open_storage(url: str, *, create: bool = True) -> RDBStorage:
    """Connect to a database of studies.

    Args:
        url: Database, as SQLAlchemy writes it.
        create: Set it up if it is new.

    Raises:
        ValueError: the URL is none, its driver is missing, the database cannot be reached, holds
            something else, or was set up by another version of Optuna.
        NoStudiesError: it is new, and is not to be set up.
    """
    try:
        parsed = make_url(url)
    except SQLAlchemyError as error:
        raise ValueError(
            f"the study's storage must be a database URL (sqlite:///FILE, "
            f"postgresql+psycopg://USER@HOST/NAME), but got {redact(url)!r}"
        ) from error
    shown = redact(parsed.render_as_string(hide_password=True))  # parameters as well
    # SQLite: wait for another process's write instead of failing. Servers: notice a restart.
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
    """See that a database is Optuna's, or free for it, before anything is written there.

    One that was not set up to the end is: whoever opens it next goes on with it.
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
    """See that a database has the tables that the installed Optuna expects."""
    there, expected = storage.get_current_version(), storage.get_head_version()
    if there == expected:
        return
    storage.engine.dispose()
    if there in storage.get_all_versions():
        raise ValueError(
            f"the study's storage {shown} was set up by an older Optuna (tables {there}, expected "
            f"{expected}). This command upgrades it, once nobody uses it: "
            f"optuna storage upgrade --storage '{shown}'"
        )
    raise ValueError(
        f"the study's storage {shown} was set up by a newer Optuna (tables {there}; Optuna "
        f"{optuna.__version__} knows up to {expected}). This command installs the newest: "
        f"{Path(sys.executable).name} -m pip install --upgrade optuna"
    )


def importances(trials: Iterable[FrozenTrial]) -> dict[str, float]:
    """Optuna's parameter importances, largest first; empty while there are too few trials."""
    study = optuna.create_study(direction="minimize")
    study.add_trials([trial for trial in trials if trial.state.name == "COMPLETE"])
    try:
        with warnings.catch_warnings(action="ignore"):  # of few trials: they are counted elsewhere
            return dict(optuna.importance.get_param_importances(study))
    except (ValueError, RuntimeError):
        return {}


def retry_while_unavailable(
    act: Callable[[], Any], stopped: Callable[[], bool] = lambda: False
) -> Any:  # noqa: ANN401
    """Do something with the storage; while that is away, try again for a while.

    Args:
        act: What to do; doing it twice must be the same as doing it once.
        stopped: Whether to give up at once.

    Raises:
        StudyError: the storage stayed away, or failed in a way that does not pass.
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
        except KeyError as error:  # Optuna's word for rows that are not there
            raise StudyError(
                f"the study is not in its database any more ({error.args[0]}): another program "
                f"deleted it"
            ) from error


def can_pass(error: BaseException) -> bool:
    """Whether a database error may be gone at the next attempt: an outage, a lock, a race.

    A full disk, a missing table or right, a damaged file stay until somebody mends them.
    """
    cause = _cause(error)
    if not isinstance(cause, DBAPIError):
        # A pool without a free connection passes. Optuna names the cause of whatever it wraps.
        return isinstance(cause, StorageInternalError | PoolTimeoutError | PendingRollbackError)
    if cause.connection_invalidated or isinstance(cause, IntegrityError):
        return True
    code = _code(cause)
    if code is None:  # a connection that was not made, or broke, has none
        return isinstance(cause, OperationalError | InterfaceError)
    return code in PASSING_CODES or (isinstance(code, str) and code[:2] in PASSING_CLASSES)


def _cause(error: BaseException) -> BaseException:
    """What the database itself raised."""
    return error.__cause__ or error if isinstance(error, StorageInternalError) else error


def _code(error: DBAPIError) -> int | str | None:
    """SQLite's or MySQL's number of an error, or the SQLSTATE of a PostgreSQL driver."""
    raised = error.orig
    number = getattr(raised, "sqlite_errorcode", None)
    if number is not None:
        return int(number) & 0xFF  # the rest tells variants apart
    state = getattr(raised, "sqlstate", None) or getattr(raised, "pgcode", None)
    if state:
        return str(state)
    first = raised.args[0] if isinstance(raised, Exception) and raised.args else None
    return first if isinstance(first, int) else None


def _mend(error: BaseException) -> str:
    """What a person can do about it, as a sentence after a space."""
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
"""Attributes of the study: whose drivers it has, what a point is, what it is called elsewhere, and
how many trials were asked for."""
DRIVERS, STORE_ID = ".drivers/", "store-id"
"""Where a store keeps the locks of its studies' drivers, and its name."""


def store_name(store: Store) -> str | None:
    """A name of the store that is the same for everyone who shares it; None: it has none yet."""
    return store.records(DRIVERS + STORE_ID).get("")


def name_store(store: Store) -> str:
    """The store's name, given now if need be; under the lock of the storage."""
    store.write_record(DRIVERS + STORE_ID, uuid.uuid4().hex)
    return store.records(DRIVERS + STORE_ID)[""]


def check_same(found: optuna.Study, study: Study, store: str) -> None:
    """Enter what the study is, or compare with what it was; under the lock of the storage.

    Args:
        found: The study of that name in the storage, new or not.
        study: What is meant.
        store: Whose drivers work on it.

    Raises:
        ValueError: it is another one, or somebody else's.
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
    """A study as its storage has it."""

    study: Study
    identity: str
    """What it is called elsewhere (`StudyLedger.identity`)."""
    trials: list[Trial]
    importances: dict[str, float]


def read_studies(url: str, store: Store) -> list[StoredStudy]:
    """Read the studies whose work lies in a store; changes nothing.

    Args:
        url: Database, as SQLAlchemy writes it.
        store: Whose name the studies bear.

    Raises:
        ValueError: the database cannot be reached or used.
        NoStudiesError: it is not there, or new.
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
    """Read a study, None if igdit did not create it, and the store that its work lies in."""
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
    """Read one of these, by name.

    Raises:
        ValueError: there is no such study, or the database cannot be reached.
    """
    studies = read_studies(url, store)
    found = next((stored for stored in studies if stored.study.name == name), None)
    if found is None:
        known = ", ".join(stored.study.name for stored in studies) or "none"
        raise ValueError(f"study must be one that was begun ({known}), but got {name!r}")
    return found
