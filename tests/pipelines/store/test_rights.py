"""A store that the users of a group share, and what is said where a right is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines.commands import run as experiment_run
from pipelines.commands.run import run_experiment
from pipelines.status.activity import _outcome
from pipelines.store.errors import CorruptArtifactError
from pipelines.store.folder import FolderStore
from pipelines.store.home import Home
from pipelines.store.keys import Ref
from pipelines.store.rights import explain, missing_right
from tests.pipelines.conftest import ROOT, tiny

GROUP = 54321
AS_USER = """
import json, os, sys
from pathlib import Path
from pipelines.graph.garbage import collect_garbage, in_use
from pipelines.store.folder import FolderStore
from pipelines.store.keys import Ref
from pipelines.store.locks import FileLock
root, user, group, umask = Path(sys.argv[1]), *(int(word, 8) for word in sys.argv[2:5])
os.setgroups([group]), os.setgid(group), os.setuid(user), os.umask(umask)
store = FolderStore(root)
def put(key):
    with store.publish(Ref("data", key), {}) as folder:
        (folder / "deep").mkdir()
        for name in ("a.txt", "deep/b.txt"):
            (folder / name).write_text(key)
            (folder / name).chmod(0o600)  # as safetensors does
"""
LEAVE = """
store.prepare()
with in_use(store):
    for key in ("one", "other", "broken"):
        put(key)
    store.write_record(".runs/0123.json", "{}")
    store.quarantine(Ref("data", "broken"))
    assert store.lock(".drivers/driver-1.lock").acquire()
    with store.lease(Ref("data", "next")):
        building = store._staging(Ref("data", "next"))
        building.__enter__().mkdir()
        sys.stdout.flush()
        os._exit(0)  # as if it were killed
"""
USE = """
store.prepare()
assert store.open(Ref("data", "one")).size == 6
with in_use(store), store.lease(Ref("data", "next")) as held:
    assert held
    put("next")
assert store.sweep() == 1
lock = store.lock(".drivers/driver-1.lock")
assert lock.acquire()
lock.release(delete=True)
store.delete_record(".runs/0123.json")
[store.delete_quarantined(name) for name in store.quarantined()]
store.quarantine(Ref("data", "one"))
store.delete(store.open(Ref("data", "other")))
print(len(list(store.events())))
collect_garbage(store)
assert store.list() == []
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def run_as(code: str, root: Path, user: int, umask: int) -> subprocess.CompletedProcess[str]:
    """Run a program as another user of the group, in a process of its own."""
    numbers = [f"{number:o}" for number in (user, GROUP, umask)]
    return subprocess.run(
        [sys.executable, "-c", AS_USER + code, str(root), *numbers],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/"},
        cwd="/",
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )


@pytest.fixture
def shared():
    """A folder that the group shares, where it can be reached by its users."""
    folder = Path(tempfile.mkdtemp(prefix="igdit-shared-"))
    os.chown(folder, -1, GROUP)
    folder.chmod(0o2775)
    yield folder / "store"
    shutil.rmtree(folder)


@as_root
def test_what_one_user_of_a_group_left_another_one_uses_and_clears_up(shared):
    first = run_as(LEAVE, shared, 54322, 0o002)
    assert first.returncode == 0, first.stderr
    second = run_as(USE, shared, 54323, 0o002)
    assert second.returncode == 0, second.stderr
    assert second.stdout == "7\n"


@as_root
def test_a_store_that_others_may_only_read_is_refused_before_work(shared):
    assert run_as(LEAVE, shared, 54322, 0o022).returncode == 0
    second = run_as("store.prepare()", shared, 54323, 0o002)
    message = second.stderr.strip().splitlines()[-1]
    assert f"{shared} belongs to 54322:{GROUP} with the rights drwxr-sr-x" in message
    assert "54323 may not write it. 54322 can mend it by: chmod -R g+rwX" in message
    reading = run_as("print(store.find(Ref('data', 'one')).size)", shared, 54323, 0o002)
    assert reading.stdout == "6\n"


@as_root
def test_one_folder_of_a_store_that_cannot_be_written_is_refused_before_work(shared):
    assert run_as(LEAVE, shared, 54322, 0o002).returncode == 0
    (shared / "data").chmod(0o2755)
    message = run_as("store.prepare()", shared, 54323, 0o002).stderr
    assert f"chmod -R g+rwX {shared / 'data'} " in message


