from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import (
    Experiment,
    Resources,
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
from pipelines.graph.graph import Graph
from pipelines.graph.node import STAGES, VERSIONS, Node, closure
from pipelines.graph.resolve import resolve
from pipelines.store.keys import Ref
from tests.pipelines.conftest import tiny


def nodes(experiment: Experiment) -> set[Ref]:
    """Names of everything an experiment consists of."""
    return {node.ref for node in closure(Graph(experiment).targets)}


def kinds(found: set[Ref]) -> dict[str, int]:
    return dict(sorted(Counter(ref.kind for ref in found).items()))


def of_kind(experiment: Experiment, *wanted: str) -> set[Ref]:
    return {ref for ref in nodes(experiment) if ref.kind in wanted}


# What does not count


@pytest.mark.parametrize(
    "resources",
    [
        Resources(runner="ray", num_workers=2),
        Resources(runner="ray", num_workers=8, cpus_per_worker=4),
        Resources(runner="inline", num_workers=1, micro_batch=1),
        Resources(runner="inline", num_workers=1, use_gpu=True),
        Resources(runner="inline", num_workers=1, sample_tasks=7, sample_batch=3),
        Resources(runner="inline", num_workers=1, max_failures=0),
    ],
)
def test_resources_change_no_key(resources):
    changed = dataclasses.replace(tiny(), resources=resources)
    assert nodes(changed) == nodes(tiny())
    assert Graph(changed).run_key == Graph(tiny()).run_key


def test_the_name_changes_no_key():
    changed = dataclasses.replace(tiny(), name="other")
    assert nodes(changed) == nodes(tiny())
    assert Graph(changed).run_key == Graph(tiny()).run_key


def test_reading_it_back_from_a_file_changes_no_key():
    again = experiment_from_json(experiment_to_json(tiny()))
    assert nodes(again) == nodes(tiny())
    assert Graph(again).run_key == Graph(tiny()).run_key


def test_whole_numbers_may_be_written_either_way():
    integers = tiny(guidance=Guidance(ig_scale=2, cfg_scale=3), ig_scales=(2,))
    floats = tiny(guidance=Guidance(ig_scale=2.0, cfg_scale=3.0), ig_scales=(2.0,))
    assert nodes(integers) == nodes(floats)
    assert Graph(integers).run_key == Graph(floats).run_key


@pytest.mark.parametrize("kind", ["ig", "cfg", "auto"])
def test_the_interval_of_a_guidance_that_is_off_does_not_count(kind):
    off = tiny(guidance={"ig_scale": 1.0}, ig_scales=())
    narrow = {"ig_scale": 1.0, f"{kind}_interval": (0.2, 0.7)}
    assert nodes(tiny(guidance=narrow, ig_scales=())) == nodes(off)


def test_the_interval_of_a_guidance_that_is_on_counts_for_guided_samples_only():
    narrow = nodes(tiny(guidance={"ig_interval": (0.2, 0.7)}))
    assert kinds(narrow - nodes(tiny())) == {"evaluate": 3, "features": 3, "images": 3, "sample": 3}
    unguided = nodes(tiny(guidance={"ig_scale": 1.0}, ig_scales=()))
    assert unguided < narrow


# What a change costs


def test_one_more_scale_adds_one_sample_and_one_evaluation_and_trains_nothing():
    before, after = nodes(tiny()), nodes(tiny(ig_scales=(1.5, 2.5)))
    assert before < after
    assert kinds(after - before) == {"evaluate": 1, "features": 2, "images": 2, "sample": 1}


def test_another_scale_for_the_curve_changes_no_checkpoint():
    changed = tiny(guidance={"ig_scale": 3.0})
    assert of_kind(changed, "checkpoint", "data", "extractor") == of_kind(
        tiny(), "checkpoint", "data", "extractor"
    )


@pytest.mark.parametrize("sampler", [{"num_steps": 3}, {"method": "heun"}, {"shift": 2.0}])
def test_another_sampler_resamples_and_trains_nothing(sampler):
    changed = nodes(tiny(sampler=sampler))
    shared = {"checkpoint", "data", "extractor", "reference"}
    assert {ref.kind for ref in changed & nodes(tiny())} == shared


def test_other_noise_resamples_and_trains_nothing():
    changed = nodes(tiny(evaluation={"seed": 1}))
    shared = {"checkpoint", "data", "extractor", "reference"}
    assert {ref.kind for ref in changed & nodes(tiny())} == shared


def test_random_labels_sample_besides_what_balanced_ones_lack():
    balanced, both = Graph(tiny()), Graph(tiny(evaluation={"labels": "random"}))
    for before, after in zip(balanced.final.values(), both.final.values(), strict=True):
        count = len(before.images)
        assert after.images[:count] == before.images
        beyond = sum(n.config["stop"] - n.config["start"] for n in after.images[count:])
        assert 0 < beyond < 0.2 * before.num_samples
        assert before.evaluate != after.evaluate
    shared = nodes(tiny()) & nodes(tiny(evaluation={"labels": "random"}))
    assert {ref.kind for ref in shared} == {
        "checkpoint",
        "data",
        "extractor",
        "reference",
        "images",
        "features",
    }


def test_the_holdout_is_sampled_from_other_noise():
    graph = Graph(tiny())
    holdout, final = graph.holdout(Guidance(ig_scale=1.5)), graph.final.values()
    points = holdout.values()
    assert [guidance.ig_scale for guidance in holdout] == [1.0, 1.5]
    assert not {p.evaluate for p in points} & {p.evaluate for p in final}
    assert {n.config["seed"] for p in points for n in p.images} == {1}
    assert {p.evaluate for p in points} <= set(graph.needed) - set(graph.targets)
    assert [guidance.ig_scale for guidance in graph.holdout(Guidance())] == [1.0]
    other = Graph(tiny(evaluation={"holdout_seed": 7})).holdout(Guidance(ig_scale=1.5))
    assert {n.config["seed"] for p in other.values() for n in p.images} == {7}


def test_a_reference_file_is_known_by_its_content_and_pinned(tmp_path):
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path in paths:
        np.savez(path, mu=np.zeros(2), sigma=np.eye(2))
    one, other = (resolve(tiny(evaluation={"reference": str(path)})) for path in paths)
    assert Graph(one).reference == Graph(other).reference
    assert Graph(one).run_key == Graph(other).run_key
    assert "data" not in Graph(one).reference.inputs
    assert Graph(one).reference != Graph(tiny()).reference
    np.savez(paths[0], mu=np.ones(2), sigma=np.eye(2))
    assert (
        Graph(resolve(tiny(evaluation={"reference": str(paths[0])}))).run_key != Graph(one).run_key
    )
    with pytest.raises(ValueError, match="reference must be the file with SHA-256"):
        resolve(one)


@pytest.mark.parametrize(
    "change",
    [
        {"groups": 20},
        {"kid_subsets": 3},
        {"kid_subset_size": 60},
        {"isc_splits": 3},
        {"extractor_epochs": 2},
        {"extractor_seed": 1},
    ],
)
def test_an_evaluation_setting_changes_every_evaluation_and_no_sample(change):
    changed, sampled = tiny(evaluation=change), ("data", "checkpoint", "images", "sample")
    assert of_kind(changed, *sampled) == of_kind(tiny(), *sampled)
    assert not of_kind(changed, "evaluate") & of_kind(tiny(), "evaluate")


@pytest.mark.parametrize("change", [{"groups": 20}, {"kid_subsets": 3}])
def test_a_setting_of_the_metrics_alone_keeps_the_features(change):
    changed = tiny(evaluation=change)
    assert of_kind(changed, "features", "reference") == of_kind(tiny(), "features", "reference")


def test_more_final_samples_keep_those_that_are_there():
    more = tiny(evaluation={"num_samples": 400})
    assert of_kind(tiny(), "images", "features") < of_kind(more, "images", "features")


def test_curve_samples_are_shards_of_the_final_ones():
    graph = Graph(tiny())
    for (step, guidance), point in graph.curve.items():
        if step == 20:
            assert point.images == graph.final[guidance].images[: len(point.images)]


@given(
    counts=st.tuples(st.integers(20, 5000), st.integers(20, 5000)),
    shard_size=st.integers(7, 6000),
)
@settings(max_examples=40, deadline=None, database=None)
def test_shards_cover_every_index_once(counts, shard_size):
    curve_samples, num_samples = sorted(counts)
    graph = Graph(
        tiny(
            evaluation={
                "num_samples": num_samples,
                "curve_samples": curve_samples,
                "shard_size": shard_size,
            }
        )
    )
    for points, count in ((graph.curve, curve_samples), (graph.final, num_samples)):
        for point in points.values():
            spans = [(node.config["start"], node.config["stop"]) for node in point.images]
            assert [i for start, stop in spans for i in (start, stop)] == sorted(
                [0, count, *(2 * list(range(shard_size, count, shard_size)))]
            )
            assert all(stop - start <= shard_size for start, stop in spans)


# The trajectory of a training

SCIENCE = {
    "model": {
        "backbone": "lightningdit",
        "depth": 3,
        "width": 32,
        "num_heads": 4,
        "patch_size": 4,
        "mlp_ratio": 2.0,
        "rope": True,
        "rms_norm": True,
        "swiglu": True,
        "qk_norm": True,
        "adaln_shift": False,
        "time_scale": 7.0,
        "embedding_std": 0.3,
    },
    "loss": {
        "path": "cosine",
        "time_distribution": "lognormal",
        "aux_weight": 0.25,
        "cosine_weight": 1.0,
        "label_dropout": 0.2,
        "target_guidance": 0.5,
    },
    "optim": {
        "optimizer": "muon",
        "precision": "bf16",
        "lr": 1e-5,
        "betas": (0.8, 0.9),
        "weight_decay": 0.1,
        "warmup_steps": 3,
        "grad_clip": 0.5,
        "ema_decay": 0.5,
    },
    "train": {"batch_size": 32, "seed": 1},
}
"""Part -> field -> another value: all that decides what a training does."""

TIED = {"model": {"input_size", "in_channels", "num_classes", "aux_layer"}}
"""Fields that the data or the guidance prescribe."""

LENGTH = {"train": {"steps", "checkpoint_every", "from_checkpoint", "checkpoint_sha256"}}
"""Fields that say only how long it goes on, where it is kept, and what stands for it
(`test_imported.py`)."""

MUON_ALONE = {"optim": {"momentum"}}
"""Fields that only another choice gives a meaning."""


@pytest.mark.parametrize("part", SCIENCE)
def test_every_field_of_the_training_is_accounted_for(part):
    """A new field belongs into SCIENCE, unless it decides nothing."""
    fields = {field.name for field in dataclasses.fields(getattr(tiny(), part))}
    assert fields == (
        set(SCIENCE[part])
        | TIED.get(part, set())
        | LENGTH.get(part, set())
        | MUON_ALONE.get(part, set())
    )


def trajectory(experiment: Experiment) -> str:
    return Graph(experiment).checkpoint(0).hash


@pytest.mark.parametrize(
    ("part", "field"), [(part, field) for part, fields in SCIENCE.items() for field in fields]
)
def test_another_value_is_another_trajectory(part, field):
    changes = {part: {field: SCIENCE[part][field]}}
    if field == "path":
        changes["sampler"] = {"path": SCIENCE[part][field]}
    assert trajectory(tiny(**changes)) != trajectory(tiny())


def test_momentum_is_another_trajectory_with_muon_alone():
    slower = {"momentum": 0.9}
    assert trajectory(tiny(optim=slower)) == trajectory(tiny())
    muon = {"optimizer": "muon"}
    assert trajectory(tiny(optim=muon | slower)) != trajectory(tiny(optim=muon))


def test_the_auxiliary_layer_is_another_trajectory():
    deep, other = tiny(model={"depth": 3}), tiny(model={"depth": 3, "aux_layer": 2})
    none = tiny(model={"depth": 3, "aux_layer": None}, guidance=Guidance(), ig_scales=())
    assert len({trajectory(deep), trajectory(other), trajectory(none)}) == 3


@pytest.mark.parametrize("change", [{"steps": 1000}, {"checkpoint_every": 3}, {"steps": 7}])
def test_length_and_checkpoints_leave_the_trajectory(change):
    assert trajectory(tiny(train=change)) == trajectory(tiny())


def test_a_longer_training_has_the_checkpoints_of_the_shorter_one():
    longer = tiny(train={"steps": 40})
    assert of_kind(tiny(), "checkpoint") < of_kind(longer, "checkpoint")


def test_checkpoints_of_a_trajectory_differ_in_their_step_alone():
    one, two = Graph(tiny()).checkpoints
    assert (one.step, two.step) == (10, 20)
    assert one.key == f"{one.hash}-00000010"
    assert one.hash == two.hash
    assert one.key < two.key


# Identity of an experiment


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"steps": 30}},
        {"train": {"checkpoint_every": 5}},
        {"ig_scales": (1.5, 2.0)},
        {"guidance": {"cfg_scale": 1.5}},
        {"sampler": {"num_steps": 3}},
        {"evaluation": {"groups": 20}},
        {"optim": {"lr": 1e-5}},
        {"model": {"qk_norm": True}},
    ],
)
def test_anything_else_is_another_run(changes):
    assert Graph(tiny(**changes)).run_key != Graph(tiny()).run_key


