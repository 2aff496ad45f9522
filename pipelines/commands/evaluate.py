"""`igdit evaluate`: compute FID and other metrics of images from any program."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from experiments import EvaluationConfig, Experiment, Resources, get_experiment
from experiments.protocols import get_protocol, protocol_name
from pipelines.commands.parse import asks_for_help, parse_options
from pipelines.common.errors import UsageError
from pipelines.console.console import log, make_console
from pipelines.console.progress import ProgressDisplay
from pipelines.console.results import print_metrics
from pipelines.execution.runners import describe_runner
from pipelines.execution.scheduler import Pipeline
from pipelines.execution.session import RunnerSession
from pipelines.graph.digests import path_digest
from pipelines.graph.garbage import in_use
from pipelines.graph.graph import Graph
from pipelines.graph.plan import make_plan
from pipelines.graph.resolve import resolve
from pipelines.stages.build import WORK
from pipelines.store.file_names import IMAGES_FILE, METRICS_FILE
from pipelines.store.files import replace_text
from pipelines.store.home import Home
from pipelines.store.register import Record, remember

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from torch import Tensor

    from ig_core.images.sets import ImageSet
    from pipelines.execution.runner import Runner
    from pipelines.graph.node import Node
    from pipelines.store.base import Store


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `igdit evaluate`."""

    reference: Path | None = None
    """Reference: statistics (an .npz file of the ADM protocol with mu and sigma), images in a
    format that PATH may have, or other images (a folder of JPEG, PNG and others with or without
    class folders, Parquet files, tars, a zip file), which are cropped to the size of those at PATH.
    None: scikit-learn's digits."""
    protocol: str | None = None
    """Evaluation protocol to follow exactly. None: compute the metrics of all images."""
    extractor: str = "digits-cnn"
    """Feature extractor if no protocol is given: digits-cnn or inception-v3-compat."""
    weights: Path | None = None
    """Weights file of inception-v3-compat."""
    num_samples: int | None = None
    """Number of images to evaluate, from the first. None: all, or the protocol's number."""
    groups: int = 50
    """Groups of the jackknife that gives the confidence intervals."""
    in_order: bool = False
    """Any run of the images is a fair sample of all, as rows in the order of their drawing are.
    Otherwise they are shuffled, as files that are sorted by class must be."""
    resources: Resources = field(default_factory=Resources)
    """Workers and batch sizes."""


@dataclass(frozen=True)
class EvaluateCommand:
    """Options of `igdit evaluate`."""

    options: Annotated[EvaluateOptions, tyro.conf.arg(name="")]


def evaluate_command(arguments: list[str]) -> int:
    """Run `igdit evaluate`."""
    if asks_for_help(arguments):
        arguments = ["PATH", *arguments]
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(
            "igdit evaluate needs a path: a folder of PNG files, an .npz file, or a folder of "
            ".npz shards"
        )
    path, *rest = arguments
    one_worker = replace(EvaluateOptions().resources, num_workers=1)
    default = EvaluateCommand(EvaluateOptions(resources=one_worker))
    command = parse_options(EvaluateCommand, rest, f"igdit evaluate {path}", default)
    return evaluate_images(Path(path), command.options, Home.default(), make_console())


