"""Whether a study's answer holds on other seeds: who is asked, and what the numbers say."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pandas as pd
import pytest

from experiments import Point
from pipelines.store.home import Home
from pipelines.study import confirm as module
from pipelines.study.confirm import BASELINE, candidates, confirm, other_seeds, summarise
from pipelines.study.trials import Trial
from tests.pipelines.study.conftest import small_study


def trial(number, fid, layer, scale=1.5, state="COMPLETE"):
    point = Point(aux_layer=layer, aux_weight=0.5, ig_scale=scale)
    return Trial(number, point, state, fid, {}, {}, "a")


TRIALS = [
    trial(0, 9.0, 2),
    trial(1, 7.0, 1),
    trial(2, 8.0, 2, 2.0),
    trial(3, 7.5, 1, 2.0),
    trial(4, None, 1, state="PRUNED"),
]


def test_the_best_point_of_each_layer_is_confirmed_beside_a_model_without_the_head():
    found = candidates(TRIALS)
    assert [c.label for c in found] == [
        BASELINE,
        "layer 1, weight 0.5, scale 1.5",
        "layer 2, weight 0.5, scale 2",
    ]
    study = small_study()
    base, first, _ = (c.experiment(study, 7) for c in found)
    assert base.model.aux_layer is None
    assert (base.loss.aux_weight, base.guidance.ig_scale) == (0.0, 1.0)
    assert (first.model.aux_layer, first.loss.aux_weight, first.guidance.ig_scale) == (1, 0.5, 1.5)
    for experiment in (base, first):
        assert (experiment.train.seed, experiment.evaluation.seed) == (7, 7)
        assert experiment.evaluation.holdout_seed is None
        assert experiment.ig_scales == ()


def test_other_seeds_had_no_part_in_the_study():
    study, replace = small_study(), dataclasses.replace
    for train, samples, expected in ((0, 0, [1, 2, 3]), (2, 1, [3, 4, 5]), (5, 2, [1, 3, 4])):
        base = study.experiment
        other = replace(
            base,
            train=replace(base.train, seed=train),
            evaluation=replace(base.evaluation, seed=samples),
        )
        assert other_seeds(replace(study, experiment=other), 3) == expected


def test_gains_are_against_the_baseline_of_the_same_seed(tmp_path, monkeypatch):
    """Of one seed the baseline failed: its candidates have an FID and no gain."""
    fids = {(None, 1): 10.0, (1, 1): 8.0, (2, 1): 12.0, (1, 2): 5.0, (2, 2): 6.0}

    def read(store, graph):
        experiment = graph.experiment
        fid = fids.get((experiment.model.aux_layer, experiment.train.seed))
        return SimpleNamespace(headline=lambda: fid and SimpleNamespace(fid=fid))

    ran = []
    monkeypatch.setattr(module, "collect", read)
    monkeypatch.setattr(module._Runs, "run", lambda self, work: ran.extend(work))
    table = confirm(small_study(), "5e", TRIALS, 2, Home(tmp_path), None, print)
    assert len(ran) == len({experiment.train.seed for _, experiment in ran}) * 3 == 6
    assert ran[0][0] == f"{BASELINE}, seed 1"
    gains = {(row.candidate, row.seed): row.gain for row in table.itertuples()}
    assert gains[BASELINE, 1] == 0.0
    assert gains["layer 1, weight 0.5, scale 1.5", 1] == pytest.approx(0.2)
    assert gains["layer 2, weight 0.5, scale 2", 1] == pytest.approx(-0.2)
    assert pd.isna(gains["layer 1, weight 0.5, scale 1.5", 2])


def test_intervals_over_seeds_are_students():
    """Of 1, 2 and 3: mean 2, standard deviation 1, t(0.975; 2) = 4.302653."""
    rows = [{"candidate": "a", "seed": s, "fid": float(s), "gain": s / 10} for s in (1, 2, 3)]
    rows += [{"candidate": "b", "seed": 1, "fid": 4.0, "gain": float("nan")}]
    found = summarise(pd.DataFrame(rows))
    reach = 4.302652729911275 / 3**0.5
    assert tuple(found.loc["a", ["fid", "fid_low", "fid_high"]]) == pytest.approx(
        (2.0, 2.0 - reach, 2.0 + reach)
    )
    assert tuple(found.loc["a", ["gain", "gain_low", "gain_high"]]) == pytest.approx(
        (0.2, 0.2 - reach / 10, 0.2 + reach / 10)
    )
    equal = pd.DataFrame(
        [{"candidate": "a", "seed": s, "fid": 5.0, "gain": 0.5} for s in (1, 2, 3)]
    )
    assert summarise(equal).loc["a", "gain_low"] == pytest.approx(0.5)
    assert found.loc["b", "seeds"] == 1
    assert pd.isna(found.loc["b", "fid_low"])
    assert found.loc["b", "fid"] == 4.0
