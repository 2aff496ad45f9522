"""Views in which MLflow compares runs, and notes on their metrics.

MLflow keeps a shared view (columns, order, charts) as a tag of the MLflow experiment, and opens it
by its name in the address. A server without shared views opens its usual page.
"""

from __future__ import annotations

import json
from typing import Any

VIEW_TAG = "mlflow.sharedViewState."
SAMPLES = "samples"
"""Name of a run's sample sheets, logged as images by step."""
STUDIED = ("aux_layer", "aux_weight", "ig_scale")
"""Parameters that a study varies."""
SCALE_AXIS = "ig_scale_axis"
"""Metric with the scale at each step of FID by scale: the axis of its chart."""
FIDS = [f"metrics.`{name}`" for name in ("fid", "fid_low", "fid_high")]
METRICS_NOTE = """\
- **fid**: FID of the last checkpoint at the run's own guidance scale (of a trial: at its own
  point), with its 95 % interval `fid_low`, `fid_high`. Runs are ranked by it.
- **fid_curve**, **fid_curve_unguided**: FID over training, of fewer samples, at the scale of the
  curve and at scale 1. The step is the training's. Trials that share a training share their curve.
- **fid_by_ig_scale_x100**: FID of the last checkpoint at each guidance scale. The step is 100 times
  the scale: 100 is unguided, 180 is scale 1.8 (1e10 times, where that is no whole number).
- **fid_report**: FID of the scale that was chosen (`ig_scale_report`), on holdout noise, which was
  not used to choose it.
- Compare FIDs only between runs with the same parameter `protocol`.
"""
"""Note of an MLflow experiment of runs."""
TABLE_NOTE = """\
Each run is a row of the table: **fid** is our own with its 95 % interval, **fid_published** the
published one; `fid_difference` is given where the two are comparable. The tags
`not_compared_because` and `protocol_differences` list the differences.
"""


def study_view(filter_text: str, last_step: int) -> str:
    """Return the view of a study's trials, best first.

    Args:
        filter_text: Filter that selects the trials, in MLflow's query language.
        last_step: Training step whose samples are shown.
    """
    charts = [
        _parallel(STUDIED, "fid"),
        _line("fid_curve", logarithmic=True),
        _scatter("ig_scale", "fid"),
        _scatter("aux_weight", "fid"),
    ]
    columns = [_column("params", name) for name in STUDIED] + FIDS
    return _view("Study", charts, last_step, columns, filter_text)


def experiment_view(last_step: int) -> str:
    """Return the view of all runs that share data and protocol, best first.

    Args:
        last_step: Training step whose samples are shown.
    """
    charts = [
        _line("fid_curve", "fid_curve_unguided", logarithmic=True),
        _line("fid_by_ig_scale_x100", axis=SCALE_AXIS),
        _bar("fid"),
        _line("loss_total"),
        _parallel((*STUDIED, "steps"), "fid"),
        _difference(),
    ]
    columns = FIDS + [_column("params", name) for name in (*STUDIED, "model", "steps", "seed")]
    return _view("Comparison", charts, last_step, columns, "")


def table_view() -> str:
    """Return the view of a table's rows: published numbers beside ours, in the table's order."""
    charts = [
        _bar("fid"),
        _bar("fid_published"),
        _bar("inception_score"),
        _bar("inception_score_published"),
    ]
    numbers = ("fid", "fid_low", "fid_high", "fid_published", "fid_difference")
    columns = [_column("params", name) for name in ("row", "method", "epochs", "cfg", "ig_scale")]
    columns += [_column("metrics", name) for name in numbers] + [_column("tags", "state")]
    state = json.loads(_view("Table", charts, 0, columns, ""))
    state["orderByKey"] = _column("params", "row")
    return json.dumps(state, separators=(",", ":"), sort_keys=True)


def view_address(experiment_id: str, name: str) -> str:
    """Return the path of a saved view below the server's address."""
    return (
        f"#/experiments/{experiment_id}/runs?compareRunsMode=CHART&viewStateShareKey={name}"
        f"&workflowType=machine_learning"
    )


def _view(
    title: str, charts: list[dict[str, Any]], last_step: int, columns: list[str], filter_text: str
) -> str:
    """Return a view as MLflow saves it; metrics without a chart are in a folded section."""
    sections = [
        {"uuid": "igdit", "name": title, "display": True, "columns": 2, "cardHeight": 400},
        {
            "uuid": "igdit-samples",
            "name": "Samples",
            "display": True,
            "columns": 1,
            "cardHeight": 600,
        },
        {"uuid": "igdit-all", "name": "Model metrics", "display": False},
        {"uuid": "igdit-system", "name": "System metrics", "display": False},
    ]
    own = {"isGenerated": False, "deleted": False}
    placed = [
        {"uuid": f"igdit-{number}", "metricSectionId": "igdit", **own, **chart}
        for number, chart in enumerate(charts)
    ]
    samples = {
        "uuid": "igdit-images",
        "metricSectionId": "igdit-samples",
        **own,
        "type": "IMAGE",
        "displayName": SAMPLES,
        "imageKeys": [SAMPLES],
        "step": last_step,
        "showRunParams": True,
        "runsCountToCompare": 20,
    }
    state = {
        "searchFilter": filter_text,
        "orderByKey": _column("metrics", "fid"),
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
    return {
        "type": "PARALLEL",
        "selectedParams": params,
        "selectedMetrics": [metric],
        "showAllRuns": False,
    }


def _line(*metrics: str, logarithmic: bool = False, axis: str = "") -> dict[str, Any]:
    """Return a line chart of metrics by step, or by the metric `axis`."""
    several = {"selectedMetricKeys": metrics} if len(metrics) > 1 else {}
    return {
        "type": "LINE",
        "metricKey": metrics[0],
        **several,
        "lineSmoothness": 0,
        "xAxisKey": "metric" if axis else "step",
        "xAxisScaleType": "linear",
        "scaleType": "log" if logarithmic else "linear",
        "range": {},
        "selectedXAxisMetricKey": axis,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": not axis,
        "useGlobalLineSmoothing": True,
    }


def _scatter(param: str, metric: str) -> dict[str, Any]:
    return {
        "type": "SCATTER",
        "runsCountToCompare": 100,
        "xaxis": {"key": param, "type": "PARAM"},
        "yaxis": {"key": metric, "type": "METRIC"},
    }


def _bar(metric: str) -> dict[str, Any]:
    return {"type": "BAR", "metricKey": metric, "runsCountToCompare": 100}


def _difference() -> dict[str, Any]:
    """Return a chart of the parameters and metrics in which runs differ."""
    return {
        "type": "DIFFERENCE",
        "chartName": "Differences",
        "runsCountToCompare": 20,
        "compareGroups": ["Parameters", "Model metrics"],
        "showDifferencesOnly": True,
        "showChangeFromBaseline": False,
        "baselineColumnUuid": "",
    }
