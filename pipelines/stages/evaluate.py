"""Evaluate stage: features of each shard, then the metrics with their intervals."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from ig_core.fidelity import inception_score, kernel_distance, precision_recall
from ig_core.images import read_images
from ig_core.metrics import FeatureStats, Frechet, fid_jackknife
from pipelines.stages.data import FEATURES, IMAGES, write_features

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.stages.build import Context

METRICS = "metrics.json"


def build_features(context: Context, directory: Path) -> None:
    """Features of one shard of samples."""
    images = read_images([context.input("images") / IMAGES])
    write_features(context, images, directory / FEATURES)


def build_evaluation(context: Context, directory: Path) -> None:
    """Metrics of a set of samples against the reference."""
    config = context.node.config
    reference = load_file(context.input("reference") / FEATURES)["features"]
    parts = [load_file(part / FEATURES) for part in context.parts()]
    features = torch.cat([part["features"] for part in parts])
    logits = torch.cat([part["logits"] for part in parts])
    del parts

    fid = fid_jackknife(features, Frechet(FeatureStats.from_features(reference)), config["groups"])
    low, high = fid.interval()
    precision, recall = precision_recall(features, reference)
    score, score_std = inception_score(logits, config["isc_splits"])
    metrics = {
        "num_samples": len(features),
        "fid": fid.value,
        "fid_low": low,
        "fid_high": high,
        "fid_without_group": fid.without.tolist(),
        "kid": kernel_distance(features, reference, config["kid_subsets"],
                               config["kid_subset_size"]),
        "precision": precision,
        "recall": recall,
        "inception_score": score,
        "inception_score_std": score_std,
    }  # fmt: skip
    (directory / METRICS).write_text(json.dumps(metrics, indent=1) + "\n")
