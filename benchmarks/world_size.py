"""The loss curve at every number of workers, and while workers come and go.

Trains one small model over gloo with 1, 2 and 3 processes (parts of 43, 43 and 42 images), with 1,
then 3, then 2 that continue from each other's checkpoints, and with 2 that shard the state (FSDP2).
Prints how far each curve is from that of one process, and plots both.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, distributed

from benchmarks.subjects import architecture
from ig_core.checkpoints.own import load_checkpoint, pack_checkpoint
from ig_core.config import LossConfig, OptimConfig, TrainConfig
from ig_core.training.batches import WorkerShare
from ig_core.training.loop import train
from ig_core.training.sharding import shard
from ig_core.training.state import TrainState

MODEL = architecture("digits")
# At ten times the rate rounding grows to percents within 200 steps, whoever computes: the line
# with other micro-batches, which has one process throughout, shows what is not the workers' doing.
OPTIM = OptimConfig(lr=3e-4, warmup_steps=50, ema_decay=0.99)
BATCH = 128


class Patterns:
    """1,000 images of ten smooth patterns and noise: something that can be learnt."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        side = MODEL.input_size
        coarse = torch.randn(MODEL.num_classes, MODEL.in_channels, 3, 3, generator=generator)
        pattern = torch.nn.functional.interpolate(coarse, size=side, mode="bicubic")
        self.y = torch.arange(1000) % MODEL.num_classes
        noise = torch.randn(1000, MODEL.in_channels, side, side, generator=generator)
        self.x = pattern[self.y] + 0.2 * noise

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of some rows."""
        return self.x[index], self.y[index]


class Leg(NamedTuple):
    """A number of processes that train up to a part of all steps."""

    processes: int
    until: float
    sharded: bool = False
    micro_batch: int = BATCH // 2
    """Half the batch at once makes one and two workers agree bit for bit, on CPUs of one kind."""


PATHS = {
    "1": [Leg(1, 1)],
    "1, micro-batch 43": [Leg(1, 1, micro_batch=43)],
    "2": [Leg(2, 1)],
    "3": [Leg(3, 1)],
    "1 -> 3 -> 2": [Leg(1, 1 / 3), Leg(3, 2 / 3), Leg(2, 1)],
    "2, FSDP": [Leg(2, 1, sharded=True)],
    "2, FSDP -> 1": [Leg(2, 1 / 2, sharded=True), Leg(1, 1)],
}


def work(rank: int, leg: Leg, stop: int, start: Path | None, end: Path) -> None:
    """One process of a leg: continue from `start`, write `end`."""
    torch.set_num_threads(1)
    if leg.processes > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
        distributed.init_process_group(
            "gloo", init_method=f"file://{end}.group", rank=rank, world_size=leg.processes
        )
    state = load_checkpoint(start) if start else TrainState.new(MODEL, OPTIM, seed=0)
    if leg.sharded:
        shard(state)
    share = WorkerShare(rank, leg.processes, leg.micro_batch)
    length = TrainConfig(steps=stop, batch_size=BATCH, checkpoint_every=stop)
    for _ in train(state, Patterns(), LossConfig(), length, share):
        pass
    packed = pack_checkpoint(state, keep=rank == 0)
    if rank == 0:
        packed.write(end)
    if leg.processes > 1:
        distributed.barrier()
        os._exit(0)  # gloo's threads may still be ending, and an orderly end can abort then


def follow(path: list[Leg], steps: int, folder: Path) -> TrainState:
    """Train along a path; the state at its end."""
    start = None
    for number, leg in enumerate(path):
        end = folder / str(number)
        stop = round(leg.until * steps)
        torch.multiprocessing.spawn(work, (leg, stop, start, end), nprocs=leg.processes)
        start = end
    return load_checkpoint(start or folder)


def plot(histories: dict[str, Tensor], file: Path) -> None:
    """Loss by step, and its distance from that of one process."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 6), sharex=True)
    alone = histories["1"][:, 0]
    for number, (name, history) in enumerate(histories.items()):
        loss, step = history[:, 0], range(1, len(history) + 1)
        dashes = (0, (1 + number, 1 + number))
        above.plot(step, loss, label=name, linewidth=1.2, linestyle=dashes if number else "-")
        if number:
            apart = ((loss - alone).abs() / alone).clamp(min=1e-9)
            below.plot(step, apart, label=name, linewidth=0.8)
    above.set_ylabel("training loss")
    above.legend(title="workers", fontsize=8)
    below.set(yscale="log", xlabel="step", ylabel="relative difference from 1\n(1e-9: none)")
    below.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--steps", type=int, default=300)
    arguments.add_argument("--plot", type=Path, default=Path("docs/world_size.png"))
    args = arguments.parse_args()
    states: dict[str, TrainState] = {}
    print(f"{args.steps} steps, batch {BATCH}; differences from one worker")
    print(f"{'workers':<18} {'seconds':>8} {'loss, relative':>15} {'at step':>8} {'average':>9}")
    for name, path in PATHS.items():
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            state = states[name] = follow(path, args.steps, Path(folder))
        alone = states["1"]
        apart = ((state.history - alone.history).abs() / alone.history)[:, 0]
        # Of the averaged weights: distance over the distance from where they started.
        start = TrainState.new(MODEL, OPTIM, seed=0).ema
        moved = sum((alone.ema[n] - start[n]).double().square().sum() for n in start)
        error = sum((alone.ema[n] - state.ema[n]).double().square().sum() for n in start)
        print(
            f"{name:<18} {time.monotonic() - begun:>8.0f} {apart.max().item():>15.1e} "
            f"{int(apart.argmax()) + 1:>8} {float(error / moved) ** 0.5:>9.1e}",
            flush=True,
        )
    plot({name: state.history for name, state in states.items()}, args.plot)
    print(args.plot)


if __name__ == "__main__":
    main()