def evaluate_images(path: Path, options: EvaluateOptions, home: Home, console: Console) -> int:
    """Evaluate images, keep the results in the store and print them; returns the exit code.

    Raises:
        ValueError: If the images cannot be evaluated; raised before any work.
    """
    from ig_core.images.folders import count_images

    if not path.exists():
        raise ValueError(
            f"images must be a folder (of PNG files or .npz shards) or an .npz file, "
            f"but {path} does not exist"
        )
    home.prepare()
    count = count_images(path)
    unresolved = _experiment(options, count, _side(path))
    _check_weights(unresolved.evaluation)
    experiment = resolve(unresolved)
    evaluation = experiment.evaluation
    if count < evaluation.num_samples:
        raise ValueError(
            f"images must be at least {evaluation.num_samples:,}, but {path} has "
            f"{count:,}: name a smaller --num-samples without --protocol"
        )
    if count > evaluation.num_samples and not options.in_order:
        raise ValueError(
            f"images must be {evaluation.num_samples:,}, but {path} has {count:,}: the first ones "
            f"are a fair sample only if any run of them is, which --in-order says"
        )
    _check_shape(path, evaluation, options.protocol)
    _check_statistics(evaluation)
    store, graph = home.store, Graph(experiment)
    digest = path_digest(path)
    evaluate = graph.evaluation_of(digest, in_order=options.in_order)
    with in_use(store):
        record = Record(
            kind="evaluation",
            name=path.stem,
            key=evaluate.key,
            experiment=experiment,
            images=digest,
            in_order=options.in_order,
        )
        remember(store, record)
        _publish_images(path, evaluation.num_samples, graph, evaluate, store, console)
        _build(experiment, graph, evaluate, home, console)
        folder = store.open(evaluate.ref).path
        metrics = _copy_metrics(folder / METRICS_FILE, path, evaluate, home)
    print_metrics(metrics, options.protocol or protocol_name(evaluation), console)
    return 0


def _check_weights(evaluation: EvaluationConfig) -> None:
    """Read an extractor's weights before any work; `resolve` reports a missing file.

    Raises:
        ValueError: If the file cannot be read.
    """
    from ig_core.files.tensors import read_weights

    weights = evaluation.extractor_weights
    if weights is not None and Path(weights).expanduser().is_file():
        read_weights(Path(weights).expanduser())


def _check_statistics(evaluation: EvaluationConfig) -> None:
    """Read the reference statistics before any work.

    Raises:
        ValueError: If the file cannot be read, or is of another extractor.
    """
    from ig_core.files.npz import has_arrays
    from ig_core.metrics.extractors import FEATURE_LAYERS
    from ig_core.metrics.reference import read_reference

    if evaluation.reference_sha256 is None or Path(str(evaluation.reference)).is_dir():
        return
    path = Path(str(evaluation.reference))
    if has_arrays(path, {"mu", "sigma"}):
        read_reference(path, int(FEATURE_LAYERS[evaluation.extractor][0]))


def _copy_metrics(metrics: Path, images: Path, evaluate: Node, home: Home) -> Path:
    """Copy the metrics into the folder of reports; returns the copy."""
    target = home.report / "evaluations" / f"{images.stem}-{evaluate.key[:8]}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_text(target, metrics.read_text(encoding="utf-8"))
    return target


def _side(path: Path) -> int:
    """Return the shorter side of the first image, in pixels.

    Raises:
        ValueError: If the image cannot be read.
    """
    from ig_core.images.folders import read_image_batches

    return int(min(next(read_image_batches(path, 1)).shape[2:]))


