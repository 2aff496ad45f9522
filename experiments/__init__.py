"""Experiments as typed values. Importing this package loads no torch."""

from experiments.registry import EXPERIMENTS, STUDIES, get_experiment, get_study
from experiments.schema import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    Resources,
    experiment_from_json,
    experiment_to_json,
)
from experiments.study import LayerRange, Point, PruningConfig, Range, SearchSpace, Study

__all__ = [
    "EXPERIMENTS",
    "STUDIES",
    "DataConfig",
    "EvaluationConfig",
    "Experiment",
    "LayerRange",
    "Point",
    "PruningConfig",
    "Range",
    "Resources",
    "SearchSpace",
    "Study",
    "experiment_from_json",
    "experiment_to_json",
    "get_experiment",
    "get_study",
]
