"""The database of a study: what may pass, what stays, and what is none of ours."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState, create_trial
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError

from pipelines.__main__ import main
from pipelines.commands import track
from pipelines.common.errors import NoStudiesError, StudyError
from pipelines.common.redaction import redact_error
from pipelines.store.folder import FolderStore
from pipelines.store.home import Home
from pipelines.study import storage
from pipelines.study.storage import (
    can_pass,
    open_storage,
    read_studies,
    read_study,
    retry_while_unavailable,
)
from pipelines.tracking.messages import behind
from tests.pipelines.study.conftest import claimed


def execute(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def raised(act) -> sqlite3.Error:
    """What SQLite raises, with its code."""
    try:
        act()
    except sqlite3.Error as error:
        return error
    raise AssertionError("nothing was raised")


def locked(path: Path) -> sqlite3.Error:
    with (
        contextlib.closing(sqlite3.connect(path)) as one,
        contextlib.closing(sqlite3.connect(path, timeout=0)) as other,
    ):
        one.execute("BEGIN EXCLUSIVE")
        return raised(lambda: other.execute("BEGIN EXCLUSIVE"))


class DriverError(Exception):
    """An error of a server's driver."""

    def __init__(self, *args: object, sqlstate: str | None = None) -> None:
        super().__init__(*args)
        self.sqlstate = sqlstate


def wrapped(error: Exception, kind: type[DBAPIError] = OperationalError) -> DBAPIError:
    return kind("UPDATE trials SET x", {"x": 1}, error)


def by_optuna(error: Exception) -> StorageInternalError:
    """As Optuna raises what its session raised."""
    outer = StorageInternalError("An exception is raised during the commit. ")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error",
    [
        DriverError("connection refused"),
        DriverError("server closed the connection unexpectedly", sqlstate="08006"),
        DriverError("terminating connection", sqlstate="57P01"),
        DriverError("the database system is starting up", sqlstate="57P03"),
        DriverError("deadlock detected", sqlstate="40P01"),
        DriverError("sorry, too many clients already", sqlstate="53300"),
        DriverError(2013, "Lost connection to MySQL server during query"),
    ],
)
def test_an_outage_a_lock_and_a_race_can_pass(error):
    assert can_pass(wrapped(error))
    assert can_pass(by_optuna(wrapped(error)))


@pytest.mark.parametrize(
    "error",
    [
        DriverError("disk full", sqlstate="53100"),
        DriverError("permission denied for table trials", sqlstate="42501"),
        DriverError("relation trials does not exist", sqlstate="42P01"),
        DriverError("database was dropped", sqlstate="57P04"),
        DriverError(1146, "Table 'trials' doesn't exist"),
    ],
)
def test_what_somebody_must_mend_does_not_pass(error):
    assert not can_pass(by_optuna(wrapped(error)))
    assert not can_pass(wrapped(error, ProgrammingError))


def test_sqlite_says_what_passes(tmp_path):
    path = tmp_path / "some.db"
    execute(path, "CREATE TABLE t (x UNIQUE)", "INSERT INTO t VALUES (1)")
    database = sqlite3.connect(path)
    assert can_pass(by_optuna(wrapped(locked(path))))
    twice = raised(lambda: database.execute("INSERT INTO t VALUES (1)"))
    assert can_pass(wrapped(twice, IntegrityError)), "another process was first"
    assert not can_pass(wrapped(raised(lambda: database.execute("SELECT * FROM gone"))))
    snapshot = sqlite3.OperationalError("database is locked")
    snapshot.sqlite_errorcode = sqlite3.SQLITE_BUSY_SNAPSHOT
    assert can_pass(wrapped(snapshot)), "a variant of a lock"
    late = sqlite3.OperationalError("disk I/O error")
    late.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
    assert can_pass(wrapped(late)), "a shared file system that answers late"
    database.execute("PRAGMA query_only = ON")
    assert not can_pass(wrapped(raised(lambda: database.execute("DELETE FROM t"))))
    database.close()


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleeping moves; returns the naps."""
    naps: list[float] = []

    def sleep(seconds):
        naps.append(seconds)
        assert len(naps) < 1000, "it is tried for ever"

    monkeypatch.setattr(storage.time, "sleep", sleep)
    monkeypatch.setattr(storage.time, "monotonic", lambda: sum(naps))
    return naps


def gone():
    raise by_optuna(wrapped(DriverError("connection refused")))


def test_each_call_has_its_own_clock(clock):
    """Another thread's successes keep no one waiting for ever."""

    def act():
        assert retry_while_unavailable(lambda: "done") == "done"
        gone()

    with pytest.raises(StudyError, match=r"database failed: .*connection refused"):
        retry_while_unavailable(act)
    assert len(clock) == storage.OUTAGE_SECONDS + 1
    attempts = []

    def comes_back():
        attempts.append(0)
        return "there" if len(attempts) > storage.OUTAGE_SECONDS else gone()

    assert retry_while_unavailable(comes_back) == "there", (
        "nor does an outage before it count against a call"
    )


