"""Inception score, kernel distance, precision and recall."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ig_core.files.extras import extra
from ig_core.files.torchvision_shim import declare_missing_operators

if TYPE_CHECKING:
    from torch import Tensor

SEED = 2020
"""torch-fidelity's default seed: with it our numbers are its numbers."""


def inception_score(logits: Tensor, splits: int, seed: int | None = SEED) -> tuple[float, float]:
    """Compute the Inception Score of logits (N, K): mean and standard deviation over splits.

    Args:
        logits: Rows are images.
        splits: Equal parts.
        seed: Shuffles the rows, as torch-fidelity does; None keeps their order, as the ADM
            evaluator does, whose 10 parts of 50,000 images suffer where these are sorted by class.
    """
    declare_missing_operators()
    with extra("metrics"):
        from torch_fidelity.metric_isc import isc_features_to_metric

    shuffle = seed is not None
    result = isc_features_to_metric(logits, splits, shuffle=shuffle, rng_seed=seed)
    return result["inception_score_mean"], result["inception_score_std"]


def kernel_distance(
    features: Tensor, reference: Tensor, subsets: int, size: int, seed: int = SEED
) -> float:
    """Compute KID of features (N, F) against a reference (M, F): mean over random subsets.

    The kernel is torch-fidelity's default (x.y / F + 1)^3 (Binkowski et al. 2018), in float32.

    Args:
        features: Rows are images.
        reference: Rows are images.
        subsets: How many subsets of each; torch-fidelity's default is 100.
        size: Rows of a subset, at most all there are; torch-fidelity's default is 1000.
        seed: Draws the subsets.
    """
    declare_missing_operators()
    with extra("metrics"):
        from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(size, len(features), len(reference))
    result = kid_features_to_metric(
        features, reference, kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    return result["kernel_inception_distance_mean"]


def precision_recall(
    features: Tensor, reference: Tensor, neighbours: int = 3, batch: int = 2500
) -> tuple[float, float]:
    """Compute improved precision and recall (Kynkaanniemi et al. 2019).

    Precision is the share of features (N, F) that lie in the reference's manifold, recall the share
    of the reference (M, F) in that of the features. torch-fidelity takes the samples first too; the
    ADM evaluator takes the reference first.

    Args:
        features: Rows are images.
        reference: Rows are images.
        neighbours: A ball reaches to this neighbour.
        batch: Rows at a time; changes the distances by float32 rounding at most.
    """
    declare_missing_operators()
    with extra("metrics"):
        from torch_fidelity.metric_prc import prc_features_to_metric

    result = prc_features_to_metric(
        features,
        reference,
        prc_neighborhood=neighbours,
        prc_batch_size=batch,
        save_cpu_ram=True,
        verbose=False,
    )
    return result["precision"], result["recall"]
