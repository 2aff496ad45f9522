"""The paper's experiments and tables: settings as published, names that exist."""

from __future__ import annotations

import subprocess
import sys

import pytest

from experiments import EXPERIMENTS, experiment_from_json, experiment_to_json, get_experiment
from experiments.protocols import adm_imagenet256, protocol_name
from experiments.tables import TABLES
from ig_core.config import model_config

PAPER = sorted(set(EXPERIMENTS) - {"digits"})


@pytest.mark.parametrize("name", ["sit_b2", "sit_l2", "sit_xl2", "lightningdit_xl1"])
def test_each_comes_with_and_without_internal_guidance(name):
    plain, guided = get_experiment(name), get_experiment(f"{name}_ig")
    assert (plain.name, guided.name) == (name, f"{name}_ig")
    assert plain.model.aux_layer is None
    assert guided.model.aux_layer == (4 if "_b2" in name else 8)
    assert plain.scales == (1.0,)
    assert guided.guidance.ig_scale > 1
    assert plain.optim == guided.optim
    assert plain.train == guided.train


@pytest.mark.parametrize("name", PAPER)
def test_settings_are_the_published_ones(name):
    experiment = get_experiment(name)
    assert experiment.name == name
    assert experiment_from_json(experiment_to_json(experiment)) == experiment
    assert experiment.train.batch_size == 256
    assert experiment.loss.aux_weight == 0.5
    assert experiment.loss.time_distribution == "uniform"
    assert experiment.optim.ema_decay == 0.9999
    assert experiment.optim.warmup_steps == 0
    evaluation = experiment.evaluation
    assert evaluation == adm_imagenet256()
    named = adm_imagenet256("weights", "reference")
    assert protocol_name(named) == "adm-imagenet256"
    if name.startswith("sit"):
        size = {"b": "B", "l": "L", "x": "XL"}[name[4]]
        assert experiment.model == model_config(
            f"SiT-{size}/2", aux_layer=experiment.model.aux_layer
        )
        assert (experiment.optim.lr, experiment.optim.betas) == (1e-4, (0.9, 0.999))
        assert experiment.optim.precision == "fp16"
        assert (experiment.sampler.method, experiment.sampler.num_steps) == ("sde", 250)
        assert experiment.train.steps == 400_000
        assert not experiment.data.flip
    else:
        optim = experiment.optim
        assert (optim.optimizer, optim.lr, optim.betas) == ("muon", 2e-4, (0.9, 0.95))
        assert (optim.weight_decay, optim.momentum, optim.precision) == (0.01, 0.95, "bf16")
        # 125 points of time; shift 0.3 where t = 1 is data.
        assert (experiment.sampler.method, experiment.sampler.num_steps) == ("heun", 124)
        assert experiment.sampler.shift == pytest.approx(1 / 0.3)
        assert experiment.loss.cosine_weight == 1
        assert experiment.data.flip


def test_names_of_rows_are_one_each_and_their_scales_are_evaluated():
    for make in TABLES.values():
        rows = make()
        names = [row.name for row in rows]
        assert len(set(names)) == len(names)
        for row in rows:
            if row.experiment is not None and row.scale is not None:
                assert row.scale in row.experiment.scales
            elif row.experiment is not None:
                assert len(row.experiment.scales) > 2, "a sweep chooses"


def test_the_ablation_is_the_issue_of_the_paper():
    rows = {row.name: row for row in TABLES["sit_b2_ablation"]()}
    published = {name: row.published.fid for name, row in rows.items()}
    assert published["sit_b2"] == 33.02
    assert published["sit_b2-head-4"] == 30.60
    assert published["sit_b2_ig-1.9"] == 17.38
    assert published["sit_b2_ig-2.3-interval"] == 16.19
    interval = rows["sit_b2_ig-2.3-interval"].experiment
    assert interval is not None
    assert interval.guidance.ig_interval == (0.3, 1.0)


def test_rows_share_their_training():
    """The head at block 4 is trained once for its four rows."""
    rows = {row.name: row.experiment for row in TABLES["sit_b2_ablation"]()}
    head = rows["sit_b2-head-4"]
    assert rows["sit_b2_ig-1.5"] == rows["sit_b2_ig-1.9"] == head
    interval = rows["sit_b2_ig-2.3-interval"]
    assert (interval.model, interval.loss, interval.optim, interval.train) == (
        head.model,
        head.loss,
        head.optim,
        head.train,
    )


def test_the_help_names_them_all_and_loads_no_torch():
    code = (
        "from pipelines.__main__ import main; main(['help']); import sys; "
        "assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in (*EXPERIMENTS, *TABLES) if name not in run.stdout] == []
