"""Messages about MLflow: the page that compares results, and the remedy of a failure."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from pipelines.common.redaction import redact, redact_error, without_user

SQLITE = "sqlite:///"


def where_to_compare(tracking_uri: str, page: str, what: str, command: str = "igdit") -> str:
    """Name the server's page, or the command, that compares results in MLflow."""
    if tracking_uri.startswith(("http://", "https://")):
        return f"Compare in MLflow: {without_user(tracking_uri).rstrip('/')}/{page}"
    return f"Compare in MLflow: {command} ui    ({what}: {page})"


def behind(tracking_uri: str, error: BaseException) -> str:
    """Explain that MLflow could not be updated, with the remedy; passwords are hidden."""
    damage = damage_of(tracking_uri)
    if damage is not None:
        return damage
    return redact(
        f"MLflow at {tracking_uri} could not be updated: {redact_error(error)}. Run the "
        f"same command again, or `igdit track rebuild`, to log what is missing."
    )


def damage_of(tracking_uri: str) -> str | None:
    """Explain how to replace MLflow's database if it is damaged.

    Only notes that users wrote in MLflow are lost with it: the store has the results.

    Args:
        tracking_uri: MLflow's backend.

    Returns:
        The message; None if the database is intact or missing, or is no SQLite file.
    """
    if not tracking_uri.startswith(SQLITE):
        return None
    path = Path(unquote(tracking_uri.removeprefix(SQLITE).partition("?")[0]))
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            problems = [str(row[0]) for row in database.execute("PRAGMA quick_check(1)")]
    except sqlite3.OperationalError:  # locked or not readable, which is no damage
        return None
    except sqlite3.DatabaseError as error:
        problems = [str(error)]
    if problems == ["ok"]:
        return None
    return (
        f"MLflow's database {path} is damaged ({'; '.join(problems)}). Move it away "
        f"(mv {path} {path}.damaged), then run `igdit track rebuild`, which writes it again from "
        f"the store."
    )
