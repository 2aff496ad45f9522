"""A difference to a published number is given where both measure the same, and only there."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from experiments import get_experiment
from experiments.protocols import INCEPTION_2015_SHA256
from experiments.published import IG_SIT_800_SHA256, IMAGENET_TRAIN
from experiments.tables import TABLES
from pipelines.graph.graph import Graph
from pipelines.results.paper_table import fill
from pipelines.store.folder import FolderStore
from pipelines.store.keys import file_digest
from pipelines.store.register import Record, remember
from tests.pipelines.stages.training.test_imported import write_published

ROW = "sit_b2_ig-1.9"


def pinned(
    count=IMAGENET_TRAIN, weights=INCEPTION_2015_SHA256, name="sit_b2_ig", row=None, **train
):
    """The paper's experiment, or that of a table's row, as a run pins it."""
    experiment = get_experiment(name) if row is None else row.experiment
    return replace(
        experiment,
        data=replace(
            experiment.data,
            path="/latents",
            content="a" * 64,
            count=count,
            codec_path="/vae",
            codec_sha256="b" * 64,
        ),
        evaluation=replace(
            experiment.evaluation,
            reference="/reference.npz",
            reference_sha256="c" * 64,
            extractor_weights="/weights.pth",
            weights_sha256=weights,
        ),
        train=replace(experiment.train, **train),
    )


def moments(width, seed=0):
    """Mean and covariance as those of features behind a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(width, 8, generator=generator)
    return torch.rand(width, generator=generator), factor @ factor.T + torch.eye(width)


@pytest.fixture(scope="module")
def real():
    """What the published reference file leaves in the store."""
    mean, covariance = moments(2048)
    spatial_mean, spatial_covariance = moments(2023, 1)
    return {
        "features.mean": mean,
        "features.covariance": covariance,
        "spatial.mean": spatial_mean,
        "spatial.covariance": spatial_covariance,
    }


def measured_store(root, experiment, reference, images=10_000, used=None):
    """A store with a number at scale 1.9, out of thin air, and what it was measured with."""
    store, graph = FolderStore(root), Graph(experiment)
    point = graph.headline
    node = point.evaluate
    with store.publish(node.ref, {}) as folder:
        metrics = {"fid": 18.0, "fid_low": 17.5, "fid_high": 18.5, "inception_score": 70.0}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    node = graph.reference
    with store.publish(node.ref, {}) as folder:
        save_file(reference, folder / "moments.safetensors")
        if images:
            features = torch.zeros(images, 1, dtype=torch.uint8)
            save_file({"features": features}, folder / "features.safetensors")
    if used is not None:
        with store.publish(graph.data.ref, {}) as folder:
            (folder / "statistics.json").write_text(json.dumps({"count": used}))
    remember(store, Record.of_run(experiment, graph.run_key))
    return store


def line(store, name=ROW, table="sit_b2_ablation"):
    return next(each for each in fill(TABLES[table](), store, {}) if each.row.name == name)


def test_the_papers_experiment_on_imagenet_is_compared(tmp_path, real):
    found = line(measured_store(tmp_path, pinned(), real))
    assert found.incomparable_because == ()
    assert found.difference == pytest.approx(18.0 - 17.38)
    assert any("port of the same weights" in text for text in found.differences)


@pytest.mark.parametrize(
    ("name", "three"),
    [("sit_xl2-1400-cfg", True), ("sit_xl2-1400", False), ("sit_xl2_ig-800-cfg", False)],
)
def test_guidance_on_fewer_channels_than_ours_is_named_where_it_was_published(
    tmp_path, real, name, three
):
    row = next(row for row in TABLES["main"]() if row.name == name)
    found = line(measured_store(tmp_path, pinned(row=row), real), name, "main")
    said = [text for text in found.differences if "channels" in text]
    ours = "classifier-free guidance: on all channels, published on the first three of four"
    assert [text.startswith(ours) for text in said] == [True] * three


