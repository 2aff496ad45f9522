"""Errors of the store that name an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.errors import ArtifactError

if TYPE_CHECKING:
    from pipelines.store.keys import Ref


class CorruptArtifactError(ArtifactError):
    """Error of an artifact whose files are not those that were published."""

    def __init__(self, ref: Ref, path: Path | str, reason: str) -> None:
        super().__init__(
            f"artifact {ref} is damaged: {reason} ({path}). It was not used. Run the same "
            f"command with --rebuild to quarantine it and build it again."
        )
        self.ref = ref

    def __reduce__(self) -> tuple[Any, ...]:
        # Raised in workers: exceptions pickle their message only, not these arguments.
        return _rebuild_corrupt, (str(self), self.ref)


def _rebuild_corrupt(message: str, ref: Ref) -> CorruptArtifactError:
    error = CorruptArtifactError(ref, Path(), "")
    error.args = (message,)
    return error
