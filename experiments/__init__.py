"""Experiments as typed values. Importing this package loads no torch."""

from experiments.registry import EXPERIMENTS, get_experiment
from experiments.schema import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    Resources,
    experiment_from_json,
    experiment_to_json,
)

__all__ = [
    "EXPERIMENTS",
    "DataConfig",
    "EvaluationConfig",
    "Experiment",
    "Resources",
    "experiment_from_json",
    "experiment_to_json",
    "get_experiment",
]
