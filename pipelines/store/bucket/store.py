"""Store in a bucket: S3, or another object store that fsspec reaches.

    manifests/ files/ .fences/        artifacts, see `pipelines.store.bucket.publication`
    .corrupt/KIND.KEY.ATTEMPT.json    manifests of damaged artifacts in quarantine
    .runs/ .drivers/                  as in a folder
    .events/DAY/TIME-ID.json          what was built and when
    .locks/                           see `pipelines.store.bucket.leases`; those of .staging/ say
                                      that somebody builds an attempt

Files go up under a name of their own attempt; the manifest is written only if there is none yet,
which the server decides. Nothing is ever renamed or overwritten. Files are used from a cache on
each machine (`pipelines.store.bucket.cache`), and checked there.
"""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pipelines.common.errors import ArtifactError
from pipelines.store.base import Artifact, Store
from pipelines.store.bucket.cache import Cache
from pipelines.store.bucket.leases import LEASE_SECONDS, BucketLock, Leases, read_holder
from pipelines.store.bucket.objects import Bucket, EventLog
from pipelines.store.bucket.probe import require_atomic_create
from pipelines.store.bucket.publication import (
    Publication,
    attempt_name,
    attempt_of,
    files_name,
    manifest_name,
)
from pipelines.store.errors import CorruptArtifactError
from pipelines.store.keys import Ref, check_name, file_digest, is_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pipelines.store.locks import Holder

MARK = ".igdit-store"
PROBED = b"atomic\n"
"""End of the mark once the probe showed that the server creates objects atomically."""
REMEMBERED_SECONDS = 30.0
"""Seconds for which a manifest is not read again: it never changes while it is there."""


