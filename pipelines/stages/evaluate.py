"""Evaluate stage: features of each shard, then the metrics with their intervals."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import load_file

from ig_core.data.label_pools import random_pool, rows_of
from ig_core.images.sets import read_images
from ig_core.metrics.frechet import FeatureStats, Frechet
from ig_core.metrics.scores import inception_score, kernel_distance, precision_recall
from ig_core.metrics.uncertainty import fid_estimates
from pipelines.graph.fingerprint import fingerprint
from pipelines.stages.features import write_features
from pipelines.store.file_names import FEATURES_FILE, IMAGES_FILE, METRICS_FILE, MOMENTS_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.graph.fingerprint import Fingerprint
    from pipelines.stages.context import Context


def build_features(context: Context, directory: Path) -> None:
    """Publish the features of one shard of samples."""
    images = read_images([context.input("images") / IMAGES_FILE])
    batches = images.image.split(context.experiment.resources.sample_batch)
    write_features(context, batches, directory / FEATURES_FILE)


def build_evaluation(context: Context, directory: Path) -> None:
    """Publish the metrics of a set of samples against the reference.

    Where samples have random labels, the headline is theirs; the class-balanced part of the same
    pool is measured too.
    """
    reference = _read_reference(context.input("reference"))
    parts = [load_file(part / FEATURES_FILE) for part in context.parts()]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    del parts
    sample = context.node.inputs["sample"].config
    count = sample["num_samples"]
    balanced = {name: rows[:count] for name, rows in whole.items()}
    metrics: dict[str, Any] = {"num_samples": count}
    config, protocol = context.node.config, fingerprint(context.node)
    # Labels that cycle through the classes.
    by_rounds = {**config, "round_length": context.experiment.model.num_classes}
    if sample.get("labels") == "random":
        pool = random_pool(sample["seed"], count, sample["num_classes"])
        rows = torch.from_numpy(rows_of(pool))
        metrics |= _measure(
            {name: values[rows] for name, values in whole.items()}, reference, config
        )
        metrics |= {
            f"balanced_{name}": value
            for name, value in _measure(balanced, reference, by_rounds).items()
        }
        metrics["balanced_fingerprint"] = as_json(dataclasses.replace(protocol, labels="balanced"))
    else:
        sampled_here = "seed" in context.node.inputs["sample"].inputs["part-00000"].config
        metrics |= _measure(balanced, reference, by_rounds if sampled_here else config)
    metrics["fingerprint"] = as_json(protocol)
    (directory / METRICS_FILE).write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")


def as_json(fingerprint: Fingerprint) -> dict[str, Any]:
    """Return a fingerprint as it is stored beside its metrics."""
    return {"id": fingerprint.id, **dataclasses.asdict(fingerprint)}


class _Reference(NamedTuple):
    """Statistics of the reference that samples are compared with."""

    pooled: Frechet
    spatial: Frechet | None
    features: torch.Tensor | None
    """(M, F); None if the reference has moments alone."""


def _read_reference(folder: Path) -> _Reference:
    moments = load_file(folder / MOMENTS_FILE)
    spatial = None
    if "spatial.mean" in moments:
        spatial = Frechet.from_moments(moments["spatial.mean"], moments["spatial.covariance"])
    images = folder / FEATURES_FILE
    return _Reference(
        Frechet.from_moments(moments["features.mean"], moments["features.covariance"]),
        spatial,
        load_file(images)["features"] if images.exists() else None,
    )


def _measure(
    rows: dict[str, torch.Tensor], reference: _Reference, config: dict[str, Any]
) -> dict[str, Any]:
    """Compute the metrics of one set of rows, but for those that the reference does not allow."""
    features = rows["features"]
    fid, infinite = fid_estimates(
        features,
        reference.pooled,
        config["groups"],
        config.get("shuffle_seed"),
        config.get("round_length", 1),
    )
    score, score_std = inception_score(rows["logits"], config["isc_splits"])
    low, high = fid.interval()
    metrics: dict[str, Any] = {
        "fid": fid.value,
        "fid_low": low,
        "fid_high": high,
        "fid_without_group": fid.without.tolist(),
        "fid_slope": fid.slope,
        "inception_score": score,
        "inception_score_std": score_std,
    }
    if fid.noise is not None:
        metrics |= {
            "fid_noise_by_group": fid.noise.tolist(),
            "fid_noise_share": fid.noise_share,
        }
    if infinite is not None:
        low, high = infinite.interval()
        metrics |= {
            "fid_infinity": infinite.value,
            "fid_infinity_low": low,
            "fid_infinity_high": high,
        }
    if reference.spatial is not None and "spatial" in rows:
        metrics["sfid"] = reference.spatial.distance(FeatureStats.from_features(rows["spatial"]))
    if reference.features is not None:
        precision, recall = precision_recall(features, reference.features)
        kid = kernel_distance(
            features, reference.features, config["kid_subsets"], config["kid_subset_size"]
        )
        metrics |= {"kid": kid, "precision": precision, "recall": recall}
    return metrics
