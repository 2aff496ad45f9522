"""What tests of all packages use."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def short_folder():
    """A folder for a Ray cluster: pytest's own is too deep for the paths of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="ig", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
