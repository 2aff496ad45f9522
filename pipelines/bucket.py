"""Objects in a bucket, through fsspec, as a store needs them.

Everything here waits for a bucket that is away for a while (`OUTAGE_SECONDS`), and may therefore
be done twice: each call means the same the second time. The one thing that is not like a file
system is `create`, which writes an object only if none is there, decided by the server.
"""

from __future__ import annotations

import datetime
import errno
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import fsspec

from pipelines.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

OUTAGE_SECONDS = 120.0
"""How long a bucket may be away before the work stops."""
FIRST_SECONDS = 5.0
"""How long it may be away if it never answered: its address may be wrong."""
AT_ONCE = 16
"""Requests at a time where there are many."""
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "config_kwargs": {
            "connect_timeout": 10,
            "read_timeout": 60,
            "retries": {"max_attempts": 1},
        },
    },
}


class Bucket:
    """Objects by names below an address."""

    def __init__(self, uri: str) -> None:
        protocol, _, self._root = uri.partition("://")
        self.uri = uri
        try:
            self._fs = fsspec.filesystem(protocol, use_listings_cache=False,
                                         skip_instance_cache=True,
                                         **OPTIONS.get(protocol, {}))  # fmt: skip
        except ImportError as error:
            raise ValueError(f"{uri} needs a package that is not installed: {error}") from error
        self.answered = False
        """Whether it ever did, to this process or to whoever gave it the address."""
        self._clock: tuple[float, float] | None = None

    def read(self, name: str) -> bytes | None:
        """An object, None if there is none."""

        def act() -> bytes | None:
            with suppress(FileNotFoundError):
                return bytes(self._fs.cat_file(self._path(name)))
            return None

        found: bytes | None = self._outlast(act)
        return found

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """Those of many objects that are there."""
        names = list(names)
        found: Iterable[bytes | None] = self._each(self.read, names)
        return {name: data for name, data in zip(names, found, strict=True) if data is not None}

    def write(self, name: str, data: bytes) -> None:
        """Write an object whole."""
        self._outlast(lambda: self._fs.pipe_file(self._path(name), data))

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless one is there; whether it is this one now.

        The data must be told from anybody else's, since the answer to an attempt may get lost.
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

        return bool(self._outlast(act))

    def remove(self, *names: str) -> None:
        """Remove objects; what is not there may be named."""

        def one(name: str) -> None:
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name))

        self._each(lambda name: self._outlast(lambda: one(name)), names)

    def list(self, folder: str) -> dict[str, float]:
        """Objects below a folder by the rest of their names, with the server's time of writing."""

        def act() -> dict[str, Any]:
            with suppress(FileNotFoundError):
                found: dict[str, Any] = self._fs.find(self._path(folder), detail=True)
                return found
            return {}

        start = self._fs._strip_protocol(self._path(folder)).rstrip("/") + "/"
        found = self._outlast(act).items()
        return {path[len(start):]: _modified(info) for path, info in sorted(found)
                if path.startswith(start)}  # fmt: skip

    def upload(self, files: dict[str, Path]) -> None:
        """Write files as the objects of these names."""
        self._each(lambda name: self._outlast(
            lambda: self._fs.put_file(str(files[name]), self._path(name))
        ), files)  # fmt: skip

    def download(self, files: dict[str, Path]) -> None:
        """Write objects of these names into files.

        Raises:
            FileNotFoundError: one is not there.
        """
        self._each(lambda name: self._outlast(
            lambda: self._fs.get_file(self._path(name), str(files[name]))
        ), files)  # fmt: skip

    def now(self) -> float:
        """The server's time, in seconds since the epoch; asked for once."""
        if self._clock is None:
            name = f".clock/{uuid.uuid4().hex}"
            self.write(name, b"")
            self._clock = self.list(".clock")[name.partition("/")[2]], time.monotonic()
            self.remove(name)
        server, here = self._clock
        return server + time.monotonic() - here

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _each(self, act: Callable[[str], Any], names: Iterable[str]) -> Sequence[Any]:
        names = list(names)
        if len(names) < 2:
            return [act(name) for name in names]
        with ThreadPoolExecutor(AT_ONCE, "bucket") as threads:
            return list(threads.map(act, names))

    def _outlast(self, act: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Do something; while the bucket is away, try again for a while."""
        away: float | None = None
        while True:
            try:
                done = act()
            except (FileNotFoundError, ValueError, TypeError, AttributeError, ArtifactError):
                raise  # an answer, or a mistake of ours
            except PermissionError as error:
                raise ArtifactError(
                    f"the bucket {self.uri} may not be used: {_said(error)}. Its credentials come "
                    f"from the environment of each node."
                ) from error
            except Exception as error:  # of any library: they do not agree on a class
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                away = away or time.monotonic()
                patience = OUTAGE_SECONDS if self.answered else FIRST_SECONDS
                hopeless = "Credentials" in type(error).__name__
                if hopeless or time.monotonic() - away > patience:
                    raise ArtifactError(
                        f"the bucket {self.uri} cannot be used: {_said(error)}"
                    ) from error
                time.sleep(0.5)
            else:
                self.answered = True
                return done


def _modified(info: dict[str, Any]) -> float:
    """When an object was written, by whatever name its file system has for that."""
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
