"""Secrets among the files to upload, which every job on the cluster could read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.common.errors import UsageError
from pipelines.common.redaction import parse_secrets

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SECRET_FILES = (
    ".env*",
    "*.pem",
    "*.p12",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    ".netrc",
    ".pgpass",
    ".aws",
    ".ssh",
    "secrets*",
    "!secrets*.py",  # code about secrets, such as ours, holds none
)
"""Patterns (gitignore's) of files that hold secrets and are not uploaded."""
SECRET_FILE_VARIABLES = {
    "IGDIT_SECRETS": None,
    "PGPASSFILE": "~/.pgpass",
    "RAY_AUTH_TOKEN_PATH": "~/.ray/auth_token",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
}
"""Variable that names a file of secrets -> the file's default place."""
SECRET_NAME = re.compile(r"PASSW|SECRET|TOKEN|CREDENTIAL|_KEY\b|_KEY$|ACCESS_KEY", re.IGNORECASE)
PATH_NAME = re.compile(r"_(PATH|FILE)$", re.IGNORECASE)
MAX_SECRET_FILE_BYTES = 2**16
"""Largest file in bytes that is searched for secrets."""


def check_no_secrets(root: Path, files: Iterable[str], environment: Mapping[str, str]) -> None:
    """Check that none of the files to upload holds secrets.

    Args:
        root: The folder.
        files: Names of the files to upload, relative to it.
        environment: Variables that name files of secrets.

    Raises:
        UsageError: If a file holds secrets.
    """
    named: dict[tuple[int, int] | None, str] = {}
    for variable, default in SECRET_FILE_VARIABLES.items():
        path = environment.get(variable) or default
        if path and (identity := _identity(Path(path).expanduser())):
            named[identity] = f"it is the file that {variable} names"
    for name in sorted(files):
        reason = named.get(_identity(root / name)) or _secret_reason(root / name)
        if reason:
            raise UsageError(
                f"{name} must not be uploaded, where every job can read it ({reason}):"
                f" move it out of {root}, or name it in .rayignore"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a file, equal for all of its names; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _secret_reason(path: Path) -> str:
    """Return why a file seems to hold secrets; empty if it does not.

    Only files that nobody else may read are searched, and no code: under a strict umask all files
    are such, and an assignment in a program is not a secret.
    """
    try:
        status = path.stat()
        if status.st_mode & 0o077 or status.st_size > MAX_SECRET_FILE_BYTES:
            return ""
        if path.suffix in (".py", ".sh"):
            return ""
        lines = path.read_text(encoding="utf-8").splitlines()
        text = "\n".join(line for line in lines if not line.strip().startswith(("[", ";")))
        values = parse_secrets(text, str(path))
    except (OSError, ValueError):
        return ""
    for name, value in values.items():
        if value and SECRET_NAME.search(name) and not PATH_NAME.search(name):
            return f"its mode is {status.st_mode & 0o777:04o} and it sets {name}"
    return ""
