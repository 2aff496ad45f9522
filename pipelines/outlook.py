"""Costs of what is left of an experiment: time, worker-hours and disk.

They are measured where comparable work is in the store, and otherwise assumed from the number of
operations; each estimate says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.published import IMAGENET_TRAIN
from ig_core.config import Guidance
from ig_core.costs import (
    checkpoint_bytes,
    forward_flops,
    parameter_count,
    sampling_flops,
    training_flops,
)
from pipelines.console import log
from pipelines.graph import closure
from pipelines.measured_costs import image_costs, seconds_per_step
from pipelines.number_format import data_size, number
from pipelines.pinned import option, unnamed_files
from pipelines.stages.starting import starting_step

if TYPE_CHECKING:
    from rich.console import Console

    from experiments import Experiment
    from ig_core.config import Precision
    from pipelines.dag import Plan
    from pipelines.graph import Node
    from pipelines.results import Results

PEAK_TFLOPS = 312.0
"""Data sheet of an A100 in fp16 and bf16, dense."""
PEAK_SHARE = {"fp16": 1.0, "bf16": 1.0, "TF32": 1 / 2, "float32": 1 / 16}
"""Arithmetic -> peak over that of half precision: 312, 156 and 19.5 TFLOP/s on an A100."""
FEATURE_BYTES = {"inception-v3-compat": 4 * (2048 + 1008 + 2023), "digits-cnn": 4 * (64 + 10)}
"""Pooled features, logits and spatial features of an image, float32."""


@dataclass(frozen=True)
class Assumption:
    """Speed of a GPU that is assumed where nothing comparable was measured."""

    tflops: float | None = None
    """Peak in half precision, in 10^12 operations a second; None: PEAK_TFLOPS for experiments on
    GPUs. Of a CPU it is the peak whatever the precision."""
    utilisation: float = 0.3
    """Part of the peak that is reached."""

    def __post_init__(self) -> None:
        if self.tflops is not None and not 0 < self.tflops < float("inf"):
            raise ValueError(f"assume_tflops must be positive, but got {self.tflops}")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"assume_utilisation must be in (0, 1], but got {self.utilisation}")

    def peak(self, experiment: Experiment, precision: Precision) -> float | None:
        """Return the peak of a worker in a precision, in 10^12 operations a second.

        Args:
            experiment: The experiment that the worker works for.
            precision: Autocast of the work.

        Returns:
            The peak; None for CPUs, of which nothing is assumed.
        """
        if not experiment.resources.use_gpu:
            return self.tflops
        half = PEAK_TFLOPS if self.tflops is None else self.tflops
        return half * PEAK_SHARE[arithmetic(experiment, precision)]

    def rate(self, experiment: Experiment, precision: Precision) -> float | None:
        """Return the operations a second that a worker is assumed to reach; None for CPUs."""
        peak = self.peak(experiment, precision)
        return None if peak is None else peak * 1e12 * self.utilisation


def arithmetic(experiment: Experiment, precision: Precision) -> str:
    """Return the arithmetic of matrix products, a key of PEAK_SHARE."""
    resources = experiment.resources
    rounded = precision == "float32" and resources.use_gpu and resources.tf32
    return "TF32" if rounded else precision


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of one kind of work that is left."""

    name: str
    images: int
    """Images that are trained on, or sampled."""
    seconds_each: float | None
    """Seconds of one worker for an image; None: not known."""
    measured: bool

    @property
    def hours(self) -> float | None:
        """Return the worker-hours; None: not known."""
        return None if self.seconds_each is None else self.images * self.seconds_each / 3600


def left_to_train(plan: Plan, results: Results) -> int:
    """Count the training steps that are left."""
    wanted = [node.step for node in plan.missing if node.trained]
    if not wanted:
        return 0
    return max(wanted) - starting_step(results.store, results.graph, wanted)


def estimate_costs(results: Results, plan: Plan, assumption: Assumption) -> list[Estimate]:
    """Estimate the training and the sampling that are left; the sampling is an upper bound.

    Sampling steps that several guidances share are counted for each of them.
    """
    experiment, store = results.experiment, results.store
    steps = left_to_train(plan, results)
    found = []
    if steps:
        batch, workers = experiment.train.batch_size, experiment.resources.num_workers
        per_step = seconds_per_step(store, experiment)
        if per_step is not None:
            each: float | None = per_step * workers / batch
        else:
            rate = assumption.rate(experiment, experiment.optim.precision)
            each = None if rate is None else training_flops(experiment.model) / rate
        found.append(Estimate("training", steps * batch, each, per_step is not None))
    missing = [node for node in plan.missing if node.kind == "images"]
    images = sum(map(_count, missing))
    if images:
        per_image = image_costs(store, experiment).sampling_seconds
        each, rate = per_image, assumption.rate(experiment, experiment.sampler.precision)
        if each is None and rate is not None:
            total = sum(
                _count(node)
                * sampling_flops(
                    experiment.model, experiment.sampler, Guidance(**node.config["guidance"])
                )
                for node in missing
            )
            each = total / images / rate
        found.append(Estimate("sampling", images, each, per_image is not None))
        if results.chosen_scale is None and (most := results.graph.most_images_anew):
            name = "of the scale that is chosen and of scale 1 on other noise, at most"
            found.append(Estimate(name, most, each, per_image is not None))
    return found


