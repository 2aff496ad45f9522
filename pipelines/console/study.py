"""Progress and findings of a study on the terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pipelines.common.formatting import (
    change,
    clock,
    data_size,
    in_words,
    metric,
    metric_interval,
    number,
    percent,
)
from pipelines.console.console import ScreenTable, log, numbers, print_table, words
from pipelines.console.progress import LiveProgress, training_text
from pipelines.study.confirm import BASELINE

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from rich.console import Console

    from pipelines.status.activity import Activity, ProcessState
    from pipelines.study.findings import Findings, Forecast


MIN_TRIALS = 0.5
"""Fewest trials from which the time left is estimated; a part of a trial counts."""
MAX_POINTS = 10
"""Most points that are printed; the table on disk holds all."""


def study_progress(console: Console, activity: Activity) -> LiveProgress:
    """Return one bar over all trials of a study, from the state of the process."""
    pace = Pace(lambda: activity.process)
    return LiveProgress(console, pace.share, pace.how_far, pace.what_runs)


class Pace:
    """Pace of a study; a running trial counts by the part of it that is done."""

    def __init__(
        self, process: Callable[[], ProcessState], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._process_state, self._clock = process, clock
        self._began, self._furthest = clock(), 0.0

    def _done(self) -> float:
        """Count the finished trials and the finished parts of running ones."""
        process = self._process_state()
        if process.trials is None:
            return 0.0
        parts = [build.done / build.total for build in process.builds if build.total]
        running = process.trials.running * sum(parts) / max(len(process.builds), 1)
        return process.trials.complete + running

    def share(self) -> float:
        """Return the part of the trials that is done, in [0, 1]; it never falls."""
        trials = self._process_state().trials
        if trials is not None and trials.wanted:
            self._furthest = max(self._furthest, min(self._done() / trials.wanted, 1.0))
        return self._furthest

    def seconds_left(self) -> float | None:
        """Return the seconds to the last trial at the pace so far; None if too little is done."""
        trials = self._process_state().trials
        if trials is None:
            return None
        done = self._done()
        gained = done - trials.at_first
        if gained < MIN_TRIALS:
            return None
        return max(trials.wanted - done, 0.0) * (self._clock() - self._began) / gained

    def how_far(self) -> str:
        """Return the part that is done, the trials, the time left and the time elapsed."""
        trials, left = self._process_state().trials, self.seconds_left()
        count = "" if trials is None else f"  {trials.complete} of {trials.wanted} trials"
        until = "time left unknown" if left is None else f"{clock(left)} left"
        spent = clock(self._clock() - self._began)
        return f"{min(int(100 * self.share()), 99)} %{count}  {until}  {spent} elapsed"

    def what_runs(self) -> str:
        """Describe each training that is running."""
        texts = []
        for build in self._process_state().builds:
            text = f"{build.done} of {build.total} artifacts" if build.total else "starting"
            if build.waiting:
                text = f"waiting for {build.waiting}, which another process builds"
            elif build.training is not None:
                text = training_text(build.training, time.time())
            texts.append(f"{build.name}: {text}")
        return "; ".join(texts) or self._process_state().phase


def print_findings(found: Findings, console: Console) -> None:
    """Print the best points, those equal to the best, the importances and the cost."""
    states = found.table["state"].value_counts().to_dict() if len(found.table) else {}
    counts = ", ".join(f"{count} {state.lower()}" for state, count in states.items())
    complete = sorted((t for t in found.trials if t.fid is not None), key=lambda t: t.fid or 0)
    order = "lowest FID first"
    if len(complete) > MAX_POINTS:
        order = f"the {MAX_POINTS} lowest FIDs of {len(complete)}"
    title = f"Study {found.study.name}: {counts or 'no trials'}; {order}"
    rows = []
    for trial in complete[:MAX_POINTS]:
        note = "best" if trial is found.best else "equal" if trial in found.equals else ""
        rows.append(
            (
                str(trial.number),
                str(trial.point.aux_layer),
                f"{trial.point.aux_weight:g}",
                f"{trial.point.ig_scale:g}",
                number(trial.fid or 0.0),
                metric_interval({"fid": trial.fid, **trial.facts}),
                note,
            )
        )
    columns = [*numbers("trial", "layer", "weight", "scale", "FID", "95 % interval"), *words("")]
    print_table(ScreenTable(title, columns, rows), console)
    if found.best is not None:
        console.print(
            f"{counted(len(found.equals), 'point')} statistically indistinguishable from the best "
            f"one (same noise, paired 95 % interval), which was chosen on these samples."
        )
    if found.holdout is not None:
        metrics, gain = found.holdout.measurement.metrics, found.holdout.gain
        against = "" if gain is None else f", {change(gain)} against scale 1"
        console.print(
            f"The best point on noise that was not used to choose it: "
            f"FID {metric(metrics)}{against}",
            style="bold",
        )
    if found.importances:
        texts = (f"{name} {percent(value)}" for name, value in found.importances.items())
        console.print(f"Importance for FID: {', '.join(texts)}")
    if found.naive_seconds:
        console.print(
            f"Worker time: {in_words(found.spent_seconds)}; a training for each point would have "
            f"taken {in_words(found.naive_seconds)} "
            f"(ratio {number(found.spent_seconds / found.naive_seconds)})"
        )


def counted(count: int, noun: str) -> str:
    """Format a count with its noun, like `1 trial` or `3 trials`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def print_forecast(cost: Forecast, console: Console) -> None:
    """Print the estimated cost of the rest of a study."""
    hours = "unknown (no comparable run here yet)"
    if cost.hours is not None:
        parts = (cost.hours, cost.train_hours or 0.0, cost.sample_hours or 0.0)
        hours = "{} (training {}, samples {})".format(*(number(p, separator=",") for p in parts))
    disk = "unknown" if cost.gigabytes is None else data_size(cost.gigabytes * 2**30)
    work = (
        f"{counted(cost.trials, 'trial')}, {counted(cost.trainings, 'training')}, "
        f"{cost.images:,} images"
    )
    log(console, f"Estimate for the rest: {work}; worker-hours {hours}; disk {disk}")


def print_confirmation(summary: pd.DataFrame, console: Console) -> None:
    """Print the confirmation on other seeds."""
    seeds = int(summary["seeds"].max())
    title = (
        f"Confirmed with {seeds} other training seeds and other noise "
        f"(mean, 95 % interval over seeds)"
    )
    rows = []
    for label, row in summary.iterrows():
        gain = change((row["gain"], row["gain_low"], row["gain_high"]))
        rows.append((str(label), metric(dict(row)), "" if label == BASELINE else gain))
    columns = [*words("candidate"), *numbers("FID", "against the first")]
    print_table(ScreenTable(title, columns, rows), console)
