"""The paper's experiments for real, at a reduced size: two steps, samples, decoded images."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments import (
    EXPERIMENTS,
    Resources,
    experiment_from_json,
    experiment_to_json,
    get_experiment,
)
from pipelines.graph.graph import Graph
from pipelines.graph.node import closure
from pipelines.graph.resolve import resolve, unnamed_files
from pipelines.store.folder import FolderStore
from tests.equipment.latent_sets import (
    make_sd_vae,
    make_va_vae,
    sd_moments,
    write_npy,
    write_safetensors,
)
from tests.pipelines.conftest import run_inline
from tests.pipelines.stages.training.test_imported import write_published

PAPER = sorted(set(EXPERIMENTS) - {"digits"})
SIDE = {"sd-vae": 4, "va-vae": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Data and codec by the name of the codec, and the files of an evaluation."""
    root = tmp_path_factory.mktemp("paper")
    generator = np.random.default_rng(0)
    moments = sd_moments(7)
    latents = torch.from_numpy(generator.normal(size=(7, 32, 2, 2)).astype(np.float32))
    labels = np.arange(7) % 3
    (root / "weights.pt").write_bytes(b"are not read here")
    np.savez(root / "reference.npz", mu=np.zeros(1), sigma=np.ones((1, 1)))  # not read here
    va = write_safetensors(root / "va", latents, latents.flip(-1), torch.from_numpy(labels))
    return {
        "sd-vae": (write_npy(root / "sd", moments, labels), make_sd_vae(root / "sd-vae")),
        "va-vae": (va, make_va_vae(root / "vavae.pt")[0]),
        "root": root,
    }


def reduced(name, files, **train):
    """The named experiment with a small network, small latents, two steps and few samples."""
    experiment = get_experiment(name)
    data, codec = files[experiment.data.codec]
    side = SIDE[experiment.data.codec]
    layer = None if experiment.model.aux_layer is None else 1
    return replace(
        experiment,
        data=replace(
            experiment.data,
            path=str(data),
            codec_path=str(codec),
            side=side,
            resolution=32,
            num_classes=3,
            shard_size=4,
        ),
        model=replace(
            experiment.model,
            depth=2,
            width=16,
            num_heads=2,
            input_size=side,
            num_classes=3,
            aux_layer=layer,
        ),
        train=replace(
            experiment.train, **{"steps": 2, "batch_size": 4, "checkpoint_every": 2, **train}
        ),
        sampler=replace(experiment.sampler, num_steps=3),
        evaluation=replace(
            experiment.evaluation,
            extractor_weights=str(files["root"] / "weights.pt"),
            reference=str(files["root"] / "reference.npz"),
            num_samples=24,
            curve_samples=20,
            groups=5,
            isc_splits=1,
            shard_size=12,
        ),
        resources=Resources(runner="inline", num_workers=1),
    )


def images_of(store, graph):
    from ig_core.images.sets import read_images

    node = graph.headline.images[0]
    return read_images([store.open(node.ref).path / "images.parquet"]).image


@pytest.mark.parametrize("name", PAPER)
def test_it_trains_two_steps_and_samples_and_round_trips(name, files, tmp_path):
    experiment = resolve(reduced(name, files))
    again = experiment_from_json(experiment_to_json(experiment))
    assert again == experiment
    assert Graph(again).run_key == Graph(experiment).run_key
    store = FolderStore(tmp_path / "store")
    graph = run_inline(store, again, Graph(again).headline.images[:1])
    checkpoint = store.open(graph.checkpoints[-1].ref)
    assert checkpoint.ref.key.endswith("-00000002")
    images = images_of(store, graph)
    assert images.shape == (12, 3, 32, 32)
    assert images.dtype == torch.uint8
    stored = (checkpoint.path / "experiment.json").read_text()
    assert experiment_from_json(stored) == experiment


@pytest.mark.parametrize("name", ["sit_xl2_ig_cfg", "lightningdit_xl1_ig", "sit_b2"])
def test_a_published_checkpoint_is_sampled_without_training_data(name, files, tmp_path):
    path = write_published(tmp_path / "published.pt", reduced(name, files))
    experiment = reduced(name, files, from_checkpoint=str(path))
    if experiment.data.codec == "sd-vae":  # its factor is known: no latents are looked at
        experiment = replace(experiment, data=replace(experiment.data, path=None))
    experiment = resolve(experiment)
    store = FolderStore(tmp_path / "store")
    graph = run_inline(store, experiment, Graph(experiment).headline.images[:1])
    kinds = {node.kind for node in closure(graph.targets)}
    assert not kinds & {"latents", "data"}
    assert images_of(store, graph).float().std() > 1


@pytest.mark.parametrize("alone", ["file", "folder"])
def test_statistics_alone_are_enough_for_a_published_lightningdit(alone, files, tmp_path):
    name = "lightningdit_xl1_ig"
    path = write_published(tmp_path / "published.pt", reduced(name, files))
    with_latents = reduced(name, files, from_checkpoint=str(path))
    folder = tmp_path / "statistics"
    folder.mkdir()
    given = shutil.copy(files["va-vae"][0] / "latents_stats.pt", folder)
    where = given if alone == "file" else folder
    experiment = replace(with_latents, data=replace(with_latents.data, path=str(where)))
    found = []
    for each in (experiment, with_latents):
        resolved, store = resolve(each), FolderStore(tmp_path / f"store-{len(found)}")
        graph = run_inline(store, resolved, Graph(resolved).headline.images[:1])
        found.append(images_of(store, graph))
    assert torch.equal(*found)
    training = reduced(name, files)
    training = replace(training, data=replace(training.data, path=str(where)))
    with pytest.raises(ValueError, match=r"must be latents to learn, .*--train\.from-checkpoint"):
        resolve(training)
    unnamed = replace(experiment, data=replace(experiment.data, path=None))
    assert unnamed_files(unnamed)["data.path"].startswith("latents_stats.pt")
    torch.save({"mean": torch.zeros(4), "std": torch.ones(4)}, given)
    with pytest.raises(ValueError, match="of 32 channels"):
        resolve(experiment)


def test_where_the_latents_lie_does_not_count_for_a_published_checkpoint(files, tmp_path):
    path = write_published(tmp_path / "published.pt", reduced("sit_b2_ig", files))
    with_data = reduced("sit_b2_ig", files, from_checkpoint=str(path))
    without = replace(with_data, data=replace(with_data.data, path=None))
    one, other = (Graph(resolve(each)) for each in (with_data, without))
    assert one.run_key == other.run_key
    assert one.targets == other.targets


@pytest.mark.parametrize("name", PAPER)
def test_what_a_run_needs_is_one_message(name):
    experiment = get_experiment(name)
    assert set(unnamed_files(experiment)) == {
        "data.path",
        "data.codec_path",
        "evaluation.extractor_weights",
        "evaluation.reference",
    }
    assert experiment_from_json(experiment_to_json(experiment)) == experiment
    with pytest.raises(ValueError, match=r"--data\.path PATH.*--evaluation\.reference PATH"):
        resolve(experiment)