def weights(path, content: bytes) -> Experiment:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    inception = {"extractor": "inception-v3-compat", "extractor_weights": str(path)}
    return resolve(tiny(evaluation=inception))


def test_weights_of_the_extractor_count_by_content_not_by_place(tmp_path):
    here, there = (weights(tmp_path / name / "w.pt", b"weights") for name in ("here", "there"))
    other = weights(tmp_path / "other" / "w.pt", b"other weights")
    assert nodes(here) == nodes(there)
    assert Graph(here).run_key == Graph(there).run_key
    assert Graph(here).run_key != Graph(other).run_key
    assert not of_kind(here, "evaluate") & of_kind(other, "evaluate")
    assert of_kind(here, "images") == of_kind(other, "images")


def test_weights_that_are_not_there_are_named(tmp_path):
    experiment = weights(tmp_path / "w.pt", b"weights")
    (tmp_path / "w.pt").unlink()
    Graph(experiment)  # its digest says what it was
    with pytest.raises(ValueError, match=r"extractor_weights must be a file, but got .*w\.pt"):
        resolve(experiment)


def test_weights_that_changed_since_the_run_are_refused(tmp_path):
    experiment = weights(tmp_path / "w.pt", b"weights")
    (tmp_path / "w.pt").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="must be the file with SHA-256"):
        resolve(experiment)


