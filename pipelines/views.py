"""How MLflow's pages are laid out to compare runs: views that are saved with an experiment.

MLflow keeps a view that somebody shares (columns, order, charts) as a tag of the experiment, and
opens it by its name in the address. A server that knows no such views opens its usual page.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from pipelines.projection import STUDIED

VIEW_TAG = "mlflow.sharedViewState."
SAMPLES = "samples"
"""Name under which a run's sample sheets are logged as images by step."""
FIDS = [f"metrics.`{name}`" for name in ("fid_final", "fid_low", "fid_high")]


def study_view(filter_text: str, last_step: int) -> str:
    """The view of a study's trials, best first.

    Args:
        filter_text: What selects the trials, in MLflow's query language.
        last_step: Training step whose samples are shown.
    """
    charts = [
        _parallel("FID by layer, weight and scale", STUDIED, ("fid_final",)),
        _line("FID over training (at the curve's scale)", "fid", logarithmic=True),
        _scatter("FID over guidance scale", "ig_scale", "fid_final"),
        _scatter("FID over auxiliary weight", "aux_weight", "fid_final"),
        _images(last_step),
    ]
    columns = [_column("params", name) for name in STUDIED] + FIDS
    return _view("Study", charts, columns, filter_text)


def experiment_view() -> str:
    """The view of an experiment's runs, best first."""
    charts = [
        _line("FID over training", "fid", "fid_unguided", logarithmic=True),
        _line("FID by guidance scale (step 100 is scale 1, unguided)", "fid_by_ig_scale"),
        _line("Training loss", "loss_total"),
        _bar("FID of the last checkpoint", "fid_final"),
        _images(0),
    ]
    columns = FIDS + [_column("params", name) for name in (*STUDIED, "steps", "seed")]
    return _view("Comparison", charts, columns, "")


def view_address(experiment_id: str, name: str) -> str:
    """Where a saved view opens, below the server's address."""
    return (f"#/experiments/{experiment_id}/runs?compareRunsMode=CHART&viewStateShareKey={name}"
            f"&workflowType=machine_learning")  # fmt: skip


def compare_address(experiment_id: str, run_ids: list[str]) -> str:
    """Where runs are compared side by side, below the server's address."""
    runs = quote(json.dumps(run_ids, separators=(",", ":")), safe=",")
    experiments = quote(json.dumps([experiment_id]), safe=",")
    return f"#/compare-runs?runs={runs}&experiments={experiments}"


def _view(title: str, charts: list[dict[str, Any]], columns: list[str], filter_text: str) -> str:
    """What MLflow saves of a view; all other metrics follow in a section that is folded."""
    sections = [
        {"uuid": "igdit", "name": title, "display": True},
        {"uuid": "igdit-all", "name": "Model metrics", "display": False},
        {"uuid": "igdit-system", "name": "System metrics", "display": False},
    ]
    placed = [{"uuid": f"igdit-{number}", "metricSectionId": "igdit", "isGenerated": False,
               "deleted": False, **chart} for number, chart in enumerate(charts)]  # fmt: skip
    state = {
        "searchFilter": filter_text,
        "orderByKey": _column("metrics", "fid_final"),
        "orderByAsc": True,
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "hideEmptyCharts": False,
        "compareRunSections": [{**s, "isReordered": True, "deleted": False} for s in sections],
        "compareRunCharts": placed,
    }
    return json.dumps(state, separators=(",", ":"), sort_keys=True)


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _parallel(title: str, params: tuple[str, ...], metrics: tuple[str, ...]) -> dict[str, Any]:
    return {"type": "PARALLEL", "displayName": title, "selectedParams": params,
            "selectedMetrics": metrics, "showAllRuns": False}  # fmt: skip


def _line(title: str, *metrics: str, logarithmic: bool = False) -> dict[str, Any]:
    return {"type": "LINE", "displayName": title, "metricKey": metrics[0],
            "selectedMetricKeys": metrics, "lineSmoothness": 0, "xAxisKey": "step",
            "xAxisScaleType": "linear", "scaleType": "log" if logarithmic else "linear",
            "range": {}, "selectedXAxisMetricKey": "", "yAxisKey": "metric",
            "yAxisExpressions": [], "ignoreOutliers": False, "useGlobalXaxisKey": True,
            "useGlobalLineSmoothing": True}  # fmt: skip


def _scatter(title: str, param: str, metric: str) -> dict[str, Any]:
    return {"type": "SCATTER", "displayName": title, "runsCountToCompare": 100,
            "xaxis": {"key": param, "type": "PARAM"},
            "yaxis": {"key": metric, "type": "METRIC"}}  # fmt: skip


def _bar(title: str, metric: str) -> dict[str, Any]:
    return {"type": "BAR", "displayName": title, "metricKey": metric, "runsCountToCompare": 100}


def _images(step: int) -> dict[str, Any]:
    return {"type": "IMAGE", "displayName": "Samples", "imageKeys": [SAMPLES], "step": step,
            "showRunParams": True, "runsCountToCompare": 100}  # fmt: skip
