"""Throughput of sampling, images a second: `ig_core.sampling` against the usual way.

Same weights, noise, labels, sampler and steps. Before anything is timed the samples of both ways
must agree.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from benchmarks.subjects import architecture, lively_model
from benchmarks.timing import Timer, Timing, parser, prepare, print_table
from benchmarks.usual import usual_images, usual_sample, with_plain_attention
from ig_core.config import Guidance, SamplerConfig
from ig_core.guidance import guided_velocity
from ig_core.sampling import sample

if TYPE_CHECKING:
    from ig_core.transformer import DiffusionTransformer

TOLERANCE = 1e-3
"""Of the samples, absolute: the usual state is float64, ours float32."""
LATE = (0.0, 0.7)
GUIDANCES = {
    "unguided": Guidance(),
    "IG": Guidance(ig_scale=1.4),
    "CFG in (0, 0.7)": Guidance(cfg_scale=1.5, cfg_interval=LATE),
    "IG + CFG in (0, 0.7)": Guidance(ig_scale=1.4, cfg_scale=1.5, cfg_interval=LATE),
}


class Size(NamedTuple):
    """One table."""

    model: str
    batch: int
    steps: int
    rounds: int


SIZES = {
    "cpu": [Size("digits", 64, 10, 12), Size("SiT-S/2", 2, 2, 5)],
    "cuda": [Size("digits", 1024, 20, 20), Size("SiT-XL/2", 32, 20, 5)],
}


class Job(NamedTuple):
    """What both ways sample."""

    model: DiffusionTransformer
    plain: DiffusionTransformer
    """The same with attention written out."""
    x: Tensor
    y: Tensor
    config: SamplerConfig

    @classmethod
    def new(cls, model: str, batch: int, config: SamplerConfig, device: torch.device) -> Job:
        """Random weights, noise and labels."""
        network = lively_model(architecture(model), device)
        c = network.config
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, c.in_channels, c.input_size, c.input_size, generator=generator)
        y = torch.randint(c.num_classes, (batch,), generator=generator)
        return cls(network, with_plain_attention(network), x.to(device), y.to(device), config)

    def ours(self, guidance: Guidance) -> Tensor:
        """Samples of `ig_core`, (B, C, H, W) float32."""
        return sample(guided_velocity(self.model, self.y, guidance), self.x, self.config)

    def usual(self, guidance: Guidance) -> Tensor:
        """Samples of the usual way, (B, C, H, W) float64."""
        return usual_sample(self.plain, self.y, guidance, self.x, self.config)

    def check_equal(self, guidance: Guidance) -> float:
        """Assert that both ways give the same samples and images; the largest difference."""
        ours, usual = self.ours(guidance), self.usual(guidance)
        error = (ours - usual).abs().max().item()
        assert error < TOLERANCE, f"samples differ by {error:.1e} under {guidance}"
        levels = pixels(ours).short() - torch.from_numpy(usual_images(usual)).short()
        assert levels.abs().max() <= 1, "images differ by more than one level"
        return error


def pixels(samples: Tensor) -> Tensor:
    """Samples in [-1, 1] as uint8 on the CPU, all at once."""
    # `ig_core.images.sets.to_uint8`, whose module needs pyarrow.
    return ((samples.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def measure(job: Job, guidance: Guidance, rounds: int, timer: Timer) -> dict[str, Timing]:
    """Time both ways, images included; `check_equal` was the warm-up."""
    ways = {
        "usual": lambda: usual_images(job.usual(guidance)),
        "ours": lambda: pixels(job.ours(guidance)),
    }
    return timer.interleave(ways, rounds, warmup=0)


def main() -> None:
    """Command line."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--model", help="one model instead of the default sizes")
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--steps", type=int, default=10, help="Heun steps, with --model")
    args = arguments.parse_args()
    timer = prepare(args)
    device = timer.device
    timer = replace(timer, budget=timer.budget / len(GUIDANCES))
    sizes = [Size(args.model, args.batch, args.steps, 5)] if args.model else SIZES[device.type]
    for size in sizes:
        job = Job.new(size.model, size.batch, SamplerConfig(num_steps=size.steps), device)
        rows, worst = [], 0.0
        for name, guidance in GUIDANCES.items():
            worst = max(worst, job.check_equal(guidance))
            timed = measure(job, guidance, args.rounds or size.rounds, timer)
            speeds = [f"{size.batch / timed[way].seconds:.2f}" for way in ("usual", "ours")]
            ratio = timed["ours"]
            rows.append([name, *speeds, str(ratio), f"{1 / ratio.ratio:.2f} x"])
        print(
            f"{size.model}, batch {size.batch}, {size.steps} Heun steps; samples equal to "
            f"{worst:.0e}; ratio of times (quartiles)"
        )
        print_table(["guidance", "usual, images/s", "ours, images/s", "ratio", "speed-up"], rows)


if __name__ == "__main__":
    main()
