from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch

from ig_core.config import Guidance
from ig_core.training.state import HISTORY_COLUMNS
from pipelines.commands.run import run_experiment
from pipelines.console.console import make_console
from pipelines.graph.fingerprint import require_one_protocol
from pipelines.graph.graph import Graph
from pipelines.results.measurements import Measurement, Results, collect, preview
from pipelines.store.base import Artifact
from pipelines.store.errors import CorruptArtifactError
from pipelines.store.folder import FolderStore
from pipelines.store.home import Home
from pipelines.store.keys import Ref
from tests.pipelines.conftest import damage, tiny


def measured(point, fid: float, without: list[float]) -> Measurement:
    """A measurement out of thin air."""
    key = point.evaluate.key
    metrics = {
        "fid": fid,
        "fid_low": fid - 1,
        "fid_high": fid + 1,
        "fid_without_group": without,
        "precision": 0.5,
        "recall": 0.25,
        "inception_score": 3.0,
    }
    return Measurement(point, Artifact(Ref("evaluate", key), Path(key), {}), metrics)


def made_up(**fids: tuple[float, list[float]]) -> Results:
    """Final results by scale, given as `s1_5=(fid, values without a group)`."""
    by_scale = {float(name[1:].replace("_", ".")): value for name, value in fids.items()}
    graph = Graph(tiny(ig_scales=tuple(by_scale)))
    final = {
        guidance: measured(point, *by_scale[guidance.ig_scale])
        for guidance, point in graph.final.items()
        if guidance.ig_scale in by_scale
    }
    return Results(graph, FolderStore("nowhere"), {}, final)


def spread(fid: float, *steps: float) -> tuple[float, list[float]]:
    return fid, [fid + step for step in steps]


WIDE = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, -1.5, 1.5, 0.5)


# Reading the store


def test_everything_measured_is_collected_in_order(finished):
    results = collect(finished.home.store, finished.graph)
    assert [(m.point.step, m.guidance.ig_scale) for m in results.curve.values()] == [
        (10, 1.0),
        (10, 1.5),
        (20, 1.0),
        (20, 1.5),
    ]
    assert [(m.point.step, m.guidance.ig_scale) for m in results.final.values()] == [
        (20, 1.0),
        (20, 1.5),
    ]
    assert [m.metrics["num_samples"] for m in results.final.values()] == [200, 200]
    assert [m.metrics["num_samples"] for m in results.curve.values()] == [100] * 4
    assert results.complete


def test_numbers_are_those_of_the_files(finished):
    results = collect(finished.home.store, finished.graph)
    for m in (*results.curve.values(), *results.final.values()):
        path = finished.home.store.root / "evaluate" / m.point.evaluate.key / "metrics.json"
        assert m.metrics == json.loads(path.read_text())
        assert m.fid == m.metrics["fid"]
        assert m.metrics["fid_low"] < m.fid < m.metrics["fid_high"]
        assert len(m.metrics["fid_without_group"]) == 10


def test_what_was_chosen_is_reported_on_noise_that_had_no_part_in_it(finished):
    results = collect(finished.home.store, finished.graph)
    lowest = min(results.final.values(), key=lambda m: m.fid)
    assert results.chosen == lowest.guidance
    scales = sorted({1.0, lowest.guidance.ig_scale})
    assert [guidance.ig_scale for guidance in results.holdout] == scales
    for guidance, m in results.holdout.items():
        assert {node.config["seed"] for node in m.point.images} == {1}
        assert m.fid != results.final[guidance].fid
    chosen, gain = results.chosen_holdout()
    assert chosen.guidance == results.chosen
    if gain is not None:
        base = results.holdout[finished.experiment.baseline]
        assert gain[0] == pytest.approx(1 - chosen.fid / base.fid)


def test_without_the_holdout_it_is_not_complete(finished):
    results = collect(finished.home.store, finished.graph)
    for holdout in ({}, dict([*results.holdout.items()][:-1])):
        assert not dataclasses.replace(results, holdout=holdout).complete


def test_of_one_scale_nothing_is_chosen_and_there_is_no_holdout(tmp_path):
    home, output = Home(tmp_path), io.StringIO()
    experiment = tiny(guidance=Guidance(), ig_scales=(), train={"steps": 10})
    assert run_experiment(experiment, home, make_console(file=output, width=200)) == 0
    results = collect(home.store, Graph(experiment))
    assert results.complete
    assert results.chosen_holdout() is None
    seeds = {artifact.manifest["config"]["seed"] for artifact in home.store.list("images")}
    assert seeds == {0}
    assert "noise seed" not in output.getvalue()


