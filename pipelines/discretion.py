"""What may be said of addresses and errors: never a password or a token."""

from __future__ import annotations

import os
import re

SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Variables of the environment whose values are shown nowhere."""
HIDDEN = "***"
USER_AND_PASSWORD = re.compile(r"(?<=://)([^\s:/?#@\"']*):([^\s\"'<>]*)@")
USER = re.compile(r"(?<=://)[^\s/?#\"']*@")


def discreet(said: object) -> str:
    """A text, an address or an error, with its passwords and tokens hidden."""
    text = USER_AND_PASSWORD.sub(rf"\1:{HIDDEN}@", str(said))
    for name in SECRETS:
        secret = os.environ.get(name)
        if secret:
            text = text.replace(secret, HIDDEN)
    return text


def without_user(address: str) -> str:
    """An address as anybody may open it: without the user and the password in it."""
    return USER.sub("", USER_AND_PASSWORD.sub("", address, count=1), count=1)


def behind(tracking_uri: str, error: BaseException) -> str:
    """What a person is told if MLflow could not be brought up to date (rich's markup)."""
    from rich.markup import escape

    text = (f"MLflow at {tracking_uri} could not be updated: {error}. Run the same command again, "
            f"or `igdit track rebuild`, to log what is missing.")  # fmt: skip
    return f"[yellow]{escape(discreet(text))}[/yellow]"
