"""Runs of experiments in MLflow. The only module that imports mlflow.

The store is the source of truth: `MlflowTracker.sync` compares the run in MLflow with the results
in the store and adds what is missing, so that repeating it, from any host, changes nothing. Time
stamps are those of the artifacts.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from experiments import experiment_to_json
from pipelines.common.errors import TrackingError
from pipelines.common.redaction import redact
from pipelines.common.settings import set_defaults, tracking_uri, unset_empty_settings
from pipelines.reports.reproduce import run_command, run_name
from pipelines.results.measurements import preview
from pipelines.store.file_names import EXPERIMENT_FILE
from pipelines.store.locks import FileLock, Lock, waited_for
from pipelines.store.register import command_times
from pipelines.tracking.metrics import (
    commit_tags,
    comparable_parameters,
    comparison_name,
    in_order,
    metric_values,
    run_ended_ms,
    started_ms,
    timestamp_ms,
)
from pipelines.tracking.views import METRICS_NOTE, SAMPLES, VIEW_TAG, experiment_view, view_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from pipelines.results.measurements import Measurement, Results
    from pipelines.store.base import Store
    from pipelines.tracking.metrics import Value

RUN_TAG = "igdit.run_key"
CHECKPOINT_TAG = "igdit.checkpoint"
NOTE_TAG = "mlflow.note.content"
DELETED = "deleted"
"""Lifecycle stage of runs and experiments in MLflow's trash, which `mlflow gc` empties."""
VIEW = "igdit"
"""Name of the view that compares the runs of an MLflow experiment."""

logger = logging.getLogger(__name__)


def import_mlflow() -> Any:  # noqa: ANN401
    """Import mlflow with its telemetry off."""
    unset_empty_settings()
    set_defaults(
        {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "GIT_PYTHON_REFRESH": "quiet",
            # Fail soon if the server is away; a later sync logs what it misses.
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        }
    )
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each retry
    return mlflow