def _count(node: Node) -> int:
    return int(node.config["stop"] - node.config["start"])


def disk_bytes(results: Results, plan: Plan) -> dict[str, int]:
    """Compute the bytes that are still to be written from shapes, by what they hold."""
    experiment = results.experiment
    data, missing = experiment.data, plan.missing
    trained = sum(node.trained for node in missing)
    imported = sum(node.kind == "checkpoint" for node in missing) - trained
    found = {
        "checkpoints": trained * checkpoint_bytes(experiment.model, experiment.optim)
        + imported * 4 * parameter_count(experiment.model)
    }
    side = data.side if data.codec == "none" else data.resolution
    channels = data.channels if data.codec == "none" else 3
    images = sum(_count(node) for node in missing if node.kind == "images")
    found["images"] = images * channels * side * side
    features = [n.inputs["images"] for n in missing if n.kind == "features"]
    found["features"] = sum(map(_count, features)) * FEATURE_BYTES[experiment.evaluation.extractor]
    if data.source != "digits" and any(node.kind == "data" for node in missing):
        moments = 2 if data.codec == "sd-vae" or data.source == "images" else 1
        cells = data.channels * data.side**2 * (1 if data.codec == "none" else 4 * moments)
        mirrored = 2 if data.flip and data.codec != "none" else 1
        found["latents"] = (IMAGENET_TRAIN if data.count is None else data.count) * cells * mirrored
    return {name: size for name, size in found.items() if size}


def print_costs(results: Results, plan: Plan, assumption: Assumption, console: Console) -> None:
    """Print the estimates, the disk space and the files that are still to be named."""
    experiment = results.experiment
    estimates = estimate_costs(results, plan, assumption)
    if estimates:
        log(
            console,
            f"Model: {parameter_count(experiment.model):,} parameters, "
            f"{forward_flops(experiment.model) / 1e9:,.4g} GFLOP an evaluation.",
        )
        for estimate in estimates:
            log(console, _sentence(estimate, experiment))
        if any(e.seconds_each is not None and not e.measured for e in estimates):
            log(console, _assumed(experiment, assumption))
    sizes = disk_bytes(results, plan)
    if sizes:
        parts = ", ".join(f"{name} {data_size(size)}" for name, size in sizes.items())
        log(console, f"Disk, from shapes: {data_size(sum(sizes.values()))} ({parts}).")
    if experiment.data.source != "digits" and "latents" in sizes and experiment.data.count is None:
        log(
            console,
            f"Latents are counted as those of ImageNet's {IMAGENET_TRAIN:,} images, until they are "
            f"named.",
        )
    # All that are counted as cached above, not only those that need not be looked behind.
    held = [results.store.find(node.kind, node.key) for node in closure(results.targets)]
    there = [artifact for artifact in held if artifact is not None]
    if there:
        log(
            console,
            f"There already: {len(there):,} artifacts, {data_size(sum(a.size for a in there))}.",
        )
    for field, what in unnamed_files(experiment).items():
        log(console, f"Still to be named: {option(field)} PATH: {what}.")


def _assumed(experiment: Experiment, assumption: Assumption) -> str:
    """Explain the assumptions behind hours that are not measured."""
    parts = (("training", experiment.optim.precision), ("sampling", experiment.sampler.precision))
    peaks = ", ".join(
        f"{assumption.peak(experiment, precision):g} for {kind} "
        f"({arithmetic(experiment, precision)})"
        for kind, precision in parts
    )
    who = "GPU" if experiment.resources.use_gpu else "worker"
    return (
        f"Assumed, not measured: peaks in TFLOP/s a {who} of {peaks} (--assume-tflops: that of "
        f"half precision, of which TF32 has a half and float32 a sixteenth), "
        f"{100 * assumption.utilisation:g} % of them reached (--assume-utilisation); three "
        f"forward passes for a training step. Encoding, decoding and features are not in "
        f"it."
    )


def _sentence(estimate: Estimate, experiment: Experiment) -> str:
    who = "GPU" if experiment.resources.use_gpu else "worker"
    start = f"{estimate.name.capitalize()}: {estimate.images:,} images"
    if estimate.seconds_each is None or estimate.hours is None:
        return (
            f"{start}; nothing comparable was measured here, and of CPUs nothing is assumed "
            f"(--assume-tflops)."
        )
    how = "measured here" if estimate.measured else "assumed"
    rate, hours = (
        number(1 / estimate.seconds_each, separator=","),
        number(estimate.hours, separator=","),
    )
    return f"{start}, {rate} images a second and {who} ({how}): {hours} {who}-hours."
