"""Missing rights on files and folders, in messages that say what mends them."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def explain(error: OSError) -> str:
    """Return an error as text; of a missing right: the file, the right, and what mends it."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        for name in (error.filename, error.filename2):
            if isinstance(name, str | os.PathLike):
                missing = missing_right(Path(name))
                if missing is not None:
                    return missing
    return str(error)


def require_writable(folder: Path, names: Iterable[str], what: str) -> None:
    """Make a folder, and check that it and some files and folders in it can be written.

    Args:
        folder: Path of the folder.
        names: Files and folders in it; those that are not there are passed over.
        what: Noun for the folder in the message.

    Raises:
        ValueError: If one cannot be written; the message names it and what mends it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the {what} must be a folder that can be written, but {folder} is not: "
            f"{explain(error)}"
        ) from error
    for path in (folder, *(folder / name for name in names)):
        missing = missing_right(path) if os.path.lexists(path) else None
        if missing is not None:
            raise ValueError(
                f"the {what} must be a folder that can be written, but {folder} is not: {missing}"
            )


def missing_right(path: Path) -> str | None:
    """Return a sentence on the right that this process lacks to read and write a path.

    Args:
        path: A file or folder; if it is not there, the folder that it would be made in.

    Returns:
        The sentence, with what mends it; None if no right is missing.
    """
    # Where links lead to: what a link names may lie where this process may not even look.
    path = Path(os.path.realpath(path))
    for above in reversed(path.parents):
        if os.path.lexists(above) and not os.access(above, os.X_OK):
            return _sentence(above, "enter")
    while not os.path.lexists(path):
        path = path.parent
    wanted = os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)
    if os.access(path, wanted):
        return None
    return _sentence(path, "write" if os.access(path, os.R_OK) else "read")


def _sentence(path: Path, right: str) -> str:
    if right == "write" and os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"{path} lies on a file system that is mounted read-only"
    state = path.stat()
    owner, group = _user(state.st_uid), str(state.st_gid)
    with suppress(KeyError):
        group = grp.getgrgid(state.st_gid).gr_name
    return (
        f"{path} belongs to {owner}:{group} with the rights {stat.filemode(state.st_mode)}, and "
        f"{_user(os.geteuid())} may not {right} it. {owner} can mend it by: chmod -R g+rwX {path} "
        f"(how a group shares a store: cluster/README.md, 'Sharing a store')"
    )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
