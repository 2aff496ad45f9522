"""Cost of K guidance scales: one tree of trajectories against K separate samplings.

`ig_core.branching.sample_guidances` integrates what the scales have in common once. Compared with
K calls of `sample`: the time, and the rows (images) that the network is evaluated on. Before
anything is timed both must give the same samples.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from benchmarks.sampling import TOLERANCE, Job
from benchmarks.timing import Timer, parser, prepare, print_table
from ig_core.branching import sample_guidances
from ig_core.config import Guidance, SamplerConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

INTERVALS = ((0.0, 1.0), (0.0, 0.5))
"""The second leaves the half near the noise (t = 1) to all scales in common."""


def scales(count: int, interval: tuple[float, float]) -> list[Guidance]:
    """Internal guidance at 1.1, 1.2, ..."""
    return [Guidance(ig_scale=1.1 + 0.1 * number, ig_interval=interval) for number in range(count)]


def rows_evaluated(model: nn.Module, run: Callable[[], object]) -> int:
    """Images that the network sees during a run."""
    seen: list[int] = []
    embedder: nn.Module = model.get_submodule("x_embedder")  # Each pass embeds its batch once.
    hook = embedder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        run()
    finally:
        hook.remove()
    return sum(seen)


def compare(job: Job, guidances: list[Guidance], rounds: int, timer: Timer) -> list[str]:
    """One line of the table."""

    def separate() -> Tensor:
        return torch.stack([job.ours(guidance) for guidance in guidances])

    def together() -> Tensor:
        return sample_guidances(job.model, job.y, guidances, job.x, job.config)

    error = (separate() - together()).abs().max().item()
    assert error < TOLERANCE, f"samples differ by {error:.1e}"
    apart, shared = rows_evaluated(job.model, separate), rows_evaluated(job.model, together)
    ways = {"separate": separate, "together": together}
    timing = timer.interleave(ways, rounds, warmup=0)["together"]
    return [
        f"{apart} -> {shared}",
        f"{shared / apart:.2f}",
        str(timing),
        f"{1 / timing.ratio:.2f} x",
    ]


def main() -> None:
    """Command line."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--model", default="digits")
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--steps", type=int, default=10, help="Heun steps")
    arguments.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    args = arguments.parse_args()
    timer = prepare(args)
    job = Job.new(args.model, args.batch, SamplerConfig(num_steps=args.steps), timer.device)
    timer = replace(timer, budget=args.budget / (len(INTERVALS) * len(args.counts)))
    rows = [
        [
            str(count),
            f"({interval[0]:g}, {interval[1]:g})",
            *compare(job, scales(count, interval), args.rounds or 10, timer),
        ]
        for interval in INTERVALS
        for count in args.counts
    ]
    print(
        f"{args.model}, batch {args.batch}, {args.steps} Heun steps, internal guidance; "
        f"time over that of K separate samplings (quartiles)"
    )
    print_table(["K", "interval", "rows", "rows ratio", "time ratio", "speed-up"], rows)


if __name__ == "__main__":
    main()