def test_nothing_is_chosen_while_a_scale_is_missing(store, finished):
    node = finished.graph.baseline.evaluate
    store.quarantine(node.ref)
    results = collect(store, finished.graph)
    assert results.chosen is None
    assert results.holdout == {}
    assert results.chosen_holdout() is None


def test_every_result_carries_how_it_was_measured(finished):
    results = collect(finished.home.store, finished.graph)
    for m in results.measurements:
        kept = dict(m.metrics["fingerprint"])
        assert kept.pop("id") == m.fingerprint.id
        assert kept == json.loads(json.dumps(dataclasses.asdict(m.fingerprint)))
    fingerprint = results.baseline.fingerprint
    assert (fingerprint.num_samples, fingerprint.labels) == (200, "balanced")
    assert fingerprint.noise_seed == 0
    assert (fingerprint.network_evaluations, fingerprint.sampler["method"]) == (2, "euler")
    assert fingerprint.extractor.startswith("digits-cnn ")
    assert fingerprint == results.headline().fingerprint, "guidance is what is compared"


def test_numbers_measured_otherwise_are_not_compared(finished):
    results = collect(finished.home.store, finished.graph)
    pairs = [
        ("the curve", list(results.curve.values())[-1].fingerprint),
        ("the end", results.headline().fingerprint),
    ]
    with pytest.raises(ValueError, match=r"the curve and the end .* num samples 100 and 200"):
        require_one_protocol(pairs)
    require_one_protocol([pairs[0], pairs[0]])
    require_one_protocol([])


def test_an_empty_store_has_no_results(tmp_path):
    results = collect(FolderStore(tmp_path / "store"), Graph(tiny()))
    assert (results.curve, results.final) == ({}, {})
    assert not results.complete
    assert results.best() is None
    assert results.headline() is None
    assert results.history() is None
    assert results.improvements() == {}
    assert results.table().empty
    assert results.costs().empty


def test_what_is_not_there_yet_is_left_out(store, finished):
    guided = finished.graph.curve[10, Guidance(ig_scale=1.5)]
    for point in (finished.graph.baseline, guided):
        store.quarantine(point.evaluate.ref)
    results = collect(store, finished.graph)
    assert [m.guidance.ig_scale for m in results.final.values()] == [1.5]
    assert len(results.curve) == 3
    assert not results.complete
    assert list(results.improvements().values()) == [None]


def test_damaged_numbers_are_not_shown(store, finished):
    node = finished.graph.baseline.evaluate
    damage(store.root / str(node.ref) / "metrics.json")
    with pytest.raises(CorruptArtifactError, match=r"metrics\.json"):
        collect(store, finished.graph)


def test_the_headline_is_the_last_checkpoint_at_the_experiments_own_scale(finished):
    headline = collect(finished.home.store, finished.graph).headline()
    assert (headline.point.step, headline.guidance.ig_scale) == (20, 1.5)
    assert headline.metrics["num_samples"] == 200


def test_the_history_has_a_row_for_each_step(finished):
    history = collect(finished.home.store, finished.graph).history()
    assert list(history.columns) == list(HISTORY_COLUMNS)
    assert list(history.index) == list(range(1, 21))
    assert history.index.name == "step"
    assert history.notna().all().all()
    total = history["final"] + 0.5 * history["aux"]
    assert history["total"].to_numpy() == pytest.approx(total.to_numpy(), rel=1e-5)


def test_the_history_is_of_the_newest_checkpoint_that_is_there(store, finished):
    last = finished.graph.checkpoints[-1]
    store.quarantine(last.ref)
    assert len(collect(store, finished.graph).history()) == 10


def test_the_preview_is_the_contact_sheet_of_the_samples(store, finished):
    results = collect(store, finished.graph)
    sheet = preview(results, results.baseline)
    assert sheet.read_bytes().startswith(b"\x89PNG")
    node = finished.graph.baseline.evaluate.inputs["sample"]
    store.quarantine(node.ref)
    assert preview(results, results.baseline) is None


# Comparing


def test_an_improvement_is_relative_to_scale_one():
    results = made_up(s1=spread(10.0, *WIDE), s2=spread(8.0, *WIDE))
    base, gain = results.improvements().values()
    assert base is None
    value, low, high = gain
    assert value == pytest.approx(0.2)
    assert low < value < high


def test_improvements_are_paired():
    """What moves both scales alike cancels: their own intervals overlap widely."""
    base = spread(10.0, *WIDE)
    scaled = 8.0, [0.8 * value for value in base[1]]
    (_, (value, low, high)) = made_up(s1=base, s2=scaled).improvements().values()
    assert (value, low, high) == pytest.approx((0.2, 0.2, 0.2))
    (_, (value, low, high)) = made_up(s1=base, s2=(8.0, scaled[1][::-1])).improvements().values()
    assert high - low > 0.5


