"""Metrics of images: features, the Frechet distance and its intervals, other scores."""

from ig_core.metrics.frechet import FeatureStats, Frechet, frechet_distance
from ig_core.metrics.uncertainty import FidEstimates, fid_estimates

__all__ = ["FeatureStats", "FidEstimates", "Frechet", "fid_estimates", "frechet_distance"]
