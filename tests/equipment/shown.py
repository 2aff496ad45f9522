"""What MLflow shows, read back by its client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.tracking.client import import_mlflow

if TYPE_CHECKING:
    from pathlib import Path


def database(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def client(folder: Path):
    return import_mlflow().MlflowClient(tracking_uri=database(folder))


def files_of(api, run_id: str, folder: str | None = None) -> list[str]:
    found = []
    for item in api.list_artifacts(run_id, folder):
        found += files_of(api, run_id, item.path) if item.is_dir else [item.path]
    return sorted(found)


def names_of(api, run_id: str | None) -> str | None:
    return None if run_id is None else api.get_run(run_id).info.run_name


def _began(tags: dict[str, str]) -> bool:
    """Whether the start of a run is that of work: else the run itself was made then.

    A trial's may be made before its training begins; of a row that was not run there is no work.
    """
    return "igdit.trial" not in tags and tags.get("igdit.table_number") != "none"


def shown(folder: Path) -> dict[str, dict]:
    """All that MLflow shows, without the ids it invents: by name of the run."""
    return shown_at(database(folder))


def shown_at(tracking_uri: str) -> dict[str, dict]:
    """The same of any server."""
    api, found = import_mlflow().MlflowClient(tracking_uri=tracking_uri), {}
    for experiment in api.search_experiments(filter_string="name != 'Default'"):
        for run in api.search_runs([experiment.experiment_id]):
            keys = sorted(run.data.metrics)
            histories = {k: api.get_metric_history(run.info.run_id, k) for k in keys}
            models = api.search_logged_models(
                [experiment.experiment_id],
                filter_string=f"source_run_id = '{run.info.run_id}'",
                order_by=[{"field_name": "metrics.fid_curve", "ascending": True}],
            )
            assert run.info.run_name not in found
            found[run.info.run_name] = {
                "experiment": experiment.name,
                "source": run.data.tags["mlflow.source.name"],
                "note": experiment.tags.get("mlflow.note.content"),
                "started": run.info.start_time if _began(run.data.tags) else None,
                "views": {k: v for k, v in experiment.tags.items() if "View" in k},
                "parent": names_of(api, run.data.tags.get("mlflow.parentRunId")),
                "status": run.info.status,
                "params": run.data.params,
                "tags": {k: v for k, v in run.data.tags.items() if k.startswith("igdit.")},
                "metrics": {
                    k: sorted((m.step, m.value, m.timestamp) for m in history)
                    for k, history in histories.items()
                },
                "files": files_of(api, run.info.run_id),
                "models": [
                    (
                        model.name,
                        str(model.status),
                        model.tags["igdit.checkpoint"],
                        model.tags["igdit.uri"],
                        model.params,
                        [(m.key, m.value, m.step) for m in model.metrics],
                    )
                    for model in models
                ],
                "end": run.info.end_time,
                "outputs": len(run.outputs.model_outputs) if run.outputs else 0,
            }
    return found