def test_the_interval_of_an_improvement_is_the_jackknifes():
    base, other = spread(10.0, *WIDE), spread(9.0, *WIDE[::-1])
    (_, (value, low, high)) = made_up(s1=base, s2=other).improvements().values()
    gains = 1 - torch.tensor(other[1], dtype=torch.float64) / torch.tensor(base[1])
    error = float(((gains - gains.mean()) ** 2).sum() * 9 / 10) ** 0.5
    assert value == pytest.approx(0.1)
    assert (high - low) / 2 == pytest.approx(2.262 * error, rel=1e-3)  # Student, 9 degrees
    assert (high + low) / 2 == pytest.approx(value)


def test_a_rise_is_a_negative_improvement():
    made = made_up(s1=spread(10.0, *WIDE), s3=spread(12.0, *WIDE))
    (_, gain) = made.improvements().values()
    assert gain[0] == pytest.approx(-0.2)


def test_without_scale_one_nothing_is_improved_on():
    assert list(made_up(s2=spread(8.0, *WIDE)).improvements().values()) == [None]


def test_the_best_scale_has_the_lowest_fid_and_those_it_is_not_told_from():
    noise = (0.1, -0.1, 0.05, -0.05, 0.02, -0.02, 0.1, -0.1, 0.0, 0.0)
    results = made_up(
        s1=spread(10.0, *noise),
        s1_5=spread(8.01, *noise[::-1]),
        s2=spread(8.0, *noise),
        s3=spread(9.0, *noise),
    )
    best, equal = results.best()
    assert best.guidance.ig_scale == 2.0
    assert [m.guidance.ig_scale for m in equal] == [1.5]


def test_a_best_scale_that_stands_alone_has_no_equals():
    results = made_up(s1=spread(10.0, 0.01, -0.01), s2=spread(8.0, 0.01, -0.01))
    best, equal = results.best()
    assert (best.guidance.ig_scale, equal) == (2.0, [])


# Costs and the table


def test_costs_add_up_by_stage(finished):
    results = collect(finished.home.store, finished.graph)
    costs = results.costs()
    assert list(costs.index) == ["data", "train", "sample", "evaluate"]
    reported = 3 * len(results.holdout)  # two shards and the set, as for each final scale
    assert list(costs["artifacts"]) == [3, 2, 12 + reported, 12 + reported]
    for stage in costs.index:
        artifacts = [
            finished.home.store.find(node.ref) for node in finished.nodes if node.stage == stage
        ]
        assert costs.loc[stage, "seconds"] == pytest.approx(sum(a.seconds for a in artifacts))
        assert costs.loc[stage, "bytes"] == sum(a.size for a in artifacts)


def test_a_checkpoint_costs_the_training_before_it(finished):
    node = finished.graph.checkpoints[-1]
    artifact = finished.home.store.find(node.ref)
    assert artifact.seconds == artifact.manifest["work_seconds"]


def test_costs_leave_out_what_is_not_there(store, finished):
    for node in finished.graph.checkpoints:
        store.quarantine(node.ref)
    assert list(collect(store, finished.graph).costs().index) == ["data", "sample", "evaluate"]


def test_the_table_has_a_row_for_each_measurement(finished):
    results = collect(finished.home.store, finished.graph)
    table = results.table()
    count = len(results.holdout)
    assert list(table["part"]) == ["curve"] * 4 + ["final"] * 2 + ["holdout"] * count
    assert list(table["step"]) == [10, 10, 20, 20, 20, 20] + [20] * count
    assert list(table["ig_scale"])[:6] == [1.0, 1.5] * 3
    shown = results.measurements
    assert list(table["fid"]) == [m.fid for m in shown]
    assert list(table["fingerprint"]) == [m.fingerprint.id for m in shown]
    assert table.groupby("part")["fingerprint"].nunique().tolist() == [1, 1, 1]
    assert table["fingerprint"].nunique() == 3, "another number of samples, other noise"
    assert {"kid", "precision", "recall", "inception_score", "num_samples"} <= set(table.columns)
    assert not table.map(lambda cell: isinstance(cell, list)).any().any()


def test_scales_may_be_written_as_integers(finished):
    """A scale of 2 is the scale 2.0, wherever scales are compared."""
    experiment = dataclasses.replace(
        finished.experiment, guidance=dataclasses.replace(finished.experiment.guidance, ig_scale=1)
    )
    graph = Graph(experiment)
    assert collect(finished.home.store, graph).headline().guidance.ig_scale == 1