KEYS = """
from experiments import get_experiment
from pipelines.graph.graph import Graph
from pipelines.graph.node import closure
graph = Graph(get_experiment("digits"))
print(graph.run_key, *(str(n.ref) for n in closure(graph.targets)))
"""


def test_keys_are_the_same_in_every_process(child):
    found = {child(KEYS, PYTHONHASHSEED=seed).read() for seed in ("1", "2")}
    graph = Graph(get_experiment("digits"))
    mine = (graph.run_key, *(str(n.ref) for n in closure(graph.targets)))
    assert found == {" ".join(mine)}


def test_frozen_keys():
    """Keys of an experiment spelt out in full.

    If this test fails, the change makes everybody's stored artifacts unreachable: each training
    would be paid for again. If that is meant (results differ), write the new keys here and say so
    in the CHANGELOG; if not (a renamed or a new field whose default changes nothing), keep it out
    of the key.
    """
    graph = Graph(
        Experiment(
            name="frozen",
            model=ModelConfig(
                depth=2,
                width=16,
                num_heads=2,
                patch_size=2,
                input_size=8,
                in_channels=1,
                num_classes=10,
                aux_layer=1,
            ),
            loss=LossConfig(aux_weight=0.5),
            optim=OptimConfig(lr=1e-3),
            train=TrainConfig(steps=20, batch_size=16, checkpoint_every=10),
            guidance=Guidance(ig_scale=1.5),
            sampler=SamplerConfig(method="heun", num_steps=8),
            resources=Resources(num_workers=1),
        )
    )
    assert {
        "run": graph.run_key,
        "data": graph.data.key,
        "extractor": graph.extractor.key,
        "reference": graph.reference.key,
        "checkpoint": graph.checkpoints[0].key,
        "resume": graph.resume(10).key,
        "images": graph.headline.images[0].key,
        "sample": graph.headline.evaluate.inputs["sample"].key,
        "features": graph.headline.evaluate.inputs["part-00000"].key,
        "evaluate": graph.headline.evaluate.key,
    } == FROZEN


