"""Objects in a bucket, through fsspec, as a store needs them.

Every call waits for a bucket that is away for a while (`OUTAGE_SECONDS`), and may therefore be done
twice: each is idempotent. Unlike a file system a bucket has `create`, which writes an object only
if none is there, as the server decides.
"""

from __future__ import annotations

import datetime
import errno
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import fsspec

from pipelines.common.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path


OUTAGE_SECONDS = 120.0
"""Seconds for which a bucket may be away before the work stops."""
FIRST_SECONDS = 5.0
"""Seconds for which a bucket may be away that never answered: its address may be wrong."""
PARALLEL_REQUESTS, PARALLEL_TRANSFERS = 16, 2
"""Requests at a time, and files at a time, whose parts lie in memory."""
MAX_TRIES = 5
"""Times that one call may fail for `OUTAGE_SECONDS` although the bucket answers."""
CLOCK_SECONDS = 600.0
"""Seconds for which the server's time is carried on by this machine's clock."""
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "config_kwargs": {
            "connect_timeout": 10,
            "read_timeout": 60,
            "retries": {"max_attempts": 1},
            "max_pool_connections": 32,
        },
        "max_concurrency": 4,  # parts of a file, of 50 MB each
    },
}


class Bucket:
    """Objects of a bucket, by their names below an address."""

    def __init__(self, uri: str) -> None:
        self._protocol, _, self._root = uri.partition("://")
        self.uri = uri
        try:
            self._fs = fsspec.filesystem(
                self._protocol,
                use_listings_cache=False,
                skip_instance_cache=True,
                **OPTIONS.get(self._protocol, {}),
            )
        except ImportError as error:
            hint = "; pip install 'igdit[s3]' brings it" * (self._protocol == "s3")
            raise ValueError(
                f"{uri} needs a package that is not installed: {error}{hint}"
            ) from error
        self.answered = False
        """True if the bucket ever answered, to this process or the one that gave the address."""
        self._clock: tuple[float, float] | None = None

    def read(self, name: str) -> bytes | None:
        """Return an object; None if there is none."""

        def act() -> bytes | None:
            with suppress(FileNotFoundError):
                return bytes(self._fs.cat_file(self._path(name)))
            return None

        found: bytes | None = self._retry_while_unavailable(act)
        return found

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return the objects of these names that are there."""
        names = list(names)
        found: Iterable[bytes | None] = self._each(self.read, names)
        return {name: data for name, data in zip(names, found, strict=True) if data is not None}

    def write(self, name: str, data: bytes) -> None:
        """Write an object in one step."""
        self._retry_while_unavailable(lambda: self._fs.pipe_file(self._path(name), data))

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless one is there; return True if it is this one now.

        The data must differ from anybody else's, since the answer to an attempt may get lost.
        """

        def act() -> bool:
            try:
                self._fs.pipe_file(self._path(name), data, mode="create")
            except OSError as error:
                if isinstance(error, PermissionError):
                    raise
                there = self.read(name)
                if there is None:
                    raise  # it was refused for another reason, or is gone again
                return there == data
            return True

        return bool(self._retry_while_unavailable(act))

    @property
    def checks_before_it_writes(self) -> bool:
        """True if `create` looks and writes in two steps, between which others may write.

        That is fsspec's fallback for file systems without a conditional write. Objects in memory no
        other process sees at all.
        """
        creates = getattr(self._fs.pipe_file, "__func__", None)
        return self._protocol == "memory" or creates is fsspec.AbstractFileSystem.pipe_file

    def delete(self, *names: str) -> None:
        """Delete objects; names of which there is none are allowed."""

        def one(name: str) -> None:
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name))

        self._each(lambda name: self._retry_while_unavailable(lambda: one(name)), names)

    def list(self, folder: str, prefix: str = "") -> dict[str, float]:
        """Return the server's times of writing in a folder, by the rest of the objects' names.

        Args:
            folder: Name of the folder.
            prefix: Beginning of the rests of the names.
        """
        asked = {"prefix": prefix} if prefix and self._protocol in ("s3", "gs", "gcs") else {}

        def act() -> dict[str, Any]:
            with suppress(FileNotFoundError):
                found: dict[str, Any] = self._fs.find(self._path(folder), detail=True, **asked)
                return found
            return {}

        start = self._fs._strip_protocol(self._path(folder)).rstrip("/") + "/"
        found = self._retry_while_unavailable(act).items()
        return {
            path[len(start) :]: _modified(info)
            for path, info in sorted(found)
            if path.startswith(start + prefix)
        }

    def upload(self, files: dict[str, Path]) -> None:
        """Write files as the objects of these names."""
        self._each(
            lambda name: self._retry_while_unavailable(
                lambda: self._fs.put_file(str(files[name]), self._path(name))
            ),
            files,
            PARALLEL_TRANSFERS,
        )

    def download(self, files: dict[str, Path]) -> None:
        """Write objects of these names into files.

        Raises:
            FileNotFoundError: If an object is not there.
        """
        self._each(
            lambda name: self._retry_while_unavailable(
                lambda: self._fs.get_file(self._path(name), str(files[name]))
            ),
            files,
            PARALLEL_TRANSFERS,
        )

    def now(self) -> float:
        """Return the server's time in seconds since the epoch, asked for every `CLOCK_SECONDS`."""
        if self._clock is None or _elapsed() - self._clock[1] > CLOCK_SECONDS:
            name = uuid.uuid4().hex
            self.write(f".clock/{name}", b"")
            self._clock = self.list(".clock", name)[name], _elapsed()
            self.delete(f".clock/{name}")
        server, here = self._clock
        return server + _elapsed() - here

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _each(
        self, act: Callable[[str], Any], names: Iterable[str], at_once: int = PARALLEL_REQUESTS
    ) -> Sequence[Any]:
        names = list(names)
        if len(names) < 2:
            return [act(name) for name in names]
        with ThreadPoolExecutor(at_once, "bucket") as threads:
            return list(threads.map(act, names))

    def _answers(self) -> bool:
        """Return True if the bucket answers right now."""
        try:
            self._fs.info(self._path(".igdit-store"))
        except FileNotFoundError:
            return True
        except Exception:  # noqa: BLE001 - of any library
            return False
        return True

    def _retry_while_unavailable(self, act: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Return what `act` returns; while the bucket is away, call it again for a while.

        Raises:
            ArtifactError: If the bucket stays away, or its credentials are refused.
        """
        away: float | None = None
        tries = 0
        while True:
            try:
                done = act()
            except (FileNotFoundError, ValueError, TypeError, AttributeError, ArtifactError):
                raise  # an answer of the bucket, or a programming error
            except PermissionError as error:
                raise ArtifactError(
                    f"the bucket {self.uri} may not be used: {_said(error)}. Its credentials come "
                    f"from the environment of each node."
                ) from error
            except Exception as error:  # of any library: they do not agree on a class
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                away = away or time.monotonic()
                limit = OUTAGE_SECONDS if self.answered else FIRST_SECONDS
                no_credentials = "Credentials" in type(error).__name__
                if no_credentials or time.monotonic() - away > limit:
                    # A long transfer may have failed twice while the bucket was there all along.
                    if no_credentials or (tries := tries + 1) >= MAX_TRIES or not self._answers():
                        raise ArtifactError(
                            f"the bucket {self.uri} cannot be used: {_said(error)}"
                        ) from error
                    away = None
                time.sleep(0.5)
            else:
                self.answered = True
                return done


def _elapsed() -> float:
    """Return the seconds on a clock that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _modified(info: dict[str, Any]) -> float:
    """Return when an object was written, by the name that its file system has for that."""
    for name in ("LastModified", "mtime", "updated", "last_modified", "created"):
        value = info.get(name)
        if isinstance(value, str):
            value = datetime.datetime.fromisoformat(value)
        if isinstance(value, datetime.datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    raise TypeError(f"the file system tells no time of writing: {sorted(info)}")


def _said(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300] if text else 'no reason given'}"


FOLDER = ".events"
EVENT_DAYS = 7
"""Days back for which the last events are looked for."""


class EventLog:
    """Event log in a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def append(self, record: dict[str, Any]) -> None:
        """Append an event that happens now."""
        now = time.time()
        name = f"{FOLDER}/{_day(now)}/{now:017.6f}-{uuid.uuid4().hex[:8]}.json"
        self._bucket.write(name, json.dumps({"time": round(now, 3), **record}).encode())

    def read(self) -> list[dict[str, Any]]:
        """Return all events, oldest first."""
        return self._read(f"{FOLDER}/{name}" for name in self._bucket.list(FOLDER))

    def last(self, count: int) -> list[dict[str, Any]]:
        """Return the last `count` events of the last days, oldest first."""
        names: list[str] = []
        for back in range(EVENT_DAYS):
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
