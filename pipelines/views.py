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
        _parallel(STUDIED, "fid_final"),
        _line("fid", logarithmic=True),
        _scatter("ig_scale", "fid_final"),
        _scatter("aux_weight", "fid_final"),
    ]
    columns = [_column("params", name) for name in STUDIED] + FIDS
    return _view("Study", charts, last_step, columns, filter_text)


def experiment_view(last_step: int) -> str:
    """The view of an experiment's runs, best first.

    Args:
        last_step: Training step whose samples are shown.
    """
    charts = [
        _line("fid", "fid_unguided", logarithmic=True),
        _line("fid_by_ig_scale"),
        _bar("fid_final"),
        _line("loss_total"),
    ]
    columns = FIDS + [_column("params", name) for name in (*STUDIED, "steps", "seed")]
    return _view("Comparison", charts, last_step, columns, "")


def table_view() -> str:
    """The view of a table's rows: published numbers beside ours, in the order of the table."""
    charts = [_bar("fid"), _bar("fid_published"), _bar("inception_score"),
              _bar("inception_score_published")]  # fmt: skip
    numbers = ("fid", "fid_low", "fid_high", "fid_published", "fid_difference")
    columns = [_column("params", name) for name in ("row", "method", "epochs", "cfg", "ig_scale")]
    columns += [_column("metrics", name) for name in numbers] + [_column("tags", "state")]
    state = json.loads(_view("Table", charts, 0, columns, ""))
    state["orderByKey"] = _column("params", "row")
    return json.dumps(state, separators=(",", ":"), sort_keys=True)


def view_address(experiment_id: str, name: str) -> str:
    """Where a saved view opens, below the server's address."""
    return (f"#/experiments/{experiment_id}/runs?compareRunsMode=CHART&viewStateShareKey={name}"
            f"&workflowType=machine_learning")  # fmt: skip


def compare_address(experiment_id: str, run_ids: list[str]) -> str:
    """Where runs are compared side by side, below the server's address."""
    runs = quote(json.dumps(run_ids, separators=(",", ":")), safe=",")
    experiments = quote(json.dumps([experiment_id]), safe=",")
    return f"#/compare-runs?runs={runs}&experiments={experiments}&workflowType=machine_learning"


def _view(
    title: str, charts: list[dict[str, Any]], last_step: int, columns: list[str], filter_text: str
) -> str:
    """What MLflow saves of a view; all other metrics follow in a section that is folded."""
    sections = [
        {"uuid": "igdit", "name": title, "display": True, "columns": 2, "cardHeight": 400},
        {"uuid": "igdit-samples", "name": "Samples", "display": True, "columns": 1,
         "cardHeight": 600},
        {"uuid": "igdit-all", "name": "Model metrics", "display": False},
        {"uuid": "igdit-system", "name": "System metrics", "display": False},
    ]  # fmt: skip
    own = {"isGenerated": False, "deleted": False}
    placed = [{"uuid": f"igdit-{number}", "metricSectionId": "igdit", **own, **chart}
              for number, chart in enumerate(charts)]  # fmt: skip
    samples = {"uuid": "igdit-images", "metricSectionId": "igdit-samples", **own, "type": "IMAGE",
               "displayName": SAMPLES, "imageKeys": [SAMPLES], "step": last_step,
               "showRunParams": True, "runsCountToCompare": 20}  # fmt: skip
    state = {
        "searchFilter": filter_text,
        "orderByKey": _column("metrics", "fid_final"),
        "orderByAsc": True,
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "hideEmptyCharts": False,
        "compareRunSections": [{**s, "isReordered": True, "deleted": False} for s in sections],
        "compareRunCharts": [*placed, samples],
    }
    return json.dumps(state, separators=(",", ":"), sort_keys=True)


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _parallel(params: tuple[str, ...], metric: str) -> dict[str, Any]:
    return {"type": "PARALLEL", "selectedParams": params, "selectedMetrics": [metric],
            "showAllRuns": False}  # fmt: skip


def _line(*metrics: str, logarithmic: bool = False) -> dict[str, Any]:
    several = {"selectedMetricKeys": metrics} if len(metrics) > 1 else {}
    return {"type": "LINE", "metricKey": metrics[0], **several,
            "lineSmoothness": 0, "xAxisKey": "step", "xAxisScaleType": "linear",
            "scaleType": "log" if logarithmic else "linear", "range": {},
            "selectedXAxisMetricKey": "", "yAxisKey": "metric", "yAxisExpressions": [],
            "ignoreOutliers": False, "useGlobalXaxisKey": True,
            "useGlobalLineSmoothing": True}  # fmt: skip


def _scatter(param: str, metric: str) -> dict[str, Any]:
    return {"type": "SCATTER", "runsCountToCompare": 100, "xaxis": {"key": param, "type": "PARAM"},
            "yaxis": {"key": metric, "type": "METRIC"}}  # fmt: skip


def _bar(metric: str) -> dict[str, Any]:
    return {"type": "BAR", "metricKey": metric, "runsCountToCompare": 100}
