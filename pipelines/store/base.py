"""Artifact store: results addressed by the content that they are made from.

A store lies in a folder (`pipelines.store.folder`) or in a bucket
(`pipelines.store.bucket.store`); both give the guarantees of this page. An
artifact is written aside and published by one atomic step: a reader sees all of it or nothing, and
a second publication of a key leaves the first in place. The SHA-256 of every file is in the
manifest and is checked before the file is used. A builder of an artifact holds its lease.
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from pipelines.common.errors import ArtifactError, MissingArtifactError
from pipelines.store.errors import CorruptArtifactError
from pipelines.store.file_names import MANIFEST_FILE
from pipelines.store.files import delete_tree, follow_umask
from pipelines.store.keys import Ref, check_file_name, file_digest
from pipelines.store.rights import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pipelines.store.locks import Holder, Lock


FORMAT = 1
MAX_CREDIBLE_SECONDS = 200 * 86400.0
"""Longest time that one artifact, or the training before it, is believed to have taken."""


@dataclass(frozen=True)
class Artifact:
    """Published artifact."""

    ref: Ref
    path: Path
    """Folder of its files on this machine, once it was opened."""
    manifest: dict[str, Any]

    @property
    def size(self) -> int:
        """Size of its files in bytes."""
        return sum(int(entry["size"]) for entry in self.manifest["files"].values())

    @property
    def seconds(self) -> float:
        """Seconds that it took to build; of a checkpoint those of the training before it."""
        return _credible(self.manifest.get("work_seconds", self.manifest["seconds"]))

    @property
    def built(self) -> float:
        """Time when it was built, in seconds since the epoch."""
        return float(self.manifest["created"]) + _credible(self.manifest["seconds"])


class SharedRecords(ABC):
    """Small texts and locks of a store, by names like paths."""

    @abstractmethod
    def lock(self, name: str, *, shared: bool = False) -> Lock:
        """Return a lock that every user of the store sees."""

    @abstractmethod
    def held(self, prefix: str) -> dict[str, Holder]:
        """Return the holders of the held locks of a prefix, by the rest of the locks' names."""

    @abstractmethod
    def lock_names(self, prefix: str) -> Sequence[str]:
        """List the locks of a prefix that left a trace, held or not, without the prefix."""

    @abstractmethod
    def write_record(self, name: str, text: str) -> bool:
        """Write a small text in one step, unless one is there.

        Returns:
            True if this text is there now.
        """

    @abstractmethod
    def records(self, prefix: str, suffix: str = "") -> dict[str, str]:
        """Return the small texts whose names begin and end so, by the rest of their names.

        Args:
            prefix: A folder, with its slash, or that and the first characters of names in it.
            suffix: How the names end; no other text is read.

        Returns:
            The rest of each name, what follows the prefix, and the text; in order.
        """

    @abstractmethod
    def record_times(self, prefix: str) -> dict[str, float]:
        """Return when the small texts of a prefix were written, in seconds since the epoch."""

    @abstractmethod
    def delete_record(self, name: str) -> None:
        """Delete a small text."""


