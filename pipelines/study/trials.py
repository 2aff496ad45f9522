"""Trials of a study, and their form in Optuna."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.study import Point, Study
from pipelines.graph.graph import Graph

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from optuna.trial import FrozenTrial


SPEC, OWNER, FACTS, CURVE = "igdit.spec", "igdit.owner", "igdit.fid", "igdit.curve"
LOSSES = "igdit.losses"
"""Attributes in Optuna: the settings of a study; driver, facts, curve and losses of a trial."""


@dataclass(frozen=True)
class Trial:
    """Trial of a study."""

    number: int
    point: Point
    state: str
    """RUNNING, COMPLETE, PRUNED or FAIL."""
    fid: float | None
    facts: dict[str, Any]
    """Facts of a complete trial: fid_low, fid_high, num_samples, point_seconds, evaluate."""
    curve: Curve
    owner: str
    losses: int = 0
    """Number of times that its training lost its workers for good."""


def by_training(trials: Iterable[Trial]) -> dict[tuple[int, float], list[Trial]]:
    """Group trials by training; the order is kept."""
    groups: dict[tuple[int, float], list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.point.training, []).append(trial)
    return groups


def numbered(trials: Sequence[Trial]) -> str:
    """Name trials by their numbers: trial 3; trials 3, 4, 5."""
    numbers = ", ".join(str(trial.number) for trial in trials)
    return f"trial{'' if len(trials) == 1 else 's'} {numbers}"


def parameters_of(point: Point) -> dict[str, Any]:
    """Return a point as parameters of Optuna."""
    return {
        "aux_layer": point.aux_layer,
        "aux_weight": point.aux_weight,
        "ig_scale": point.ig_scale,
    }


def own_trials(found: Iterable[FrozenTrial]) -> list[tuple[Trial, FrozenTrial]]:
    """Read the trials that drivers of igdit added, by number.

    Other programs can add trials to a study in Optuna (a dashboard, a script, `study.optimize`).
    They were measured in another way, and are left out.

    Returns:
        Each trial, with its form in Optuna.
    """
    pairs = ((read_trial(trial), trial) for trial in found)
    return [(trial, frozen) for trial, frozen in pairs if trial is not None]


def read_trial(trial: FrozenTrial) -> Trial | None:
    """Read a trial from Optuna; None if no driver of igdit added it, or finished it."""
    attributes, complete = trial.user_attrs, trial.state.name == "COMPLETE"
    if not str(attributes.get(OWNER, "")).isalnum() or (complete and FACTS not in attributes):
        return None
    try:
        return _read_own(trial)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_own(trial: FrozenTrial) -> Trial:
    curve = {
        int(step): CurvePoint(*map(float, values))
        for step, values in json.loads(trial.user_attrs.get(CURVE, "{}")).items()
    }
    params = trial.params
    point = Point(
        aux_layer=int(params["aux_layer"]),
        aux_weight=round(params["aux_weight"], 10),
        ig_scale=round(params["ig_scale"], 10),
    )
    complete = trial.state.name == "COMPLETE"
    return Trial(
        number=trial.number,
        point=point,
        state=trial.state.name,
        fid=trial.value if complete else None,
        facts=trial.user_attrs.get(FACTS, {}),
        curve=curve,
        owner=trial.user_attrs.get(OWNER, ""),
        losses=trial.user_attrs.get(LOSSES, 0),
    )


def curve_to_json(curve: Curve) -> str:
    """Return a curve as JSON."""
    return json.dumps({step: [point.fid, point.half_width] for step, point in curve.items()})


def point_key(study: Study) -> str:
    """Return the key of one point's evaluation, which changes if the code gives other results."""
    lowest = study.at(study.layers[0], study.space.aux_weight.low, ())
    return next(iter(Graph(lowest).final.values())).evaluate.key


def differences(old: Any, new: Any, where: str = "") -> list[str]:  # noqa: ANN401
    """List the differences of two JSON values, as `path was old and is now new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [
            text
            for key in keys
            for text in differences(old.get(key), new.get(key), f"{where}.{key}")
        ]
    return [] if old == new else [f"{where[1:]} was {old!r} and is now {new!r}"]


@dataclass(frozen=True)
class CurvePoint:
    """FID of a training at a checkpoint, with half the width of its 95 % interval."""

    fid: float
    half_width: float


Curve = dict[int, CurvePoint]
"""Step -> FID of a training at that step."""