@pytest.mark.parametrize("used", [IMAGENET_TRAIN - 100, IMAGENET_TRAIN, IMAGENET_TRAIN + 1])
def test_a_few_images_may_be_missing_or_there_twice(tmp_path, real, used):
    assert line(measured_store(tmp_path, pinned(), real, used=used)).difference is not None


@pytest.mark.parametrize(
    ("count", "used"),
    [(12, None), (IMAGENET_TRAIN + 101, None), (IMAGENET_TRAIN, IMAGENET_TRAIN - 101)],
)
def test_another_training_set_is_an_obstacle(tmp_path, real, count, used):
    found = line(measured_store(tmp_path, pinned(count), real, used=used))
    assert found.difference is None
    assert found.incomparable_because == (
        f"trained on {used or count:,} images, published with ImageNet's 1,281,167",
    )


def test_other_weights_of_the_extractor_are_an_obstacle(tmp_path, real):
    found = line(measured_store(tmp_path, pinned(weights="d" * 64), real))
    assert found.difference is None
    assert found.incomparable_because == (
        "weights of Inception-v3 with SHA-256 dddddddddddd..., published with those of 2015 "
        "(6726825d0af5...)",
    )
    assert not any("port of the same weights" in text for text in found.differences)


@pytest.mark.parametrize(
    ("changes", "images", "words"),
    [
        ({"features.mean": torch.zeros(2048)}, 10_000, "behind a ReLU: negative, or all zero"),
        ({"features.mean": torch.randn(2048)}, 10_000, "behind a ReLU: negative, or all zero"),
        ({"features.covariance": torch.eye(2048)}, 10_000, "zero, or diagonal"),
        ({"features.covariance": torch.zeros(2048, 2048)}, 10_000, "zero, or diagonal"),
        ({"features.mean": torch.rand(64)}, 10_000, "its mean has 64 features, not 2048"),
        ({"spatial.mean": None, "spatial.covariance": None}, 10_000, "no mu_s and sigma_s"),
        ({}, 0, "it holds 0 images (arr_0), not 10,000"),
        ({}, 9_999, "it holds 9,999 images (arr_0), not 10,000"),
    ],
)
def test_another_reference_is_an_obstacle(tmp_path, real, changes, images, words):
    reference = {name: value for name, value in (real | changes).items() if value is not None}
    found = line(measured_store(tmp_path, pinned(), reference, images))
    assert found.difference is None
    assert len(found.incomparable_because) == 1
    assert words in found.incomparable_because[0]


def test_of_a_published_checkpoint_the_training_set_does_not_matter(tmp_path, real):
    experiment = pinned(
        12,
        name="sit_xl2_ig_cfg",
        from_checkpoint="/published.pt",
        checkpoint_sha256=IG_SIT_800_SHA256,
    )
    found = line(measured_store(tmp_path, experiment, real), "sit_xl2_ig-800-cfg", "main")
    assert found.difference == pytest.approx(18.0 - 1.46)
    assert not any("moving average" in text for text in found.differences)


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ("ema", None),
        ("model", "weights: raw weights, no moving average"),
        (None, "weights: whether they are a moving average is not known"),
    ],
)
def test_weights_that_are_no_moving_average_are_named(tmp_path, real, kept, words):
    path = write_published(tmp_path / "published.pt")
    held = torch.load(path, weights_only=False)
    torch.save(held["ema"] if kept is None else {kept: held[kept]}, path)
    experiment = pinned(from_checkpoint=str(path), checkpoint_sha256=file_digest(path))
    row = next(each for each in TABLES["sit_b2_ablation"]() if each.name == ROW)
    store = measured_store(tmp_path / "store", experiment, real)
    (found,) = fill([row], store, {ROW: [experiment]})
    said = [text for text in found.differences if "average" in text]
    assert said == ([] if words is None else [words])
    path.write_bytes(b"something else lies here by now")
    (found,) = fill([row], store, {ROW: [experiment]})
    assert any("whether they are a moving average is not known" in t for t in found.differences)
