"""Schema of an experiment: its parts, the experiment itself, and its JSON.

An experiment is one frozen value that specifies a result completely. Every field says what it sets
(the text is also the help of its option), and its metadata say whether it enters a key.
"""

from __future__ import annotations

import dataclasses
import json
import types
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ig_core.config import (
    Guidance,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SamplerConfig,
    TrainConfig,
    require,
    require_file_name,
)

NOT_IN_KEY = {"key": False}
"""Metadata of a field that does not enter a key: where a file lies, what a thing is called, who
computes. The result does not depend on it."""
CODEC_DOWNSAMPLING = {"none": 1, "sd-vae": 8, "va-vae": 16}
"""Codec -> pixels of an image along one side of a latent's cell."""
CODEC_CHANNELS = {"none": 3, "sd-vae": 4, "va-vae": 32}
"""Codec -> channels of the images or latents that the model learns."""
MAX_SAMPLE_SHARDS = 1_000_000
"""Largest number of shards of samples: with more, the plan alone would fill the memory."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training data."""

    source: Literal["digits", "latents", "images"] = "digits"
    """digits: the 1,797 handwritten 8x8 digits of scikit-learn. images: class folders, Parquet
    files, WebDataset tars or an ADM zip file. latents: in the format of SiT and REPA (.npy) or of
    LightningDiT (safetensors)."""
    path: str | None = field(default=None, metadata=NOT_IN_KEY)
    """Folder or file of images or latents, or a pattern in the last part of the name
    (`train-*.parquet`, `set-{000..099}.tar`)."""
    classes: str | None = field(default=None, metadata=NOT_IN_KEY)
    """JSON file {folder or file: label} with the labels. None: the labels beside the data, else the
    order of the class folders."""
    content: str | None = None
    """Identity of the data at `path`. A run fills it in; an experiment that has it accepts no other
    data."""
    count: int | None = field(default=None, metadata=NOT_IN_KEY)
    """Number of images or latents at `path`; a run fills it in."""
    codec: Literal["none", "sd-vae", "va-vae"] = "none"
    """Codec that encodes images and decodes samples. none: the model learns pixels."""
    codec_path: str | None = field(default=None, metadata=NOT_IN_KEY)
    """Weights of the codec: a folder of diffusers' AutoencoderKL (sd-vae), or a file (va-vae)."""
    codec_sha256: str | None = None
    """SHA-256 of the codec's weights. A run fills it in; an experiment that has it accepts no
    others."""
    encoder_sha256: str | None = None
    """SHA-256 of the encoder's part of these weights, the only part that latents of images depend
    on; a run fills it in."""
    channels: int = 1
    """Channels of the images or latents that the model learns."""
    side: int = 8
    """Rows and columns of the images or latents that the model learns."""
    num_classes: int = 10
    """Number of classes."""
    flip: bool = False
    """Mirror each image with probability 1/2. Latents must hold both versions, because the latent
    of a mirrored image is not the mirrored latent."""
    resolution: int = 256
    """Side of the images in pixels, to which images are centre-cropped as in ADM and samples are
    decoded."""
    shard_size: int = 10_000
    """Images or latents that one task encodes; an interrupted encoder loses no more."""
    max_broken: int = field(default=100, metadata=NOT_IN_KEY)
    """Most faulty images (unreadable, of more than 8 bits, or CMYK) that a run accepts and
    names; with more of them it ends."""
    check_statistics: bool = field(default=True, metadata=NOT_IN_KEY)
    """Refuse latents whose values do not fit their codec or their statistics."""

    def __post_init__(self) -> None:
        for name in ("channels", "side", "num_classes", "resolution", "shard_size"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "at least 1")
        require(self.max_broken >= 0, "data.max_broken", self.max_broken, "at least 0")
        if self.source == "digits":
            self._check_digits()
            return
        require(
            self.source == "images" or self.codec != "none",
            "data.codec",
            self.codec,
            "sd-vae or va-vae with data.source=latents",
        )
        factor, channels = CODEC_DOWNSAMPLING[self.codec], CODEC_CHANNELS[self.codec]
        require(
            self.channels == channels,
            "data.channels",
            self.channels,
            f"{channels} with data.codec={self.codec}",
        )
        require(
            self.resolution == self.side * factor,
            "data.resolution",
            self.resolution,
            f"{self.side * factor}: data.side={self.side} times {factor} of {self.codec}",
        )

    @property
    def image_side(self) -> int:
        """Side in pixels of the images that are learnt, and of samples."""
        return self.side if self.source == "digits" else self.resolution

    def _check_digits(self) -> None:
        """Check that no setting is given that the digits do not have."""
        for name, value in (
            ("path", None),
            ("classes", None),
            ("codec", "none"),
            ("codec_path", None),
            ("channels", 1),
            ("side", 8),
            ("num_classes", 10),
            ("flip", False),
        ):
            require(
                getattr(self, name) == value,
                f"data.{name}",
                getattr(self, name),
                f"{value} with data.source=digits",
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation of samples."""

    extractor: Literal["digits-cnn", "inception-v3-compat"] = "digits-cnn"
    """Feature extractor, by its name in torch-fidelity's registry."""
    extractor_weights: str | None = field(default=None, metadata=NOT_IN_KEY)
    """Weights file of inception-v3-compat, which needs it; digits-cnn is trained by the data
    stage."""
    weights_sha256: str | None = None
    """SHA-256 of that file. A run fills it in; an experiment that has it accepts no other."""
    reference: str | None = field(default=None, metadata=NOT_IN_KEY)
    """Real images: an .npz of the ADM protocol (statistics mu, sigma, and for sFID mu_s, sigma_s;
    images in arr_0 for precision and recall), or images: a folder of .npz shards, or what
    data.path may be (folders of JPEG, PNG and other images, with class folders or without; Parquet
    files, tars, a zip), cropped to the samples' size as ADM does where they have another. None: the
    images to learn, cropped likewise; a run on latents, which has none, needs one."""
    reference_sha256: str | None = None
    """SHA-256 of that file, or of a folder of .npz shards. A run fills it in; an experiment that
    has it accepts no other."""
    reference_content: str | None = None
    """Identity of reference images that are cropped. A run fills it in; an experiment that has it
    accepts no others."""
    reference_resolution: int | None = None
    """Side in pixels to which reference images are cropped. None: that of the samples."""
    extractor_epochs: int = 15
    """Epochs of the training of digits-cnn."""
    extractor_seed: int = 0
    """Seed of the training of digits-cnn."""
    num_samples: int = 5000
    """Samples for each guidance scale at the last checkpoint."""
    curve_samples: int = 1000
    """Samples for each point of the FID curve over training: the first of `num_samples`."""
    shard_size: int = 1000
    """Images that one task samples; experiments share shards of equal size only."""
    seed: int = 0
    """Seed of the sampling noise on which curves are drawn and guidances are chosen; image i of a
    seed has the same noise everywhere."""
    holdout_seed: int | None = None
    """Seed of the holdout noise: the guidance that was chosen is sampled on it too, since it had no
    part in the choice. None: the next one, seed + 1."""
    labels: Literal["balanced", "random"] = "balanced"
    """balanced: as many images of each class; random: labels drawn at random. random reports both,
    from one pool of samples."""
    groups: int = 50
    """Groups of the jackknife that gives the 95 % intervals."""
    kid_subsets: int = 20
    """Random subsets of the kernel distance (KID)."""
    kid_subset_size: int = 500
    """Images in each subset of the kernel distance."""
    isc_splits: int = 10
    """Splits of the Inception Score."""

    def __post_init__(self) -> None:
        for name in ("extractor_epochs", "shard_size", "kid_subsets", "isc_splits"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        side = self.reference_resolution
        require(side is None or side >= 1, "evaluation.reference_resolution", side, "at least 1")
        require(self.kid_subset_size >= 2, "kid_subset_size", self.kid_subset_size, "at least 2")
        require(self.groups >= 5, "groups", self.groups, "at least 5 (fewer give no interval)")
        require(
            self.isc_splits <= self.curve_samples,
            "isc_splits",
            self.isc_splits,
            f"at most curve_samples={self.curve_samples}",
        )
        for name in ("num_samples", "curve_samples"):
            least = 2 * self.groups
            require(
                getattr(self, name) >= least,
                name,
                getattr(self, name),
                f"at least {least} (two for each of {self.groups} groups)",
            )
        require(
            self.curve_samples <= self.num_samples,
            "evaluation.curve_samples",
            self.curve_samples,
            f"at most num_samples={self.num_samples:,}, the first of which are on the curve",
        )
        for name, seed in (("seed", self.seed), ("holdout_seed", self.holdout_noise_seed)):
            require(0 <= seed < 2**63, f"evaluation.{name}", seed, "in 0..2^63 - 1")
        require(
            self.holdout_seed != self.seed,
            "evaluation.holdout_seed",
            self.holdout_seed,
            f"another one than seed={self.seed}, on whose noise the guidance is chosen",
        )

    @property
    def holdout_noise_seed(self) -> int:
        """Seed of the noise that has no part in choosing a guidance."""
        return self.seed + 1 if self.holdout_seed is None else self.holdout_seed


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Workers and batch sizes. They enter no key, and change results by rounding at most."""

    num_workers: int = 2
    """Training workers; 1 trains in a plain task, without the set-up of a worker group."""
    min_workers: int | None = None
    """Fewest workers of elastic training, which shrinks when nodes are lost and grows again to
    num_workers when there is room. None: always num_workers."""
    cpus_per_worker: int = 1
    """CPU threads of a training worker."""
    use_gpu: bool = False
    """One GPU for each training worker and each sampling task."""
    micro_batch: int | None = None
    """Most images that a worker processes at once; gradients of more are accumulated. None: all. At
    half the batch, one and two workers agree bit for bit on CPUs of one kind."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more work, same result."""
    compile_blocks: bool = False
    """Compile the transformer's blocks (torch.compile); results change by rounding."""
    sharding: Literal["none", "fsdp"] = "none"
    """fsdp (FSDP2): shard the state over the training workers, for models that do not fit."""
    tf32: bool = True
    """On a GPU, round the factors of float32 products to TF32; results change by rounding."""
    save_minutes: float | None = 10.0
    """Minutes between states published for recovery, the most training that is lost with a worker;
    each replaces the one before it. None: only the checkpoints of the experiment."""
    sample_tasks: int = 2
    """Sampling and evaluation tasks that run at once."""
    sample_batch: int = 250
    """Images that a sampling task integrates at once."""
    max_failures: int = 3
    """Times that workers may be lost before a training fails."""
    wait_minutes: float = 0.0
    """Minutes to wait for nodes that an autoscaler or a person adds to the cluster. 0: refuse a
    training that needs more resources than the cluster has."""
    runner: Literal["ray", "inline"] = "ray"
    """ray: tasks of Ray. inline: everything in this process, with one worker, for debuggers."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "cpus_per_worker", "sample_tasks", "sample_batch"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(
            self.micro_batch is None or self.micro_batch >= 1,
            "micro_batch",
            self.micro_batch,
            "None or at least 1",
        )
        require(self.max_failures >= 0, "max_failures", self.max_failures, "at least 0")
        require(
            self.min_workers is None or 1 <= self.min_workers <= self.num_workers,
            "min_workers",
            self.min_workers,
            f"None or 1..num_workers={self.num_workers}",
        )
        require(
            self.save_minutes is None or self.save_minutes > 0,
            "save_minutes",
            self.save_minutes,
            "None or positive",
        )
        require(self.wait_minutes >= 0, "wait_minutes", self.wait_minutes, "at least 0")
        require(
            self.runner == "ray" or self.num_workers == 1,
            "num_workers",
            self.num_workers,
            "1 with the inline runner",
        )

    @property
    def device(self) -> str:
        """Device of tensors, by its name in torch."""
        return "cuda" if self.use_gpu else "cpu"

    @property
    def fewest_workers(self) -> int:
        """Fewest workers with which a training starts."""
        return self.num_workers if self.min_workers is None else self.min_workers


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """data -> train -> sample -> evaluate, completely specified."""

    name: str = field(metadata=NOT_IN_KEY)
    """Name in the registry; a label that changes no result."""
    data: DataConfig = field(default_factory=DataConfig)
    """Training data."""
    model: ModelConfig
    """Architecture of the model."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Training loss."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and moving average of the weights."""
    train: TrainConfig
    """Length, batch size and seed of the training."""
    guidance: Guidance = field(default_factory=Guidance)
    """Guidance of the FID curve over training (drawn beside the unguided one)."""
    ig_scales: tuple[float, ...] = ()
    """Internal guidance scales compared at the last checkpoint, beside 1 (off) and the curve's."""
    sampler: SamplerConfig
    """Sampler."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Number of samples, features, reference and intervals."""
    resources: Resources = field(default_factory=Resources, metadata=NOT_IN_KEY)
    """Workers and batch sizes."""

    def __post_init__(self) -> None:
        require_file_name("name", self.name)
        for name, value, expected in (
            ("model.in_channels", self.model.in_channels, self.data.channels),
            ("model.input_size", self.model.input_size, self.data.side),
            ("model.num_classes", self.model.num_classes, self.data.num_classes),
        ):
            require(value == expected, name, value, f"{expected} for {self.data.source}")
        require(
            self.data.source == "digits" or self.evaluation.extractor != "digits-cnn",
            "evaluation.extractor",
            self.evaluation.extractor,
            f"inception-v3-compat with data.source={self.data.source}",
        )
        require(
            self.sampler.path == self.loss.path,
            "sampler.path",
            self.sampler.path,
            f"the path of the loss, {self.loss.path!r}",
        )
        require(
            self.train.batch_size >= self.resources.num_workers,
            "train.batch_size",
            self.train.batch_size,
            f"at least resources.num_workers={self.resources.num_workers}",
        )
        self._check_sharding()
        require(
            all(abs(s) < float("inf") for s in self.ig_scales),
            "ig_scales",
            self.ig_scales,
            "finite numbers",
        )
        guided = [s for s in (*self.ig_scales, self.guidance.ig_scale) if s != 1]
        require(
            self.model.aux_layer is not None or not guided,
            "ig scales",
            guided,
            "all 1 for a model without auxiliary head (model.aux_layer None)",
        )
        require(
            self.model.aux_layer is not None or not self.loss.target_guidance,
            "loss.target_guidance",
            self.loss.target_guidance,
            "0 for a model without auxiliary head (model.aux_layer None)",
        )
        require(
            self.sampler.method != "dopri5",
            "sampler.method",
            self.sampler.method,
            "euler, heun or sde (dopri5 has one step size for a whole batch, so that an "
            "image would depend on the batch it is in)",
        )
        require(
            self._shards <= MAX_SAMPLE_SHARDS,
            "train.checkpoint_every, evaluation.shard_size",
            (self.train.checkpoint_every, self.evaluation.shard_size),
            f"large enough for at most {MAX_SAMPLE_SHARDS:,} shards of samples, not "
            f"{self._shards:,}",
        )
        require(
            self.guidance.auto_scale == 1,
            "guidance.auto_scale",
            self.guidance.auto_scale,
            "1 (experiments name no weaker checkpoint yet)",
        )

    def _check_sharding(self) -> None:
        """Check that nothing is set that a state sharded over the workers does not support."""
        if self.resources.sharding == "none":
            return
        optim, also = self.optim, "with resources.sharding=fsdp"
        require(optim.optimizer == "adamw", "optim.optimizer", optim.optimizer, f"adamw {also}")
        require(optim.precision != "fp16", "optim.precision", "fp16", f"float32 or bf16 {also}")
        require(
            not self.loss.target_guidance,
            "loss.target_guidance",
            self.loss.target_guidance,
            f"0 {also}",
        )

    @property
    def reference_side(self) -> int:
        """Side in pixels to which reference images are cropped."""
        given = self.evaluation.reference_resolution
        return self.data.image_side if given is None else given

    @property
    def _shards(self) -> int:
        """Approximate number of shards of samples."""
        evaluation, size = self.evaluation, self.evaluation.shard_size
        checkpoints = -(-self.train.steps // self.train.checkpoint_every)
        return 2 * checkpoints * -(-evaluation.curve_samples // size) + len(self.ig_scales) * -(
            -evaluation.num_samples // size
        )

    @property
    def scales(self) -> tuple[float, ...]:
        """Internal guidance scales to compare, ascending, with 1 and the curve's among them."""
        return tuple(sorted({1.0, float(self.guidance.ig_scale), *map(float, self.ig_scales)}))

    @property
    def guidances(self) -> tuple[Guidance, ...]:
        """Guidances to compare at the last checkpoint, canonical, each once, in a fixed order.

        `baseline` and `guidance` are among them.
        """
        return tuple(map(self.guidance_at, self.scales))

    @property
    def baseline(self) -> Guidance:
        """Guidance that the others are compared with: without internal guidance."""
        return self.guidance_at(1.0)

    def guidance_at(self, ig_scale: float) -> Guidance:
        """Return the experiment's guidance at another internal guidance scale, canonical."""
        return dataclasses.replace(self.guidance, ig_scale=float(ig_scale)).canonical()


def experiment_to_json(experiment: Experiment) -> str:
    """Return an experiment as JSON, which `experiment_from_json` reads."""
    return json.dumps(dataclasses.asdict(experiment), indent=2) + "\n"


def experiment_from_json(text: str) -> Experiment:
    """Read an experiment from its JSON.

    Raises:
        ValueError: If the text is not JSON, a field is unknown or missing, or a value has the wrong
            type.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"experiment file is not JSON: {error}") from error
    return read_dataclass(Experiment, values, "experiment")


def read_dataclass(cls: type[Any], values: object, where: str) -> Any:  # noqa: ANN401
    """Build a configuration from plain JSON values; missing fields have their default.

    Args:
        cls: Class of the configuration, a dataclass.
        values: The values by field.
        where: Path of the configuration, for messages.

    Raises:
        ValueError: If a field is unknown or missing, or a value has the wrong type; the message
            names its path.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object, but got {values!r}")
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"{where} has no field {unknown[0]!r}; fields are {', '.join(hints)}")
    read = {key: _read(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    try:
        return cls(**read)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _read(hint: Any, value: object, where: str) -> Any:  # noqa: ANN401
    """Convert a JSON value to a type of the schema."""
    origin, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return read_dataclass(hint, value, where)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _read(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        require(value in args, where, value, f"one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        require(isinstance(value, list | tuple), where, value, "a list")
        items: Any = value
        if args[-1] is not Ellipsis:
            require(len(items) == len(args), where, value, f"a list of {len(args)}")
        return tuple(_read(args[0], item, where) for item in items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            require(False, where, "a number of over 300 digits", "a float")
    matches = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    require(matches, where, value, f"of type {hint.__name__}")
    return value
