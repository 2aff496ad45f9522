"""Files with secrets that lie in the folder which is uploaded: every job could read them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.common.errors import UsageError
from pipelines.common.redaction import parse_secrets

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KEPT_BACK = (
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
"""Names of files that hold secrets (gitignore's patterns)."""
NAMED_BY = {
    "IGDIT_SECRETS": None,
    "PGPASSFILE": "~/.pgpass",
    "RAY_AUTH_TOKEN_PATH": "~/.ray/auth_token",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
}
"""Variables that name a file of secrets, and where it is if they do not."""
SECRET_NAME = re.compile(r"PASSW|SECRET|TOKEN|CREDENTIAL|_KEY\b|_KEY$|ACCESS_KEY", re.IGNORECASE)
PATH_NAME = re.compile(r"_(PATH|FILE)$", re.IGNORECASE)
LARGEST = 2**16
"""Bytes of a file that may be one of secrets."""


def check_no_secrets(root: Path, files: Iterable[str], environment: Mapping[str, str]) -> None:
    """Whether none of the files that are uploaded holds secrets.

    Args:
        root: The folder.
        files: What of it is uploaded.
        environment: Variables that name files of secrets.

    Raises:
        UsageError: If a file holds secrets.
    """
    named: dict[tuple[int, int] | None, str] = {}
    for variable, default in NAMED_BY.items():
        path = environment.get(variable) or default
        if path and (same := _identity(Path(path).expanduser())):
            named[same] = f"it is the file that {variable} names"
    for name in sorted(files):
        reason = named.get(_identity(root / name)) or _why_secret(root / name)
        if reason:
            raise UsageError(
                f"{name} must not be uploaded, where every job can read it ({reason}):"
                f" move it out of {root}, or name it in .rayignore"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """What is the same for all names of a file; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _why_secret(path: Path) -> str:
    """Why a file seems to hold secrets; empty: it does not.

    Only files that nobody else may read are looked into, and no code: where that is so of all
    files, because of a umask, an assignment in a program is no secret.
    """
    try:
        found = path.stat()
        if found.st_mode & 0o077 or found.st_size > LARGEST or path.suffix in (".py", ".sh"):
            return ""
        lines = path.read_text(encoding="utf-8").splitlines()
        text = "\n".join(line for line in lines if not line.strip().startswith(("[", ";")))
        values = parse_secrets(text, str(path))
    except (OSError, ValueError):
        return ""
    for name, value in values.items():
        if value and SECRET_NAME.search(name) and not PATH_NAME.search(name):
            return f"its mode is {found.st_mode & 0o777:04o} and it sets {name}"
    return ""
