from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import (
    EXPERIMENTS,
    DataConfig,
    EvaluationConfig,
    Experiment,
    Range,
    Resources,
    SearchSpace,
    Study,
    experiment_from_json,
    experiment_to_json,
    get_experiment,
)
from ig_core.config import (
    Guidance,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SamplerConfig,
    TrainConfig,
)

REMOVED = ...  # its name in the id of a case is the same in every process


def edited(**changes) -> str:
    """JSON of digits on one inline worker with fields changed, given as `part__field=value`."""
    one = dataclasses.replace(
        get_experiment("digits"), resources=Resources(runner="inline", num_workers=1)
    )
    values = json.loads(experiment_to_json(one))
    for path, value in changes.items():
        *parts, field = path.split("__")
        place = values
        for part in parts:
            place = place[part]
        if value is REMOVED:
            del place[field]
        else:
            place[field] = value
    return json.dumps(values)


# JSON round trip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_registered_experiment_survives_json(name):
    experiment = get_experiment(name)
    assert experiment_from_json(experiment_to_json(experiment)) == experiment


def positive(most: float = 1e6):
    return st.floats(0, most, exclude_min=True)


@st.composite
def intervals(draw):
    return tuple(sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1)))))


@st.composite
def models(draw):
    depth, heads = draw(st.integers(2, 6)), draw(st.integers(1, 4))
    return ModelConfig(
        backbone=draw(st.sampled_from(["sit", "lightningdit"])),
        depth=depth,
        width=heads * 4 * draw(st.integers(1, 8)),
        num_heads=heads,
        patch_size=draw(st.sampled_from([1, 2, 4, 8])),
        input_size=8,
        in_channels=1,
        num_classes=10,
        aux_layer=draw(st.integers(1, depth - 1)),
        mlp_ratio=draw(st.floats(1, 8)),
        rope=draw(st.booleans()),
        swiglu=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        time_scale=draw(positive()),
    )


@st.composite
def experiments(draw):
    workers, path = draw(st.integers(1, 4)), draw(st.sampled_from(["linear", "cosine"]))
    scale = st.integers(-1000, 1000).map(lambda hundredths: hundredths / 100)
    return Experiment(
        name=f"n{draw(st.text('abcXYZ-_ é', max_size=20))}m",
        data=DataConfig(),
        model=draw(models()),
        loss=LossConfig(path=path, aux_weight=draw(st.floats(0, 10))),
        optim=OptimConfig(
            lr=draw(positive()), betas=draw(st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2))
        ),
        train=TrainConfig(
            steps=draw(st.integers(1, 10**9)),
            batch_size=draw(st.integers(workers, 256)),
            checkpoint_every=draw(st.integers(10**6, 10**9)),
            seed=draw(st.integers(0, 2**63 - 1)),
        ),
        guidance=Guidance(
            ig_scale=draw(scale), ig_interval=draw(intervals()), cfg_scale=draw(scale)
        ),
        ig_scales=tuple(draw(st.lists(scale, max_size=4))),
        sampler=SamplerConfig(
            method=draw(st.sampled_from(["euler", "heun", "sde"])),
            num_steps=draw(st.integers(1, 1000)),
            shift=draw(positive()),
            path=path,
        ),
        evaluation=EvaluationConfig(
            seed=draw(st.integers(0, 2**63 - 2)),  # that of the holdout is the next one
            labels=draw(st.sampled_from(["balanced", "random"])),
        ),
        resources=Resources(
            num_workers=workers,
            min_workers=draw(st.none() | st.integers(1, workers)),
            micro_batch=draw(st.none() | st.integers(1, 64)),
            save_minutes=draw(st.none() | positive()),
        ),
    )


@given(experiments())
@settings(max_examples=60, deadline=None, database=None)
def test_any_valid_experiment_survives_json(experiment):
    again = experiment_from_json(experiment_to_json(experiment))
    assert again == experiment
    assert experiment_to_json(again) == experiment_to_json(experiment)


def test_whole_numbers_may_be_written_without_a_point():
    experiment = experiment_from_json(edited(loss__aux_weight=1, ig_scales=[1, 2]))
    assert experiment.loss.aux_weight == 1.0
    assert experiment.ig_scales == (1.0, 2.0)
    assert all(isinstance(scale, float) for scale in experiment.ig_scales)


def test_optional_fields_may_be_left_out():
    experiment = experiment_from_json(edited(guidance=REMOVED, train__seed=REMOVED))
    assert experiment.guidance == Guidance()
    assert experiment.train.seed == 0


# Bad values: one error that names field, value and what was expected

