"""What tests of all packages use."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from pathlib import Path

import pytest

# Tests run in several processes at once, and start others: one thread each, set before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if sys.platform == "linux":
    # Each thread that works gets a heap of its own, and glibc hands none of them back: hundreds of
    # short trainings in threads hold a gigabyte of nothing. (-8 is M_ARENA_MAX.)
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(-8, 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that both processes are done at about one time."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture
def short_folder():
    """A folder for servers and Ray clusters, not below pytest's own.

    That is too deep for the paths of Ray's sockets, and each start of pytest shuts other users out
    of it, PostgreSQL's among them.
    """
    with tempfile.TemporaryDirectory(prefix="ig", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