def _experiment(options: EvaluateOptions, count: int, side: int) -> Experiment:
    """Return an experiment of which only the evaluation is used."""
    reference = None if options.reference is None else str(options.reference)
    weights = None if options.weights is None else str(options.weights)
    changes: dict[str, Any] = {"groups": options.groups, "reference_resolution": side}
    if options.protocol is None:
        if options.extractor != "digits-cnn" and reference is None:
            raise ValueError(f"extractor {options.extractor} needs a --reference, but got None")
        evaluation = EvaluationConfig()
        num_samples = count if options.num_samples is None else options.num_samples
        changes |= {
            "extractor": options.extractor,
            "extractor_weights": weights,
            "reference": reference,
            "num_samples": num_samples,
            "curve_samples": num_samples,
            "isc_splits": min(10, max(1, num_samples // 20)),
        }
    else:
        evaluation = get_protocol(options.protocol, weights, reference)
        if options.num_samples not in (None, evaluation.num_samples):
            raise ValueError(
                f"protocol {options.protocol} has {evaluation.num_samples:,} samples, "
                f"but got num_samples {options.num_samples}"
            )
        changes["labels"] = "balanced"  # labels of other programs' images are not read
    base = get_experiment("digits")
    return dataclasses.replace(
        base,
        name="evaluate",
        resources=options.resources,
        evaluation=dataclasses.replace(evaluation, **changes),
    )


def _check_shape(path: Path, evaluation: EvaluationConfig, protocol: str | None) -> None:
    """Check the shape of the first images against the extractor and the protocol.

    Raises:
        ValueError: If the extractor or the protocol does not take images of this shape.
    """
    from ig_core.images.folders import read_image_batches

    expected = {"digits-cnn": (1, 8, 8)}.get(evaluation.extractor)
    expected = {"adm-imagenet256": (3, 256, 256)}.get(protocol or "", expected)
    # Reference images that are cropped have the right size afterwards.
    reference = None if evaluation.reference_content else evaluation.reference
    if reference is None and evaluation.reference is not None:
        height, width = next(read_image_batches(path, 1)).shape[2:]
        if height != width:
            raise ValueError(
                f"images must be square if the reference images are cropped, but "
                f"those of {path} are {height} x {width}"
            )
    for name, source in (("images", path), ("reference images", reference)):
        if source is None or expected is None or (source != path and not _has_images(Path(source))):
            continue
        first: Tensor = next(read_image_batches(Path(source), 1))
        if tuple(first.shape[1:]) != expected:
            raise ValueError(
                f"{name} must be {expected} (channels, height, width) for "
                f"{protocol or evaluation.extractor}, but those of {source} are "
                f"{tuple(first.shape[1:])}"
            )


def _has_images(path: Path) -> bool:
    """Return whether a path holds images, not statistics."""
    from ig_core.files.npz import has_arrays

    return path.is_dir() or has_arrays(path, {"arr_0"})


def _publish_images(
    path: Path, count: int, graph: Graph, evaluate: Node, store: Store, console: Console
) -> None:
    """Publish images in shards; if all shards are in the store, the images are not read."""
    from ig_core.images.sets import write_images
    from pipelines.stages.context import describe, write_experiment

    nodes = list(evaluate.inputs["sample"].inputs.values())
    if all(store.find(node.ref) for node in nodes):
        return
    log(console, f"reading   {count:,} images of {path}")

    def publish(node: Node, images: ImageSet) -> None:
        if store.find(node.ref) is None:
            with store.publish(node.ref, describe(node)) as directory:
                write_experiment(graph.experiment, directory)
                write_images(directory / IMAGES_FILE, images)

    # The last shard is published when all images are read: without it the source is not checked.
    last = None
    size = graph.experiment.evaluation.shard_size
    for pair in zip(nodes, _shards(path, size, count), strict=True):
        if last is not None:
            publish(*last)
        last = pair
    if last is not None:
        publish(*last)


def _shards(path: Path, size: int, count: int) -> Iterator[ImageSet]:
    """Yield the first `count` images in shards, and read the source to its end."""
    import torch

    from ig_core.images.folders import read_image_batches
    from ig_core.images.sets import ImageSet

    start = 0
    for batch in read_image_batches(path, size):
        images = batch[: max(count - start, 0)]
        if len(images):
            index = torch.arange(start, start + len(images))
            # The labels are not known, and not needed.
            yield ImageSet(index, torch.zeros_like(index), images)
        start += len(batch)  # reading continues to the end, where checksums are compared


def _build(
    experiment: Experiment, graph: Graph, evaluate: Node, home: Home, console: Console
) -> None:
    session = RunnerSession(WORK, experiment.resources, home.scratch, 1)
    try:
        with ProgressDisplay(console, home.store, graph, lambda: None) as display:
            display.expect(make_plan(home.store, [evaluate]).missing)

            def start_runner() -> Runner:
                display.log(f"start     {describe_runner(experiment.resources)}")
                return session.runner()

            Pipeline(home.store, experiment, start_runner, display).run([evaluate])
    finally:
        session.close()
