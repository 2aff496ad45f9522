"""Text is UTF-8 on every machine, and no locale ends a command."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from pipelines.console.console import accept_any_text
from pipelines.store.files import replace_text, write_durably
from tests.pipelines.conftest import ROOT

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""Surroundings in which Python itself reads and writes ASCII."""


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("ascii", b"FID ? \xc3\xa9 ?\n"), ("latin-1", b"FID \xb1 \xc3\xa9 ?\n")],
)
def test_any_text_can_be_printed(encoding, written):
    """What the terminal lacks is a question mark; an undecoded file name is the bytes it was."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding)
    accept_any_text(terminal)
    print("FID \xb1 \udcc3\udca9 \ud800", file=terminal)
    terminal.flush()
    assert terminal.buffer.getvalue() == written


@pytest.mark.parametrize("write", [replace_text, write_durably])
def test_any_text_can_be_written(write, tmp_path):
    write(tmp_path / "text", "\xb1 \udcc3\udca9 \ud800")
    assert (tmp_path / "text").read_bytes() == "\xb1 \xe9 ?".encode()


def test_a_report_is_written_under_an_ascii_locale(finished, tmp_path):
    """The page says that it is UTF-8, and is; its address has a name that is not ASCII."""
    home = tmp_path / "h\xf6me"
    finished.copy_store(home / "store")
    environment = {**os.environ, **ASCII, "IGDIT_HOME": str(home), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "pipelines", "report"]
    run = subprocess.run(words, env=environment, capture_output=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr.decode()
    [page] = home.glob("report/*/report.html")
    assert run.stdout == f"{page}\n".encode()
    assert not page.read_text(encoding="utf-8").isascii()