class BucketStore(Store):
    """Store in a bucket."""

    poll_seconds = 2.0

    def __init__(
        self, uri: str, cache: Path, cache_bytes: int, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        super().__init__(uri)
        self.bucket = Bucket(uri)
        # Connections of its own: renewals must not wait behind transfers.
        self.leases = Leases(Bucket(uri), lease_seconds)
        self.cache = Cache(cache / sha256(uri.encode()).hexdigest()[:12], cache_bytes)
        self._publication = Publication(self.bucket)
        self._events = EventLog(self.bucket)
        self._remembered: dict[Ref, tuple[float, bytes]] = {}

    def prepare(self) -> None:
        try:
            mark = self.bucket.read(MARK)
            if mark is None or not mark.endswith(PROBED):
                require_atomic_create(self.bucket)
                self.bucket.write(MARK, (mark or f"{uuid.uuid4().hex}\n".encode()) + PROBED)
        except (FileNotFoundError, ArtifactError) as error:
            raise ValueError(
                f"the store must be a bucket that can be read and written, but "
                f"{self.uri} is not: {error}"
            ) from error
        self.cache.folder.mkdir(parents=True, exist_ok=True)

    def exists(self) -> bool:
        return self.bucket.read(MARK) is not None

    def address(self, ref: Ref) -> str:
        return f"{self.uri}/{manifest_name(ref)}"

    def absent(self, refs: Iterable[Ref]) -> set[Ref]:
        wanted = {manifest_name(ref): ref for ref in refs}
        found = self.bucket.read_all(wanted)
        for each, text in found.items():
            self._remembered[wanted[each]] = time.monotonic(), text
        return {ref for each, ref in wanted.items() if each not in found}

    def _read_manifest(self, ref: Ref) -> bytes | None:
        when, text = self._remembered.get(ref, (-REMEMBERED_SECONDS, b""))
        if time.monotonic() - when < REMEMBERED_SECONDS:
            return text
        found = self.bucket.read(manifest_name(ref))
        if found is not None:
            self._remembered[ref] = time.monotonic(), found
        return found

    def _folder(self, ref: Ref, manifest: dict[str, Any]) -> Path:
        attempt = manifest["attempt"]
        check_name(attempt)
        return self.cache.path(attempt_name(ref, attempt))

    def open(self, ref: Ref) -> Artifact:
        for last in (False, False, True):
            artifact = self.find(ref)
            seen = None if artifact is None else _state(artifact.path)
            try:
                return super().open(ref)
            except (CorruptArtifactError, FileNotFoundError):
                if last or artifact is None or seen is None:
                    raise
                self._delete_copy(artifact.path, seen)
        raise AssertionError  # the last try returns or raises

    def using(self) -> AbstractContextManager[None]:
        return self.cache.keeping()

    def _delete_copy(self, path: Path, seen: tuple[int, int]) -> None:
        """Delete this machine's copy, which may be what is damaged, unless it was replaced."""
        self.cache.delete(path.name, unless=lambda: _state(path) != seen)

    def _fetch(self, artifact: Artifact) -> bool:
        prefix = files_name(artifact.ref, artifact.manifest["attempt"])

        def fill(folder: Path) -> None:
            wanted = artifact.manifest["files"]
            for name in wanted:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                self.bucket.download({f"{prefix}/{name}": folder / name for name in wanted})
            except FileNotFoundError as error:
                raise CorruptArtifactError(
                    artifact.ref, f"{self.uri}/{prefix}", "a file is missing"
                ) from error
            for name, entry in wanted.items():
                if file_digest(folder / name) != entry["sha256"]:
                    raise CorruptArtifactError(
                        artifact.ref, f"{self.uri}/{prefix}/{name}", "its content was changed"
                    )

        return self.cache.fetch(artifact.path.name, fill, artifact.size)

    def refs(self, kind: str | None = None, prefix: str = "") -> Sequence[Ref]:
        folder = "manifests" if kind is None else f"manifests/{kind}"
        found = []
        for name in self.bucket.list(folder, prefix if kind else ""):
            path = PurePosixPath(f"{kind}/{name}" if kind else name)
            if len(path.parts) != 2 or path.suffix != ".json" or not path.stem.startswith(prefix):
                continue
            if is_name(path.parts[0]) and is_name(path.stem):
                found.append(Ref(path.parts[0], path.stem))
        return found

    # Writing

    @contextmanager
    def _staging(self, ref: Ref) -> Iterator[Path]:
        with self.cache.staging(ref.flat) as folder:
            mark = self.lock(f".staging/{folder.name}")
            if not mark.acquire():
                raise ArtifactError(f"{folder.name} is being built twice")
            try:
                yield folder
            finally:
                mark.release()

    def _commit(self, staging: Path, ref: Ref, manifest: dict[str, Any]) -> bool:
        files = {name: staging / name for name in manifest["files"]}
        attempt = staging.name.rpartition("-")[2]
        published = self._publication.publish(ref, attempt, files, manifest)
        if published is not None:
            self.cache.adopt(attempt_name(ref, published), staging)
        return published is not None

    def log(self, event: str, ref: Ref, **details: object) -> None:
        self._events.append({"event": event, "kind": ref.kind, "key": ref.key, **details})

    def events(self, last: int | None = None) -> Sequence[dict[str, Any]]:
        return self._events.read() if last is None else self._events.last(last)

    def read_staged(self, name: str, file: str) -> str | None:
        if "/" in name or name.startswith("."):
            return None
        with suppress(OSError):
            return (self.cache.folder / ".staging" / name / file).read_text(encoding="utf-8")
        return None

    # Records and locks

    def lock(self, name: str, *, shared: bool = False) -> BucketLock:
        return BucketLock(self.leases, name, shared=shared)

    def held(self, prefix: str) -> dict[str, Holder]:
        found = {}
        for name, objects in self.leases.live_below(prefix).items():
            texts = self.bucket.read_all(objects).values()
            if texts:
                found[name] = read_holder(next(iter(texts)))
        return found

    def lock_names(self, prefix: str) -> Sequence[str]:
        return list(self.leases.live_below(prefix))

    def write_record(self, name: str, text: str) -> bool:
        return self.bucket.create(name, text.encode())

    def records(self, prefix: str, suffix: str = "") -> dict[str, str]:
        names = [prefix + rest for rest in self.record_times(prefix)]
        found = self.bucket.read_all(name for name in names if name.endswith(suffix))
        return {name[len(prefix) :]: text.decode(errors="replace") for name, text in found.items()}

    def record_times(self, prefix: str) -> dict[str, float]:
        folder, _, begin = prefix.rpartition("/")
        return {
            name[len(begin) :]: written for name, written in self.bucket.list(folder, begin).items()
        }

    def delete_record(self, name: str) -> None:
        self.bucket.delete(name)

    # Housekeeping

    def quarantine(self, ref: Ref) -> str | None:
        text = self.bucket.read(manifest_name(ref))
        if text is None:
            return None
        name = attempt_name(ref, attempt_of(text) or "unknown")
        self.bucket.write(f".corrupt/{name}.json", text)
        self._forget(ref)
        self.log("quarantined", ref)
        return name

    def _forget(self, ref: Ref) -> None:
        self.bucket.delete(manifest_name(ref))
        self._remembered.pop(ref, None)
        self._verified.pop(ref, None)

    def quarantined(self) -> Sequence[str]:
        return [name.removesuffix(".json") for name in self.bucket.list(".corrupt")]

    def delete_quarantined(self, name: str) -> None:
        kind, key, attempt = name.split(".")
        if attempt != "unknown":
            self._publication.delete_files(Ref(kind, key), attempt)
        self.bucket.delete(f".corrupt/{name}.json")

    def sweep(self) -> int:
        removed = self.cache.sweep()
        for name, alive in self.leases.live_below(".staging/").items():
            mark = self.lock(f".staging/{name}")
            if alive or not mark.acquire():
                continue
            flat, _, attempt = name.rpartition("-")
            with suppress(ValueError):
                self._publication.sweep(Ref.parse_flat(flat), attempt)
            mark.release()
            removed += 1
        return removed

    def delete(self, artifact: Artifact) -> None:
        self._forget(artifact.ref)
        self.log("deleted", artifact.ref)
        self._publication.delete_files(artifact.ref, artifact.manifest["attempt"])
        self.cache.delete(artifact.path.name)


def _state(path: Path) -> tuple[int, int] | None:
    """Return what tells a folder from another one at its place; None if there is none."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_dev, state.st_ino
