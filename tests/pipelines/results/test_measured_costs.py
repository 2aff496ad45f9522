"""What comparable work has cost, in a store that holds more than that."""

from __future__ import annotations

import dataclasses
import json

import pytest

from experiments import Resources
from pipelines.graph.graph import Graph
from pipelines.results.measured_costs import (
    checkpoint_bytes,
    comparable_checkpoints,
    image_costs,
    seconds_per_step,
)
from pipelines.stages.context import describe
from pipelines.store.folder import FolderStore
from pipelines.store.keys import Ref
from pipelines.study.findings import forecast
from tests.pipelines.conftest import tiny
from tests.pipelines.study.conftest import small_study


def publish(store, ref, seconds, size, description):
    """An artifact that cost so many seconds and has so many bytes."""
    with store.publish(ref, description) as folder:
        (folder / "content").write_bytes(b"x" * size)
    path = store.root / str(ref) / "MANIFEST.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": seconds}))


@pytest.fixture
def store(tmp_path):
    """A store with one training of `tiny()` to step 10, its samples and their features."""
    store, graph = FolderStore(tmp_path), Graph(tiny())
    node = graph.checkpoints[0]
    publish(store, node.ref, 20.0, 500, {**describe(node), "work_from_step": 0})
    point = next(iter(graph.curve.values()))
    publish(store, point.images[0].ref, 50.0, 3000, describe(point.images[0]))
    features = point.evaluate.inputs["part-00000"]
    publish(store, features.ref, 10.0, 2000, describe(features))
    return store


def measured(store, experiment):
    costs = image_costs(store, experiment)
    return (
        seconds_per_step(store, experiment),
        checkpoint_bytes(store, experiment),
        costs.sampling_seconds,
        costs.seconds,
        costs.bytes,
    )


EXPECTED = (2.0, 500, 0.5, 0.6, 50.0)


def test_costs_are_those_of_a_step_and_of_an_image(store):
    assert measured(store, tiny()) == EXPECTED


CHECKPOINT = {"model": dataclasses.asdict(tiny().model), "train": {"batch_size": 16}}
FOREIGN = {
    "nothing": {},
    "no words": {"config": None, "inputs": None},
    "a list": {"config": [1, 2], "inputs": [3]},
    "read by igdit evaluate": {"config": {"sha256": "ab", "start": 0, "stop": 100}, "inputs": {}},
    "a number for a sampler": {"config": {"sampler": 3, "start": 0, "stop": 100}},
    "no images": {"config": {"sampler": {}, "start": 7, "stop": 7}, "inputs": {"images": 5}},
    "words for numbers": {"config": {"sampler": {}, "start": "first", "stop": "last"}},
    "imported": {"config": {"model": {}, "file_sha256": "ab"}, "inputs": {}},
    "a model in words": {"config": {"model": "SiT", "train": "long"}},
    "no first step": {"config": CHECKPOINT},
    "a first step in words": {"config": CHECKPOINT, "work_from_step": "the beginning"},
    "nothing done": {"config": CHECKPOINT, "work_from_step": 10},
}


@pytest.mark.parametrize("words", FOREIGN)
@pytest.mark.parametrize("kind", ["checkpoint", "images", "features"])
def test_what_another_program_made_is_passed_over(store, kind, words):
    before = len(comparable_checkpoints(store, tiny()))
    publish(store, Ref(kind, f"{0:064x}-00000010"), 1e6, 500, FOREIGN[words])
    assert measured(store, tiny()) == EXPECTED
    assert len(comparable_checkpoints(store, tiny())) - before == (
        kind == "checkpoint" and FOREIGN[words].get("config") is CHECKPOINT
    )


def test_other_models_samplers_and_steps_are_not_comparable(store):
    for other in (tiny(model={"width": 32}), tiny(train={"batch_size": 8})):
        assert measured(store, other) == (None, None, None, None, None)
    for sampler in ({"num_steps": 3}, {"method": "heun"}, {"precision": "bf16"}):
        costs = image_costs(store, tiny(sampler=sampler))
        assert (costs.seconds, costs.bytes) == (None, None)


def test_a_study_is_forecast_in_a_home_where_images_were_judged(tmp_path):
    """`igdit evaluate` leaves images there that no sampler made."""
    store = FolderStore(tmp_path)
    publish(store, Ref("images", "a" * 20), 1.0, 10, FOREIGN["read by igdit evaluate"])
    cost = forecast(small_study(), store, [], 8)
    assert (cost.trials, cost.hours, cost.gigabytes) == (8, None, None)


def test_hours_and_bytes_of_a_study_follow_from_what_was_measured(store):
    study = dataclasses.replace(
        small_study(), experiment=dataclasses.replace(tiny(model={"depth": 3}), ig_scales=())
    )
    assert forecast(study, store, [], 8).hours is None, "of another depth"
    node = Graph(study.experiment).checkpoints[0]
    publish(store, node.ref, 30.0, 700, {**describe(node), "work_from_step": 0})
    images = next(iter(Graph(study.experiment).curve.values())).images[0]
    publish(store, images.ref, 100.0, 3000, describe(images))
    cost = forecast(study, store, [], 8)
    steps = 2 * 20
    images = 8 * 200 + 2 * 2 * 100 + 2 * 200
    assert (cost.trainings, cost.images) == (2, images)
    assert forecast(study, store, [], 9).trainings == 3
    assert forecast(dataclasses.replace(study, mode="joint"), store, [], 8).trainings == 8
    confirmed = forecast(study, store, [], 0, confirm_seeds=3)
    assert (confirmed.trainings, confirmed.images) == (3 * (1 + 2), 3 * (1 + 2) * 200)
    resources = Resources(num_workers=2)
    two = dataclasses.replace(
        study, experiment=dataclasses.replace(study.experiment, resources=resources)
    )
    assert forecast(two, store, [], 8).train_hours == pytest.approx(2 * 3.0 * steps / 3600)
    assert cost.train_hours == pytest.approx(3.0 * steps / 3600)
    assert cost.sample_hours == pytest.approx(images * 1.0 / 3600)
    assert cost.hours == cost.train_hours + cost.sample_hours
    assert cost.gigabytes * 2**30 == pytest.approx(2 * 2 * 700 + images * 30)
