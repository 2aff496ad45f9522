"""Plan of an experiment on the terminal: cached and missing artifacts, and the costs of the rest.

Costs (worker-hours, disk space) are measured where comparable work is in the store, and otherwise
assumed from the number of operations; each estimate says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.published import IMAGENET_TRAIN
from ig_core.config import Guidance
from ig_core.costs import forward_flops, parameter_count, sampling_flops, training_flops
from pipelines.common.formatting import data_size, number
from pipelines.common.redaction import redact
from pipelines.common.remedies import option
from pipelines.console.console import ScreenTable, log, numbers, print_table, words
from pipelines.graph.node import STAGES, Node, closure
from pipelines.graph.resolve import unnamed_files
from pipelines.graph.trajectory import starting_step
from pipelines.results.costs import Assumption, _count, arithmetic, disk_bytes, left_to_train
from pipelines.results.measured_costs import image_costs, seconds_per_step

if TYPE_CHECKING:
    from rich.console import Console

    from experiments import Experiment
    from pipelines.graph.graph import Graph
    from pipelines.graph.plan import Plan
    from pipelines.results.measurements import Results
    from pipelines.store.base import Store


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of one kind of work that is left."""

    name: str
    images: int
    """Images to train on, or to sample."""
    seconds_each: float | None
    """Seconds of one worker for an image; None if not known."""
    measured: bool

    @property
    def hours(self) -> float | None:
        """Return the worker-hours; None if not known."""
        return None if self.seconds_each is None else self.images * self.seconds_each / 3600


def print_plan(results: Results, plan: Plan, console: Console) -> None:
    """Print the cached and the missing artifacts, and the work that would run, by stage."""
    graph, store = results.graph, results.store
    rows = []
    nodes = list(closure(results.targets))
    for kind, stage in STAGES.items():
        own = [node for node in nodes if node.kind == kind]
        if not own:
            continue  # training states are no targets
        missing = [node for node in own if node in plan.missing]
        cached = sum(store.find(node.ref) is not None for node in own)
        rows.append(
            (
                stage,
                kind,
                f"{cached:,}",
                f"{len(missing):,}",
                _what_would_run(graph, store, kind, missing),
            )
        )
    title = f"{graph.experiment.name} {graph.run_key[:8]} in {redact(store.uri)}"
    columns = [*words("stage", "kind"), *numbers("cached", "to build"), *words("what would run")]
    print_table(ScreenTable(title, columns, rows, keys=2), console)
    if results.chosen is None and (count := graph.most_holdout_images):
        console.print(
            f"Then the scale with the lowest FID, and scale 1, are sampled from holdout noise, "
            f"which is not used to choose: up to {count:,} images."
        )
    if not plan.missing:
        console.print("All artifacts are cached: running the experiment only prints its results.")


def print_costs(results: Results, plan: Plan, assumption: Assumption, console: Console) -> None:
    """Print the estimates, the disk space and the files that are still to be named."""
    experiment = results.experiment
    estimates = estimate_costs(results, plan, assumption)
    if estimates:
        log(
            console,
            f"Model: {parameter_count(experiment.model):,} parameters, "
            f"{forward_flops(experiment.model) / 1e9:,.4g} GFLOP a forward pass.",
        )
        for estimate in estimates:
            log(console, _sentence(estimate, experiment))
        if any(e.seconds_each is not None and not e.measured for e in estimates):
            log(console, _assumed(experiment, assumption))
    sizes = disk_bytes(results, plan)
    if sizes:
        parts = ", ".join(f"{name} {data_size(size)}" for name, size in sizes.items())
        log(
            console,
            f"Disk space (computed from shapes): {data_size(sum(sizes.values()))} ({parts}).",
        )
    if experiment.data.source != "digits" and "latents" in sizes and experiment.data.count is None:
        log(
            console,
            f"The size of the latents assumes ImageNet's {IMAGENET_TRAIN:,} images until "
            f"--data.path is given.",
        )
    # The artifacts that `print_plan` counts as cached.
    artifacts = [results.store.find(node.ref) for node in closure(results.targets)]
    sizes_cached = [artifact.size for artifact in artifacts if artifact is not None]
    if sizes_cached:
        log(
            console,
            f"Cached: {len(sizes_cached):,} artifacts, {data_size(sum(sizes_cached))}.",
        )
    for field, description in unnamed_files(experiment).items():
        log(console, f"A run also needs {option(field)} PATH: {description}.")


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
        if results.chosen is None and (most := results.graph.most_holdout_images):
            name = "sampling of the chosen scale and of scale 1 on holdout noise, at most"
            found.append(Estimate(name, most, each, per_image is not None))
    return found


def _assumed(experiment: Experiment, assumption: Assumption) -> str:
    """Explain the assumptions behind estimates that are not measured."""
    parts = (("training", experiment.optim.precision), ("sampling", experiment.sampler.precision))
    peaks = ", ".join(
        f"{assumption.peak(experiment, precision):g} for {kind} "
        f"({arithmetic(experiment, precision)})"
        for kind, precision in parts
    )
    unit = "GPU" if experiment.resources.use_gpu else "worker"
    return (
        f"Assumed, not measured: peak TFLOP/s per {unit} of {peaks} (--assume-tflops sets that of "
        f"half precision; TF32 has half of it, float32 a sixteenth), "
        f"{100 * assumption.utilisation:g} % of them reached (--assume-utilisation), and a "
        f"training step of three forward passes. Encoding, decoding and feature extraction are "
        f"not included."
    )


def _sentence(estimate: Estimate, experiment: Experiment) -> str:
    """Describe an estimate."""
    unit = "GPU" if experiment.resources.use_gpu else "worker"
    start = f"{estimate.name.capitalize()}: {estimate.images:,} images"
    if estimate.seconds_each is None or estimate.hours is None:
        return (
            f"{start}; time unknown, as nothing comparable was measured here (--assume-tflops "
            f"gives an estimate for CPUs)."
        )
    how = "measured here" if estimate.measured else "assumed"
    rate, hours = (
        number(1 / estimate.seconds_each, separator=","),
        number(estimate.hours, separator=","),
    )
    return f"{start} at {rate} images a second per {unit} ({how}): {hours} {unit}-hours."


def _what_would_run(graph: Graph, store: Store, kind: str, missing: list[Node]) -> str:
    """Describe the work that builds the missing artifacts of a kind."""
    if not missing:
        return ""
    if kind == "checkpoint" and graph.experiment.train.imported:
        return f"import of {graph.experiment.train.from_checkpoint}"
    if kind == "checkpoint":
        steps = [node.step for node in missing]
        return f"training from step {starting_step(store, graph, steps)} to {max(steps)}"
    if kind == "reference" and "images" in missing[0].config:
        side = missing[0].config["resolution"]
        given = graph.experiment.evaluation.reference
        return f"{given or 'the training images'}, cropped to {side} x {side}"
    if kind in ("images", "latents"):
        count = sum(node.config["stop"] - node.config["start"] for node in missing)
        return f"{count:,} {kind}"
    if kind == "evaluate":
        every = (graph.curve, graph.final, graph.holdout(*graph.final))
        points = dict.fromkeys(
            p for points in every for p in points.values() if p.evaluate in missing
        )
        texts = [
            f"step {p.step} at ig scale {p.guidance.ig_scale:g} ({p.num_samples:,} samples)"
            for p in points
        ]
        more = f" and {len(texts) - 2} more" if len(texts) > 2 else ""
        return ", ".join(texts[:2]) + more
    return ""