@as_root
@pytest.mark.parametrize(
    ("name", "mode", "code", "right"),
    [
        (".leases/data-next", 0o644, "store.lease(Ref('data', 'next')).__enter__()", "write"),
        ("data/one", 0o2750, "store.quarantine(Ref('data', 'one'))", "write"),
        ("data/one/a.txt", 0o000, "store.open(Ref('data', 'one'))", "read"),
        ("data/one", 0o000, "store.open(Ref('data', 'one'))", "enter"),
        ("data", 0o2755, "put('new')", "write"),
    ],
)
def test_a_missing_right_is_named_with_its_file_and_mend(shared, name, mode, code, right):
    assert run_as(LEAVE, shared, 54322, 0o002).returncode == 0
    (shared / name).chmod(mode)
    try_it = f"""
from pipelines.store.rights import explain
try:
    {code}
except Exception as error:
    print(explain(error) if isinstance(error, OSError) else error)
"""
    said = run_as(try_it, shared, 54323, 0o002).stdout
    assert f"{shared / name} belongs to 54322:{GROUP} with the rights" in said
    assert (
        f"54323 may not {right} it. 54322 can mend it by: chmod -R g+rwX {shared / name} " in said
    )


@as_root
def test_a_link_to_where_nobody_else_may_look_is_named_by_what_closes_it(shared):
    assert run_as(LEAVE, shared, 54322, 0o002).returncode == 0
    closed = shared.parent / "closed"
    (closed / "images").mkdir(parents=True)
    closed.chmod(0o700)
    (shared / "images").symlink_to(closed / "images")
    message = run_as("store.prepare()", shared, 54323, 0o002).stderr.strip().splitlines()[-1]
    assert f"ValueError: the store must be a folder that can be written, but {shared}" in message
    assert f"{closed} belongs to root" in message
    assert "54323 may not enter it" in message


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o077, 0o600)])
def test_everything_in_a_store_follows_the_umask(tmp_path, umask, mode):
    store, before = FolderStore(tmp_path / "store"), os.umask(umask)
    try:
        with store.publish(Ref("data", "0123"), {}) as folder:
            for name in ("private", "usual"):
                (folder / name).write_text(name)
            (folder / "private").chmod(0o600)
        store.write_record(".runs/0123.json", "{}")
        assert store.lock(".drivers/x").acquire()
    finally:
        os.umask(before)
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}


def deny(monkeypatch, denied: Path) -> None:
    """Let a folder be one that may not be written (root may write everywhere)."""
    access = os.access
    monkeypatch.setattr(
        "pipelines.store.rights.os.access",
        lambda path, mode: access(path, mode) and not (mode & os.W_OK and Path(path) == denied),
    )


@pytest.mark.parametrize("name", ["", "report", "mlflow.db"])
def test_a_home_that_cannot_be_written_is_refused_before_work(tmp_path, monkeypatch, name):
    home = Home(tmp_path / "home")
    (home.root / name).mkdir(parents=True)
    deny(monkeypatch, home.root / name)
    monkeypatch.setattr(experiment_run, "resolve", None)  # the first thing that takes time
    with pytest.raises(ValueError, match=f"the home must be a folder.*{home.root / name} belongs"):
        run_experiment(tiny(), home, None)


def test_a_database_elsewhere_need_not_be_here(tmp_path, monkeypatch):
    home = Home(tmp_path / "home")
    (home.root / "mlflow.db").mkdir(parents=True)
    deny(monkeypatch, home.root / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    home.prepare()


def test_other_errors_are_said_as_they_are(tmp_path):
    full = OSError(28, "No space left on device", str(tmp_path))
    assert explain(full) == str(full)
    nameless = PermissionError(13, "Permission denied")
    assert explain(nameless) == str(nameless)
    assert missing_right(tmp_path / "not" / "there") is None


def test_how_a_run_ended_says_the_missing_right(tmp_path, monkeypatch):
    deny(monkeypatch, tmp_path)
    error = PermissionError(13, "Permission denied", str(tmp_path / "file"))
    assert f"failed: {tmp_path} belongs to" in _outcome(error)


def test_a_file_that_may_not_be_looked_at_is_not_called_damaged(tmp_path, monkeypatch):
    store = FolderStore(tmp_path)
    with store.publish(Ref("data", "0123"), {}) as folder:
        (folder / "a").write_text("a")
    stat = Path.stat

    def refuse(path, **options):
        if path.name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(PermissionError):
        store.open(Ref("data", "0123"))
    assert not issubclass(CorruptArtifactError, PermissionError)
