"""A study in seconds, and a finished one to begin with."""

from __future__ import annotations

import dataclasses
import io
import shutil
from dataclasses import dataclass

import pytest

from experiments import LayerRange, PruningConfig, Range, SearchSpace, Study
from pipelines.commands.study import StudyOptions, run_study
from pipelines.console.console import make_console
from pipelines.store.folder import FolderStore
from pipelines.store.home import Home
from pipelines.study.ledger import StudyLedger
from pipelines.study.trials import Trial
from tests.pipelines.conftest import OUTSIDE, forget_databases, tiny


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


def run(home: Home, study: Study, **options) -> str:
    """Run a study to its end in this process; returns what was printed."""
    console = make_console(file=io.StringIO(), width=200)
    assert run_study(study, StudyOptions(parallel=1, **options), home, console) == 0
    return console.file.getvalue()


@dataclass(frozen=True)
class Studied:
    """A study that is over."""

    home: Home
    output: str


@pytest.fixture(scope="session")
def _first_studied(tmp_path_factory) -> Studied:
    """The eight trials of `small_study()`, and a copy of everything beside its home."""
    home = Home(tmp_path_factory.mktemp("studied") / "home")
    with pytest.MonkeyPatch.context() as patch:
        for name in OUTSIDE:
            patch.delenv(name, raising=False)
        output = run(home, small_study())
    forget_databases(home.root)
    shutil.copytree(home.root, home.root.with_name("kept"))
    return Studied(home, output)


@pytest.fixture
def studied(_first_studied):
    """A finished study of eight trials, to be read and changed: each test has it as it was.

    Always in one place, since MLflow's database knows where its files lie.
    """
    home = Home(_first_studied.home.root)
    shutil.rmtree(home.root)
    shutil.copytree(home.root.with_name("kept"), home.root)
    yield Studied(home, _first_studied.output)
    forget_databases(home.root)


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
