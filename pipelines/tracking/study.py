"""Studies in MLflow: a parent run, and a run for each trial.

Optuna's storage and the artifact store are the source of truth; `StudyTracker.sync` adds what is
missing in MLflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.common.formatting import metric
from pipelines.common.redaction import redact
from pipelines.graph.graph import Graph
from pipelines.reports.reproduce import study_command
from pipelines.results.measurements import collect, preview, read_holdout
from pipelines.store.keys import content_key
from pipelines.store.register import command_times
from pipelines.study.findings import holdout_of
from pipelines.tracking.client import NOTE_TAG, source_tags
from pipelines.tracking.metrics import (
    COMPARED,
    commit_tags,
    comparable_parameters,
    ended_ms,
    holdout_values,
    in_order,
    metric_values,
    started_ms,
)
from pipelines.tracking.views import METRICS_NOTE, STUDIED, study_view

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from experiments.study import Study
    from pipelines.results.measurements import Measurement, Results
    from pipelines.store.base import Store
    from pipelines.study.trials import Trial
    from pipelines.tracking.client import MlflowTracker

STUDY_TAG, TRIAL_TAG, SYNCED_TAG = "igdit.study", "igdit.trial", "igdit.synced"
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
BEST, BEST_TAG = "Best trial:", "igdit.best_trial"
SHEET = "samples.png"
"""File with a trial's samples at its own guidance scale."""