def test_what_does_not_pass_is_said_at_once_with_what_mends_it(open_ledger, study, clock):
    ledger = open_ledger(study())

    @event.listens_for(ledger._storage.engine, "connect")
    def full(connection, _):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    ledger._storage.engine.dispose()
    with pytest.raises(StudyError, match=r"full\. Make room on its disk\. Nothing") as caught:
        fill(ledger)
    assert "\n" not in str(caught.value)
    assert clock == []


def fill(ledger):
    for number in range(100):
        ledger._retry(functools.partial(ledger._optuna.set_user_attr, f"{number}", "x" * 2000))


def test_a_database_that_may_not_be_written_is_refused_but_can_be_read(
    open_ledger, study, tmp_path
):
    open_ledger(study())
    url = f"sqlite:///file:{tmp_path}/study.db?mode=ro&uri=true"
    with pytest.raises(StudyError, match=r"readonly.*the right to write there"):
        open_ledger(study(name="new"), url)
    assert read_study(url, FolderStore(tmp_path / "store"), "small").trials == []


def test_a_study_that_was_deleted_under_its_driver_is_said_to_be(open_ledger, study, tmp_path):
    ledger = open_ledger(study())
    optuna.delete_study(study_name="small", storage=f"sqlite:///{tmp_path / 'study.db'}")
    with pytest.raises(StudyError, match="not in its database any more"):
        ledger.goal(8)


MIGRATION = "UPDATE alembic_version SET version_num = '{}'"


def test_tables_of_another_version_of_optuna_are_one_line_with_the_command(
    open_ledger, study, tmp_path, monkeypatch, capsys
):
    open_ledger(study()).close()
    path = tmp_path / "study.db"
    execute(path, MIGRATION.format("v99.0.0"))
    with pytest.raises(ValueError, match=r"study\.db was set up by a newer Optuna") as newer:
        open_ledger(study())
    assert str(newer.value).endswith("pip install --upgrade optuna")
    execute(path, MIGRATION.format("v3.0.0.d"))
    monkeypatch.setenv("IGDIT_STUDY_STORAGE", f"sqlite:///{path}")
    monkeypatch.setenv("IGDIT_HOME", str(tmp_path / "home"))
    assert main(["report", "study", "small"]) == 2
    said = capsys.readouterr().err.splitlines()[0]
    assert "set up by an older Optuna" in said
    command = said.partition(": optuna ")[2].replace("'", "").split()
    program = "import sys; from optuna.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(open_ledger(study()).trials()) == 0


def test_a_password_is_not_in_the_command(monkeypatch):
    class Older:
        engine = type("Engine", (), {"dispose": staticmethod(lambda: None)})
        get_current_version = staticmethod(lambda: "v1")
        get_head_version = staticmethod(lambda: "v2")
        get_all_versions = staticmethod(lambda: ["v1", "v2"])

    monkeypatch.setattr(storage, "_require_studies", lambda *_, **__: None)
    monkeypatch.setattr(storage, "RDBStorage", lambda *_, **__: Older)
    with pytest.raises(ValueError, match=r"upgrade --storage '.*me:\*\*\*@there") as caught:
        open_storage("postgresql+psycopg://me:hushhush@there/db")
    assert "hushhush" not in str(caught.value)


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path):
    alembic = "CREATE TABLE alembic_version (version_num VARCHAR(32))"
    for name, statements in {
        "mlflow": (alembic, "INSERT INTO alembic_version VALUES ('c48cb773bb87')"),
        "school": ("CREATE TABLE studies (subject)",),
        "court": ("CREATE TABLE trials (judge)",),
    }.items():
        path = tmp_path / f"{name}.db"
        execute(path, *statements)
        before = path.read_bytes()
        with pytest.raises(ValueError, match=f"{name}.db belongs to another program"):
            open_storage(f"sqlite:///{path}")
        assert path.read_bytes() == before


def test_setting_up_that_was_cut_short_is_gone_on_with(tmp_path):
    path = tmp_path / "study.db"
    open_storage(f"sqlite:///{path}").engine.dispose()
    execute(path, "DROP TABLE alembic_version", "DROP TABLE version_info")
    assert optuna.get_all_study_names(open_storage(f"sqlite:///{path}")) == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///{0}/none.db", r"none\.db does not exist"),
        ("sqlite:///{0}/empty.db", r"empty\.db holds none yet"),
        ("sqlite:///{0}/text.db", "file is not a database. Restore it from a backup, or move"),
        ("sqlite://", "database in memory"),
        ("sqlite:///:memory:", "database in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "database in memory"),
    ],
)
def test_those_who_look_make_no_database(tmp_path, url, words):
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("these are not the tables that you are looking for" * 99)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=words):
        open_storage(url.format(tmp_path), create=False)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


