"""A study in seconds."""

from __future__ import annotations

import dataclasses

import pytest

from experiments import LayerRange, PruningConfig, Range, SearchSpace, Study
from pipelines.store.folder import FolderStore
from pipelines.study.ledger import StudyLedger
from pipelines.study.trials import Trial
from tests.pipelines.conftest import tiny


def small_study(**changes) -> Study:
    """Two layers, ten weights and 21 scales on the tiny experiment, one driver slot."""
    experiment = tiny(
        # So that even six steps leave the zeros that the last layers begin with.
        model={"depth": 3},
        optim={"lr": 0.02, "warmup_steps": 0, "ema_decay": 0.5},
        train={"steps": 6, "checkpoint_every": 2},
        ig_scales=(),
        evaluation={
            "num_samples": 40,
            "curve_samples": 20,
            "shard_size": 40,
            "groups": 5,
            "kid_subset_size": 10,
            "kid_subsets": 1,
        },
    )
    base = Study(
        name="small",
        experiment=experiment,
        space=SearchSpace(
            aux_layer=LayerRange(low=1, high=2),
            aux_weight=Range(low=0.1, high=1.0, step=0.1),
            ig_scale=Range(low=1.0, high=3.0, step=0.1),
        ),
        scales_per_training=4,
        pruning=PruningConfig(enabled=False),
        default_trials=8,
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture
def study():
    """Factory of small studies."""
    return small_study


def claimed(ledger: StudyLedger, wanted: int) -> list[Trial]:
    """What a driver claims; nothing while others are at work."""
    return ledger.claim(wanted) or []


@pytest.fixture
def open_ledger(tmp_path):
    """Factory of drivers' ledgers on one database; they are closed in the end."""
    ledgers = []

    def make(study: Study, url: str | None = None) -> StudyLedger:
        ledger = StudyLedger(
            study, url or f"sqlite:///{tmp_path / 'study.db'}", FolderStore(tmp_path / "store")
        )
        ledgers.append(ledger)
        return ledger

    yield make
    for ledger in ledgers:
        ledger.close()
