"""The event log of a bucket: an object for each event, by day and time, since none can grow."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipelines.bucket import Bucket

FOLDER = ".events"
DAYS = 7
"""So many days back the last events are looked for."""


class EventLog:
    """Events in a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def append(self, record: dict[str, Any]) -> None:
        """Enter an event that happens now."""
        now = time.time()
        name = f"{FOLDER}/{_day(now)}/{now:017.6f}-{uuid.uuid4().hex[:8]}.json"
        self._bucket.write(name, json.dumps({"time": round(now, 3), **record}).encode())

    def read(self) -> list[dict[str, Any]]:
        """All events, oldest first."""
        return self._read(f"{FOLDER}/{name}" for name in self._bucket.list(FOLDER))

    def last(self, count: int) -> list[dict[str, Any]]:
        """The last so many events of the last days, oldest first."""
        names: list[str] = []
        for back in range(DAYS):
            folder = f"{FOLDER}/{_day(time.time() - 86400 * back)}"
            names = [f"{folder}/{name}" for name in self._bucket.list(folder)] + names
            if len(names) >= count:
                break
        return self._read(names[-count:])

    def _read(self, names: Iterable[str]) -> list[dict[str, Any]]:
        found = []
        for text in self._bucket.read_all(names).values():
            with suppress(ValueError, RecursionError):
                found.append(json.loads(text))
        return found


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
