"""Store in a folder that its users share: on a local disk, or on NFS version 4.

    STORE/KIND/KEY/            one artifact: its files and MANIFEST.json
    STORE/.staging/ID/         one being built, with ID.lock held by its builder
    STORE/.leases/KIND-KEY     lock of whoever builds that artifact
    STORE/.corrupt/            damaged artifacts in quarantine
    STORE/.runs/               the register of what was run (`pipelines.store.register`)
    STORE/.drivers/            locks of the processes that run studies
    STORE/events.jsonl         what was built and when

An artifact is published by renaming its directory. Locks are the kernel's: a process that dies
loses them at once.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.errors import ArtifactError
from pipelines.store.base import Artifact, Store
from pipelines.store.errors import CorruptArtifactError
from pipelines.store.file_names import MANIFEST_FILE
from pipelines.store.files import (
    delete_tree,
    read_if_there,
    read_tail,
    sync_directory,
    write_durably,
)
from pipelines.store.keys import Ref, is_name
from pipelines.store.locks import FileLock, Holder, holder, staging, sweep_staging
from pipelines.store.rights import explain, require_writable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

OWN_NAMES = (
    ".staging",
    ".leases",
    ".corrupt",
    ".runs",
    ".drivers",
    ".in-use.lock",
    "events.jsonl",
)
logger = logging.getLogger(__name__)

LINE_BYTES = 1024
"""Approximate length of the longest line of the event log."""


class FolderStore(Store):
    """Store in a folder."""

    poll_seconds = 0.1

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        super().__init__(str(self.root))

    def prepare(self) -> None:
        kinds = (
            path.name for path in self.root.glob("[!.]*") if path.is_symlink() or path.is_dir()
        )
        names = (*OWN_NAMES, *filter(is_name, kinds))
        require_writable(self.root, names, "store")
        for path in (self.root / name for name in names):
            # Of folders alone: files are not renamed, and in a container's layers lie elsewhere.
            if path.is_dir() and path.stat().st_dev != self.root.stat().st_dev:
                raise ValueError(
                    f"all of a store must lie on one file system, since artifacts are "
                    f"published by renaming, but {path} lies on another one than "
                    f"{self.root}: move it there, and link or mount the whole "
                    f"store"
                )

    def exists(self) -> bool:
        return self.root.exists()

    def address(self, ref: Ref) -> str:
        return str(self._path(ref))

    def _path(self, ref: Ref) -> Path:
        return self.root / ref.kind / ref.key

    def _read_manifest(self, ref: Ref) -> bytes | None:
        path = self._path(ref)
        text = read_if_there(path / MANIFEST_FILE)
        if text is None and os.path.lexists(path):
            text = read_if_there(path / MANIFEST_FILE)  # published between the two looks
            if text is None:
                raise CorruptArtifactError(ref, path, f"{MANIFEST_FILE} is missing")
        return text

    def _folder(self, ref: Ref, manifest: dict[str, Any]) -> Path:  # noqa: ARG002
        return self._path(ref)

    def _fetch(self, artifact: Artifact) -> bool:  # noqa: ARG002 - they are here
        return False

    def refs(self, kind: str | None = None, prefix: str = "") -> Sequence[Ref]:
        folders = sorted(self.root.glob(f"{kind or '[!.]*'}/{prefix}[!.]*"))
        return [
            Ref(path.parent.name, path.name)
            for path in folders
            if path.is_dir() and is_name(path.parent.name) and is_name(path.name)
        ]

    # Writing

    def _staging(self, ref: Ref) -> AbstractContextManager[Path]:
        return staging(self.root / ".staging", ref.flat)

    def _commit(self, staging: Path, ref: Ref, manifest: dict[str, Any]) -> bool:
        write_durably(staging / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
        target = self._path(ref)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            staging.rename(target)
        except OSError:
            # A directory that is not empty cannot be replaced: somebody published first.
            if not (target / MANIFEST_FILE).exists():
                raise
            return False
        sync_directory(target.parent)
        return True

    def log(self, event: str, ref: Ref, **details: object) -> None:
        """Append to the event log, each line by one call, so that lines never mix."""
        self.root.mkdir(parents=True, exist_ok=True)
        record = {"time": round(time.time(), 3), "event": event, "kind": ref.kind, "key": ref.key}
        line = json.dumps({**record, **details}) + "\n"
        file = os.open(self.root / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def events(self, last: int | None = None) -> Sequence[dict[str, Any]]:
        """Return the event log, oldest first, without lines that a full disk cut short."""
        path, found = self.root / "events.jsonl", []
        text = read_if_there(path) if last is None else read_tail(path, LINE_BYTES * (last + 1))
        for line in (text or b"").splitlines():
            with suppress(ValueError, RecursionError):
                found.append(json.loads(line))
        return found if last is None else found[-last:]

    def read_staged(self, name: str, file: str) -> str | None:
        text = read_if_there(self._inside(f".staging/{name}/{file}"))
        return None if text is None else text.decode(errors="replace")

    # Records and locks

    def lock(self, name: str, *, shared: bool = False) -> FileLock:
        return FileLock(self._inside(name), shared=shared)

    def held(self, prefix: str) -> dict[str, Holder]:
        found = {name: holder(self._inside(prefix + name)) for name in self.lock_names(prefix)}
        return {name: each for name, each in found.items() if each is not None}

    def lock_names(self, prefix: str) -> Sequence[str]:
        return list(self._files(prefix))

    def write_record(self, name: str, text: str) -> bool:
        path = self._inside(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.parent / f".{uuid.uuid4().hex[:8]}.tmp"
        try:
            there = read_if_there(path)
            if there:  # an empty file is what a full disk, or a copy that was cut short, leaves
                return there == text.encode()
            write_durably(aside, text)
            aside.replace(path)
            return True
        finally:
            aside.unlink(missing_ok=True)

    def records(self, prefix: str, suffix: str = "") -> dict[str, str]:
        found = {
            name: read_if_there(path)
            for name, path in self._files(prefix).items()
            if path.name.endswith(suffix)
        }
        return {
            name: text.decode(errors="replace") for name, text in found.items() if text is not None
        }

    def record_times(self, prefix: str) -> dict[str, float]:
        return {name: path.stat().st_mtime for name, path in self._files(prefix).items()}

    def delete_record(self, name: str) -> None:
        self._inside(name).unlink(missing_ok=True)

    def _files(self, prefix: str) -> dict[str, Path]:
        """Return the files whose names begin so, by the rest of their names, in order."""
        start = self._inside(prefix + "x")
        begin = start.name[:-1]
        paths = sorted(start.parent.glob(f"{escape(begin)}*" if begin else "[!.]*"))
        return {path.name[len(begin) :]: path for path in paths if path.is_file()}

    def _inside(self, name: str) -> Path:
        path = self.root / name
        if ".." in Path(name).parts or not path.is_relative_to(self.root):
            raise ValueError(f"the name must stay in the store, but got {name!r}")
        return path

    # Housekeeping

    def quarantine(self, ref: Ref) -> str | None:
        source = self._path(ref)
        if not os.path.lexists(source):
            return None
        target = self.root / ".corrupt" / f"{ref.flat}-{uuid.uuid4().hex[:8]}"
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        self._verified.pop(ref, None)
        self.log("quarantined", ref)
        return target.name

    def quarantined(self) -> Sequence[str]:
        return sorted(path.name for path in (self.root / ".corrupt").glob("*"))

    def delete_quarantined(self, name: str) -> None:
        if "/" in name or name in ("", ".", ".."):
            raise ValueError(f"the name must stay in the store, but got {name!r}")
        path = self.root / ".corrupt" / name
        try:
            delete_tree(path)
        except OSError as error:
            raise ArtifactError(f"{path} could not be deleted: {explain(error)}") from error

    def sweep(self) -> int:
        return sweep_staging(self.root / ".staging")

    def delete(self, artifact: Artifact) -> None:
        with staging(self.root / ".staging", "trash") as trash:
            path = self._path(artifact.ref)
            if path.is_symlink():
                logger.warning(
                    "%s is a symbolic link: what it leads to, %s, is not deleted",
                    path,
                    path.readlink(),
                )
            try:
                path.rename(trash)
            except OSError as error:
                raise ArtifactError(
                    f"artifact {artifact.ref} could not be deleted: {explain(error)}"
                ) from error
            self.log("deleted", artifact.ref)
