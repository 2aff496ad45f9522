"""The artifact store: results addressed by what they were made from.

    STORE/KIND/KEY/            one artifact: its files and MANIFEST.json
    STORE/.staging/ID/         one being built, with ID.lock held by its builder
    STORE/.leases/KIND-KEY     lock of whoever builds that artifact
    STORE/.corrupt/            artifacts that were set aside when they were rebuilt
    STORE/.runs/               experiments that were run, the roots of garbage collection
    STORE/.shown/              those of them that have a page of their own in MLflow
    STORE/events.jsonl         what was built and when

An artifact is written aside and published by renaming its directory: a reader sees all of it or
nothing, and whoever publishes second keeps the first one's. Every file's SHA-256 is in the
manifest and is checked before the file is used.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from pipelines.errors import ArtifactError, CorruptArtifactError, MissingArtifactError
from pipelines.files import describe_files, read_if_there, sync_directory, write_durably
from pipelines.keys import file_digest
from pipelines.locks import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MANIFEST = "MANIFEST.json"
FORMAT = 1


@dataclass(frozen=True)
class Artifact:
    """A published artifact."""

    kind: str
    key: str
    path: Path
    manifest: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(int(entry["size"]) for entry in self.manifest["files"].values())

    @property
    def seconds(self) -> float:
        """What it cost to make: the training before it for a checkpoint, else its building."""
        return float(self.manifest.get("work_seconds", self.manifest["seconds"]))


class Store:
    """A folder of artifacts, safe for any number of processes at once."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self._verified: dict[tuple[str, str], tuple[object, ...]] = {}

    # Reading

    def find(self, kind: str, key: str) -> Artifact | None:
        """The artifact if it is published; its files are not checked.

        Raises:
            CorruptArtifactError: it is there, but its manifest cannot be read.
        """
        path = self._path(kind, key)
        text = read_if_there(path / MANIFEST)
        if text is None:
            if not path.exists():
                return None
            text = read_if_there(path / MANIFEST)  # published between the two looks
            if text is None:
                raise CorruptArtifactError(kind, key, path, f"{MANIFEST} is missing")
        try:
            manifest = json.loads(text)
            if manifest["kind"] != kind or manifest["key"] != key:
                raise ValueError("it describes another artifact")
            for entry in manifest["files"].values():
                int(entry["size"]), str(entry["sha256"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptArtifactError(kind, key, path, f"{MANIFEST}: {error!r}") from error
        return Artifact(kind, key, path, manifest)

    def open(self, kind: str, key: str) -> Artifact:
        """The artifact, its files checked against the manifest (once for each state on disk).

        Raises:
            MissingArtifactError: it is not published.
            CorruptArtifactError: a file is missing, truncated or edited.
        """
        artifact = self.find(kind, key)
        if artifact is None:
            raise MissingArtifactError(f"artifact {kind}/{key} is not in {self.root}")
        signature = tuple(self._signature(artifact, name) for name in artifact.manifest["files"])
        if self._verified.get((kind, key)) != signature:
            for name, entry in artifact.manifest["files"].items():
                if file_digest(artifact.path / name) != entry["sha256"]:
                    raise CorruptArtifactError(kind, key, artifact.path / name,
                                               "its content was changed")  # fmt: skip
            self._verified[kind, key] = signature
        return artifact

    def _signature(self, artifact: Artifact, name: str) -> tuple[object, ...]:
        path = artifact.path / name
        try:
            state = path.stat()
        except FileNotFoundError:
            raise CorruptArtifactError(artifact.kind, artifact.key, path,
                                       "the file is missing") from None  # fmt: skip
        entry = artifact.manifest["files"][name]
        expected = entry["size"]
        if state.st_size != expected:
            raise CorruptArtifactError(artifact.kind, artifact.key, path,
                                       f"{state.st_size} bytes instead of {expected}")  # fmt: skip
        # The time of change, unlike that of modification, cannot be set back.
        return entry["sha256"], state.st_size, state.st_ctime_ns, state.st_ino

    def list(self, kind: str | None = None, prefix: str = "") -> list[Artifact]:
        """Published artifacts whose manifest can be read, by kind and key."""
        found = []
        for folder in sorted(self.root.glob(f"{kind or '[!.]*'}/{prefix}[!.]*")):
            try:
                artifact = self.find(folder.parent.name, folder.name) if folder.is_dir() else None
            except (CorruptArtifactError, ValueError):
                continue  # damaged, or no artifact at all
            if artifact is not None:
                found.append(artifact)
        return found

    def _path(self, kind: str, key: str) -> Path:
        for part in (kind, key):
            if not part or part.startswith(".") or not part.replace("-", "").isalnum():
                raise ValueError(f"kind and key must be letters, digits and '-', but got {part!r}")
        return self.root / kind / key

    # Writing

    @contextmanager
    def publish(
        self, kind: str, key: str, description: dict[str, Any], shares: int = 1
    ) -> Iterator[Path]:
        """Write an artifact: yields an empty directory, which becomes the artifact at the end.

        Nothing is published if the block raises. Whoever publishes a key second discards theirs.

        Args:
            kind: Kind of artifact.
            key: Its key.
            description: What else the manifest says (configuration, inputs, versions).
            shares: Artifacts that are made in the same time; each is said to have cost a part.
        """
        target, started = self._path(kind, key), time.time()
        staging, lock = self._new_staging(f"{kind}-{key}")
        try:
            staging.mkdir()
            yield staging
            manifest = {
                **description,
                "format": FORMAT,
                "kind": kind,
                "key": key,
                "files": describe_files(staging),
                "created": started,
                "seconds": round((time.time() - started) / shares, 3),
            }
            write_durably(staging / MANIFEST, json.dumps(manifest, indent=1) + "\n")
            if self._rename(staging, target):
                self.log("published", kind, key, seconds=manifest["seconds"])
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"artifact {kind}/{key} could not be made in {self.root}: "
                                f"{error}") from error  # fmt: skip
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            lock.release(remove=True)

    def _new_staging(self, label: str) -> tuple[Path, FileLock]:
        """A fresh name in `.staging` and the lock that says its builder lives."""
        while True:
            staging = self.root / ".staging" / f"{label}-{uuid.uuid4().hex[:12]}"
            lock = FileLock(staging.with_suffix(".lock"))
            if lock.acquire():  # unless a sweep looked at it in that very moment
                return staging, lock

    def _rename(self, staging: Path, target: Path) -> bool:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            staging.rename(target)
        except OSError:
            # A directory that is not empty cannot be replaced: somebody published first.
            if not (target / MANIFEST).exists():
                raise
            return False
        sync_directory(target.parent)
        return True

    @contextmanager
    def lease(
        self, kind: str, key: str, waiting: Callable[[], bool] = lambda: False
    ) -> Iterator[bool]:
        """Be the only one to build an artifact.

        Waits while another process builds it. The lease of a process that dies is free at once.

        Args:
            kind: Kind of artifact.
            key: Its key.
            waiting: Called between tries; True gives up waiting (it is published, say).

        Yields:
            True if the lease is held, False if `waiting` gave up.
        """
        self._path(kind, key)  # refuses names that lead elsewhere
        lock = FileLock(self.root / ".leases" / f"{kind}-{key}")
        while not lock.acquire():
            if waiting():
                yield False
                return
            time.sleep(0.1)
        try:
            yield True
        finally:
            lock.release(remove=True)

    def log(self, event: str, kind: str, key: str, **details: object) -> None:
        """Append to the event log; a line is written by one call, so lines never mix."""
        self.root.mkdir(parents=True, exist_ok=True)
        record = {"time": round(time.time(), 3), "event": event, "kind": kind, "key": key}
        line = json.dumps({**record, **details}) + "\n"
        file = os.open(self.root / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def events(self) -> Sequence[dict[str, Any]]:
        """The event log, oldest first; a line that a full disk cut short is left out."""
        found = []
        for line in (read_if_there(self.root / "events.jsonl") or b"").splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    # Housekeeping

    def quarantine(self, kind: str, key: str) -> Path | None:
        """Set an artifact aside (nothing is deleted), so that it is built again."""
        source = self._path(kind, key)
        if not source.exists():
            return None
        target = self.root / ".corrupt" / f"{kind}-{key}-{uuid.uuid4().hex[:8]}"
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        self._verified.pop((kind, key), None)
        self.log("quarantined", kind, key)
        return target

    def sweep(self) -> int:
        """Remove what dead builders left behind; returns how many."""
        removed = 0
        for path in (self.root / ".staging").glob("*.lock"):
            lock = FileLock(path)
            if lock.acquire():
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                lock.release(remove=True)
                removed += 1
        return removed

    def delete(self, artifact: Artifact) -> None:
        """Remove an artifact: out of sight in one step, then from the disk."""
        trash, lock = self._new_staging("trash")
        try:
            artifact.path.rename(trash)
            self.log("deleted", artifact.kind, artifact.key)
            shutil.rmtree(trash, ignore_errors=True)
        finally:
            lock.release(remove=True)
