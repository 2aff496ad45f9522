"""What a person is told about MLflow: where to compare results, and what mends it if it fails."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from pipelines.common.redaction import discreet, in_one_line, without_user

SQLITE = "sqlite:///"


def where_to_compare(tracking_uri: str, page: str, what: str, command: str = "igdit") -> str:
    """Say where results are looked at in MLflow: a server's page, or the command that shows it."""
    if tracking_uri.startswith(("http://", "https://")):
        return f"Compare in MLflow: {without_user(tracking_uri).rstrip('/')}/{page}"
    return f"Compare in MLflow: {command} ui    ({what}: {page})"


def behind(tracking_uri: str, error: BaseException) -> str:
    """Say that MLflow could not be brought up to date, and what mends it, without passwords."""
    damage = damage_of(tracking_uri)
    if damage is not None:
        return damage
    return discreet(
        f"MLflow at {tracking_uri} could not be updated: {in_one_line(error)}. Run the "
        f"same command again, or `igdit track rebuild`, to log what is missing."
    )


def damage_of(tracking_uri: str) -> str | None:
    """Say how to come by a whole database if MLflow's is a damaged file.

    Nothing is lost with it but what somebody wrote in MLflow's pages: the store has the results.

    Args:
        tracking_uri: MLflow's backend.

    Returns:
        The message; None if the file can be read or is not there, or the backend is no SQLite file.
    """
    if not tracking_uri.startswith(SQLITE):
        return None
    path = Path(unquote(tracking_uri.removeprefix(SQLITE).partition("?")[0]))
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            found = [str(row[0]) for row in database.execute("PRAGMA quick_check(1)")]
    except sqlite3.OperationalError:  # locked, or it may not be read: not damaged
        return None
    except sqlite3.DatabaseError as error:
        found = [str(error)]
    if found == ["ok"]:
        return None
    return (
        f"MLflow's database {path} is damaged ({'; '.join(found)}). Move it away "
        f"(mv {path} {path}.damaged); `igdit track rebuild` then writes it anew from the "
        f"store."
    )
