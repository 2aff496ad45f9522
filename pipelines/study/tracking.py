"""A study in MLflow: a parent run, and a run for each trial.

A projection, like all of MLflow here: the truth is in Optuna's storage and in the artifact store,
and `StudyTracker.sync` adds what is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.graph import Graph
from pipelines.keys import content_key
from pipelines.projection import comparable_parameters, metric_values
from pipelines.results import collect

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from experiments.study import Study
    from pipelines.artifacts import Store
    from pipelines.study.trials import Trial
    from pipelines.tracking import MlflowTracker

STUDY_TAG, TRIAL_TAG, SYNCED_TAG = "igdit.study", "igdit.trial", "igdit.synced"
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


class StudyTracker:
    """The runs of one study."""

    def __init__(self, tracker: MlflowTracker, study: Study, identity: str, store: Store) -> None:
        """Prepare to bring a study into MLflow.

        Args:
            tracker: Connection to the server.
            study: The study.
            identity: What its runs are tagged with (`StudyBook.identity`).
            store: Where its artifacts are.
        """
        self._tracker, self._client = tracker, tracker.client
        self.study, self.store = study, store
        self._key = identity

    def sync(self, trials: Sequence[Trial], files: Iterable[Path] = (), *, finished: bool) -> str:
        """Bring parent and trials up to date; doing it again changes nothing.

        Args:
            trials: All trials of the study.
            files: Report files for the parent (their names are fixed: they replace themselves).
            finished: Whether the study's budget is spent.

        Returns:
            Path of the parent's page below the tracking server's address.
        """
        with self._tracker.alone():
            experiment = self._tracker.experiment(f"study-{self.study.name}")
            runs = self._runs(experiment)
            parent = runs[""] if "" in runs else self._create(experiment, "", {})
            for trial in trials:
                self._sync_trial(experiment, parent, trial, trials, runs.get(str(trial.number)))
            for path in files:
                self._client.log_artifact(parent.info.run_id, str(path))
            self._end(parent, "FINISHED" if finished else "RUNNING")
        return f"#/experiments/{experiment}/runs/{parent.info.run_id}"

    def _runs(self, experiment: str) -> dict[str, Any]:
        """Trial number ("" for the parent) -> run."""
        found: dict[str, Any] = {}
        token = None
        while True:
            page = self._client.search_runs([experiment], f"tags.`{STUDY_TAG}` = '{self._key}'",
                                            page_token=token)  # fmt: skip
            found |= {run.data.tags.get(TRIAL_TAG, ""): run for run in page}
            token = page.token
            if not token:
                return found

    def _create(self, experiment: str, number: str, tags: dict[str, str]) -> Any:  # noqa: ANN401
        name = f"trial-{number}" if number else self.study.name
        own = {STUDY_TAG: self._key, "mlflow.source.name": f"igdit study {self.study.name}"}
        return self._client.create_run(experiment, tags={**own, **tags}, run_name=name)

    def _sync_trial(
        self,
        experiment: str,
        parent: Any,  # noqa: ANN401
        trial: Trial,
        trials: Sequence[Trial],
        run: Any,  # noqa: ANN401
    ) -> None:
        point = trial.point
        siblings = sorted((t.point.ig_scale, t.state) for t in trials
                          if t.point.training == point.training)  # fmt: skip
        # What decides what the run shows; compared before anything is read from the store.
        state = content_key([trial.state, sorted(trial.curve), siblings])
        if run is not None and run.data.tags.get(SYNCED_TAG) == state:
            return
        graph = Graph(self.study.at(*point.training, tuple(scale for scale, _ in siblings)))
        results = collect(self.store, graph)
        values = sorted(set(metric_values(results, point.ig_scale)), key=lambda v: (v.key, v.step))
        if run is None:
            run = self._create(experiment, str(trial.number), {
                TRIAL_TAG: str(trial.number),
                "mlflow.parentRunId": parent.info.run_id,
                "igdit.trajectory": graph.checkpoint(0).hash,
                "igdit.store": str(self.store.root),
            })  # fmt: skip
        run_id = run.info.run_id
        param = self._tracker.mlflow.entities.Param
        parameters = comparable_parameters(results, point.ig_scale)
        missing = [param(name, str(value)) for name, value in parameters.items()
                   if name not in run.data.params]  # fmt: skip
        if missing:
            self._client.log_batch(run_id, params=missing)
        self._tracker.log(run_id, values)
        if trial.state in STATUS:
            self._end(run, STATUS[trial.state])
        self._client.set_tag(run_id, SYNCED_TAG, state)

    def _end(self, run: Any, status: str) -> None:  # noqa: ANN401
        if run.info.status == status:
            return
        if status == "RUNNING":
            self._client.update_run(run.info.run_id, status=status)
        else:
            self._client.set_terminated(run.info.run_id, status)