SPACE = {
    "aux_layer": optuna.distributions.IntDistribution(1, 2),
    "aux_weight": optuna.distributions.FloatDistribution(0.1, 1.0, step=0.1),
    "ig_scale": optuna.distributions.FloatDistribution(1.0, 3.0, step=0.1),
}
POINT = {"aux_layer": 1, "aux_weight": 0.5, "ig_scale": 1.8}


def test_trials_that_others_enter_are_passed_over(open_ledger, study, tmp_path):
    """A dashboard, a script: they were not measured as ours are, and steer nothing."""
    ledger, undisturbed = open_ledger(study()), open_ledger(study(name="undisturbed"))
    url = f"sqlite:///{tmp_path / 'study.db'}"
    theirs = optuna.load_study(study_name="small", storage=url)
    theirs.add_trial(create_trial(params=POINT, distributions=SPACE, value=0.1))
    for number in range(12):
        x = {"x": optuna.distributions.FloatDistribution(0, 1)}
        theirs.add_trial(create_trial(params={"x": number / 12}, distributions=x, value=0.0))
    theirs.add_trial(
        create_trial(
            params=POINT,
            distributions=SPACE,
            value=0.1,
            user_attrs={"igdit.owner": "../../elsewhere", "igdit.fid": {}},
        )
    )
    theirs.enqueue_trial(POINT)
    play(ledger, 16)
    play(undisturbed, 16)
    points = [(trial.point, trial.fid) for trial in ledger.trials()]
    assert points == [(trial.point, trial.fid) for trial in undisturbed.trials()]
    assert ledger.importances().keys() == POINT.keys()
    stored = read_study(url, FolderStore(tmp_path / "store"), "small")
    assert [(trial.point, trial.fid) for trial in stored.trials] == points
    assert stored.importances.keys() == POINT.keys()


def play(ledger, wanted):
    while trial_group := claimed(ledger, wanted):
        for trial in trial_group:
            ledger.complete(trial, 8 + (trial.point.ig_scale - 1.8) ** 2, {})


def test_a_trial_that_somebody_else_finishes_is_none_of_ours(open_ledger, study, tmp_path):
    ledger = open_ledger(study())
    first = claimed(ledger, 8)[0]
    theirs = optuna.load_study(study_name="small", storage=f"sqlite:///{tmp_path / 'study.db'}")
    theirs.tell(first.number, 0.1)
    assert first.number not in {trial.number for trial in ledger.trials()}
    theirs.set_user_attr("igdit.goal", 5)
    broken = create_trial(
        state=TrialState.RUNNING,
        params=POINT,
        distributions=SPACE,
        user_attrs={"igdit.owner": ledger.driver, "igdit.curve": "[not a curve"},
    )
    theirs.add_trial(broken)
    assert {trial.number for trial in ledger.trials()} == {1, 2}


def test_a_study_with_several_objectives_is_somebody_elses(open_ledger, study, tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(storage=url, study_name="small", directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="not igdit's"):
        open_ledger(study())


def test_what_mlflows_database_says_is_one_line():
    error = wrapped(sqlite3.OperationalError("database or disk is full"))
    assert len(str(error).splitlines()) > 2
    assert redact_error(error) == "(sqlite3.OperationalError) database or disk is full"
    assert redact_error(ValueError()) == "ValueError"
    assert "\n" not in behind("sqlite:///mlflow.db", error)


def test_one_line_is_logged_while_mlflow_is_behind(caplog):
    from pipelines.tracking.background import BackgroundSync

    tried = threading.Event()

    def sync():
        tried.set()
        raise wrapped(sqlite3.OperationalError("database or disk is full"))

    background = BackgroundSync(sync, pause_seconds=0.01)
    background.request()
    assert tried.wait(10)
    background.close(10)
    (record,) = caplog.records
    assert record.getMessage().endswith("database or disk is full")


def test_studies_of_another_store_are_left_out(open_ledger, study, tmp_path):
    open_ledger(study()).close()
    url = f"sqlite:///{tmp_path / 'study.db'}"
    assert [s.study.name for s in read_studies(url, FolderStore(tmp_path / "store"))] == ["small"]
    assert read_studies(url, FolderStore(tmp_path / "another_store")) == []
    with pytest.raises(ValueError, match=r"that was begun \(none\), but got 'small'"):
        read_study(url, FolderStore(tmp_path / "another_store"), "small")


def test_a_database_that_is_named_for_all_studies_may_be_new(tmp_path, monkeypatch):
    home, url = Home(tmp_path), f"sqlite:///{tmp_path / 'later.db'}"
    monkeypatch.setenv("IGDIT_STUDY_STORAGE", url)
    assert track._studies(home, None) == []
    with pytest.raises(NoStudiesError, match=r"later\.db does not exist"):
        track._studies(home, url)
