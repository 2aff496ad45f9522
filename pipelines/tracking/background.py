"""Synchronisation with MLflow in the background of a run or a study."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from pipelines.common.redaction import redact_error

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


class BackgroundSync:
    """Thread that syncs on request, so that tracking never delays the work.

    A failed sync is tried again.
    """

    def __init__(self, sync: Callable[[], None], pause_seconds: float = 5.0) -> None:
        self._sync, self._pause = sync, pause_seconds
        self._wake, self._stop = threading.Event(), threading.Event()
        self._requested = threading.Event()
        self._behind = False
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Request a sync; returns at once."""
        self._requested.set()
        self._wake.set()

    def close(self, seconds: float | None = None) -> None:
        """Finish a requested sync, and wait for it at most so many seconds."""
        self._stop.set()
        self._wake.set()
        self._thread.join(seconds)

    def _loop(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            last = self._stop.is_set()
            if self._requested.is_set():
                self._requested.clear()
                if not self._succeeds():
                    self.request()
            if last:
                return
            self._stop.wait(self._pause)

    def _succeeds(self) -> bool:
        try:
            self._sync()
        except Exception as error:  # noqa: BLE001 - tracking must not stop an experiment
            if not self._behind:  # logged once, however long it lasts
                logger.warning("MLflow is behind, will try again: %s", redact_error(error))
            self._behind = True
            return False
        if self._behind:
            logger.warning("MLflow is up to date again")
        self._behind = False
        return True
