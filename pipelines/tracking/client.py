"""MLflow as a projection of the store. The only module that imports mlflow.

Nothing is true because MLflow says so: `MlflowTracker.sync` compares what a run shows with the
results in the store and adds what is missing, so that doing it twice, from anywhere, changes
nothing. Time stamps are those of the artifacts.
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
"""Stage of what was deleted in MLflow's pages: it lies in the trash until `mlflow gc`."""
VIEW = "igdit"
"""Name of the view in which the runs of an MLflow experiment are compared."""

logger = logging.getLogger(__name__)


def import_mlflow() -> Any:  # noqa: ANN401
    """Import mlflow with its telemetry off."""
    unset_empty_settings()
    set_defaults(
        {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "GIT_PYTHON_REFRESH": "quiet",
            # A server that is away is given up soon; what it misses is logged later.
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        }
    )
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # of each try; we say that it failed
    return mlflow


class MlflowTracker:
    """One MLflow run for each distinct experiment."""

    def __init__(self, tracking_uri: str, artifact_root: Path, store: Store | None = None) -> None:
        """Connect.

        Args:
            tracking_uri: MLflow's backend.
            artifact_root: Where its files go, if it has no server.
            store: What several hosts that log to one server share.
        """
        self.mlflow = import_mlflow()
        self._artifact_root = artifact_root
        local = FileLock(artifact_root.parent / ".tracking.lock")
        shared = store is not None and tracking_uri.startswith("http")
        self._lock: Lock = store.lock(".tracking.lock") if store and shared else local
        with self.alone():  # a new database is set up by one process
            self.client = self.mlflow.MlflowClient(tracking_uri=tracking_uri)

    def alone(self) -> AbstractContextManager[None]:
        """One process at a time, so that two of the same experiment make one run."""
        return waited_for(self._lock)

    def sync(self, results: Results, files: Iterable[Path] = (), *, finished: bool) -> str:
        """Bring the run of an experiment up to date.

        Args:
            results: What was measured so far.
            files: Report files to attach (their names are fixed, so they replace themselves).
            finished: Whether the experiment is complete.

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
        """Save how the runs of an MLflow experiment are compared, and what its metrics mean.

        Args:
            experiment_id: The MLflow experiment.
            name: Name of the view.
            view: The view, as `pipelines.tracking.views` writes it.
            note: Description of the experiment; one that somebody wrote is left alone.

        Returns:
            Where the view opens, below the server's address.
        """
        tags = self.client.get_experiment(experiment_id).tags
        if NOTE_TAG not in tags:
            self.client.set_experiment_tag(experiment_id, NOTE_TAG, note)
        if tags.get(VIEW_TAG + name) != view:
            self.client.set_experiment_tag(experiment_id, VIEW_TAG + name, view)
        return view_address(experiment_id, name)

    def experiment(self, name: str) -> str:
        """Return the id of the MLflow experiment of that name: found, restored or made."""
        found = self._found(name)
        if found is not None:
            return found
        location = None
        if tracking_uri() is None:
            location = (self._artifact_root / quote(name)).as_uri()
        # Without the kind the pages open in the view for language models.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(self.client.create_experiment(name, location, tags))
        except self.mlflow.exceptions.MlflowException:
            found = self._found(name)  # another process was faster
            if found is None:
                raise
            return found

    def _found(self, name: str) -> str | None:
        """Id of the MLflow experiment of that name, out of the trash if somebody put it there."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return None
        experiment_id = str(found.experiment_id)
        if found.lifecycle_stage == DELETED:
            self._restore(self.client.restore_experiment, "experiment", name, experiment_id)
        return experiment_id

    def _restore(
        self, restore: Callable[[str], object], kind: str, name: str, identifier: str
    ) -> None:
        """Take what was deleted in MLflow's pages out of its trash, where its name is still taken.

        Raises:
            TrackingError: the server does not allow it; says the command that does it.
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
        """Find the runs that a filter selects, those of the trash among them.

        Args:
            experiment_id: Where to look.
            filter_text: What selects them, in MLflow's query language.
        """
        view, found, token = self.mlflow.entities.ViewType.ALL, [], None
        while True:
            page = self.client.search_runs(
                [experiment_id], filter_text, run_view_type=view, page_token=token
            )
            found += page
            token = page.token
            if not token:
                return sorted(found, key=lambda run: run.info.lifecycle_stage == DELETED)

    def live(self, run: Any) -> Any:  # noqa: ANN401
        """Return a run that can be written to: itself, or restored out of MLflow's trash."""
        if run.info.lifecycle_stage != DELETED:
            return run
        run_id = run.info.run_id
        self._restore(self.client.restore_run, "run", run.info.run_name, run_id)
        return self.client.get_run(run_id)

    def _last_step(self, experiment_id: str) -> int:
        """The last training step of the experiment's longest run."""
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
        """Set the tags of a run that are not as they should be."""
        for name, value in tags.items():
            if run.data.tags.get(name) != value:
                self.client.set_tag(run.info.run_id, name, value)

    def log_parameters(self, run: Any, parameters: Mapping[str, object]) -> None:  # noqa: ANN401
        """Log the parameters that a run lacks: a parameter is never changed."""
        param = self.mlflow.entities.Param
        missing = [
            param(name, str(value))
            for name, value in parameters.items()
            if name not in run.data.params
        ]
        if missing:
            self.client.log_batch(run.info.run_id, params=missing)

    def log(self, run_id: str, values: list[Value]) -> None:
        """Log the values whose (key, step) the run lacks: MLflow would append, not replace."""
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
        """Register evaluated checkpoints as models with their FID, so that they can be ranked."""
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
            # The same (value, time, step) as the curve's: on the run it is that point.
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
        """Key of each of this run's checkpoints -> its model, and whether that is complete."""
        found, token = {}, None
        while True:
            page = self.client.search_logged_models(
                [experiment_id], filter_string=f"source_run_id = '{run_id}'", page_token=token
            )
            for model in page:
                ready = str(model.status).rpartition(".")[2] == "READY"
                found[model.tags[CHECKPOINT_TAG]] = (model.model_id, ready)
            token = page.token
            if not token:
                return found

    def _attach(self, run_id: str, results: Results, files: Iterable[Path]) -> None:
        if EXPERIMENT_FILE not in {item.path for item in self.client.list_artifacts(run_id)}:
            resolved = experiment_to_json(results.experiment)
            self.client.log_text(run_id, resolved, EXPERIMENT_FILE)
        for path in files:
            self.client.log_artifact(run_id, str(path))
        have = {item.path for item in self.client.list_artifacts(run_id, "grids")}
        for m in (*results.curve.values(), *results.final.values()):
            name = f"step-{m.point.step:08d}-ig-{m.guidance.ig_scale:g}.png"
            sheet = preview(results, m)
            if f"grids/{name}" not in have and sheet is not None:
                self.log_as(run_id, sheet, name, "grids")
                have.add(f"grids/{name}")
        curve = results.curve_of(results.experiment.guidance)
        self.log_samples(run_id, results, curve.values())

    def log_samples(self, run_id: str, results: Results, measured: Iterable[Measurement]) -> None:
        """Log the sample sheets of measurements as images by step, which MLflow compares.

        MLflow's own `log_image` gives each call other file names; these are made of the artifact,
        and a step that has its image is left alone.
        """
        have = {Path(item.path).name for item in self.client.list_artifacts(run_id, "images")}
        for m in measured:
            sheet, step = preview(results, m), m.point.step
            ends = {
                name.rpartition("+")[2].rpartition(".")[2]
                for name in have
                if name.startswith(f"{SAMPLES}+step+{step}+")
            }
            if sheet is None or ends >= {"png", "webp"}:
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
            # A sync in the background may come after that of the end.
            going_on = command_times(results.store, results.graph.run_key).is_open
            if going_on and info.status != "RUNNING":
                self.client.update_run(run_id, status="RUNNING")
            return
        ended = run_ended_ms(results)
        if (info.status, info.end_time) != ("FINISHED", ended):
            self.client.set_terminated(run_id, "FINISHED", ended)


def source_tags(command: str) -> dict[str, str]:
    """Return the tags of a new run: the command that makes it."""
    return {
        "mlflow.source.name": redact(command),
        "mlflow.source.type": "LOCAL",
    }
