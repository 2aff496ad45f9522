"""How far a study is, what it trains now, and how long the rest takes at this pace."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pipelines.durations import clock
from pipelines.progress import LiveProgress
from pipelines.status_view import training_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from pipelines.activity import Activity, ProcessState

LEAST_PROGRESS = 0.5
"""Trials that a pace is judged by; a part of one counts."""


def study_progress(console: Console, activity: Activity) -> LiveProgress:
    """Show one bar over all trials of a study, from what the process says of itself."""
    pace = Pace(lambda: activity.process)
    return LiveProgress(console, pace.share, pace.how_far, pace.what_runs)


class Pace:
    """Trials that are done, those that run by the part of them that is done."""

    def __init__(
        self, process: Callable[[], ProcessState], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._process_state, self._clock = process, clock
        self._began, self._furthest = clock(), 0.0

    def _done(self) -> float:
        """Trials, and parts of trials."""
        process = self._process_state()
        if process.trials is None:
            return 0.0
        parts = [build.done / build.total for build in process.builds if build.total]
        running = process.trials.running * sum(parts) / max(len(process.builds), 1)
        return process.trials.complete + running

    def share(self) -> float:
        """Part of the trials that is done, of 1; it never falls."""
        trials = self._process_state().trials
        if trials is not None and trials.wanted:
            self._furthest = max(self._furthest, min(self._done() / trials.wanted, 1.0))
        return self._furthest

    def seconds_left(self) -> float | None:
        """Time to the last trial at the pace since the beginning; None: too little is done."""
        trials = self._process_state().trials
        if trials is None:
            return None
        done = self._done()
        gained = done - trials.at_first
        if gained < LEAST_PROGRESS:
            return None
        return max(trials.wanted - done, 0.0) * (self._clock() - self._began) / gained

    def how_far(self) -> str:
        """Part that is done, trials, time left and time spent."""
        trials, left = self._process_state().trials, self.seconds_left()
        count = "" if trials is None else f"  {trials.complete} of {trials.wanted} trials"
        until = "time left not known yet" if left is None else f"{clock(left)} left"
        spent = clock(self._clock() - self._began)
        return f"{min(int(100 * self.share()), 99)} %{count}  {until}  {spent} so far"

    def what_runs(self) -> str:
        """Each training that is at work."""
        texts = []
        for build in self._process_state().builds:
            text = f"{build.done} of {build.total} artifacts" if build.total else "beginning"
            if build.waiting:
                text = f"waiting for {build.waiting}, which another process builds"
            elif build.training is not None:
                text = training_text(build.training, time.time())
            texts.append(f"{build.name}: {text}")
        return "; ".join(texts) or self._process_state().phase
