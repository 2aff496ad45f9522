"""Redaction: passwords, tokens and keys never appear in a text that igdit writes.

A secret is a password or a token in an address, the value of a variable of
`settings.SECRET_VARIABLES`, or a secret value of the file that `IGDIT_SECRETS` names.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from pipelines.common.settings import SECRETS_FILE, secret_values, secrets_file, set_defaults

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType


MIN_SECRET_CHARACTERS = 4
"""Length of the shortest secret that is redacted wherever it stands: a shorter one is part of any
text."""
REDACTED = "***"
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]*")
USER_AND_PASSWORD = re.compile(r"(?<=://)([^\s:/?#@\"']*):([^\s\"'<>]*)@")
BARE_USER = re.compile(r"((?:https?|s3a?|gs|gcs)://)[^\s:/?#@\"'<>]+@", re.IGNORECASE)
"""A user without a password where none is usual: it is a token. (A database's user is usual, and
in abfs://CONTAINER@ACCOUNT it is no user.)"""
USER = re.compile(r"(?<=://)[^\s/?#\"']*@")
PARAMETER = re.compile(r"([?&;])([^\s=&;?#\"'<>]+)=([^\s&\"'<>]*)")
SECRET_PARAMETER = re.compile(
    r"passw|pwd|secret|token|credential|signature|^sig$|^auth|^(access|api|account|private)?[_-]?key$"
    r"|access[_-]?key|[_-]key$",
    re.IGNORECASE,
)
"""Names of parameters whose values are secret. `sslkey` and `passfile` name files."""
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
_added: set[str] = set()
"""Secrets that this process was told of."""


def redact(text: object) -> str:
    """Return a text, an address or an error with its passwords and tokens replaced by `***`."""
    # Parameters first: with an @ in one, what is before it looks like a user and a password.
    redacted = PARAMETER.sub(_redact_parameter, str(text))
    redacted = USER_AND_PASSWORD.sub(rf"\1:{REDACTED}@", redacted)
    redacted = BARE_USER.sub(rf"\1{REDACTED}@", redacted)
    for secret in known_secrets():
        redacted = redacted.replace(secret, REDACTED)
    return redacted


def redact_error(error: BaseException) -> str:
    """Return an error in one line, redacted, without the statements that SQLAlchemy adds."""
    return redact(str(error).strip().split("\n", 1)[0] or type(error).__name__)


def without_user(address: str) -> str:
    """Return an address without the user and the password in it, so that anybody may open it."""
    return USER.sub("", USER_AND_PASSWORD.sub("", address, count=1), count=1)


def has_secret(text: str) -> bool:
    """Return True if a text holds a known secret, or an address with a password or a token."""
    # Shorter values are words of any text; a password in an address is found at any length.
    secrets = (value for value in known_secrets() if len(value) >= 2 * MIN_SECRET_CHARACTERS)
    if USER_AND_PASSWORD.search(text) or BARE_USER.search(text):
        return True
    parameters = PARAMETER.finditer("\n".join(ADDRESS.findall(text)))
    return any(map(_is_secret_parameter, parameters)) or any(value in text for value in secrets)


def known_secrets() -> list[str]:
    """List the secrets of the environment and those added, longest first.

    The order matters: one may be a part of another.
    """
    values = _added | secret_values()
    secrets = (value for value in values if len(value) >= MIN_SECRET_CHARACTERS)
    return sorted(secrets, key=len, reverse=True)


def add_secrets(values: Iterable[str]) -> None:
    """Redact these values as well, as long as this process lives."""
    _added.update(values)


def secrets_in_addresses(text: str) -> set[str]:
    """Return the passwords and tokens in the addresses of a text, as they stand and decoded."""
    # Parameters first, as in `redact`.
    addresses = " ".join(ADDRESS.findall(text))
    secrets = {match[3] for match in PARAMETER.finditer(addresses) if _is_secret_parameter(match)}
    without = PARAMETER.sub("", addresses)
    secrets |= {match[2] for match in USER_AND_PASSWORD.finditer(without)}
    bare = BARE_USER.finditer(USER_AND_PASSWORD.sub("", without))
    secrets |= {match[0].partition("://")[2].removesuffix("@") for match in bare}
    return secrets | {unquote(secret) for secret in secrets}


def _is_secret_parameter(parameter: re.Match[str]) -> bool:
    return bool(parameter[3]) and SECRET_PARAMETER.search(unquote(parameter[2])) is not None


def _redact_parameter(parameter: re.Match[str]) -> str:
    if not _is_secret_parameter(parameter):
        return parameter[0]
    return f"{parameter[1]}{parameter[2]}={REDACTED}"


class RedactingFormatter(logging.Formatter):
    """Formatter that redacts log records, whoever wrote them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as redacted text."""
        return redact(super().format(record))


def print_redacted(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print a redacted traceback; takes the place of `sys.excepthook`."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


# The file of secrets


def load_secrets() -> None:
    """Set the variables of the file that `IGDIT_SECRETS` names, if it does.

    A variable that is set already stays. Loading again changes nothing. Passwords, tokens and keys
    of the file, also those in addresses, are redacted from then on; users, buckets and hosts are
    not.

    Raises:
        ValueError: If the file is not there, others may read it, or a line is not NAME=VALUE.
    """
    file = secrets_file()
    if not file:
        return
    variables = parse_secrets(_read(Path(file)), file)
    for name, value in variables.items():
        add_secrets([value] if is_secret(name) else secrets_in_addresses(value))
    set_defaults(variables)


def is_secret(name: str) -> bool:
    """Return True if a variable of that name holds a password, a token or a key."""
    return bool(SECRET_VARIABLE.search(name)) and not NO_SECRET_VARIABLE.search(name)


def _read(path: Path) -> str:
    """Read a file, and check the permissions of that very file."""
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
    """Parse NAME=VALUE lines; blank lines and lines that begin with # are skipped.

    A value may stand in single or double quotes, which are taken off; nothing in it is replaced.

    Args:
        text: The lines.
        file: Path of the file, for the message.

    Raises:
        ValueError: If a line is something else; the message does not repeat it.
    """
    values = {}
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
        values[name] = value
    return values
