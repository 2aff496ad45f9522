"""The artifact store: results addressed by what they were made from.

A store lies in a folder (`pipelines.store.folder`) or in a bucket
(`pipelines.store.bucket.store`); this is what both promise. An artifact is written aside and
published by one atomic step: a reader sees all of it or nothing, and whoever publishes second
keeps the first one's. Every file's SHA-256 is in
the manifest and is checked before the file is used. Whoever builds an artifact holds its lease.
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
CREDIBLE_SECONDS = 200 * 86400.0
"""The longest that making one artifact, or the training before it, is believed to have taken."""


@dataclass(frozen=True)
class Artifact:
    """A published artifact."""

    ref: Ref
    path: Path
    """Where its files lie on this machine, once it was opened."""
    manifest: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(int(entry["size"]) for entry in self.manifest["files"].values())

    @property
    def seconds(self) -> float:
        """What it cost to make: the training before it for a checkpoint, else its building."""
        return _credible(self.manifest.get("work_seconds", self.manifest["seconds"]))

    @property
    def built(self) -> float:
        """When it was ready, in seconds since the epoch."""
        return float(self.manifest["created"]) + _credible(self.manifest["seconds"])


class SharedRecords(ABC):
    """Texts and locks by names like paths."""

    @abstractmethod
    def lock(self, name: str, *, shared: bool = False) -> Lock:
        """A lock that every user of the store sees."""

    @abstractmethod
    def held(self, prefix: str) -> dict[str, Holder]:
        """Locks below a prefix that somebody holds right now, by the rest of their names."""

    @abstractmethod
    def lock_names(self, prefix: str) -> Sequence[str]:
        """Locks below a prefix that have left a trace, held or not, by the rest of their names."""

    @abstractmethod
    def write_record(self, name: str, text: str) -> bool:
        """Write a small text whole, unless one is there; whether it is this one now."""

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
        """Remove a small text."""


class Store(SharedRecords):
    """Artifacts, small records and locks, safe for any number of processes at once."""

    poll_seconds: float
    """How often it makes sense to look whether something has come."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        """Its address, by which every process of a run opens it."""
        self._verified: dict[Ref, tuple[object, ...]] = {}

    @abstractmethod
    def prepare(self) -> None:
        """See that the store can be used, before any work.

        Raises:
            ValueError: it cannot, and why.
        """

    @abstractmethod
    def exists(self) -> bool:
        """Whether anybody has used it yet."""

    @abstractmethod
    def address(self, ref: Ref) -> str:
        """Where an artifact lies, for people."""

    # Reading

    def find(self, ref: Ref) -> Artifact | None:
        """The artifact if it is published; its files are not checked.

        Raises:
            CorruptArtifactError: it is there, but its manifest cannot be read.
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
        """Return some of these that are not published, if that is quicker than to `find` each.

        What is found meanwhile, `find` knows.
        """
        return set()

    @abstractmethod
    def _read_manifest(self, ref: Ref) -> bytes | None: ...

    @abstractmethod
    def _folder(self, ref: Ref, manifest: dict[str, Any]) -> Path:
        """Where the files of an artifact are, or would be, on this machine."""

    def open(self, ref: Ref) -> Artifact:
        """The artifact, its files here and checked (once for each state on disk).

        Raises:
            MissingArtifactError: it is not published.
            CorruptArtifactError: a file is missing, truncated or edited.
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
        """See that its files are on this machine; whether they were checked just now."""

    def using(self) -> AbstractContextManager[None]:
        """Keep the files of whatever is opened in a block on this machine until its end."""
        return nullcontext()

    def list(self, kind: str | None = None, prefix: str = "") -> list[Artifact]:
        """Published artifacts whose manifest can be read, by kind and key."""
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
        """List what is published, in order; keys begin with the prefix."""

    # Writing

    @contextmanager
    def publish(self, ref: Ref, description: dict[str, Any], shares: int = 1) -> Iterator[Path]:
        """Write an artifact: yields an empty directory, which becomes the artifact at the end.

        Nothing is published if the block raises. Whoever publishes a key second discards theirs.

        Args:
            ref: Which.
            description: What else the manifest says (configuration, inputs, versions).
            shares: Artifacts that are made in the same time; each is said to have cost a part.
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
        """A fresh name on this machine to write an artifact under, marked as being written."""

    @abstractmethod
    def _commit(self, staging: Path, ref: Ref, manifest: dict[str, Any]) -> bool:
        """Publish what was written; False: somebody was first, and nothing has changed."""

    @contextmanager
    def lease(self, ref: Ref, waiting: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Be the only one to build an artifact.

        Waits while another process builds it, and takes over if that one dies.

        Args:
            ref: Which.
            waiting: Called between tries; True gives up waiting (it is published, say).

        Yields:
            True if the lease is held, False if `waiting` gave up.
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
        """The event log, oldest first, or its last so many (of the last days, in a bucket)."""

    @abstractmethod
    def read_staged(self, name: str, file: str) -> str | None:
        """A text of an artifact under construction, as far as this machine sees it."""

    # Housekeeping

    @abstractmethod
    def quarantine(self, ref: Ref) -> str | None:
        """Set an artifact aside (nothing is deleted), so that it is built again.

        Returns:
            What it is called there; None: it is not published.
        """

    @abstractmethod
    def quarantined(self) -> Sequence[str]:
        """Names of what was set aside."""

    @abstractmethod
    def delete_quarantined(self, name: str) -> None:
        """Delete something that was set aside."""

    @abstractmethod
    def sweep(self) -> int:
        """Remove what dead builders left behind; returns how many."""

    @abstractmethod
    def delete(self, artifact: Artifact) -> None:
        """Remove an artifact: out of sight in one step, then altogether."""


def _credible(seconds: float) -> float:
    """A stored cost; 0 if nobody can have waited so long: the clock that told it jumped."""
    return float(seconds) if 0 <= float(seconds) <= CREDIBLE_SECONDS else 0.0


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
    """Size and SHA-256 of every file below a directory, each forced to the disk."""
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            name = path.relative_to(directory).as_posix()
            files[name] = {"size": path.stat().st_size, "sha256": file_digest(path)}
    return files
