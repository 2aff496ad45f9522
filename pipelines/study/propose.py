"""Which points come next: of trainings that lack scales, and new ones from a sampler.

Functions of the trials that are there and of the study's seed.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from experiments.study import Point
from pipelines.keys import content_key
from pipelines.study.plan import next_scales
from pipelines.study.storage import make_sampler
from pipelines.study.trials import by_training

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.trial import FrozenTrial

    from experiments.study import Study
    from pipelines.study.trials import Trial

PROPOSALS = 200
"""Points that a sampler is asked for until one of them is new."""


def room_for(trials: Sequence[Trial], wanted: int) -> int:
    """Trials that may still be entered."""
    return wanted - sum(t.state in ("RUNNING", "COMPLETE") for t in trials)


def at_rest(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials of each training that nobody works on and that was neither given up nor failed."""
    return [
        found
        for found in by_training(trials).values()
        if any(t.state == "COMPLETE" for t in found)
        and all(t.state in ("COMPLETE", "FAIL") for t in found)
    ]


def reserved(study: Study, trials: Sequence[Trial]) -> int:
    """Points that trainings at work are still going to get, as their scales are refined."""
    if study.mode == "joint":
        return 0
    counts = Counter(t.point.training for t in trials if t.state != "PRUNED")
    at_work = {t.point.training for t in trials if t.state == "RUNNING"}
    return sum(max(study.scales_per_training - counts[training], 0) for training in at_work)


def companions(study: Study, siblings: Sequence[Trial | Point], room: int) -> list[Point]:
    """Further scales of a training, given what is known of it; at most `room`."""
    if study.mode == "joint" or room <= 0:
        return []
    known: dict[float, float | None] = {}
    for item in siblings:
        if isinstance(item, Point):
            known[item.ig_scale] = None
        else:
            known[item.point.ig_scale] = math.inf if item.state == "FAIL" else item.fid
    first = siblings[0]
    base = first if isinstance(first, Point) else first.point
    scales = next_scales(known, study.space.ig_scale, study.scales_per_training)
    return [
        Point(aux_layer=base.aux_layer, aux_weight=base.aux_weight, ig_scale=scale)
        for scale in scales[:room]
    ]


def propose(study: Study, trials: Sequence[Trial], history: Sequence[FrozenTrial]) -> Point | None:
    """What the sampler says after these trials.

    It is asked about a copy, so that nothing is entered before all of a point is known. Points that
    are known, and trainings that failed or were given up, are not proposed again. The first
    trainings are spread evenly: a model-based sampler that has seen two layers exploits them and
    may never look at the third.

    Args:
        study: Space, sampler and seed.
        trials: What is there.
        history: The same as Optuna has it.

    Returns:
        A new point; None if no other can be found.
    """
    known = {trial.point for trial in trials}
    good = {t.point.training for t in trials if t.state in ("COMPLETE", "RUNNING")}
    bad = {t.point.training for t in trials} - good
    begun = len(by_training(trials))
    if study.sampler != "random" and begun < study.startup_trainings:
        point = startup(study)[begun]
        if point not in known and point.training not in bad:
            return point
    seed = int(content_key([study.seed, len(trials)])[:8], 16)
    copy = optuna.create_study(direction="minimize", sampler=make_sampler(study, seed))
    copy.add_trials(history)
    for tries in range(PROPOSALS):
        point = _point(study, copy.ask(distributions(study)).params)
        if point not in known and point.training not in bad:
            return point
        if tries == PROPOSALS // 10:  # the sampler is sure of itself: go on by chance
            copy.sampler = optuna.samplers.RandomSampler(seed)
    return None


def startup(study: Study) -> list[Point]:
    """A Latin hypercube of the first trainings (McKay, Beckman and Conover 1979).

    Each dimension is cut into as many strata as there are trainings, and each stratum is used once,
    in an order that depends on the study's seed.
    """
    count, layers = study.startup_trainings, study.layers
    weight, scale = study.space.aux_weight, study.space.ig_scale
    draws = [
        random.Random(content_key([study.seed, "startup", name]))
        for name in ("aux_layer", "aux_weight", "ig_scale")
    ]
    strata = zip(*(draw.sample(range(count), count) for draw in draws), strict=True)
    return [
        Point(
            aux_layer=layers[0] + int((2 * layer + 1) * (layers[1] - layers[0] + 1) / (2 * count)),
            aux_weight=weight.value(int((2 * i + 1) * weight.count / (2 * count))),
            ig_scale=scale.value(int((2 * j + 1) * scale.count / (2 * count))),
        )
        for layer, i, j in strata
    ]


def distributions(study: Study) -> dict[str, BaseDistribution]:
    """The search space in Optuna's terms."""
    weight, scale = study.space.aux_weight, study.space.ig_scale
    return {
        "aux_layer": IntDistribution(*study.layers),
        "aux_weight": FloatDistribution(weight.low, weight.high, step=weight.step),
        "ig_scale": FloatDistribution(scale.low, scale.high, step=scale.step),
    }


def _point(study: Study, params: dict[str, Any]) -> Point:
    weight, scale = study.space.aux_weight, study.space.ig_scale
    return Point(
        aux_layer=int(params["aux_layer"]),
        aux_weight=weight.value(weight.index(params["aux_weight"])),
        ig_scale=scale.value(scale.index(params["ig_scale"])),
    )
