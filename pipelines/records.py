"""Small records and locks that all users of a store share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.locks import Holder, Lock


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
    def records(self, folder: str) -> dict[str, str]:
        """Small texts of a folder by the rest of their names, in order."""

    @abstractmethod
    def record_times(self, folder: str) -> dict[str, float]:
        """When the small texts of a folder were written, in seconds since the epoch."""

    @abstractmethod
    def remove_record(self, name: str) -> None:
        """Remove a small text."""
