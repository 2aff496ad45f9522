from __future__ import annotations

import dataclasses
import shlex

import pytest
import tyro

from experiments import get_experiment, get_study
from pipelines.cli import RunOptions, StudyCommand, _options
from pipelines.reproduce import command, run_words, study_words
from pipelines.study.options import StudyOptions
from tests.pipelines.conftest import tiny


def changed(name="digits", **parts):
    base = get_experiment(name)
    for part, value in parts.items():
        new = (
            dataclasses.replace(getattr(base, part), **value) if isinstance(value, dict) else value
        )
        base = dataclasses.replace(base, **{part: new})
    return base


@pytest.mark.parametrize(
    "experiment",
    [
        changed(),
        changed(train={"steps": 150, "seed": 7}, ig_scales=(1.4, 2.0)),
        changed(ig_scales=()),
        changed(resources={"use_gpu": True, "micro_batch": None, "max_failures": 0}),
        changed(model={"qk_norm": True, "adaln_shift": False}, optim={"lr": 1e-4}),
        changed(guidance={"ig_interval": (0.25, 0.75), "cfg_scale": 0.5}),
        changed(evaluation={"extractor": "inception-v3-compat",
                            "extractor_weights": "/a folder/it's.pt", "weights_sha256": "ab"}),
    ],
)  # fmt: skip
def test_the_command_gives_the_experiment_again(experiment):
    words = run_words(experiment)
    assert shlex.split(command(words)) == ["igdit", *words]
    found = _options(words[1:], "run", RunOptions).experiment
    assert found.scales == experiment.scales  # no scale and 1 alone are the same
    assert dataclasses.replace(found, ig_scales=experiment.ig_scales) == experiment


def test_an_experiment_outside_the_registry_has_no_command():
    assert run_words(tiny()) is None


@pytest.mark.parametrize("name", ["digits", "mine"])
def test_the_command_gives_the_study_again(name):
    base = get_study("digits")
    experiment = dataclasses.replace(base.experiment, train=dataclasses.replace(
        base.experiment.train, steps=60))  # fmt: skip
    pruning = dataclasses.replace(base.pruning, enabled=False)
    study = dataclasses.replace(base, name=name, experiment=experiment, pruning=pruning,
                                sampler="gp")  # fmt: skip
    _, _, *words = study_words(study)
    found = tyro.cli(StudyCommand, default=StudyCommand(base, StudyOptions()), args=words)
    assert found.study == study
