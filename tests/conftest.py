"""What tests of all packages use."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def short_folder():
    """A folder for servers and Ray clusters, not below pytest's own.

    That is too deep for the paths of Ray's sockets, and each start of pytest shuts other users out
    of it, PostgreSQL's among them.
    """
    with tempfile.TemporaryDirectory(prefix="ig", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
