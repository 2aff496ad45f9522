"""Messages about MLflow: where to compare results, and what mends a failure."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from pipelines.common.redaction import redact, redact_error, without_user

SQLITE = "sqlite:///"


def where_to_compare(tracking_uri: str, page: str, what: str, command: str = "igdit") -> str:
    """Name the place to compare results in MLflow: a server's page, or a command."""
    if tracking_uri.startswith(("http://", "https://")):
        return f"Compare in MLflow: {without_user(tracking_uri).rstrip('/')}/{page}"
    return f"Compare in MLflow: {command} ui    ({what}: {page})"


def behind(tracking_uri: str, error: BaseException) -> str:
    """Explain that MLflow could not be updated, and what mends it; passwords are hidden."""
    damage = damage_of(tracking_uri)
    if damage is not None:
        return damage
    return redact(
        f"MLflow at {tracking_uri} could not be updated: {redact_error(error)}. Run the "
        f"same command again, or `igdit track rebuild`, to log what is missing."
    )


def damage_of(tracking_uri: str) -> str | None:
    """Explain how to replace the database if MLflow's is a damaged file.

    Only what people wrote in MLflow's pages is lost with it: the store has the results.

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
        f"(mv {path} {path}.damaged), then run `igdit track rebuild`, which writes it again from "
        f"the store."
    )
