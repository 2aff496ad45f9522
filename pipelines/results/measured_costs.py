"""What comparable work has cost, as the artifacts of a store say.

A store holds what others put there too: images that `igdit evaluate` read from files, checkpoints
that were trained elsewhere, artifacts of other versions. A reader takes what it understands and
passes over the rest.
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
    """Costs of one image; None: nothing comparable was measured yet."""

    sampling_seconds: float | None
    """Of one worker, decoding included."""
    judging_seconds: float | None
    """Of the extractor."""
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
        artifact: Whose manifest.
        names: Where the value stands, from the outside to the inside.
    """
    value: Any = artifact.manifest
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def comparable_checkpoints(store: Store, experiment: Experiment) -> list[Artifact]:
    """List checkpoints of trainings of the same size.

    Those that were trained elsewhere tell nothing.
    """
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
    """Wall seconds of a training step, by whatever workers took it; None: not measured."""
    rates = []
    for artifact in comparable_checkpoints(store, experiment):
        first, ref = recorded(artifact, "work_from_step"), artifact.ref
        if isinstance(first, int) and ref.has_step and ref.step > first:
            rates.append(artifact.seconds / (ref.step - first))
    return median(rates)


def checkpoint_bytes(store: Store, experiment: Experiment) -> float | None:
    """Bytes of a checkpoint of such a training; None: not measured."""
    return median([artifact.size for artifact in comparable_checkpoints(store, experiment)])


def image_costs(store: Store, experiment: Experiment) -> ImageCosts:
    """Costs of an image that such a model makes in as many steps of such a sampler."""
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
    """Median of what is a number; None: nothing is."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else None


def _image_count(artifact: Artifact) -> int:
    """Number of images in a shard; 0: the shard does not say."""
    start, stop = (recorded(artifact, "config", name) for name in ("start", "stop"))
    return max(stop - start, 0) if isinstance(start, int) and isinstance(stop, int) else 0


def _sampled_alike(artifact: Artifact, sampler: SamplerConfig) -> bool:
    """Whether the images were sampled, with as many steps of the same method and precision."""
    said = recorded(artifact, "config", "sampler")
    if not isinstance(said, dict):  # made elsewhere
        return False
    return (
        said.get("num_steps"),
        said.get("method"),
        said.get("precision", SamplerConfig.precision),
    ) == (sampler.num_steps, sampler.method, sampler.precision)
