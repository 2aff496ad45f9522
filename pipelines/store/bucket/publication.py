"""Publication of artifacts in a bucket, and the sweep of what dead builders left.

    manifests/KIND/KEY.json       an artifact: it exists once this object does
    files/KIND/KEY/ATTEMPT/       its files, where its manifest says
    .fences/KIND.KEY.ATTEMPT      who decided on an attempt: its builder, or a sweep

A builder that slept for longer than its lease (a laptop's lid, a suspended job) looks dead, and a
sweeper removes its files. It must not wake up and publish a manifest of files that are gone: before
either acts it writes the fence of the attempt, which the server lets only one of them do.
"""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipelines.common.errors import ArtifactError
from pipelines.store.keys import check_name

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.store.bucket.objects import Bucket
    from pipelines.store.keys import Ref

DEAD = b"dead "


class Publication:
    """Artifacts of a bucket by attempt."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def publish(
        self, ref: Ref, attempt: str, files: dict[str, Path], manifest: dict[str, Any]
    ) -> str | None:
        """Upload files, then publish the manifest.

        Returns:
            The attempt that is published; None if the key was published already: then the upload is
            deleted.
        """
        while True:
            prefix = files_name(ref, attempt)
            objects = {f"{prefix}/{name}": path for name, path in files.items()}
            fence = f".fences/{attempt_name(ref, attempt)}"
            try:
                self._bucket.upload(objects)
                if not self._bucket.create(fence, f"published by {uuid.uuid4().hex}".encode()):
                    attempt = uuid.uuid4().hex[:12]  # swept as dead: once more, under another name
                    continue
                text = json.dumps({**manifest, "attempt": attempt}, indent=1).encode()
                first = self._bucket.create(manifest_name(ref), text)
            except BaseException:
                with suppress(ArtifactError, OSError):
                    if not self.is_published(ref, attempt):
                        self._bucket.delete(*objects)
                raise
            if not first:
                self._bucket.delete(*objects)
            self._bucket.delete(fence)
            return attempt if first else None

    def is_published(self, ref: Ref, attempt: str) -> bool:
        """Return True if this attempt is the published one."""
        text = self._bucket.read(manifest_name(ref))
        return text is not None and attempt_of(text) == attempt

    def sweep(self, ref: Ref, attempt: str) -> None:
        """Delete the files of a builder that seems dead, unless it has published, or does now.

        The fence stays: if the builder lives, it finds there that its files are gone.
        """
        check_name(attempt)
        fence = f".fences/{attempt_name(ref, attempt)}"
        if not self._bucket.create(fence, DEAD + uuid.uuid4().hex.encode()):
            found = self._bucket.read(fence)
            if found is not None and not found.startswith(DEAD):
                return
        if self.is_published(ref, attempt):
            self._bucket.delete(fence)
            return
        self.delete_files(ref, attempt)

    def delete_files(self, ref: Ref, attempt: str) -> None:
        """Delete the files of an attempt."""
        check_name(attempt)
        prefix = files_name(ref, attempt)
        self._bucket.delete(*(f"{prefix}/{name}" for name in self._bucket.list(prefix)))


def manifest_name(ref: Ref) -> str:
    """Return the name of the object of a manifest."""
    return f"manifests/{ref}.json"


def files_name(ref: Ref, attempt: str) -> str:
    """Return the beginning of the names of an attempt's files."""
    return f"files/{ref}/{attempt}"


def attempt_name(ref: Ref, attempt: str) -> str:
    """Return the name of an attempt's fence and of its copy on a machine."""
    return f"{ref.kind}.{ref.key}.{attempt}"


def attempt_of(manifest: bytes) -> str | None:
    """Return the attempt that a manifest names; None if it cannot be read."""
    try:
        attempt = json.loads(manifest)["attempt"]
        check_name(attempt)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return str(attempt)
