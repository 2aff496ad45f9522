"""Search of a study: further scales of trainings, and new points from a sampler.

All functions depend on the recorded trials and the study's seed alone.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections import Counter
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from experiments.study import Point
from pipelines.store.keys import content_key
from pipelines.study.trials import Curve, by_training

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.trial import FrozenTrial

    from experiments.study import PruningConfig, Range, Study
    from pipelines.study.trials import Trial


MAX_PROPOSALS = 200
"""Most points that the sampler is asked for until one of them is new."""


def room_for(trials: Sequence[Trial], wanted: int) -> int:
    """Return how many trials may still be added."""
    return wanted - sum(t.state in ("RUNNING", "COMPLETE") for t in trials)


def at_rest(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Return the trial groups without running or pruned trials, of which some are complete."""
    return [
        group
        for group in by_training(trials).values()
        if any(t.state == "COMPLETE" for t in group)
        and all(t.state in ("COMPLETE", "FAIL") for t in group)
    ]


def reserved(study: Study, trials: Sequence[Trial]) -> int:
    """Return the number of scales that running trainings still lack."""
    if study.mode == "joint":
        return 0
    counts = Counter(t.point.training for t in trials if t.state != "PRUNED")
    running = {t.point.training for t in trials if t.state == "RUNNING"}
    return sum(max(study.scales_per_training - counts[training], 0) for training in running)


def companions(study: Study, siblings: Sequence[Trial | Point], room: int) -> list[Point]:
    """Return further points of a training, at other scales; at most `room`."""
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
    """Return a new point from the sampler; None if it finds none.

    The sampler is asked on a copy of the study, so that a trial is added with all its parameters.
    Known points, and trainings that failed or were pruned, are not proposed again. The first
    trainings are spread evenly, as a model-based sampler that has seen two layers may never try
    the third.

    Args:
        study: Space, sampler and seed.
        trials: All trials.
        history: The same trials in Optuna's form.
    """
    known = {trial.point for trial in trials}
    good = {t.point.training for t in trials if t.state in ("COMPLETE", "RUNNING")}
    bad = {t.point.training for t in trials} - good
    started = len(by_training(trials))
    if study.sampler != "random" and started < study.startup_trainings:
        point = startup(study)[started]
        if point not in known and point.training not in bad:
            return point
    seed = int(content_key([study.seed, len(trials)])[:8], 16)
    copy = optuna.create_study(direction="minimize", sampler=make_sampler(study, seed))
    copy.add_trials(history)
    for tries in range(MAX_PROPOSALS):
        point = _point(study, copy.ask(distributions(study)).params)
        if point not in known and point.training not in bad:
            return point
        if tries == MAX_PROPOSALS // 10:  # the sampler repeats itself: continue at random
            copy.sampler = optuna.samplers.RandomSampler(seed)
    return None


def startup(study: Study) -> list[Point]:
    """Return the first trainings, a Latin hypercube (McKay, Beckman and Conover 1979).

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
    """Return the search space as distributions of Optuna."""
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


COARSE_SCALES = 3
"""Number of scales of a training before the first refinement."""


def next_scales(known: Mapping[float, float | None], space: Range, count: int) -> list[float]:
    """Return the scales at which to evaluate a training next.

    The first scales cover the range: scale 1 (or the lowest), the proposed one, and the middle of
    the widest gap. Each further scale is the minimum of the parabola through the best scale and its
    neighbours.

    Args:
        known: Scale -> FID of the training's points; None if not evaluated yet, infinity if
            failed. Not empty.
        space: Range of scales.
        count: Number of points of the training in all.

    Returns:
        At most `count - len(known)` new scales; empty while known ones must be evaluated first.
    """
    taken = {space.index(scale) for scale in known}
    missing = min(count, space.count) - len(taken)
    if missing <= 0:
        return []
    if len(taken) < COARSE_SCALES:
        scales: list[float] = []
        for index in (space.index(1.0), *_gap_middles(taken | {space.index(1.0)}, space)):
            if index not in taken and len(taken) < COARSE_SCALES and len(scales) < missing:
                taken.add(index)
                scales.append(space.value(index))
        return scales
    if None in known.values():
        return []
    fids = {
        space.index(scale): fid
        for scale, fid in known.items()
        if fid is not None and math.isfinite(fid)
    }
    return [space.value(_refinement(fids, taken, space))] if fids else []


def _gap_middles(taken: set[int], space: Range) -> list[int]:
    """Return the middles of the gaps, widest first; an end counts as the middle of its gap."""
    edges = sorted(taken)
    gaps = [(edges[0], 0), (space.count - 1 - edges[-1], space.count - 1)]
    gaps += [(right - left, (left + right) // 2) for left, right in itertools.pairwise(edges)]
    middles = [middle for width, middle in sorted(gaps, key=lambda g: -g[0]) if width > 0]
    return [middle for middle in middles if middle not in taken]


def _refinement(fids: Mapping[int, float], taken: set[int], space: Range) -> int:
    """Return the free index nearest to the expected minimum."""
    best = min(fids, key=lambda index: (fids[index], index))
    below = max((index for index in fids if index < best), default=None)
    above = min((index for index in fids if index > best), default=None)
    if below is not None and above is not None:
        target = _vertex((below, fids[below]), (best, fids[best]), (above, fids[above]))
    elif below is None and above is None:
        target = float(best)
    else:  # the best lies at an end: look between it and its neighbour, or beyond it
        beyond, neighbour = (0, above) if below is None else (space.count - 1, below)
        target = float(beyond) if best != beyond else (best + (neighbour or 0)) / 2
    free = [index for index in range(space.count) if index not in taken]
    return min(free, key=lambda index: (abs(index - target), index))


def _vertex(*points: tuple[int, float]) -> float:
    """Return the abscissa of the vertex of the parabola through three points.

    The middle point is the lowest, so that the vertex is at most half-way to a neighbour.
    """
    (x0, y0), (x1, y1), (x2, y2) = points
    left, right = (x1 - x0) * (y1 - y2), (x1 - x2) * (y1 - y0)
    if left == right:
        return float(x1)
    return x1 - 0.5 * ((x1 - x0) * left - (x1 - x2) * right) / (left - right)


def should_prune(curve: Curve, finished: Sequence[Curve], config: PruningConfig) -> bool:
    """Return whether to prune a training.

    It is pruned if at each of its last `config.patience` checkpoints its FID is above the median
    of the finished trainings by more than both intervals explain. All trainings are sampled from
    the same noise, so that this bound is larger than the noise of the difference.
    """
    if not config.enabled or len(finished) < config.warmup_trainings:
        return False
    recent = sorted(curve)[-config.patience :]
    if len(recent) < config.patience:
        return False
    for step in recent:
        others = [other[step] for other in finished if step in other]
        if len(others) < config.warmup_trainings:
            return False
        median = statistics.median(point.fid for point in others)
        width = statistics.median(point.half_width for point in others)
        if curve[step].fid - median <= math.hypot(curve[step].half_width, width):
            return False
    return True


def make_sampler(study: Study, seed: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of a study."""
    if study.sampler == "random":
        return optuna.samplers.RandomSampler(seed)
    if study.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
