"""Comparability of a measurement with a published number, by their protocols."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.protocols import ADM_REFERENCE_IMAGES, INCEPTION_2015_SHA256, protocol_name
from experiments.published import IMAGENET_TRAIN
from pipelines.graph.graph import Graph
from pipelines.graph.node import INCEPTION
from pipelines.store.file_names import FEATURES_FILE, MOMENTS_FILE, STATISTICS_FILE
from pipelines.store.keys import file_digest

if TYPE_CHECKING:
    from experiments import Experiment
    from experiments.tables import TableRow
    from pipelines.graph.node import Node
    from pipelines.results.measurements import Measurement
    from pipelines.store.base import Store

PROTOCOL = "adm-imagenet256"
"""Protocol of the published numbers."""
PORT_NOTE = "Inception-v3 in torch-fidelity's port of the same weights, published with"
TOLERATED_IMAGES = 100
"""Images that a training set may lack (broken ones) or hold twice (two encoders may take as many
each), and still be ImageNet's."""


def incomparable_because(
    row: TableRow, run: Experiment, measured: Measurement, store: Store
) -> tuple[str, ...]:
    """List the protocol differences that make two results incomparable; empty if there are none.

    Args:
        row: Row with the published number.
        run: Experiment that was run for it.
        measured: Our number.
        store: Store of the training data and the reference, which are checked as they were built.

    Raises:
        CorruptArtifactError: If the training data or the reference of the store are damaged.
    """
    ours, theirs = measured.fingerprint, row.protocol
    found = [] if run.train.imported else _training_set(run, store)
    if ours.num_samples != theirs.num_samples:
        found.append(f"{ours.num_samples:,} samples, published with {theirs.num_samples:,}")
    if ours.labels != theirs.labels:
        found.append(f"{ours.labels} labels, published with {theirs.labels} ones")
    extractor, _, digest = ours.extractor.partition(" ")
    if extractor != INCEPTION:
        found.append(f"features of {extractor}, published with {theirs.extractor}")
    elif digest != INCEPTION_2015_SHA256:
        found.append(
            f"weights of Inception-v3 with SHA-256 {digest[:12]}..., published with those "
            f"of 2015 ({INCEPTION_2015_SHA256[:12]}...)"
        )
    if run.evaluation.reference is None:
        found.append(f"reference: the training images, published with {theirs.reference}")
    elif extractor == INCEPTION:
        wrong = _reference(measured.point.evaluate.inputs["reference"], store)
        if wrong:
            found.append(f"reference: {wrong}; published with {theirs.reference}")
    name = protocol_name(run.evaluation)
    if name != PROTOCOL and not found:
        found.append(f"protocol {name}, published with {PROTOCOL}")
    return tuple(found)


def _training_set(run: Experiment, store: Store) -> list[str]:
    """State the number of images that were learnt, if it is known and not ImageNet's."""
    node, count = Graph(run).data, run.data.count
    if store.find(node.ref):  # without those that were left out as broken
        folder = store.open(node.ref).path
        count = int(json.loads((folder / STATISTICS_FILE).read_text(encoding="utf-8"))["count"])
    if count is None or abs(count - IMAGENET_TRAIN) <= TOLERATED_IMAGES:
        return []
    return [f"trained on {count:,} images, published with ImageNet's {IMAGENET_TRAIN:,}"]


def _reference(node: Node, store: Store) -> str | None:
    """Return why a reference cannot be ADM's by its statistics; None if it may be.

    They are those that the distance was taken to. The digest of ADM's file is not known here.
    """
    from ig_core.files.tensors import open_tensors, read_header
    from ig_core.metrics.reference import POOLED_WIDTH, SPATIAL_WIDTH, moments_problem

    folder = store.open(node.ref).path
    file = folder / MOMENTS_FILE
    widths = {name: header.shape[0] for name, header in read_header(file).items()}
    if widths.get("features.mean") != POOLED_WIDTH:
        return f"its mean has {widths.get('features.mean')} features, not {POOLED_WIDTH}"
    if widths.get("spatial.mean") != SPATIAL_WIDTH:
        return "it has no mu_s and sigma_s of spatial features"
    with open_tensors(file) as tensors:
        moments = tensors.get_tensor("features.mean"), tensors.get_tensor("features.covariance")
    images = folder / FEATURES_FILE
    count = read_header(images)["features"].shape[0] if images.exists() else 0
    if count != ADM_REFERENCE_IMAGES:
        return f"it holds {count:,} images (arr_0), not {ADM_REFERENCE_IMAGES:,}"
    return moments_problem(*moments)


def differences(row: TableRow, run: Experiment, measured: Measurement) -> tuple[str, ...]:
    """List other differences of the protocols, whose effect on FID is not known."""
    ours, theirs = measured.fingerprint, row.protocol
    found = [
        f"pixels: {ours.pixels}, published {theirs.pixels}",
        f"noise: addressed by image (seed {ours.noise_seed}), published with {theirs.noise}",
    ]
    if theirs.cfg_channels is not None and run.guidance.cfg_scale != 1:
        found.append(
            f"classifier-free guidance: on all channels, published on {theirs.cfg_channels}"
        )
    if ours.extractor == f"{INCEPTION} {INCEPTION_2015_SHA256}":
        found.append(f"features: {PORT_NOTE} {theirs.extractor}")
    if run.evaluation.reference is not None:
        content = run.evaluation.reference_content
        digest = str(content or run.evaluation.reference_sha256)[:12]
        what = "images with identity" if content else "a file with SHA-256"
        found.append(f"reference: {what} {digest}..., published with {theirs.reference}")
    if run.train.imported:
        digest = str(run.train.checkpoint_sha256)[:12]
        found.append(f"weights: a published checkpoint (SHA-256 {digest}...), not trained here")
        if run.train.checkpoint_sha256 not in row.checkpoints:
            found += _averaging(Path(str(run.train.from_checkpoint)), run.train.checkpoint_sha256)
    if row.scale is None:
        found.append(f"scale {measured.guidance.ig_scale:g}: {row.note}")
    elif row.note:
        found.append(row.note)
    return tuple(found)


def _averaging(path: Path, digest: str | None) -> list[str]:
    """Remark on a checkpoint unless its averaged weights are sampled."""
    from ig_core.checkpoints.official import weights_in
    from ig_core.files.tensors import read_file

    unknown = ["weights: whether they are a moving average is not known"]
    if path.suffix == ".safetensors" or not path.is_file():  # the former hold tensors alone
        return unknown
    try:
        if file_digest(path) != digest:  # another one lies there by now
            return unknown
        averaged = weights_in(read_file(path), str(path)).averaged
    except (OSError, ValueError):
        return unknown
    if averaged is None:
        return unknown
    return [] if averaged else ["weights: raw weights, no moving average"]
