"""What an experiment is going to take: what was measured, what is assumed, what is unknown."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from experiments import get_experiment
from ig_core.costs import training_flops
from pipelines.__main__ import main
from pipelines.console.console import make_console
from pipelines.console.plan import estimate_costs, print_costs
from pipelines.graph.graph import Graph
from pipelines.graph.plan import make_plan
from pipelines.graph.resolve import resolve
from pipelines.results.costs import Assumption, disk_bytes
from pipelines.results.measurements import collect
from pipelines.store.folder import FolderStore
from tests.pipelines.conftest import tiny


def planned(store, experiment):
    results = collect(store, Graph(resolve(experiment, partly=True)))
    return results, make_plan(store, results.targets)


def test_assumed_hours_follow_from_the_arithmetic(tmp_path):
    experiment = get_experiment("sit_xl2_ig")
    results, plan = planned(FolderStore(tmp_path), experiment)
    training, sampling, report = estimate_costs(results, plan, Assumption(1000.0, 0.5))
    assert training.images == 400_000 * 256
    expected = training.images * training_flops(experiment.model) / 500e12 / 3600
    assert training.hours == pytest.approx(expected)
    assert not training.measured
    assert sampling.images == sum(
        n.config["stop"] - n.config["start"] for n in plan.missing if n.kind == "images"
    )
    # Two scales, class-balanced images and those that random labels want besides.
    assert 100_000 < report.images < 110_000
    slower = estimate_costs(results, plan, Assumption(500.0, 0.5))
    assert slower[0].hours == pytest.approx(2 * training.hours)


@pytest.mark.parametrize(
    ("precision", "tf32", "share"),
    [("fp16", True, 1), ("bf16", False, 1), ("float32", True, 2), ("float32", False, 16)],
)
def test_work_is_taken_to_be_as_fast_as_its_precision_allows(precision, tf32, share, tmp_path):
    base = get_experiment("sit_b2_ig")
    experiment = replace(
        base,
        sampler=replace(base.sampler, precision=precision),
        resources=replace(base.resources, tf32=tf32),
    )
    store = FolderStore(tmp_path)
    hours = [
        estimate_costs(*planned(store, each), Assumption())[1].hours
        for each in (replace(base, sampler=replace(base.sampler, precision="bf16")), experiment)
    ]
    assert hours[1] == pytest.approx(share * hours[0])


def test_of_one_scale_nothing_is_chosen_and_there_is_no_holdout(tmp_path, capsys):
    results, plan = planned(FolderStore(tmp_path), get_experiment("sit_b2"))
    assert [e.name for e in estimate_costs(results, plan, Assumption())] == [
        "training",
        "sampling",
    ]
    assert main(["plan", "sit_b2"]) == 0
    assert "holdout" not in capsys.readouterr().out


def test_what_was_measured_is_taken_first_and_said_to_be(finished):
    longer = tiny(train={"steps": 40, "checkpoint_every": 20})
    results, plan = planned(finished.home.store, longer)
    found = estimate_costs(results, plan, Assumption(1000.0))
    assert all(estimate.measured and estimate.seconds_each > 0 for estimate in found)
    assert found[0].images == 20 * 16, "the first twenty steps are there"
    half = tiny(ig_scales=(1.5, 2.5), sampler={"precision": "bf16"})
    results, plan = planned(finished.home.store, half)
    assert not estimate_costs(results, plan, Assumption(1000.0))[0].measured, "measured in float32"
    other = tiny(model={"width": 32})
    results, plan = planned(finished.home.store, other)
    assert not any(
        estimate.measured for estimate in estimate_costs(results, plan, Assumption(1000.0))
    )


def test_of_cpus_nothing_is_assumed(tmp_path):
    results, plan = planned(FolderStore(tmp_path), tiny())
    assert all(e.hours is None for e in estimate_costs(results, plan, Assumption()))
    gpus = replace(tiny(), resources=replace(tiny().resources, use_gpu=True))
    results, plan = planned(FolderStore(tmp_path), gpus)
    assert all(
        estimate.hours is not None for estimate in estimate_costs(results, plan, Assumption())
    )


def test_disk_is_near_what_is_written(finished, tmp_path):
    results, plan = planned(FolderStore(tmp_path), tiny())
    sizes = disk_bytes(results, plan)
    written = {
        kind: sum(a.size for a in finished.home.store.list(kind))
        for kind in ("checkpoint", "images", "features")
    }
    assert sizes["checkpoints"] == pytest.approx(written["checkpoint"], rel=0.5)
    # Pixels of tiny images weigh less than the frame of their file, and compress.
    assert 0 < sizes["images"] < written["images"]
    assert 0 < sizes["features"] < written["features"]


def test_the_plan_says_it_all(capsys):
    assert main(["plan", "sit_xl2_ig", "--assume-tflops", "989"]) == 0
    output = capsys.readouterr().out
    for words in (
        "677,491,232 parameters",
        "GPU-hours",
        "Assumed, not measured",
        "989 for training (fp16), 494.5 for sampling (TF32)",
        "30 % of them reached",
        "GiB",
        "A run also needs --evaluation.reference",
        "ImageNet's 1,281,167",
    ):
        assert words in output
    assert main(["plan", "sit_xl2_ig", "--assume-utilisation", "2"]) == 2
    assert "assume_utilisation must be in (0, 1]" in capsys.readouterr().err


def test_a_finished_experiment_takes_nothing(finished):
    results, plan = planned(finished.home.store, tiny())
    output = io.StringIO()
    print_costs(results, plan, Assumption(), make_console(file=output, width=200))
    assert estimate_costs(results, plan, Assumption()) == []
    assert output.getvalue().startswith("Cached:")


def test_no_latents_are_not_taken_for_those_of_imagenet(tmp_path):
    """Of statistics alone, which stand beside published weights, the count is known: none."""
    experiment = get_experiment("sit_b2")
    results, _ = planned(FolderStore(tmp_path), experiment)
    graph = Graph(replace(experiment, data=replace(experiment.data, content="x", count=0)))
    results = replace(results, graph=graph)
    plan = make_plan(results.store, results.targets)
    assert "latents" not in disk_bytes(results, plan)
