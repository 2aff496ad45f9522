from __future__ import annotations

import fcntl

import pytest

from pipelines.locks import FileLock

HOLD = """
import sys
from pathlib import Path
from pipelines.locks import FileLock
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
    lock.release(remove=True)
    assert not path.exists()


def test_releasing_what_is_not_held_does_nothing(path):
    holder, other = FileLock(path), FileLock(path)
    assert holder.acquire()
    other.release(remove=True)
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
    from pathlib import Path

    holder = FileLock(path)
    assert holder.acquire()
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert [FileLock(path).acquire() for _ in range(5)] == [False] * 5
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    holder.release()


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
