"""Schema of a study: an experiment, its searched parameters, and the search."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from experiments.schema import Experiment, read_dataclass
from ig_core.config import require, require_file_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ig_core.config import Guidance


@dataclass(frozen=True, kw_only=True)
class LayerRange:
    """Range of auxiliary layers, low..high."""

    low: int = 1
    """Smallest auxiliary layer."""
    high: int | None = None
    """Largest auxiliary layer. None: the model's depth - 1."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Range of numbers in steps of `step` from low to high, both included."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    step: float
    """Distance of neighbouring values; closer ones are not worth telling apart."""

    def __post_init__(self) -> None:
        require(self.step > 0, "step", self.step, "positive")
        require(self.low <= self.high, "high", self.high, f"at least low={self.low}")
        count = (self.high - self.low) / self.step
        require(
            abs(count - round(count)) < 1e-6,
            "high",
            self.high,
            f"low={self.low} plus a multiple of step={self.step}",
        )

    @property
    def count(self) -> int:
        """Number of values."""
        return round((self.high - self.low) / self.step) + 1

    def value(self, index: int) -> float:
        """Return the value at an index, counted from 0, without the error of repeated addition."""
        return round(self.low + index * self.step, 10)

    def index(self, value: float) -> int:
        """Return the index of the nearest value."""
        return min(max(round((value - self.low) / self.step), 0), self.count - 1)


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Ranges of the three searched parameters."""

    aux_layer: LayerRange = field(default_factory=LayerRange)
    """Block whose tokens the auxiliary head reads."""
    aux_weight: Range = field(default_factory=lambda: Range(low=0.1, high=1.0, step=0.05))
    """Weight of the auxiliary loss."""
    ig_scale: Range = field(default_factory=lambda: Range(low=1.0, high=3.0, step=0.1))
    """Internal guidance scale; the range should hold 1, where guidance is off."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of the three searched parameters."""

    aux_layer: int
    """Block whose tokens the auxiliary head reads."""
    aux_weight: float
    """Weight of the auxiliary loss."""
    ig_scale: float
    """Internal guidance scale."""

    @property
    def training(self) -> tuple[int, float]:
        """Parameters that need a training of their own: layer and weight."""
        return self.aux_layer, self.aux_weight

    @property
    def training_name(self) -> str:
        """Name of the training, for people."""
        return f"layer {self.aux_layer}, weight {self.aux_weight:g}"


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """Rule that prunes a training: its FID curve is worse than the median, beyond the noise."""

    enabled: bool = True
    """Prune trainings at all."""
    warmup_trainings: int = 4
    """Finished trainings there must be before one is pruned."""
    patience: int = 2
    """Checkpoints in a row at which a training must be worse; one noisy point never decides."""

    def __post_init__(self) -> None:
        for name in ("warmup_trainings", "patience"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")


@dataclass(frozen=True, kw_only=True)
class Study:
    """A search for the auxiliary layer, the auxiliary weight and the guidance scale."""

    name: str
    """Name of the study; the same name continues it."""
    experiment: Experiment
    """Experiment of every trial but for the searched parameters; its guidance is that of the
    curve."""
    space: SearchSpace = field(default_factory=SearchSpace)
    """Searched parameters."""
    mode: Literal["nested", "joint"] = "nested"
    """nested: each training is evaluated at several scales, refined around the best; joint: one
    scale a trial."""
    scales_per_training: int = 5
    """Guidance scales evaluated for each training in the nested mode."""
    startup_trainings: int = 4
    """Trainings spread evenly over layers and weights before tpe or gp propose points."""
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    """Optuna's sampler: multivariate TPE, a Gaussian process, or random search."""
    seed: int = 0
    """Seed of the sampler: without parallel trainings, interruptions do not change the study."""
    default_trials: int = 30
    """Trials to complete unless --trials is given."""
    pruning: PruningConfig = field(default_factory=PruningConfig)
    """Rule that prunes trainings."""

    def __post_init__(self) -> None:
        require_file_name("name", self.name)
        require(
            self.scales_per_training >= 1,
            "scales_per_training",
            self.scales_per_training,
            "at least 1",
        )
        require(
            self.scales_per_training <= self.space.ig_scale.count,
            "scales_per_training",
            self.scales_per_training,
            f"at most {self.space.ig_scale.count}, the scales there are",
        )
        require(
            self.startup_trainings >= 0, "startup_trainings", self.startup_trainings, "at least 0"
        )
        require(self.default_trials >= 1, "default_trials", self.default_trials, "at least 1")
        require(0 <= self.seed < 2**32, "seed", self.seed, "in 0..2^32 - 1")
        require(
            not self.experiment.train.imported,
            "experiment.train.from_checkpoint",
            self.experiment.train.from_checkpoint,
            "None: a study trains its models",
        )
        depth, layers = self.experiment.model.depth, self.layers
        require(
            1 <= layers[0] <= layers[1] <= depth - 1,
            "space.aux_layer",
            layers,
            f"in 1..{depth - 1} (depth - 1)",
        )
        require(
            self.space.aux_weight.low >= 0,
            "space.aux_weight",
            self.space.aux_weight.low,
            "at least 0",
        )

    @property
    def layers(self) -> tuple[int, int]:
        """Smallest and largest auxiliary layer."""
        high = self.space.aux_layer.high
        last = self.experiment.model.depth - 1
        return self.space.aux_layer.low, last if high is None else high

    def at(self, aux_layer: int, aux_weight: float, scales: tuple[float, ...]) -> Experiment:
        """Return the experiment of one training, evaluated at these scales at its end."""
        base = self.experiment
        return replace(
            base,
            name=self.name,
            model=replace(base.model, aux_layer=aux_layer),
            loss=replace(base.loss, aux_weight=aux_weight),
            ig_scales=scales,
        )

    def training_of(self, points: Iterable[Point]) -> Experiment:
        """Return the experiment of the training that points share, evaluated at each of them."""
        points = tuple(points)
        return self.at(*points[0].training, tuple(point.ig_scale for point in points))

    def guidance_at(self, point: Point) -> Guidance:
        """Return the guidance under which a point is evaluated, canonical."""
        return self.experiment.guidance_at(point.ig_scale)

    def fixed(self) -> dict[str, object]:
        """Return the settings that must not change while a study goes on, as plain JSON values.

        Name, length and resources are left out.
        """
        values = dataclasses.asdict(self)
        for name in ("name", "default_trials"):
            del values[name]
        del values["experiment"]["resources"], values["experiment"]["name"]
        # The same space and the same weights, however they are named.
        values["space"]["aux_layer"] = dict(zip(("low", "high"), self.layers, strict=True))
        data = values["experiment"]["data"]
        for name in ("classes", "check_statistics"):  # what follows from them is in the content
            del data[name]
        for part, file, digest in (
            (values["experiment"]["evaluation"], "extractor_weights", "weights_sha256"),
            (values["experiment"]["evaluation"], "reference", "reference_sha256"),
            (values["experiment"]["evaluation"], "reference", "reference_content"),
            (data, "path", "content"),
            (data, "codec_path", "codec_sha256"),
        ):
            if part[digest] is not None and part[file] is not None:
                part[file] = f"sha256:{part[digest]}"
        plain: dict[str, object] = json.loads(json.dumps(values))
        return plain

    @classmethod
    def from_fixed(cls, name: str, fixed: dict[str, object]) -> Study:
        """Build a study from its name and what `fixed` returned.

        Raises:
            ValueError: If a setting is unknown, missing or of the wrong type.
        """
        # Resources are not written down, and the number of workers limits the batch.
        unwritten = {"name": name, "resources": {"num_workers": 1}}
        experiment = {**fixed["experiment"], **unwritten}  # type: ignore[dict-item]
        study: Study = read_dataclass(
            cls, {**fixed, "name": name, "experiment": experiment}, "study"
        )
        return study
