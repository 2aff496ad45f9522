"""Passwords and keys of a node, from a file that only its owner may read.

`IGDIT_SECRETS` names the file on each node: lines of NAME=VALUE, put into the environment of the
drivers and the workers that start there. A password that came with a job would stand in the job's
description, where everybody who sees the cluster's dashboard reads it.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from pipelines.discretion import credentials_in, keep_secret
from pipelines.settings import SECRETS_FILE, secrets_file, set_defaults

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET_VARIABLE = re.compile(
    r"PASS(?!FILE)|PWD|(^|_)PW$|SECRET|TOKENS?(_|$)|CREDENTIAL|SIGNATURE|BEARER|COOKIE"
    r"|AUTH(ORIZATION)?$|(^|_)(SAS|PAT)(_|$)|CONNECTION_?STRING|KEYS?(_?\d+)?$",
    re.IGNORECASE,
)
"""Names of variables whose values are passwords, tokens or keys."""
NO_SECRET_VARIABLE = re.compile(
    r"_(PATH|FILE|DIR|MODE)$|(?<!SECRET)_ID$|^GOOGLE_APPLICATION_CREDENTIALS$", re.IGNORECASE
)
"""Names among these whose values are files, identities or settings."""


def load_secrets() -> None:
    """Put what stands in the file of `IGDIT_SECRETS` into the environment, if there is one.

    What is set already stays. Doing it again changes nothing. Passwords, tokens and keys in it are
    redacted from all that is said, also those in addresses; users, buckets and hosts are not.

    Raises:
        ValueError: the file is not there, others may read it, or a line is not NAME=VALUE.
    """
    given = secrets_file()
    if not given:
        return
    found = parse_secrets(_read(Path(given)), given)
    for name, value in found.items():
        keep_secret([value] if is_secret(name) else credentials_in(value))
    set_defaults(found)


def is_secret(name: str) -> bool:
    """Whether the value of a variable of that name is a password, a token or a key."""
    return bool(SECRET_VARIABLE.search(name)) and not NO_SECRET_VARIABLE.search(name)


def _read(path: Path) -> str:
    """The file's text, of the very file whose permissions were looked at."""
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ValueError(f"{SECRETS_FILE} must be a file, but {path} is none")
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ValueError(
                    f"{SECRETS_FILE} must be readable by its owner only, but {path} has mode "
                    f"{stat.S_IMODE(mode):04o}: chmod 600 {path}"
                )
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(
            f"{SECRETS_FILE} must be a file of NAME=VALUE lines on this node, but {path} "
            f"cannot be read: {reason}"
        ) from None


def parse_secrets(text: str, file: str) -> dict[str, str]:
    """Names and values of NAME=VALUE lines; blank lines and lines that begin with # are skipped.

    A value may stand in single or double quotes, which are taken off; nothing in it is replaced.

    Raises:
        ValueError: a line is something else; the message does not repeat it.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, value = stripped.removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not NAME.fullmatch(name):
            raise ValueError(f"line {number} of {file} must be NAME=VALUE (it is not shown here)")
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name] = value
    return found