class Store(SharedRecords):
    """Store of artifacts, small records and locks, safe for any number of processes at once."""

    poll_seconds: float
    """Seconds between two looks for what others publish."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        """Address by which every process of a run opens the store."""
        self._verified: dict[Ref, tuple[object, ...]] = {}

    @abstractmethod
    def prepare(self) -> None:
        """Check that the store can be used, before any work.

        Raises:
            ValueError: If it cannot; the message says why.
        """

    @abstractmethod
    def exists(self) -> bool:
        """Return True if anybody has used the store yet."""

    @abstractmethod
    def address(self, ref: Ref) -> str:
        """Return where an artifact lies, for people."""

    # Reading

    def find(self, ref: Ref) -> Artifact | None:
        """Return the artifact if it is published; its files are not checked.

        Raises:
            CorruptArtifactError: If its manifest cannot be read.
        """
        text = self._read_manifest(ref)
        if text is None:
            return None
        where = self.address(ref)
        try:
            manifest = json.loads(text)
            if (manifest["kind"], manifest["key"]) != (ref.kind, ref.key):
                raise ValueError("it describes another artifact")
            float(manifest.get("work_seconds", 0)), float(manifest["seconds"])
            float(manifest["created"])
            for name, entry in manifest["files"].items():
                int(entry["size"]), str(entry["sha256"])
                check_file_name(name)
            path = self._folder(ref, manifest)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptArtifactError(ref, where, f"{MANIFEST_FILE}: {error!r}") from error
        return Artifact(ref, path, manifest)

    def absent(self, refs: Iterable[Ref]) -> set[Ref]:  # noqa: ARG002
        """Return some of these that are not published, where that is quicker than to `find` each.

        `find` remembers what is found here.
        """
        return set()

    @abstractmethod
    def _read_manifest(self, ref: Ref) -> bytes | None: ...

    @abstractmethod
    def _folder(self, ref: Ref, manifest: dict[str, Any]) -> Path:
        """Return the folder where an artifact's files are, or would be, on this machine."""

    def open(self, ref: Ref) -> Artifact:
        """Return the artifact, its files on this machine and checked (once for each state on disk).

        Raises:
            MissingArtifactError: If it is not published.
            CorruptArtifactError: If a file is missing, truncated or edited.
        """
        artifact = self.find(ref)
        if artifact is None:
            raise MissingArtifactError(f"artifact {ref} is not in {self.uri}")
        checked = self._fetch(artifact)
        signature = tuple(_signature(artifact, name) for name in artifact.manifest["files"])
        if not checked and self._verified.get(ref) != signature:
            for name, entry in artifact.manifest["files"].items():
                if file_digest(artifact.path / name) != entry["sha256"]:
                    raise CorruptArtifactError(ref, artifact.path / name, "its content was changed")
        self._verified[ref] = signature
        return artifact

    @abstractmethod
    def _fetch(self, artifact: Artifact) -> bool:
        """Fetch its files to this machine.

        Returns:
            True if they were fetched and checked by this call.
        """

    def using(self) -> AbstractContextManager[None]:
        """Keep the files of artifacts that the block opens on this machine until its end."""
        return nullcontext()

    def list(self, kind: str | None = None, prefix: str = "") -> list[Artifact]:
        """List the published artifacts whose manifest can be read, by kind and key."""
        found = []
        refs = self.refs(kind, prefix)
        self.absent(refs)  # asks for all of them at once, where that is quicker
        for ref in refs:
            try:
                artifact = self.find(ref)
            except CorruptArtifactError:
                continue
            if artifact is not None:
                found.append(artifact)
        return found

    @abstractmethod
    def refs(self, kind: str | None = None, prefix: str = "") -> Sequence[Ref]:
        """List the names of published artifacts, in order; keys begin with the prefix."""

    # Writing

    @contextmanager
    def publish(self, ref: Ref, description: dict[str, Any], shares: int = 1) -> Iterator[Path]:
        """Yield an empty directory, and publish what the block writes into it.

        Nothing is published if the block raises, or if the key is published already.

        Args:
            ref: Name of the artifact.
            description: Further entries of the manifest (configuration, inputs, versions).
            shares: Number of artifacts built in the same time, which is divided among them.
        """
        created, started = time.time(), time.monotonic()
        with self._staging(ref) as staging:
            try:
                staging.mkdir()
                yield staging
                follow_umask(staging)
                manifest = {
                    **description,
                    "format": FORMAT,
                    "kind": ref.kind,
                    "key": ref.key,
                    "files": describe_files(staging),
                    "created": created,
                    "seconds": round((time.monotonic() - started) / shares, 3),
                }
                if self._commit(staging, ref, manifest):
                    self.log("published", ref, seconds=manifest["seconds"])
            except (OSError, SafetensorError) as error:
                reason = explain(error) if isinstance(error, OSError) else str(error)
                raise ArtifactError(
                    f"artifact {ref} could not be made in {self.uri}: {reason}"
                ) from error
            finally:
                delete_tree(staging, as_far_as_possible=True)

    @abstractmethod
    def _staging(self, ref: Ref) -> AbstractContextManager[Path]:
        """Yield a fresh path on this machine to write an artifact under, locked by this builder."""

    @abstractmethod
    def _commit(self, staging: Path, ref: Ref, manifest: dict[str, Any]) -> bool:
        """Publish what was written; return False if the key was published already."""

    @contextmanager
    def lease(self, ref: Ref, waiting: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Hold the lease of an artifact, so that no other process builds it.

        Waits while another process builds it, and takes over if that one dies.

        Args:
            ref: Name of the artifact.
            waiting: Called between tries; True ends the wait (the artifact is published, say).

        Yields:
            True if the lease is held, False if `waiting` ended the wait.
        """
        lock = self.lock(f".leases/{ref.flat}")
        while not lock.acquire():
            if waiting():
                yield False
                return
            time.sleep(self.poll_seconds)
        try:
            yield True
        finally:
            lock.release(delete=True)

    @abstractmethod
    def log(self, event: str, ref: Ref, **details: object) -> None:
        """Append to the event log."""

    @abstractmethod
    def events(self, last: int | None = None) -> Sequence[dict[str, Any]]:
        """Return the event log, oldest first.

        Args:
            last: Number of the newest events to return (in a bucket, of the last days); None: all.
        """

    @abstractmethod
    def read_staged(self, name: str, file: str) -> str | None:
        """Return a text file of an artifact under construction; None if this machine sees none."""

    # Housekeeping

    @abstractmethod
    def quarantine(self, ref: Ref) -> str | None:
        """Move an artifact into quarantine (nothing is deleted), so that it is built again.

        Returns:
            Its name in quarantine; None if it is not published.
        """

    @abstractmethod
    def quarantined(self) -> Sequence[str]:
        """List the names of what is in quarantine."""

    @abstractmethod
    def delete_quarantined(self, name: str) -> None:
        """Delete something from quarantine."""

    @abstractmethod
    def sweep(self) -> int:
        """Delete what dead builders left behind; return how many left something."""

    @abstractmethod
    def delete(self, artifact: Artifact) -> None:
        """Delete an artifact: in one step nobody sees it any more, then its files go."""


def _credible(seconds: float) -> float:
    """Return a stored cost in seconds; 0 if it is so long that the clock must have jumped."""
    return float(seconds) if 0 <= float(seconds) <= MAX_CREDIBLE_SECONDS else 0.0


def _signature(artifact: Artifact, name: str) -> tuple[object, ...]:
    path = artifact.path / name
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptArtifactError(artifact.ref, path, "the file is missing") from None
    entry = artifact.manifest["files"][name]
    expected = entry["size"]
    if state.st_size != expected:
        raise CorruptArtifactError(
            artifact.ref, path, f"{state.st_size} bytes instead of {expected}"
        )
    # The time of change, unlike that of modification, cannot be set back.
    return entry["sha256"], state.st_size, state.st_ctime_ns, state.st_ino


def describe_files(directory: Path) -> dict[str, dict[str, object]]:
    """Return size and SHA-256 of every file below a directory, after forcing each to the disk."""
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            name = path.relative_to(directory).as_posix()
            files[name] = {"size": path.stat().st_size, "sha256": file_digest(path)}
    return files
