"""Confirmation of a study: the best point of each layer on other training seeds and noise.

A study chooses its best point on the samples that give its FID. The confirmation trains the best
point of each layer, and the model without auxiliary head, from other seeds, and samples them from
noise that was not used to choose.
"""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from ig_core.config import Guidance
from pipelines.common.errors import (
    SamplingFailedError,
    StoppedError,
    TrainingFailedError,
    WorkerLostError,
)
from pipelines.common.formatting import number
from pipelines.common.redaction import redact
from pipelines.execution.listener import NullListener
from pipelines.execution.scheduler import Pipeline
from pipelines.graph.graph import Graph
from pipelines.results.measurements import collect
from pipelines.status.activity import Activity
from pipelines.store.register import Record, remember
from pipelines.study.damage import rebuild_damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from experiments import Experiment
    from experiments.study import Point, Study
    from pipelines.execution.session import RunnerSession
    from pipelines.store.home import Home
    from pipelines.study.trials import Trial


BASELINE = "no auxiliary loss, unguided"


@dataclass(frozen=True)
class Candidate:
    """Candidate to confirm: the best point of a layer, or the baseline (no point)."""

    label: str
    point: Point | None

    def experiment(self, study: Study, seed: int) -> Experiment:
        """Return the experiment that trains from a seed and samples from that seed's noise."""
        base = study.experiment
        other = {
            "name": f"{study.name}-confirm",
            "train": replace(base.train, seed=seed),
            "evaluation": replace(base.evaluation, seed=seed, holdout_seed=None),
            "ig_scales": (),
        }
        if self.point is None:
            return replace(
                base,
                model=replace(base.model, aux_layer=None),
                loss=replace(base.loss, aux_weight=0.0, target_guidance=0.0),
                guidance=Guidance(),
                **other,  # type: ignore[arg-type]
            )
        return replace(
            base,
            model=replace(base.model, aux_layer=self.point.aux_layer),
            loss=replace(base.loss, aux_weight=self.point.aux_weight),
            guidance=replace(base.guidance, ig_scale=self.point.ig_scale),
            **other,  # type: ignore[arg-type]
        )


def candidates(trials: Sequence[Trial]) -> list[Candidate]:
    """Return the baseline and the best point of each layer, earliest first."""
    best: dict[int, Trial] = {}
    for trial in sorted((t for t in trials if t.fid is not None), key=lambda t: t.fid or 0.0):
        best.setdefault(trial.point.aux_layer, trial)
    points = [best[layer].point for layer in sorted(best)]
    return [Candidate(BASELINE, None), *map(candidate, points)]


def candidate(point: Point) -> Candidate:
    """Return the candidate of a point."""
    return Candidate(f"{point.training_name}, scale {point.ig_scale:g}", point)


def other_seeds(study: Study, count: int) -> list[int]:
    """Return seeds that the study did not use."""
    base = study.experiment
    used = {base.train.seed, base.evaluation.seed}
    return [seed for seed in range(1, count + len(used) + 1) if seed not in used][:count]


def confirm(
    study: Study,
    identity: str,
    trials: Sequence[Trial],
    count: int,
    home: Home,
    session: RunnerSession,
    log: Callable[[str], None],
    activity: Activity | None = None,
) -> pd.DataFrame:
    """Train and evaluate every candidate from `count` other seeds; closes the session.

    Args:
        study: The study.
        identity: Its name in the register.
        trials: Its trials.
        count: Number of seeds.
        home: Home of the results.
        session: Runners of the trainings, and their number.
        log: Prints a line.
        activity: Activity of this process; None: it publishes nothing.

    Returns:
        A row for each candidate and seed: label, seed, fid, gain (relative decrease of FID against
        the baseline of the same seed).
    """
    chosen, seeds = candidates(trials), other_seeds(study, count)
    work = [(c, seed, c.experiment(study, seed)) for seed in seeds for c in chosen]
    activity = activity or Activity(home, "study", study.name)
    runs = _Runs(home, session, log, activity, (study.name, identity))
    runs.run([(f"{c.label}, seed {s}", e) for c, s, e in work])
    rows = []
    for confirmed, seed, experiment in work:
        headline = collect(home.store, Graph(experiment)).headline()
        if headline is not None:
            rows.append({"candidate": confirmed.label, "seed": seed, "fid": headline.fid})
    table = pd.DataFrame(rows, columns=["candidate", "seed", "fid"])
    baseline = table[table["candidate"] == BASELINE].set_index("seed")["fid"]
    table["gain"] = 1 - table["fid"] / table["seed"].map(baseline)
    return table


class _Runs:
    """Parallel runs of experiments, each for its headline FID alone."""

    def __init__(
        self,
        home: Home,
        session: RunnerSession,
        log: Callable[[str], None],
        activity: Activity,
        study: tuple[str, str],
    ) -> None:
        self._home, self._session, self._log = home, session, log
        self._activity, self._study = activity, study
        self._pipelines: list[Pipeline] = []
        self._lock, self._stopped = threading.Lock(), False

    def run(self, experiments: Sequence[tuple[str, Experiment]]) -> None:
        pool = ThreadPoolExecutor(self._session.experiments())
        try:
            for future in [pool.submit(self._one, *item) for item in experiments]:
                future.result()
        finally:
            with self._lock:
                self._stopped = True
                for pipeline in self._pipelines:
                    pipeline.stop()
            self._session.give_up()
            pool.shutdown(cancel_futures=True)
            self._session.close()

    def _one(self, label: str, experiment: Experiment) -> None:
        graph, store = Graph(experiment), self._home.store
        remember(store, Record.of_study(*self._study, experiment, graph.run_key))
        listener = self._activity.follow(graph, NullListener(), label)
        pipeline = Pipeline(store, experiment, self._session.runner, listener)
        with self._lock:
            if self._stopped:
                raise StoppedError("the work was stopped")
            self._pipelines.append(pipeline)
        try:
            rebuild_damaged(store, lambda: pipeline.run([graph.headline.evaluate]), self._log)
        except (TrainingFailedError, SamplingFailedError, WorkerLostError) as error:
            self._log(redact(f"confirm   failed: {label}: {error}"))
            return
        finally:
            listener.close()
        headline = collect(store, graph).headline()
        if headline is not None:
            self._log(f"confirm   FID {number(headline.fid):>8}  {label}")


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean FID and mean gain of each candidate, with 95 % intervals over the seeds.

    Returns:
        Indexed by candidate: fid, fid_low, fid_high, gain, gain_low, gain_high, seeds.
    """
    from scipy.stats import t as student

    rows = {}
    for label, group in table.groupby("candidate", sort=False):
        row: dict[str, float] = {"seeds": len(group)}
        for name in ("fid", "gain"):
            n = group[name].count()  # a gain is missing where the baseline of its seed failed
            reach = student.ppf(0.975, n - 1) / math.sqrt(n) if n > 1 else math.nan
            mean, half = group[name].mean(), reach * group[name].std(ddof=1)
            row |= {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}
        rows[label] = row
    return pd.DataFrame.from_dict(rows, orient="index")