BAD = [
    # Structure
    ({"stepz": 1}, ["'stepz'", "no field", "train"]),
    ({"train__stepz": 1}, ["experiment.train", "'stepz'", "steps, batch_size"]),
    ({"train": REMOVED}, ["experiment", "'train'", "missing"]),
    ({"model__depth": REMOVED}, ["experiment.model", "'depth'", "missing"]),
    ({"model": None}, ["experiment.model", "object", "None"]),
    ({"data": []}, ["experiment.data", "object", "[]"]),
    # Types
    ({"train__steps": "20"}, ["train.steps", "'20'", "int"]),
    ({"train__steps": 20.0}, ["train.steps", "20.0", "int"]),
    ({"train__steps": True}, ["train.steps", "True", "int"]),
    ({"optim__lr": True}, ["optim.lr", "True", "float"]),
    ({"optim__lr": "fast"}, ["optim.lr", "'fast'", "float"]),
    ({"model__rope": 1}, ["model.rope", "1", "bool"]),
    ({"model__aux_layer": True}, ["model.aux_layer", "True", "int"]),
    ({"model__aux_layer": "1"}, ["model.aux_layer", "'1'", "int"]),
    ({"name": 7}, ["name", "7", "str"]),
    ({"ig_scales": 1.5}, ["ig_scales", "1.5", "list"]),
    ({"ig_scales": ["1"]}, ["ig_scales", "'1'", "float"]),
    ({"guidance__ig_interval": [0.1, 0.2, 0.3]}, ["ig_interval", "list of 2", "0.3"]),
    ({"sampler__method": "rk4"}, ["sampler.method", "'rk4'", "'heun'"]),
    ({"data__source": "mnist"}, ["data.source", "'mnist'", "'digits'"]),
    # Ranges
    ({"train__steps": 0}, ["steps", "0", "at least 1"]),
    ({"train__seed": -1}, ["seed", "-1", "0..2^63"]),
    ({"model__aux_layer": 0}, ["aux_layer", "0", "1..3"]),
    ({"model__aux_layer": 4}, ["aux_layer", "4", "1..3"]),
    ({"model__width": 66}, ["width", "66", "num_heads=4"]),
    ({"optim__lr": 0.0}, ["lr", "0.0", "positive"]),
    ({"loss__aux_weight": -0.5}, ["aux_weight", "-0.5", "at least 0"]),
    ({"optim__lr": math.nan}, ["lr", "nan", "finite"]),
    ({"loss__aux_weight": math.nan}, ["aux_weight", "nan", "finite"]),
    ({"loss__label_dropout": 1.5}, ["label_dropout", "1.5", "[0, 1]"]),
    ({"sampler__num_steps": 0}, ["num_steps", "0", "at least 1"]),
    ({"guidance__ig_scale": math.nan}, ["ig_scale", "nan", "finite"]),
    ({"guidance__ig_interval": [0.5, 0.2]}, ["ig_interval", "0.5", "low <= high"]),
    ({"guidance__auto_scale": 1.5}, ["guidance.auto_scale", "1.5", "1 ("]),
    ({"ig_scales": [1.0, math.nan]}, ["ig_scales", "nan", "finite"]),
    ({"ig_scales": [math.inf]}, ["ig_scales", "inf", "finite"]),
    ({"sampler__method": "dopri5"}, ["sampler.method", "'dopri5'", "heun or sde"]),
    ({"evaluation__seed": 2**63}, ["evaluation.seed", str(2**63), "0..2^63"]),
    ({"evaluation__num_samples": 99}, ["num_samples", "99", "at least 100"]),
    ({"evaluation__curve_samples": 99}, ["curve_samples", "99", "at least 100"]),
    ({"evaluation__groups": 1}, ["groups", "1", "at least 5"]),
    ({"evaluation__kid_subset_size": 1}, ["kid_subset_size", "1", "at least 2"]),
    ({"resources__num_workers": 0}, ["num_workers", "0", "at least 1"]),
    ({"resources__micro_batch": 0}, ["micro_batch", "0", "at least 1"]),
    ({"resources__max_failures": -1}, ["max_failures", "-1", "at least 0"]),
    ({"name": ""}, ["name", "''", "file name"]),
    ({"name": "../up"}, ["name", "'../up'", "file name"]),
    # Parts that do not fit each other
    ({"model__in_channels": 3}, ["model.in_channels", "3", "1 for digits"]),
    ({"model__input_size": 16}, ["model.input_size", "16", "8 for digits"]),
    ({"model__num_classes": 11}, ["model.num_classes", "11", "10 for digits"]),
    ({"sampler__path": "cosine"}, ["sampler.path", "'cosine'", "'linear'"]),
    ({"loss__path": "cosine"}, ["sampler.path", "'linear'", "'cosine'"]),
    ({"model__aux_layer": None}, ["ig scales", "1.8", "aux_layer None"]),
    (
        {"resources__runner": "ray", "resources__num_workers": 129},
        ["train.batch_size", "128", "num_workers=129"],
    ),
    ({"resources__min_workers": 2}, ["min_workers", "2", "1..num_workers=1"]),
    ({"resources__min_workers": 0}, ["min_workers", "0", "1..num_workers=1"]),
    ({"resources__save_minutes": 0}, ["save_minutes", "0", "positive"]),
    ({"resources__save_minutes": math.nan}, ["save_minutes", "nan", "positive"]),
    (
        {"resources__sharding": "fsdp", "optim__optimizer": "muon"},
        ["optim.optimizer", "'muon'", "adamw", "sharding=fsdp"],
    ),
    (
        {"resources__sharding": "fsdp", "optim__precision": "fp16"},
        ["optim.precision", "'fp16'", "bf16", "sharding=fsdp"],
    ),
    (
        {"resources__sharding": "fsdp", "loss__target_guidance": 0.5},
        ["loss.target_guidance", "0.5", "sharding=fsdp"],
    ),
    ({"resources__num_workers": 2}, ["num_workers", "2", "1 with the inline runner"]),
    ({"train__checkpoint_sha256": "ab"}, ["checkpoint_sha256", "'ab'", "from_checkpoint"]),
    # A split without samples makes the score NaN.
    ({"evaluation__isc_splits": 1001}, ["isc_splits", "1001"]),
]


