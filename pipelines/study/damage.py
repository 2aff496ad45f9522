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
    """Call `act`, again after each damaged artifact, which is quarantined first.

    Args:
        store: Where the artifacts lie.
        act: Builds what is missing; doing it twice is the same as doing it once.
        log: Prints a line.

    Raises:
        CorruptArtifactError: an artifact is damaged again after it was rebuilt.
    """
    aside: set[Ref] = set()
    while True:
        try:
            return act()
        except CorruptArtifactError as error:
            if error.ref in aside:
                raise
            aside.add(error.ref)
            store.quarantine(error.ref)
            log(f"quarantined damaged {error.ref}")
