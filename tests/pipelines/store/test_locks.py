from __future__ import annotations

import fcntl
import os
import platform
import threading
import time
from pathlib import Path

import pytest

from pipelines.common.errors import StoppedError
from pipelines.store.locks import FileLock, Holder, holder, wait_for_lock

HOLD = """
import sys
from pathlib import Path
from pipelines.store.locks import FileLock, Holder, holder
lock = FileLock(Path(sys.argv[1]), shared=sys.argv[2] == "shared")
print(lock.acquire())
input()
lock.release()
print("released")
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "lock"


def test_two_objects_of_one_process_exclude_each_other(path):
    first, second = FileLock(path), FileLock(path)
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()


def test_another_process_is_excluded_until_the_lock_is_released(path, child):
    other = child(HOLD, path, "exclusive")
    assert other.read() == "True"
    assert not FileLock(path).acquire()
    other.say()
    assert other.read() == "released"
    lock = FileLock(path)
    assert lock.acquire()
    lock.release()


def test_a_killed_holder_frees_its_lock(path, child):
    other = child(HOLD, path, "exclusive")
    assert other.read() == "True"
    other.kill()
    lock = FileLock(path)
    assert lock.acquire()
    lock.release()


def test_shared_holders_go_together_and_exclude_an_exclusive_one(path, child):
    other = child(HOLD, path, "shared")
    assert other.read() == "True"
    mine = FileLock(path, shared=True)
    assert mine.acquire()
    assert not FileLock(path).acquire()
    mine.release()
    assert not FileLock(path).acquire()
    other.say()
    assert other.read() == "released"
    assert FileLock(path).acquire()


def test_an_exclusive_holder_excludes_shared_ones(path):
    exclusive = FileLock(path)
    assert exclusive.acquire()
    assert not FileLock(path, shared=True).acquire()
    exclusive.release()
    shared = FileLock(path, shared=True)
    assert shared.acquire()
    shared.release()


def test_the_file_goes_if_asked_and_stays_otherwise(path):
    lock = FileLock(path)
    assert lock.acquire()
    lock.release()
    assert path.exists()
    assert lock.acquire()
    lock.release(delete=True)
    assert not path.exists()


def test_releasing_what_is_not_held_does_nothing(path):
    holder, other = FileLock(path), FileLock(path)
    assert holder.acquire()
    other.release(delete=True)
    assert path.exists()
    assert not other.acquire()
    holder.release()
    holder.release()


def interfere(monkeypatch, deed):
    """Do something once, after a lock's file was opened and before it is locked."""
    real, deeds = fcntl.flock, [deed]

    def flock(file, operation):
        if deeds:
            deeds.pop()()
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_file_removed_while_it_is_being_locked_does_not_count(path, monkeypatch):
    lock = FileLock(path)
    interfere(monkeypatch, path.unlink)
    assert not lock.acquire()
    assert lock.acquire()
    assert not FileLock(path).acquire()
    lock.release()


def test_a_file_replaced_while_it_is_being_locked_does_not_count(path, monkeypatch):
    winner, loser = FileLock(path), FileLock(path)

    def replace():
        path.unlink()
        assert winner.acquire()

    interfere(monkeypatch, replace)
    assert not loser.acquire()
    winner.release()
    assert loser.acquire()
    loser.release()


def test_a_failed_try_leaves_no_open_file(path):
    holder = FileLock(path)
    assert holder.acquire()
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert [FileLock(path).acquire() for _ in range(5)] == [False] * 5
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    holder.release()


def test_a_try_that_fails_otherwise_leaves_no_open_file(path, monkeypatch):
    """A file system without locks, say."""

    def refuse(*_):
        raise OSError(37, "No locks available")

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = FileLock(path)
    for _ in range(5):
        with pytest.raises(OSError, match="No locks available"):
            lock.acquire()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    lock.release(delete=True)
    assert path.exists()


def test_a_second_try_of_the_holder_is_refused_and_keeps_the_lock(path):
    lock = FileLock(path)
    assert (lock.acquire(), lock.acquire()) == (True, False)
    assert not FileLock(path).acquire()
    lock.release()
    assert FileLock(path).acquire()


def test_the_file_goes_while_the_lock_still_holds(path, monkeypatch):
    """Else it could take away the file of whoever locked it in between: two would hold it."""
    lock, next_one, close = FileLock(path), FileLock(path), os.close
    assert lock.acquire()

    def close_and_let_the_next_one_in(file):
        close(file)
        monkeypatch.setattr(os, "close", close)
        assert next_one.acquire()

    monkeypatch.setattr(os, "close", close_and_let_the_next_one_in)
    lock.release(delete=True)
    assert not FileLock(path).acquire()


def test_an_owner_waits_for_whoever_only_looks(path):
    looker = FileLock(path)
    assert looker.acquire()
    threading.Timer(0.05, looker.release, kwargs={"delete": True}).start()
    owner = FileLock(path)
    wait_for_lock(owner, 0.01)
    assert not FileLock(path).acquire()
    assert holder(path).pid == os.getpid()


def test_waiting_for_a_lock_can_be_stopped(path):
    with FileLock(path), pytest.raises(StoppedError):
        wait_for_lock(FileLock(path), 0.01, lambda: True)


def test_as_a_context_it_holds_within_and_says_what_is_locked(path):
    with FileLock(path):
        assert not FileLock(path).acquire()
        with pytest.raises(BlockingIOError, match="lock is locked"), FileLock(path):
            pass
    lock = FileLock(path)
    assert lock.acquire()
    lock.release()


def test_an_error_inside_the_context_releases_the_lock(path):
    with pytest.raises(ZeroDivisionError), FileLock(path):
        raise ZeroDivisionError
    assert FileLock(path).acquire()


# Who holds it


def test_the_holder_of_a_lock_is_known_until_it_dies(path, child):
    assert holder(path) is None
    assert not path.parent.exists()
    other = child(HOLD, path, "exclusive")
    assert other.read() == "True"
    found = holder(path)
    assert (found.host, found.pid) == (platform.node(), other.process.pid)
    assert abs(found.since - time.time()) < 60
    other.kill()
    assert holder(path) is None
    assert path.exists()


def test_the_next_holder_signs_in_place_of_the_last(path):
    path.parent.mkdir()
    path.write_text("123456 a-host-with-a-very-long-name-that-must-not-remain\n" * 3)
    with FileLock(path):
        assert holder(path) == Holder(platform.node(), os.getpid(), path.stat().st_mtime)


def test_looking_leaves_the_lock_to_others(path):
    lock = FileLock(path)
    assert lock.acquire()
    lock.release()
    assert holder(path) is None
    assert lock.acquire()
    assert holder(path) is not None
    assert not FileLock(path).acquire()


@pytest.mark.parametrize("note", [b"", b"here", b"\xff\xff x", "\u0661 host".encode()])
def test_a_holder_that_signed_otherwise_is_unknown(path, note):
    with FileLock(path):
        path.write_bytes(note)
        assert (holder(path).host, holder(path).pid) == ("unknown", 0)


def test_a_full_disk_takes_the_note_and_not_the_lock(path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.store.locks.os.pwrite", full)
    with FileLock(path):
        assert not FileLock(path).acquire()
        assert holder(path).pid == 0