FROZEN = {
    "run": "c6e8130f533ee0aa3f1b",
    "data": "8c1d909fa443498f717d",
    "extractor": "5dd5cf38aa3da93adf1b",
    "reference": "820c9002b9854b7f99d8",
    "checkpoint": "1fb2716b732a162f1966-00000010",
    "resume": "ec81ea3d80e8ef7e190f-00000010",
    "images": "a4d39d202756fa9e4aa1",
    "sample": "3a7a80a900802e3fa8ee",
    "features": "6ddfd95fddf2ddee6a0d",
    "evaluate": "b06161d566cbb09b65c6",
}


# Nodes


def test_everything_comes_after_its_inputs_and_once():
    graph = Graph(tiny())
    order = list(closure(graph.targets))
    assert len(order) == len(set(order)) == 29
    for place, node in enumerate(order):
        assert all(source in order[:place] for source in node.inputs.values())


def test_a_state_to_resume_from_is_named_like_a_checkpoint_but_is_none():
    graph = Graph(tiny())
    state, checkpoint = graph.resume(10), graph.checkpoint(10)
    assert (state.kind, state.step, state.at_step) == ("resume", 10, checkpoint.at_step)
    assert (state.config, state.inputs) == (checkpoint.config, checkpoint.inputs)
    assert state.hash != checkpoint.hash
    assert state.hash == Graph(tiny(train={"steps": 30})).resume(30).hash
    assert "resume" not in {node.kind for node in closure(graph.needed)}


