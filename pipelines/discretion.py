"""What may be said of addresses and errors: never a password or a token."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SECRETS = (
    "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN",
)  # fmt: skip
"""Variables of the environment whose values are shown nowhere."""
SHORTEST = 4
"""Characters of a value that is hidden wherever it stands: a shorter one is part of any text."""
HIDDEN = "***"
USER_AND_PASSWORD = re.compile(r"(?<=://)([^\s:/?#@\"']*):([^\s\"'<>]*)@")
_kept: set[str] = set()
USER = re.compile(r"(?<=://)[^\s/?#\"']*@")


def keep_secret(values: Iterable[str]) -> None:
    """Hide these as well, as long as this process lives."""
    _kept.update(values)


def secrets() -> list[str]:
    """What must be shown nowhere, longest first: one may be a part of another."""
    found = _kept | {os.environ.get(name, "") for name in SECRETS}
    return sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True)


def discreet(said: object) -> str:
    """A text, an address or an error, with its passwords and tokens hidden."""
    text = USER_AND_PASSWORD.sub(rf"\1:{HIDDEN}@", str(said))
    for secret in secrets():
        text = text.replace(secret, HIDDEN)
    return text


def has_password(text: str) -> bool:
    """Whether a text holds an address with a password in it, or a value that is to be hidden."""
    # Shorter values are words of any text; a password in an address is found at any length.
    hidden = (value for value in secrets() if len(value) >= 2 * SHORTEST)
    return USER_AND_PASSWORD.search(text) is not None or any(value in text for value in hidden)


def without_user(address: str) -> str:
    """An address as anybody may open it: without the user and the password in it."""
    return USER.sub("", USER_AND_PASSWORD.sub("", address, count=1), count=1)


def behind(tracking_uri: str, error: BaseException) -> str:
    """What a person is told if MLflow could not be brought up to date (rich's markup)."""
    from rich.markup import escape

    text = (f"MLflow at {tracking_uri} could not be updated: {error}. Run the same command again, "
            f"or `igdit track rebuild`, to log what is missing.")  # fmt: skip
    return f"[yellow]{escape(discreet(text))}[/yellow]"