class StudyTracker:
    """Runs of one study in MLflow."""

    def __init__(self, tracker: MlflowTracker, study: Study, identity: str, store: Store) -> None:
        """Prepare to track a study.

        Args:
            tracker: Connection to the server.
            study: The study.
            identity: Tag of its runs (`StudyLedger.identity`).
            store: Store of its artifacts.
        """
        self._tracker, self._client = tracker, tracker.client
        self.study, self.store = study, store
        self._key = identity

    def sync(
        self,
        trials: Sequence[Trial],
        files: Iterable[Path] = (),
        *,
        finished: bool,
        thorough: bool = False,
    ) -> str:
        """Bring the parent and the trials up to date; repeating it changes nothing.

        Args:
            trials: All trials of the study.
            files: Report files for the parent; files of the same name are replaced.
            finished: No process works on the study, as far as is known here.
            thorough: Check trials again that were synced before.

        Returns:
            Path of the page that compares the trials, below the server's address.
        """
        with self._tracker.alone():
            experiment = self._tracker.experiment(f"study-{self.study.name}")
            runs = self._runs(experiment)
            parent = self._parent(experiment, trials, runs)
            ends = [run.info.end_time or 0 for number, run in runs.items() if number]
            times = command_times(self.store, self._key)
            for trial in trials:
                run = runs.get(str(trial.number))
                tags = {} if run is None else run.data.tags
                if thorough or tags.get(SYNCED_TAG) != _state(trial, trials):
                    ends.append(self._sync_trial(experiment, parent, trial, trials, run) or 0)
            self._show_best(parent, trials)
            for path in files:
                self._client.log_artifact(parent.info.run_id, str(path))
            at_rest = finished and all(trial.state != "RUNNING" for trial in trials)
            ended = times.ended_ms or max(ends, default=0) or None
            self._end(parent, "FINISHED" if at_rest else "RUNNING", ended)
            return self._save_view(experiment)

    def _save_view(self, experiment: str) -> str:
        trials = f"tags.`{STUDY_TAG}` = '{self._key}' and tags.`{TRIAL_TAG}` != ''"
        view = study_view(trials, self.study.experiment.train.steps)
        return self._tracker.save_view(experiment, view_name(self._key), view, METRICS_NOTE)

    def _runs(self, experiment: str) -> dict[str, Any]:
        """Return trial number ("" for the parent) -> run."""
        runs: dict[str, Any] = {}
        for run in self._tracker.runs_of(experiment, f"tags.`{STUDY_TAG}` = '{self._key}'"):
            runs.setdefault(run.data.tags.get(TRIAL_TAG, ""), run)
        return {number: self._tracker.live(run) for number, run in runs.items()}

    def _results(self, trial: Trial, trials: Sequence[Trial]) -> Results:
        """Return the results of a trial's training, at the scales of all trials that share it."""
        same = (t.point for t in trials if t.point.training == trial.point.training)
        return collect(self.store, Graph(self.study.training_of(same)))

    def _parent(self, experiment: str, trials: Sequence[Trial], runs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return the run of the study itself, with the parameters that its trials share."""
        results = self._results(trials[0], trials) if trials else None
        parent = runs.get("")
        if parent is None:
            began = command_times(self.store, self._key).started_ms
            if began is None and results is not None:
                began = started_ms(results)
            parent = self._create(experiment, self.study.name, began, {})
        if results is not None:
            self._tracker.log_parameters(
                parent,
                {
                    name: value
                    for name, value in comparable_parameters(results).items()
                    if name not in STUDIED
                },
            )
        return parent

    def _show_best(self, parent: Any, trials: Sequence[Trial]) -> None:  # noqa: ANN401
        """Describe the best point in the note of the study's run.

        A metric could not be replaced when a better point follows. Its FID on holdout noise is a
        metric of the trial's run.
        """
        complete = [t for t in trials if t.fid is not None]
        best = min(complete, key=lambda t: (t.fid, t.number), default=None)
        if best is None:
            return
        holdout = read_holdout(self.store, *holdout_of(self.study, best))
        note = f"{BEST} {_name(best)}, FID {metric(best.facts | {'fid': best.fid})}"
        if holdout is not None:
            run = self._runs(parent.info.experiment_id)[str(best.number)]
            self._tracker.log(run.info.run_id, list(holdout_values(holdout)))
            note += f"; {metric(holdout.measurement.metrics)} on noise it was not chosen on"
        if parent.data.tags.get(NOTE_TAG, BEST).startswith(BEST):  # else a user's own note
            self._tracker.set_tags(parent, {NOTE_TAG: note, BEST_TAG: str(best.number)})

    def _create(self, experiment: str, name: str, began: int | None, tags: dict[str, str]) -> Any:  # noqa: ANN401
        own = {STUDY_TAG: self._key, **source_tags(study_command(self.study))}
        return self._client.create_run(experiment, began, {**own, **tags}, name)

    def _sync_trial(
        self,
        experiment: str,
        parent: Any,  # noqa: ANN401
        trial: Trial,
        trials: Sequence[Trial],
        run: Any,  # noqa: ANN401
    ) -> int | None:
        """Bring a trial's run up to date; returns when its last number was published, in ms."""
        guidance, results = self.study.guidance_at(trial.point), self._results(trial, trials)
        parameters = comparable_parameters(results, guidance)
        shared = {
            f"igdit.{name}": str(value)
            for name, value in parameters.items()
            if name not in COMPARED
        }
        if run is None:
            run = self._create(
                experiment,
                _name(trial),
                started_ms(results),
                {
                    TRIAL_TAG: str(trial.number),
                    "mlflow.parentRunId": parent.info.run_id,
                    "igdit.trajectory": results.graph.checkpoint(0).hash,
                    "igdit.store": redact(self.store.uri),
                    **shared,
                },
            )
        run_id = run.info.run_id
        tags = {"mlflow.runName": _name(trial), **shared, **commit_tags(results)}
        self._tracker.set_tags(run, tags)
        self._tracker.log_parameters(run, {name: parameters[name] for name in COMPARED})
        if results.curve or results.final:  # losses come with the first FID, not before it
            self._tracker.log(run_id, in_order(metric_values(results, guidance)))
        own = [m for m in (results.headline(guidance),) if m is not None]
        self._attach_samples(run_id, results, own)
        ended = ended_ms([*results.curve.values(), *own])
        if trial.state in STATUS:
            self._end(run, STATUS[trial.state], ended)
        self._client.set_tag(run_id, SYNCED_TAG, _state(trial, trials))
        return ended

    def _attach_samples(self, run_id: str, results: Results, own: Sequence[Measurement]) -> None:
        """Log the sample sheet under one name for all trials, and as the image of the last step."""
        self._tracker.log_samples(run_id, results, own)
        logged = {item.path for item in self._client.list_artifacts(run_id)}
        for sheet in (preview(results, m) for m in own if SHEET not in logged):
            if sheet is not None:
                self._tracker.log_as(run_id, sheet, SHEET)

    def _end(self, run: Any, status: str, ended: int | None) -> None:  # noqa: ANN401
        if status == "RUNNING":
            if run.info.status == status:
                return
            self._client.update_run(run.info.run_id, status=status)
        elif run.info.status != status or ended not in (None, run.info.end_time):
            self._client.set_terminated(run.info.run_id, status, ended)


def view_name(key: str) -> str:
    """Name the view that compares a study's trials, by the key of the study."""
    return f"study-{key[:8]}"


def _name(trial: Trial) -> str:
    """Name a trial for legends."""
    p = trial.point
    return f"L{p.aux_layer} w{p.aux_weight:g} s{p.ig_scale:g} #{trial.number}"


def _state(trial: Trial, trials: Sequence[Trial]) -> str:
    """Return a key of all that the run of a trial depends on, without reading the store."""
    siblings = sorted(
        (t.point.ig_scale, t.state) for t in trials if t.point.training == trial.point.training
    )
    return content_key([trial.state, sorted(trial.curve), siblings])
