"""Quarantine of damaged artifacts that a study meets, which are then built again."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pipelines.store.errors import CorruptArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.store.base import Store
    from pipelines.store.keys import Ref

T = TypeVar("T")


def rebuild_damaged(store: Store, act: Callable[[], T], log: Callable[[str], None]) -> T:
    """Call `act`; if it meets a damaged artifact, quarantine that and call it again.

    Args:
        store: Store of the artifacts.
        act: Idempotent call that builds missing artifacts.
        log: Prints a line.

    Raises:
        CorruptArtifactError: If an artifact is damaged again after it was rebuilt.
    """
    quarantined: set[Ref] = set()
    while True:
        try:
            return act()
        except CorruptArtifactError as error:
            if error.ref in quarantined:
                raise
            quarantined.add(error.ref)
            store.quarantine(error.ref)
            log(f"quarantined damaged {error.ref}")
