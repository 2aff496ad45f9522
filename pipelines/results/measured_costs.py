"""Costs of comparable work, measured by the artifacts of a store.

A store also holds images that `igdit evaluate` read from files, checkpoints that were trained
elsewhere and artifacts of other versions, which are passed over.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ig_core.config import SamplerConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from experiments import Experiment
    from pipelines.store.base import Artifact, Store


ARCHITECTURE = ("depth", "width", "patch_size", "input_size", "mlp_ratio")
"""Fields of a model that its arithmetic depends on."""


@dataclass(frozen=True)
class ImageCosts:
    """Costs of one image; None where nothing comparable was measured yet."""

    sampling_seconds: float | None
    """Seconds of one worker, decoding included."""
    judging_seconds: float | None
    """Seconds of the extractor."""
    image_bytes: float | None
    feature_bytes: float | None

    @property
    def seconds(self) -> float | None:
        """Seconds of sampling and judging."""
        sampling = self.sampling_seconds
        return None if sampling is None else sampling + (self.judging_seconds or 0.0)

    @property
    def bytes(self) -> float | None:
        """Bytes of an image and its features."""
        size = self.image_bytes
        return None if size is None else size + (self.feature_bytes or 0.0)


def recorded(artifact: Artifact, *names: str) -> Any:  # noqa: ANN401
    """Return a value of an artifact's manifest; None where its maker wrote none of that name.

    Args:
        artifact: Artifact with the manifest.
        names: Path of the value, from the outside to the inside.
    """
    value: Any = artifact.manifest
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def comparable_checkpoints(store: Store, experiment: Experiment) -> list[Artifact]:
    """List checkpoints of trainings of the same size that were trained here."""
    model, batch = experiment.model, experiment.train.batch_size
    return [
        artifact
        for artifact in store.list("checkpoint")
        if recorded(artifact, "config", "train", "batch_size") == batch
        and all(
            recorded(artifact, "config", "model", name) == getattr(model, name)
            for name in ARCHITECTURE
        )
    ]


def seconds_per_step(store: Store, experiment: Experiment) -> float | None:
    """Return the wall seconds of a training step, with any workers; None if not measured."""
    rates = []
    for artifact in comparable_checkpoints(store, experiment):
        first, ref = recorded(artifact, "work_from_step"), artifact.ref
        if isinstance(first, int) and ref.has_step and ref.step > first:
            rates.append(artifact.seconds / (ref.step - first))
    return median(rates)


def checkpoint_bytes(store: Store, experiment: Experiment) -> float | None:
    """Return the bytes of a checkpoint of such a training; None if not measured."""
    return median([artifact.size for artifact in comparable_checkpoints(store, experiment)])


def image_costs(store: Store, experiment: Experiment) -> ImageCosts:
    """Return the costs of an image of such a model in as many steps of such a sampler."""
    models = {str(a.ref) for a in comparable_checkpoints(store, experiment)}
    counts: dict[str, int] = {}
    sampling, judging, images, features = [], [], [], []
    for artifact in store.list("images") if models else ():
        count = _image_count(artifact)
        if (
            count
            and recorded(artifact, "inputs", "checkpoint") in models
            and _sampled_alike(artifact, experiment.sampler)
        ):
            counts[str(artifact.ref)] = count
            sampling.append(artifact.seconds / count)
            images.append(artifact.size / count)
    for artifact in store.list("features") if counts else ():
        made_from = recorded(artifact, "inputs", "images")
        if isinstance(made_from, str) and made_from in counts:
            judging.append(artifact.seconds / counts[made_from])
            features.append(artifact.size / counts[made_from])
    return ImageCosts(median(sampling), median(judging), median(images), median(features))


def median(values: Sequence[float]) -> float | None:
    """Return the median of the finite values; None if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else None


def _image_count(artifact: Artifact) -> int:
    """Return the number of images in a shard; 0 if its manifest does not say."""
    start, stop = (recorded(artifact, "config", name) for name in ("start", "stop"))
    return max(stop - start, 0) if isinstance(start, int) and isinstance(stop, int) else 0


def _sampled_alike(artifact: Artifact, sampler: SamplerConfig) -> bool:
    """Return True if images were sampled in as many steps of the same method and precision."""
    said = recorded(artifact, "config", "sampler")
    if not isinstance(said, dict):  # made elsewhere
        return False
    return (
        said.get("num_steps"),
        said.get("method"),
        said.get("precision", SamplerConfig.precision),
    ) == (sampler.num_steps, sampler.method, sampler.precision)