class MlflowTracker:
    """Connection to MLflow, with one run for each distinct experiment."""

    def __init__(self, tracking_uri: str, artifact_root: Path, store: Store | None = None) -> None:
        """Connect to MLflow.

        Args:
            tracking_uri: MLflow's backend.
            artifact_root: Folder for its files, if there is no server.
            store: Store that the hosts share which log to one server; it holds their lock.
        """
        self.mlflow = import_mlflow()
        self._artifact_root = artifact_root
        local = FileLock(artifact_root.parent / ".tracking.lock")
        shared = store is not None and tracking_uri.startswith("http")
        self._lock: Lock = store.lock(".tracking.lock") if store and shared else local
        with self.alone():  # a new database is set up by one process
            self.client = self.mlflow.MlflowClient(tracking_uri=tracking_uri)

    def alone(self) -> AbstractContextManager[None]:
        """Exclude other processes, so that two of the same experiment create one run."""
        return waited_for(self._lock)

    def sync(self, results: Results, files: Iterable[Path] = (), *, finished: bool) -> str:
        """Bring the run of an experiment up to date.

        Args:
            results: Results so far.
            files: Report files to attach; files of the same name are replaced.
            finished: The experiment is complete.

        Returns:
            Path of the run's page below the tracking server's address.
        """
        with self.alone():
            experiment_id = self.experiment(comparison_name(results.graph))
            run_id = self._run(experiment_id, results)
            self.log(run_id, in_order(metric_values(results)))
            self._register(experiment_id, run_id, results)
            self._attach(run_id, results, files)
            view = experiment_view(self._last_step(experiment_id))
            self.save_view(experiment_id, VIEW, view, METRICS_NOTE)
            self._set_status(run_id, results, finished=finished)
        return f"#/experiments/{experiment_id}/runs/{run_id}"

    def save_view(self, experiment_id: str, name: str, view: str, note: str) -> str:
        """Save a view that compares the runs of an MLflow experiment, and a note on its metrics.

        Args:
            experiment_id: The MLflow experiment.
            name: Name of the view.
            view: The view, as `pipelines.tracking.views` formats it.
            note: Description of the experiment; an existing one is not replaced.

        Returns:
            Path of the view below the server's address.
        """
        tags = self.client.get_experiment(experiment_id).tags
        if NOTE_TAG not in tags:
            self.client.set_experiment_tag(experiment_id, NOTE_TAG, note)
        if tags.get(VIEW_TAG + name) != view:
            self.client.set_experiment_tag(experiment_id, VIEW_TAG + name, view)
        return view_address(experiment_id, name)

    def experiment(self, name: str) -> str:
        """Return the id of the MLflow experiment of that name: found, restored or created."""
        experiment_id = self._find_experiment(name)
        if experiment_id is not None:
            return experiment_id
        location = None
        if tracking_uri() is None:
            location = (self._artifact_root / quote(name)).as_uri()
        # Without the kind MLflow opens the pages for language models.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(self.client.create_experiment(name, location, tags))
        except self.mlflow.exceptions.MlflowException:
            experiment_id = self._find_experiment(name)  # another process was faster
            if experiment_id is None:
                raise
            return experiment_id

    def _find_experiment(self, name: str) -> str | None:
        """Return the id of the MLflow experiment of that name, restored if it is in the trash."""
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            return None
        experiment_id = str(experiment.experiment_id)
        if experiment.lifecycle_stage == DELETED:
            self._restore(self.client.restore_experiment, "experiment", name, experiment_id)
        return experiment_id

    def _restore(
        self, restore: Callable[[str], object], kind: str, name: str, identifier: str
    ) -> None:
        """Restore a run or an experiment from MLflow's trash, where its name is still taken.

        Raises:
            TrackingError: If the server refuses; names the command that restores it.
        """
        try:
            restore(identifier)
        except self.mlflow.exceptions.MlflowException as error:
            raise TrackingError(
                f"MLflow's {kind} {name!r} was deleted and could not be restored ({error}): "
                f"`mlflow {kind}s restore --{kind}-id {identifier}` does it, with "
                f"MLFLOW_TRACKING_URI naming the server or its database"
            ) from error
        logger.warning("MLflow's %s %r had been deleted and is restored", kind, name)

    def runs_of(self, experiment_id: str, filter_text: str) -> list[Any]:
        """Return the runs that a filter selects; those in the trash come last.

        Args:
            experiment_id: The MLflow experiment.
            filter_text: Filter in MLflow's query language.
        """
        view, runs, token = self.mlflow.entities.ViewType.ALL, [], None
        while True:
            page = self.client.search_runs(
                [experiment_id], filter_text, run_view_type=view, page_token=token
            )
            runs += page
            token = page.token
            if not token:
                return sorted(runs, key=lambda run: run.info.lifecycle_stage == DELETED)

    def live(self, run: Any) -> Any:  # noqa: ANN401
        """Return a run that can be written to: itself, or restored from MLflow's trash."""
        if run.info.lifecycle_stage != DELETED:
            return run
        run_id = run.info.run_id
        self._restore(self.client.restore_run, "run", run.info.run_name, run_id)
        return self.client.get_run(run_id)

    def _last_step(self, experiment_id: str) -> int:
        """Return the last training step of the MLflow experiment's longest run."""
        runs = self.client.search_runs([experiment_id], f"tags.`{RUN_TAG}` != ''")
        return max((int(run.data.params.get("steps", 0)) for run in runs), default=0)

    def _run(self, experiment_id: str, results: Results) -> str:
        key = results.graph.run_key
        found = self.runs_of(experiment_id, f"tags.`{RUN_TAG}` = '{key}'")
        run = self.live(found[0]) if found else self._create_run(experiment_id, results)
        self.set_tags(run, commit_tags(results))
        self.log_parameters(run, comparable_parameters(results))
        return str(run.info.run_id)

    def _create_run(self, experiment_id: str, results: Results) -> Any:  # noqa: ANN401
        graph, experiment = results.graph, results.experiment
        tags = {
            RUN_TAG: graph.run_key,
            "igdit.store": redact(results.store.uri),
            "igdit.data": str(graph.data.ref),
            "igdit.trajectory": graph.checkpoint(0).hash,
            **source_tags(run_command(experiment)),
        }
        return self.client.create_run(
            experiment_id, started_ms(results), tags, run_name(experiment)
        )

    def set_tags(self, run: Any, tags: Mapping[str, str]) -> None:  # noqa: ANN401
        """Set those tags of a run that have other values."""
        for name, value in tags.items():
            if run.data.tags.get(name) != value:
                self.client.set_tag(run.info.run_id, name, value)

    def log_parameters(self, run: Any, parameters: Mapping[str, object]) -> None:  # noqa: ANN401
        """Log the parameters that a run lacks; existing ones cannot be changed."""
        missing = [
            self.mlflow.entities.Param(name, str(value))
            for name, value in parameters.items()
            if name not in run.data.params
        ]
        if missing:
            self.client.log_batch(run.info.run_id, params=missing)

    def log(self, run_id: str, values: list[Value]) -> None:
        """Log the values whose (key, step) the run lacks, as MLflow appends and never replaces."""
        known = {
            (key, metric.step)
            for key in {value.key for value in values}
            for metric in self.client.get_metric_history(run_id, key)
        }
        metric = self.mlflow.entities.Metric
        new = [
            metric(v.key, v.value, v.timestamp_ms, v.step)
            for v in values
            if (v.key, v.step) not in known
        ]
        for first in range(0, len(new), 1000):
            self.client.log_batch(run_id, metrics=new[first : first + 1000])

    def _register(self, experiment_id: str, run_id: str, results: Results) -> None:
        """Register evaluated checkpoints as models with their FID, so that MLflow ranks them."""
        own = results.experiment.guidance
        known = self._registered(experiment_id, run_id)
        outputs = self.client.get_run(run_id).outputs
        linked = {output.model_id for output in outputs.model_outputs} if outputs else set()
        for step, measurement in results.curve_of(own).items():
            node = results.graph.checkpoint(step)
            model_id, complete = known.get(node.key, (None, False))
            if complete:
                continue
            if model_id is None:
                address = results.store.address(node.ref)
                uri = redact(address) if "://" in address else Path(address).as_uri()
                model = self.client.create_logged_model(
                    experiment_id,
                    name=f"step-{step}",
                    source_run_id=run_id,
                    tags={CHECKPOINT_TAG: node.key, "igdit.uri": uri},
                    params={"step": str(step), "ig_scale": f"{own.ig_scale:g}"},
                    model_type="checkpoint",
                )
                model_id = model.model_id
            # The same value, time and step as in the FID curve, so that the run shows one point.
            self.client.log_metric(
                run_id,
                "fid_curve",
                measurement.fid,
                step=step,
                timestamp=timestamp_ms(measurement),
                model_id=model_id,
            )
            if model_id not in linked:
                output = self.mlflow.entities.LoggedModelOutput(model_id, step)
                self.client.log_outputs(run_id, [output])
            self.client.finalize_logged_model(model_id, "READY")

    def _registered(self, experiment_id: str, run_id: str) -> dict[str, tuple[str, bool]]:
        """Return key of a checkpoint -> id of its model, and whether the model is complete."""
        models, token = {}, None
        while True:
            page = self.client.search_logged_models(
                [experiment_id], filter_string=f"source_run_id = '{run_id}'", page_token=token
            )
            for model in page:
                ready = str(model.status).rpartition(".")[2] == "READY"
                models[model.tags[CHECKPOINT_TAG]] = (model.model_id, ready)
            token = page.token
            if not token:
                return models

    def _attach(self, run_id: str, results: Results, files: Iterable[Path]) -> None:
        if EXPERIMENT_FILE not in {item.path for item in self.client.list_artifacts(run_id)}:
            resolved = experiment_to_json(results.experiment)
            self.client.log_text(run_id, resolved, EXPERIMENT_FILE)
        for path in files:
            self.client.log_artifact(run_id, str(path))
        logged = {item.path for item in self.client.list_artifacts(run_id, "grids")}
        for m in (*results.curve.values(), *results.final.values()):
            name = f"step-{m.point.step:08d}-ig-{m.guidance.ig_scale:g}.png"
            sheet = preview(results, m)
            if f"grids/{name}" not in logged and sheet is not None:
                self.log_as(run_id, sheet, name, "grids")
                logged.add(f"grids/{name}")
        curve = results.curve_of(results.experiment.guidance)
        self.log_samples(run_id, results, curve.values())

    def log_samples(self, run_id: str, results: Results, measured: Iterable[Measurement]) -> None:
        """Log the sample sheets of measurements as images by step, which MLflow compares.

        MLflow's `log_image` makes a new file name in each call. Here the name follows from the
        artifact, and a step that has its image is skipped.
        """
        logged = {Path(item.path).name for item in self.client.list_artifacts(run_id, "images")}
        for m in measured:
            sheet, step = preview(results, m), m.point.step
            formats = {
                name.rpartition("+")[2].rpartition(".")[2]
                for name in logged
                if name.startswith(f"{SAMPLES}+step+{step}+")
            }
            if sheet is None or formats >= {"png", "webp"}:
                continue
            stem = f"{SAMPLES}+step+{step}+timestamp+{timestamp_ms(m)}+{m.artifact.ref.key}"
            self.client.set_tag(run_id, "mlflow.loggedImages", "True")
            with tempfile.TemporaryDirectory() as temporary:
                small = Path(temporary) / f"{stem}+compressed.webp"
                self.mlflow.Image(str(sheet)).to_pil().save(small)
                self.client.log_artifact(run_id, str(small), "images")
            self.log_as(run_id, sheet, f"{stem}.png", "images")

    def log_as(self, run_id: str, path: Path, name: str, folder: str | None = None) -> None:
        """Log a file under another name."""
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary) / name
            shutil.copyfile(path, copy)
            self.client.log_artifact(run_id, str(copy), folder)

    def _set_status(self, run_id: str, results: Results, *, finished: bool) -> None:
        info = self.client.get_run(run_id).info
        if not finished:
            # A background sync may be later than the last one.
            is_running = command_times(results.store, results.graph.run_key).is_open
            if is_running and info.status != "RUNNING":
                self.client.update_run(run_id, status="RUNNING")
            return
        ended = run_ended_ms(results)
        if (info.status, info.end_time) != ("FINISHED", ended):
            self.client.set_terminated(run_id, "FINISHED", ended)


def source_tags(command: str) -> dict[str, str]:
    """Return the tags that name the command of a new run."""
    return {
        "mlflow.source.name": redact(command),
        "mlflow.source.type": "LOCAL",
    }
