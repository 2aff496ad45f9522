"""Time of a training step: `ig_core.training.loop.train` against the usual way.

Both start from the same weights. Before anything is timed both train a few steps on the same
batches, and their losses, weights and weight averages must agree.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from benchmarks.subjects import RandomData, architecture, enliven
from benchmarks.timing import Timing, parser, prepare, print_table
from benchmarks.usual import UsualTraining
from ig_core.config import LossConfig, ModelConfig, OptimConfig, TrainConfig
from ig_core.training.batches import BatchSource
from ig_core.training.loop import train
from ig_core.training.state import TrainState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOREVER = 10**9
CHECKED_STEPS = 3
LOSS_TOLERANCE = 1e-5
"""Relative."""
WEIGHT_TOLERANCE = 1e-2
"""Distance of the two ends of training over the distance from the start. Not smaller, because the
gradient of the keys' bias is zero but for rounding, and AdamW normalises the rounding."""


class Size(NamedTuple):
    """One line of the table."""

    model: str
    batch: int
    rounds: int


SIZES = {
    "cpu": [Size("digits", 128, 60), Size("SiT-S/2", 4, 8)],
    "cuda": [Size("digits", 128, 100), Size("SiT-B/2", 64, 20)],
}
OPTIONS = ("bf16", "compile", "checkpointing")


def our_state(config: ModelConfig, optim: OptimConfig, device: torch.device) -> TrainState:
    """A training's start with weights that are not zero."""
    state = TrainState.new(config, optim, seed=0, device="cpu")
    enliven(state.model)
    state.model.to(device)
    fresh = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    return replace(state, ema=fresh)


def our_steps(
    config: ModelConfig,
    batch: int,
    device: torch.device,
    *,
    precision: str = "float32",
    compiled: bool = False,
    checkpointing: bool = False,
) -> Callable[[], object]:
    """A function that takes the next step of a training of ours."""
    state = our_state(config, OptimConfig(precision=precision), device)  # type: ignore[arg-type]
    state.model.activation_checkpointing = checkpointing
    if compiled:
        state.model.compile_blocks()
    length = TrainConfig(steps=FOREVER, batch_size=batch, checkpoint_every=FOREVER)
    steps: Iterator[int] = train(state, RandomData(config), LossConfig(), length)
    return lambda: next(steps)


def usual_steps(
    config: ModelConfig, batch: int, device: torch.device, *, precision: str = "float32"
) -> Callable[[], object]:
    """A function that takes the next step of the usual training."""
    optim = OptimConfig(precision=precision)  # type: ignore[arg-type]
    training = UsualTraining(our_state(config, optim, device).model, LossConfig(), optim)
    data = RandomData(config)
    return lambda: training.step(*data.batch(torch.randint(len(data), (batch,))))


def check_equal(config: ModelConfig, batch: int, device: torch.device) -> tuple[float, float]:
    """Assert that both trainings agree on the same batches; the worst differences, relative."""
    # At the decay of real training, three steps move the average by less than its rounding.
    loss, optim = LossConfig(), OptimConfig(ema_decay=0.5)
    state = our_state(config, optim, device)
    usual = UsualTraining(state.model, loss, optim)
    start = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    data = RandomData(config)
    source = BatchSource(data, loss, 0, config.null_label)
    positions = torch.arange(CHECKED_STEPS * batch).split(batch)
    losses = torch.tensor([usual.update(source.batch(part, device)) for part in positions])
    length = TrainConfig(steps=CHECKED_STEPS, batch_size=batch, checkpoint_every=CHECKED_STEPS)
    for _ in train(state, data, loss, length):
        pass
    loss_error = ((losses - state.history[:, 0]) / losses).abs().max().item()
    weights = _distance(dict(state.model.named_parameters()), usual.model, start)
    average = _distance(state.ema, usual.ema, start)
    assert loss_error < LOSS_TOLERANCE, f"losses differ by {loss_error:.1e}"
    worst = max(weights, average)
    assert worst < WEIGHT_TOLERANCE, f"weights or their averages differ by {worst:.1e}"
    return loss_error, worst


@torch.no_grad()
def _distance(
    ours: dict[str, torch.Tensor], usual: torch.nn.Module, start: dict[str, torch.Tensor]
) -> float:
    apart = sum((ours[name] - p).double().square().sum() for name, p in usual.named_parameters())
    moved = sum((ours[name] - start[name]).double().square().sum() for name in start)
    return float((apart / moved) ** 0.5)


def variants(
    size: Size, device: torch.device, options: list[str]
) -> dict[str, Callable[[], object]]:
    """What to time for one size; the usual float32 step is the reference."""
    config = architecture(size.model)
    headless = replace(config, aux_layer=None)
    chosen = {
        "usual": usual_steps(config, size.batch, device),
        "ours": our_steps(config, size.batch, device),
        "ours, no auxiliary head": our_steps(headless, size.batch, device),
    }
    if "bf16" in options:
        chosen["usual, bf16"] = usual_steps(config, size.batch, device, precision="bf16")
        chosen["ours, bf16"] = our_steps(config, size.batch, device, precision="bf16")
    precision, label = ("bf16", "ours, bf16") if "bf16" in options else ("float32", "ours")
    if "compile" in options:
        chosen[f"{label}, compiled blocks"] = our_steps(
            config, size.batch, device, precision=precision, compiled=True
        )
    if "checkpointing" in options:
        chosen[f"{label}, activation checkpointing"] = our_steps(
            config, size.batch, device, precision=precision, checkpointing=True
        )
    return chosen


def report(size: Size, timings: dict[str, Timing]) -> None:
    """Print the table of one size and the cost of the auxiliary head."""
    print(f"{size.model}, batch {size.batch}: time of a step over the usual one (quartiles)")
    print_table(
        ["variant", "ms", "ratio", "speed-up"],
        [
            [name, f"{1e3 * t.seconds:.1f}", str(t), f"{1 / t.ratio:.2f} x"]
            for name, t in timings.items()
        ],
    )
    cost = timings["ours"].seconds / timings["ours, no auxiliary head"].seconds - 1
    print(f"auxiliary head: {100 * cost:+.1f} % of a step without it\n", flush=True)


def main() -> None:
    """Command line."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--model", help="one model instead of the default sizes")
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--options", nargs="*", choices=OPTIONS, help="default: all on cuda")
    arguments.add_argument("--tf32", action="store_true", help="TF32 products, for all variants")
    args = arguments.parse_args()
    timer = prepare(args)
    device = timer.device
    options = args.options
    if options is None:
        options = list(OPTIONS) if device.type == "cuda" else []
    sizes = [Size(args.model, args.batch, 10)] if args.model else SIZES[device.type]
    for size in sizes:
        torch.set_float32_matmul_precision("highest")
        errors = check_equal(architecture(size.model), min(size.batch, 8), device)
        print(
            f"equal to {errors[0]:.0e} (loss), {errors[1]:.0e} (weights) after "
            f"{CHECKED_STEPS} steps"
        )
        torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
        chosen, rounds = variants(size, device, options), args.rounds or size.rounds
        report(size, timer.interleave(chosen, rounds, warmup=2))


if __name__ == "__main__":
    main()
