"""Session of runners that experiments of one process share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ig_core.config import require
from pipelines.common.settings import ray_address
from pipelines.execution.machine import room_here
from pipelines.execution.runners import make_runner

if TYPE_CHECKING:
    from pathlib import Path

    from experiments import Resources
    from pipelines.execution.runner import Runner
    from pipelines.stages.jobs import Work


class RunnerSession:
    """Runner that the pipelines of one process share, started when the first one needs it.

    A thread of its own starts, keeps and ends it: the kernel ends Ray's processes when the thread
    that started them ends.
    """

    def __init__(
        self, work: Work, resources: Resources, scratch: Path, experiments: int | None
    ) -> None:
        """Prepare a session.

        Args:
            work: Functions that the runners execute.
            resources: Workers of each experiment.
            scratch: Folder for files that may be lost.
            experiments: Number of experiments at once; None for as many as there is room for.

        Raises:
            ValueError: If that many cannot run at once.
        """
        alone = resources.runner == "inline"
        require(
            not alone or experiments in (None, 1),
            "parallel",
            experiments,
            "1 with the inline runner, which runs one job at a time",
        )
        self._work, self._resources, self._scratch = work, resources, scratch
        self._experiments = experiments
        self._lock = threading.Lock()
        self._keeper: threading.Thread | None = None
        self._ready, self._closed = threading.Event(), threading.Event()
        self._given_up = threading.Event()
        self._error: BaseException | None = None

    def runner(self) -> Runner:
        """Return a runner for one pipeline, from any thread; raise the error of starting it."""
        with self._lock:
            if self._keeper is None:
                self._keeper = threading.Thread(
                    target=self._keep, name="runner-session", daemon=True
                )
                self._keeper.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return make_runner(self._work, self._resources, self._scratch, given_up=self._given_up)

    def experiments(self) -> int:
        """Return how many experiments run at once; connect to the cluster if there is one."""
        if self._experiments is None:
            on_cluster = self._resources.runner == "ray" and ray_address()
            self._experiments = self.runner().room() if on_cluster else room_here(self._resources)
        return self._experiments

    def give_up(self) -> None:
        """Stop waiting for nodes that are going to join the cluster."""
        self._given_up.set()

    def close(self) -> None:
        """Stop the runner; no pipeline may be running."""
        self.give_up()
        self._closed.set()
        if self._keeper is not None:
            self._keeper.join()

    def _keep(self) -> None:
        try:
            session = make_runner(
                self._work, self._resources, self._scratch, self._experiments or 1, self._given_up
            )
        except BaseException as error:  # noqa: BLE001 - raised to those who wait for it
            self._error = error
            return
        finally:
            self._ready.set()
        self._closed.wait()
        session.close()
