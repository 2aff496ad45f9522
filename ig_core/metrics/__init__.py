"""Metrics of images: features, the Frechet distance and its intervals, other scores."""

from ig_core.metrics.frechet import FeatureStats, frechet_distance

__all__ = ["FeatureStats", "frechet_distance"]
