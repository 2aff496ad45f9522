"""What may be said of addresses and errors: never a password or a token."""

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


SHORTEST = 4
"""Characters of a value that is hidden wherever it stands: a shorter one is part of any text."""
HIDDEN = "***"
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]*")
USER_AND_PASSWORD = re.compile(r"(?<=://)([^\s:/?#@\"']*):([^\s\"'<>]*)@")
BARE_USER = re.compile(r"((?:https?|s3a?|gs|gcs)://)[^\s:/?#@\"'<>]+@", re.IGNORECASE)
"""A user without a password where none is usual: it is a token. (A database's user is usual, and
in abfs://CONTAINER@ACCOUNT it is no user.)"""
PARAMETER = re.compile(r"([?&;])([^\s=&;?#\"'<>]+)=([^\s&\"'<>]*)")
SECRET_PARAMETER = re.compile(
    r"passw|pwd|secret|token|credential|signature|^sig$|^auth|^(access|api|account|private)?[_-]?key$"
    r"|access[_-]?key|[_-]key$",
    re.IGNORECASE,
)
"""Names of parameters whose values are secret. `sslkey` and `passfile` name files."""
_kept: set[str] = set()
USER = re.compile(r"(?<=://)[^\s/?#\"']*@")


def keep_secret(values: Iterable[str]) -> None:
    """Hide these as well, as long as this process lives."""
    _kept.update(values)


def credentials_in(text: str) -> set[str]:
    """Passwords and tokens in the addresses of a text, as they stand there and decoded."""
    # Parameters first, as in `discreet`.
    addresses = " ".join(ADDRESS.findall(text))
    found = {match[3] for match in PARAMETER.finditer(addresses) if _is_secret(match)}
    without = PARAMETER.sub("", addresses)
    found |= {match[2] for match in USER_AND_PASSWORD.finditer(without)}
    bare = BARE_USER.finditer(USER_AND_PASSWORD.sub("", without))
    found |= {match[0].partition("://")[2].removesuffix("@") for match in bare}
    return found | {unquote(each) for each in found}


def secrets() -> list[str]:
    """What must be shown nowhere, longest first: one may be a part of another."""
    found = _kept | secret_values()
    return sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True)


def discreet(said: object) -> str:
    """A text, an address or an error, with its passwords and tokens hidden."""
    # Parameters first: with an @ in one, what is before it looks like a user and a password.
    text = PARAMETER.sub(_hide_parameter, str(said))
    text = USER_AND_PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    text = BARE_USER.sub(rf"\1{HIDDEN}@", text)
    for secret in secrets():
        text = text.replace(secret, HIDDEN)
    return text


def in_one_line(error: BaseException) -> str:
    """Say what happened, discreetly, without the statements and addresses that SQLAlchemy adds."""
    return discreet(str(error).strip().split("\n", 1)[0] or type(error).__name__)


def has_password(text: str) -> bool:
    """Whether a text holds an address with a password or a token in it, or a value to be hidden."""
    # Shorter values are words of any text; a password in an address is found at any length.
    hidden = (value for value in secrets() if len(value) >= 2 * SHORTEST)
    if USER_AND_PASSWORD.search(text) or BARE_USER.search(text):
        return True
    parameters = PARAMETER.finditer("\n".join(ADDRESS.findall(text)))
    return any(map(_is_secret, parameters)) or any(value in text for value in hidden)


def _is_secret(parameter: re.Match[str]) -> bool:
    return bool(parameter[3]) and SECRET_PARAMETER.search(unquote(parameter[2])) is not None


def _hide_parameter(parameter: re.Match[str]) -> str:
    if not _is_secret(parameter):
        return parameter[0]
    return f"{parameter[1]}{parameter[2]}={HIDDEN}"


class DiscreetFormatter(logging.Formatter):
    """Of log records, whoever wrote them."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return discreet(super().format(record))


def print_discreetly(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A traceback, as `sys.excepthook` prints it, but discreet."""
    sys.stderr.write(discreet("".join(traceback.format_exception(kind, error, trace))))


def without_user(address: str) -> str:
    """An address as anybody may open it: without the user and the password in it."""
    return USER.sub("", USER_AND_PASSWORD.sub("", address, count=1), count=1)


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