@pytest.mark.parametrize(
    ("change", "words"), BAD, ids=[", ".join(f"{k}={v}" for k, v in c.items()) for c, _ in BAD]
)
def test_a_bad_value_is_one_error_that_names_it(change, words):
    with pytest.raises(ValueError) as caught:
        experiment_from_json(edited(**change))
    message = str(caught.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(
    "field",
    [
        "optim__lr",
        "optim__weight_decay",
        "optim__grad_clip",
        "loss__aux_weight",
        "loss__cosine_weight",
        "model__mlp_ratio",
        "model__time_scale",
        "model__embedding_std",
        "sampler__shift",
    ],
)
def test_infinity_is_refused_by_the_name_of_its_field(field):
    """No key could be made of it; a number such as 1e999 in a file means infinity."""
    with pytest.raises(ValueError, match=f"{field.partition('__')[2]} must be .*, but got inf"):
        experiment_from_json(edited(**{field: math.inf}))


@pytest.mark.parametrize("text", ["", "nope", '{"name": '])
def test_a_file_that_is_not_json_is_called_that(text):
    with pytest.raises(ValueError, match="not JSON"):
        experiment_from_json(text)


@pytest.mark.parametrize("text", ["[]", "null", "3"])
def test_a_file_that_is_no_object_is_called_that(text):
    with pytest.raises(ValueError, match="experiment must be an object"):
        experiment_from_json(text)


def test_python_values_are_checked_like_those_of_files():
    with pytest.raises(ValueError, match=r"num_workers must be 1 with the inline runner.*got 2"):
        Resources(runner="inline")
    with pytest.raises(ValueError, match=r"train\.batch_size must be at least .*got 1$"):
        dataclasses.replace(
            get_experiment("digits"),
            train=TrainConfig(steps=1, batch_size=1, checkpoint_every=1),
        )


# What follows from an experiment


def test_compared_scales_are_sorted_distinct_and_include_unguided_and_the_curve():
    experiment = dataclasses.replace(
        get_experiment("digits"), guidance=Guidance(ig_scale=2.0), ig_scales=(3.0, 2, 1.5, 3.0)
    )
    assert experiment.scales == (1.0, 1.5, 2.0, 3.0)


def test_scales_may_lie_as_close_as_anybody_wants():
    experiment = experiment_from_json(edited(ig_scales=[1.5, 1.501, 1.5011]))
    assert {1.5, 1.501, 1.5011} < set(experiment.scales)
    space = SearchSpace(ig_scale=Range(low=1.0, high=1.01, step=0.001))
    assert Study(name="fine", experiment=experiment, space=space).space.ig_scale.count == 11


def test_guidances_differ_in_their_scale_alone_and_are_canonical():
    guidance = Guidance(ig_scale=2.0, ig_interval=(0.2, 0.9), cfg_scale=1.5)
    experiment = dataclasses.replace(
        get_experiment("digits"), guidance=guidance, ig_scales=(1, 1.5)
    )
    assert experiment.guidances == (
        Guidance(cfg_scale=1.5),
        dataclasses.replace(guidance, ig_scale=1.5),
        guidance,
    )
    assert experiment.baseline == experiment.guidance_at(1) == experiment.guidances[0]


def test_a_model_without_auxiliary_head_compares_only_unguided():
    experiment = experiment_from_json(
        edited(model__aux_layer=None, guidance=REMOVED, ig_scales=[1.0])
    )
    assert experiment.scales == (1.0,)


# The package


def test_importing_experiments_loads_no_torch():
    code = "import experiments, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(ValueError, match=r"got 'digit' \(did you mean 'digits'\?\)") as caught:
        get_experiment("digit")
    assert ", ".join(EXPERIMENTS) in str(caught.value)


def test_a_name_near_none_gets_no_suggestion():
    with pytest.raises(ValueError, match="got 'qqq'") as caught:
        get_experiment("qqq")
    assert "did you mean" not in str(caught.value)


def test_registered_experiments_carry_their_own_name():
    assert [get_experiment(name).name for name in EXPERIMENTS] == list(EXPERIMENTS)


def test_a_plan_that_would_fill_the_memory_is_refused():
    base, replace = get_experiment("digits"), dataclasses.replace
    train = replace(base.train, steps=75 * 10**6)
    evaluation = replace(base.evaluation, shard_size=1)
    with pytest.raises(
        ValueError, match=r"shard_size.*at most 1,000,000 shards.*but got \(75, 1\)"
    ):
        replace(base, train=train, evaluation=evaluation)
