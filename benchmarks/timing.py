"""Timing of variants in turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LEAST_ROUNDS = 3
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Timing(NamedTuple):
    """One variant: median seconds, and its time over that of the first variant by round."""

    seconds: float
    ratio: float
    """Median over rounds; below 1 is faster than the first variant."""
    low: float
    """First quartile of the ratios."""
    high: float
    """Third quartile of the ratios."""

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True)
class Timer:
    """How to measure."""

    device: torch.device
    """Where the work is done; CUDA is synchronised before and after each run."""
    budget: float = 15.0
    """Seconds of wall time after which no further round starts, once there are three."""
    clock: Callable[[], float] = time.perf_counter

    def interleave(
        self, variants: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1
    ) -> dict[str, Timing]:
        """Run A, B, A, B, ... and compare each variant with the first, round by round.

        Args:
            variants: What to time, by name; the first is the reference.
            rounds: Most timed rounds, at least 2.
            warmup: Rounds before, not timed.

        Returns:
            Timings by name, in the order given.
        """
        if rounds < 2:
            raise ValueError(f"rounds must be at least 2, but got {rounds}")
        for _ in range(warmup):
            for run in variants.values():
                run()
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        end = time.perf_counter() + self.budget
        for done in range(rounds):
            if done >= LEAST_ROUNDS and time.perf_counter() > end:
                break
            for name, run in variants.items():
                seconds[name].append(self._seconds(run))
        reference = next(iter(seconds.values()))
        return {name: _summary(column, reference) for name, column in seconds.items()}

    def _seconds(self, run: Callable[[], object]) -> float:
        self._synchronise()
        start = self.clock()
        run()
        self._synchronise()
        return self.clock() - start

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _summary(seconds: Sequence[float], reference: Sequence[float]) -> Timing:
    ratios = [own / other for own, other in zip(seconds, reference, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return Timing(median(seconds), median(ratios), low, high)


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments that all scripts have."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments.add_argument(
        "--threads", type=int, default=1, help="CPU threads of torch; more need an idle machine"
    )
    arguments.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: CPU time, for a busy machine; needs --threads 1",
    )
    arguments.add_argument("--rounds", type=int, help="most timed runs of each variant")
    arguments.add_argument(
        "--budget",
        type=float,
        default=15.0,
        help="seconds after which a table starts no more rounds",
    )
    return arguments


def prepare(arguments: argparse.Namespace) -> Timer:
    """Set the threads, print what is measured on, and give the timer.

    Raises:
        ValueError: CPU time is asked for where it is not the time that the work takes.
    """
    device, clock = torch.device(arguments.device), arguments.clock
    if clock == "cpu" and (arguments.threads != 1 or device.type != "cpu"):
        raise ValueError(f"clock must be wall unless on one CPU thread, but got {clock!r}")
    torch.set_num_threads(arguments.threads)
    # Its default, TF32, would round the patch embedding differently for different batch sizes.
    torch.backends.cudnn.allow_tf32 = False
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"torch {torch.__version__}, {name}, CPU threads: {torch.get_num_threads()}, "
        f"{clock} time\n",
        flush=True,
    )
    return Timer(device, arguments.budget, CLOCKS[clock])


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print as a Markdown table."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for cells in (header, ["-" * width for width in widths], *rows):
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print("| " + " | ".join(padded) + " |")
    print(flush=True)
