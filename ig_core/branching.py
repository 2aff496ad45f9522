"""Sample many guidances from the same noise, sharing the trajectory until velocities differ.

Where no guidance acts, all of them are the same network at the same point. Trajectories are
therefore a tree: they branch at the first step whose velocities differ, and the branches are
integrated as one batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ig_core.guidance import Scales, guided_velocity, guided_velocity_at, require_predictors
from ig_core.sampling import network_field, require_finite, sample, step, time_grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ig_core.config import Guidance, SamplerConfig
    from ig_core.guidance import Velocity
    from ig_core.sampling import NoiseFn
    from ig_core.transformer import DiffusionTransformer


@torch.no_grad()
def sample_guidances(
    model: DiffusionTransformer,
    y: Tensor,
    guidances: Sequence[Guidance],
    x: Tensor,
    config: SamplerConfig,
    noise_fn: NoiseFn | None = None,
    weak_model: DiffusionTransformer | None = None,
    *,
    batched: bool = True,
) -> Tensor:
    """Sample under K guidances; equals K calls of `sample`, up to the rounding of larger batches.

    (Some 1e-6 in float32, 1e-3 in bf16.) The network's batch grows from B to at most K B rows,
    twice that under classifier-free guidance. With dopri5, whose steps depend on the batch, each
    guidance is sampled by itself.

    Args:
        model: Velocity model.
        y: Labels, (B,) int64.
        guidances: The K guidances.
        x: Standard normal noise, (B, C, H, W), the same for all guidances.
        config: Method, grid and precision.
        noise_fn: SDE only: noise for each step, (B, C, H, W), the same for all guidances.
        weak_model: The weaker checkpoint of autoguidance.
        batched: Branches share passes of the network. Without it they share steps only, and the
            samples are those of K calls bit for bit.

    Returns:
        Samples at t=0, float32, (K, B, C, H, W).

    Raises:
        ValueError: If `guidances` is empty, a guidance lacks its weaker prediction, or the method
            is `sde` and `noise_fn` is None.
        NonFiniteSampleError: If a sample is NaN or infinite.
    """
    if not guidances:
        raise ValueError("guidances must be at least one, but got none")
    for guidance in guidances:
        require_predictors(model, guidance, weak_model)
    if config.method == "dopri5":
        return torch.stack(
            [
                sample(guided_velocity(model, y, guidance, weak_model), x, config)
                for guidance in guidances
            ]
        )
    times = time_grid(config)
    branches = [list(range(len(guidances)))]
    state = x.to(getattr(torch, config.state_dtype))[None]  # (branches, B, C, H, W)
    shared_noise = None if noise_fn is None else lambda number, state: noise_fn(number, state[0])
    evaluated = 2 if config.method == "heun" else 1  # times at which a step reads the velocity
    for number in range(config.num_steps):
        seen = times[number : number + evaluated]
        branches, parents = _branch(branches, guidances, seen)
        if len(parents) > len(state):
            state = state[parents]
        leaders = [guidances[members[0]] for members in branches]
        velocity = _velocity(model, weak_model, y, leaders, parents, batched=batched)
        field = network_field(velocity, config)
        state = step(field, state, times, number, config, shared_noise)
    followed = {member: number for number, members in enumerate(branches) for member in members}
    return require_finite(
        state[[followed[number] for number in range(len(guidances))]].float(), config
    )


def _branch(
    branches: list[list[int]], guidances: Sequence[Guidance], times: list[float]
) -> tuple[list[list[int]], list[int]]:
    """Split each branch by the scales that act at these times; return branches and parents."""
    split: dict[tuple[int, tuple[tuple[float, ...], ...]], list[int]] = {}
    for parent, members in enumerate(branches):
        for member in members:
            acting = tuple(guidances[member].at(t) for t in times)
            split.setdefault((parent, acting), []).append(member)
    return list(split.values()), [parent for parent, _ in split]


def _velocity(
    model: DiffusionTransformer,
    weak_model: DiffusionTransformer | None,
    y: Tensor,
    guidances: Sequence[Guidance],
    parents: list[int],
    *,
    batched: bool,
) -> Velocity:
    """Return the velocity of one step, a guidance for each branch of x (branches, B, C, H, W).

    Branches of one parent are at the same point until their velocities have differed; there, what
    agrees is computed once. Batched, branches for which the same kinds of guidance act share a pass
    of the network; one whose classifier-free guidance is off takes no part in a pass that has a
    null half.
    """
    point_of = list(parents)

    def velocity(x: Tensor, t: float) -> Tensor:
        nonlocal point_of
        wanted = list(zip(point_of, (guidance.at(t) for guidance in guidances), strict=True))
        distinct = list(dict.fromkeys(wanted))
        point_of = [distinct.index(each) for each in wanted]
        alike: dict[object, list[int]] = {}
        for number, (_, acting) in enumerate(distinct):
            kinds = tuple(scale == 1 for scale in acting)
            alike.setdefault(kinds if batched else number, []).append(number)
        out = torch.empty_like(x[: len(distinct)])
        for numbers in alike.values():
            columns = zip(*(distinct[number][1] for number in numbers), strict=True)
            scales = Scales(*(_rowwise(column, x) for column in columns))
            points = x[[point_of.index(number) for number in numbers]].flatten(0, 1)
            v = guided_velocity_at(model, weak_model, points, t, y.repeat(len(numbers)), scales)
            out[numbers] = v.unflatten(0, (len(numbers), -1))
        return out if len(distinct) == len(x) else out[point_of]

    return velocity


def _rowwise(scales: Sequence[float], x: Tensor) -> float | Tensor:
    """Repeat the scale of each branch to (branches * B, 1, 1, 1); a number if all are equal."""
    if len(set(scales)) == 1:
        return scales[0]
    column = torch.tensor(scales, dtype=x.dtype, device=x.device)
    return column.repeat_interleave(x.shape[1]).view(-1, 1, 1, 1)