def test_every_kind_has_a_stage_and_a_version():
    kinds = {node.kind for node in closure(Graph(tiny()).targets)}
    assert set(STAGES) == set(VERSIONS) == kinds | {"resume", "listing", "latents"}
    assert {node.stage for node in closure(Graph(tiny()).targets)} == set(STAGES.values())


def test_a_raised_version_renews_the_kind_and_what_is_made_from_it(monkeypatch):
    before = nodes(tiny())
    monkeypatch.setitem(VERSIONS, "images", VERSIONS["images"] + 1)
    kept = {ref.kind for ref in nodes(tiny()) & before}
    assert kept == {"data", "extractor", "reference", "checkpoint"}


def test_nodes_are_equal_by_what_they_are_made_from():
    one, same = Node("data", {"n": 1.0}), Node("data", {"n": 1})
    assert one == same
    assert len({one, same, Node("data", {"n": 2}), Node("images", {"n": 1})}) == 3
    assert one != "data"


def test_every_evaluation_is_a_target_once():
    for curve_samples, points in ((100, 6), (200, 4)):
        graph = Graph(tiny(evaluation={"curve_samples": curve_samples}))
        targets = [node for node in graph.targets if node.kind == "evaluate"]
        assert len(targets) == len(set(targets)) == points


def test_without_guidance_there_is_one_curve():
    graph = Graph(tiny(guidance=Guidance(), ig_scales=()))
    assert [(p.step, p.guidance.ig_scale) for p in graph.curve.values()] == [(10, 1.0), (20, 1.0)]
    assert [p.guidance.ig_scale for p in graph.final.values()] == [1.0]
