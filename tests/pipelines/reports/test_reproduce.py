from __future__ import annotations

import dataclasses
import shlex

import pytest
import tyro

from experiments import get_experiment, get_study
from pipelines.commands.run import RunOptions, parse_experiment
from pipelines.commands.study import StudyCommand, StudyOptions
from pipelines.graph.graph import Graph
from pipelines.reports.reproduce import command, run_command, run_name, run_words, study_words
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
        changed(
            evaluation={
                "extractor": "inception-v3-compat",
                "extractor_weights": "/a folder/it's.pt",
                "weights_sha256": "ab",
            }
        ),
    ],
)
def test_the_command_gives_the_experiment_again(experiment):
    words = run_words(experiment)
    assert shlex.split(command(words)) == ["igdit", *words]
    found = parse_experiment(words[1:], "run", RunOptions).experiment
    assert found.scales == experiment.scales  # no scale and 1 alone are the same
    assert dataclasses.replace(found, ig_scales=experiment.ig_scales) == experiment


def test_an_experiment_outside_the_registry_has_no_command():
    assert run_words(tiny()) is None
    assert run_command(tiny()) == "igdit run experiment.json"
    assert run_name(tiny()) == f"tiny {Graph(tiny()).run_key[:8]}"


def test_the_source_of_a_run_is_its_command_with_all_that_was_set():
    experiment = changed(train={"steps": 750}, loss={"aux_weight": 0.25}, ig_scales=(1.4, 2.0))
    assert run_command(experiment) == (
        "igdit run digits --loss.aux-weight 0.25 --train.steps 750 --ig-scales 1.4 2.0"
    )


@pytest.mark.parametrize(
    ("experiment", "name"),
    [
        (changed(), "digits"),
        (changed(resources={"num_workers": 1}), "digits"),
        (
            changed(loss={"aux_weight": 0.25}, train={"steps": 750}),
            "digits aux_weight=0.25 steps=750",
        ),
        (changed(ig_scales=(2, 1.4)), "digits ig_scales=1,1.4,1.8,2"),
        (changed(ig_scales=(2, 1, 1.4, 1.8)), "digits ig_scales=1,1.4,1.8,2"),
        (changed(guidance={"cfg_interval": (0.0, 0.5)}), "digits"),
        (
            changed(train={"seed": 3}, evaluation={"seed": 4}),
            "digits train.seed=3 evaluation.seed=4",
        ),
        (
            changed(
                "sit_xl2_ig",
                train={"from_checkpoint": "/a/SiT.pt", "checkpoint_sha256": "a" * 64},
                data={"codec_path": "/vae", "codec_sha256": "b" * 64},
            ),
            "sit_xl2_ig codec_path=vae from_checkpoint=SiT.pt",
        ),
    ],
)
def test_a_run_is_named_by_what_differs(experiment, name):
    """Not by what changes no result, nor by how the same is spelled."""
    assert run_name(experiment) == name


def test_a_long_name_says_how_many_settings_more_differ(monkeypatch):
    monkeypatch.setattr("pipelines.reports.reproduce.MAX_NAME_CHARACTERS", 25)
    experiment = changed(loss={"aux_weight": 0.25}, train={"steps": 750, "seed": 5})
    assert run_name(experiment) == "digits aux_weight=0.25 and 2 more"


@pytest.mark.parametrize("name", ["digits", "mine"])
def test_the_command_gives_the_study_again(name):
    base = get_study("digits")
    experiment = dataclasses.replace(
        base.experiment, train=dataclasses.replace(base.experiment.train, steps=60)
    )
    pruning = dataclasses.replace(base.pruning, enabled=False)
    study = dataclasses.replace(
        base, name=name, experiment=experiment, pruning=pruning, sampler="gp"
    )
    _, _, *words = study_words(study)
    found = tyro.cli(StudyCommand, default=StudyCommand(base, StudyOptions()), args=words)
    assert found.study == study
