"""How a study goes about it: which scales a training is evaluated at, and when it is given up.

Pure functions of what is known: the same trials lead to the same decisions, whoever takes them and
however often they were interrupted.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from experiments.study import PruningConfig, Range

COARSE_SCALES = 3
"""Scales of a training before the first refinement."""


def next_scales(known: Mapping[float, float | None], space: Range, count: int) -> list[float]:
    """Scales at which a training is to be evaluated next.

    First some that cover the range: off (or the lowest), the one that was proposed, and the middle
    of the widest gap. Then, one by one, the minimum of the parabola through the best scale and its
    neighbours.

    Args:
        known: Scale -> FID of the training's points; None: not evaluated yet, infinity: failed.
            Not empty.
        space: Scales there are.
        count: Points that the training is to have in all.

    Returns:
        At most `count - len(known)` scales, none of them known; empty while some must be awaited.
    """
    taken = {space.index(scale) for scale in known}
    missing = min(count, space.count) - len(taken)
    if missing <= 0:
        return []
    if len(taken) < COARSE_SCALES:
        found: list[float] = []
        for index in (space.index(1.0), *_gap_middles(taken | {space.index(1.0)}, space)):
            if index not in taken and len(taken) < COARSE_SCALES and len(found) < missing:
                taken.add(index)
                found.append(space.value(index))
        return found
    if None in known.values():
        return []
    fids = {
        space.index(scale): fid
        for scale, fid in known.items()
        if fid is not None and math.isfinite(fid)
    }
    return [space.value(_refinement(fids, taken, space))] if fids else []


def _gap_middles(taken: set[int], space: Range) -> list[int]:
    """Middles of the widest gaps (ends count as gaps to their neighbour), widest first."""
    edges = sorted(taken)
    gaps = [(edges[0], 0), (space.count - 1 - edges[-1], space.count - 1)]
    gaps += [(right - left, (left + right) // 2) for left, right in itertools.pairwise(edges)]
    middles = [middle for width, middle in sorted(gaps, key=lambda g: -g[0]) if width > 0]
    return [middle for middle in middles if middle not in taken]


def _refinement(fids: Mapping[int, float], taken: set[int], space: Range) -> int:
    """Free index nearest to where the minimum is to be expected."""
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
    """Abscissa of the minimum of the parabola through three points, the middle one the lowest.

    It lies no farther from the middle one than half the way to its neighbours.
    """
    (x0, y0), (x1, y1), (x2, y2) = points
    left, right = (x1 - x0) * (y1 - y2), (x1 - x2) * (y1 - y0)
    if left == right:
        return float(x1)
    return x1 - 0.5 * ((x1 - x0) * left - (x1 - x2) * right) / (left - right)


@dataclass(frozen=True)
class CurvePoint:
    """FID of a training at a checkpoint, with half the width of its 95 % interval."""

    fid: float
    half_width: float


Curve = dict[int, CurvePoint]
"""Step -> FID of a training there."""


def is_hopeless(curve: Curve, finished: Sequence[Curve], config: PruningConfig) -> bool:
    """Whether a training is to be given up.

    It is, if at each of its last `config.patience` checkpoints its FID lies above the median of
    the finished trainings by more than both intervals explain. All trainings are sampled from the
    same noise, so that half-widths add up to more than the noise of the difference.
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
