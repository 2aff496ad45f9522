"""Damaged artifacts on a study's way: set aside, and built again."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pipelines.common.errors import CorruptArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.store.base import Store

T = TypeVar("T")


def rebuild_damaged(store: Store, act: Callable[[], T], log: Callable[[str], None]) -> T:
    """Do something, again after each damaged artifact that it meets was set aside.

    Args:
        store: Where the artifacts lie.
        act: Builds what is missing; doing it twice is the same as doing it once.
        log: Prints a line.

    Raises:
        CorruptArtifactError: an artifact is damaged again after it was rebuilt.
    """
    aside: set[str] = set()
    while True:
        try:
            return act()
        except CorruptArtifactError as error:
            if error.key in aside:
                raise
            aside.add(error.key)
            store.quarantine(error.kind, error.key)
            log(f"set aside damaged {error.kind}/{error.key}")
