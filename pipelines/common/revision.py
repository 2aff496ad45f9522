"""Git commit of the code that runs."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from pipelines.common.settings import sent_commit

CODE = Path(__file__).resolve().parents[2]


def commit_of(root: Path) -> str:
    """Return the commit of a folder, as git tells it.

    Returns:
        The commit, with + if files differ from it; empty if git knows none.
    """

    def git(*words: str) -> str:
        run = subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True,
            check=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
        )
        return run.stdout.strip()

    try:
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+" if changed else "")


@functools.cache
def code_commit() -> str:
    """Return the commit of the code of this process, read once, as the code is loaded once.

    Returns:
        The commit, with + if files differed from it; empty if it is not known. A repository around
        the folder that igdit is installed in is not igdit's own.
    """
    own = commit_of(CODE) if (CODE / ".git").exists() else ""
    return own or sent_commit()


def split_commit(commit: str) -> tuple[str, bool]:
    """Split a commit into its name and whether files differed from it."""
    return commit.removesuffix("+"), commit.endswith("+")
