"""Estimated costs of an experiment: time, arithmetic and disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.published import IMAGENET_TRAIN
from ig_core.costs import checkpoint_bytes, parameter_count
from pipelines.graph.trajectory import starting_step

if TYPE_CHECKING:
    from experiments import Experiment
    from ig_core.config import Precision
    from pipelines.graph.node import Node
    from pipelines.graph.plan import Plan
    from pipelines.results.measurements import Results


PEAK_TFLOPS = 312.0
"""Peak of an A100 in fp16 and bf16, dense, by its data sheet, in 10^12 operations a second."""
PEAK_SHARE = {"fp16": 1.0, "bf16": 1.0, "TF32": 1 / 2, "float32": 1 / 16}
"""Arithmetic -> its peak divided by that of half precision (A100: 312, 156, 19.5 TFLOP/s)."""
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


def left_to_train(plan: Plan, results: Results) -> int:
    """Count the training steps that are left."""
    wanted = [node.step for node in plan.missing if node.trained]
    if not wanted:
        return 0
    return max(wanted) - starting_step(results.store, results.graph, wanted)


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
