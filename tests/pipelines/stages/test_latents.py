"""From images and latents in any format to shards, training and decoded samples."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments import DataConfig, Experiment
from ig_core.data.inspection import inspect_latents
from ig_core.data.shards import Shard
from pipelines.graph.graph import Graph
from pipelines.graph.plan import make_plan
from pipelines.graph.resolve import resolve
from pipelines.graph.source_checks import forget_sources
from pipelines.stages.codec import open_dataset
from pipelines.store.file_names import LATENTS_FILE, STATISTICS_FILE
from pipelines.store.folder import FolderStore
from tests.equipment.latent_sets import (
    CLASSES,
    IMAGE_FORMATS,
    make_sd_vae,
    make_va_vae,
    pictures,
    sd_moments,
    write_npy,
    write_safetensors,
)
from tests.pipelines.conftest import run_inline, tiny

SD = {"codec": "sd-vae", "channels": 4, "side": 4, "resolution": 32}
VA = {"codec": "va-vae", "channels": 32, "side": 2, "resolution": 32}


@pytest.fixture(scope="module")
def sd_vae(tmp_path_factory):
    return make_sd_vae(tmp_path_factory.mktemp("codec") / "sd")


@pytest.fixture(scope="module")
def va_vae(tmp_path_factory):
    return make_va_vae(tmp_path_factory.mktemp("codec") / "vavae.pt")[0]


@pytest.fixture(autouse=True)
def _files(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"are not read here")
    np.savez(tmp_path / "reference.npz", mu=np.zeros(1), sigma=np.ones((1, 1)))  # not read here


@pytest.fixture
def latent(tmp_path):
    """Factory of experiments on latents, pinned."""

    def make(path, codec_path, source="images", **changes) -> Experiment:
        values = {"num_classes": len(CLASSES), "shard_size": 3, **SD, **changes}
        data = DataConfig(
            source=source,
            path=str(path),
            **values,
            codec_path=None if codec_path is None else str(codec_path),
        )
        model = {
            "in_channels": data.channels,
            "input_size": data.side,
            "patch_size": 2,
            "num_classes": data.num_classes,
        }
        evaluation = {
            "extractor": "inception-v3-compat",
            "extractor_weights": str(tmp_path / "weights.pt"),
            "reference": str(tmp_path / "reference.npz"),
            "num_samples": 24,
            "curve_samples": 20,
            "shard_size": 12,
            "isc_splits": 1,
        }
        train = {"steps": 2, "checkpoint_every": 2, "batch_size": 4}
        return tiny(data=data, model=model, evaluation=evaluation, train=train)

    return make


def rows_of(store: FolderStore, graph: Graph) -> dict[str, np.ndarray]:
    """All rows of an experiment's shards, copied."""
    nodes = [node for node in graph.data.inputs.values() if node.kind == "latents"]
    shards = [Shard(store.open(n.ref).path / LATENTS_FILE) for n in nodes]
    found = {
        name: np.concatenate([getattr(s, name) for s in shards])
        for name in ("index", "label", "latent")
    }
    if shards[0].mirror is not None:
        found["mirror"] = np.concatenate([shard.mirror for shard in shards])
    return found


def statistics_of(store: FolderStore, graph: Graph) -> dict:
    return json.loads((store.open(graph.data.ref).path / STATISTICS_FILE).read_text())


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_every_format_of_images_ends_in_the_same_latents(tmp_path, latent, sd_vae):
    images, found = pictures(), []
    for name, write in IMAGE_FORMATS.items():
        experiment = resolve(latent(write(tmp_path / name, images), sd_vae, flip=True))
        store = FolderStore(tmp_path / f"store-{name}")
        graph = run_inline(store, experiment, [Graph(experiment).data])
        found.append(rows_of(store, graph))
        assert statistics_of(store, graph)["per_class"] == [3, 2, 2]
    assert found[0]["latent"].shape == found[0]["mirror"].shape == (7, 8, 4, 4)
    assert found[0]["label"].tolist() == [label for label, _ in images]
    assert not np.array_equal(found[0]["latent"], found[0]["mirror"])
    assert all(same(found[0], other) for other in found[1:])


def test_images_are_learnt_and_samples_decoded(tmp_path, latent, sd_vae):
    path = IMAGE_FORMATS["folder"](tmp_path / "images", pictures())
    experiment = resolve(latent(path, sd_vae))
    store, graph = FolderStore(tmp_path / "store"), Graph(experiment)
    run_inline(store, experiment, graph.baseline.images)
    images = read_first(store, graph)
    assert images.shape == (12, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert images.float().std() > 1
    again = FolderStore(tmp_path / "again")
    run_inline(again, experiment, graph.baseline.images)
    assert torch.equal(read_first(again, graph), images)


def read_first(store: FolderStore, graph: Graph) -> torch.Tensor:
    from ig_core.images.sets import read_images

    node = graph.baseline.images[0]
    return read_images([store.open(node.ref).path / "images.parquet"]).image


def test_latents_that_are_there_become_the_same_shards(tmp_path, latent, sd_vae):
    images = resolve(latent(IMAGE_FORMATS["folder"](tmp_path / "i", pictures()), sd_vae))
    store = FolderStore(tmp_path / "store")
    encoded = rows_of(store, run_inline(store, images, [Graph(images).data]))
    path = write_npy(tmp_path / "npy", encoded["latent"], encoded["label"])
    # Random weights give latents of another spread than SD-VAE's.
    ready = resolve(latent(path, sd_vae, source="latents", check_statistics=False))
    graph = run_inline(store, ready, [Graph(ready).data])
    assert same(rows_of(store, graph), encoded)
    assert statistics_of(store, graph)["factor"] == [0.18215] * 4
    one, other = (open_dataset(store, Graph(each)) for each in (images, ready))
    index, positions = torch.tensor([6, 0, 3]), torch.tensor([10, 11, 12])
    rows = [each.draw(each.rows(index, positions, 5)[0], positions, 5) for each in (one, other)]
    assert torch.equal(*rows)


def test_latents_of_lightningdit_are_normalised_by_their_own_statistics(tmp_path, latent, va_vae):
    generator = torch.Generator().manual_seed(0)
    latents = 3 + 2 * torch.randn(9, 32, 2, 2, generator=generator)
    flipped, labels = latents.flip(-1), torch.arange(9) % 3
    path = write_safetensors(tmp_path / "safetensors", latents, flipped, labels)
    experiment = resolve(latent(path, va_vae, source="latents", flip=True, **VA))
    store = FolderStore(tmp_path / "store")
    graph = run_inline(store, experiment, Graph(experiment).baseline.images)
    rows = rows_of(store, graph)
    assert np.array_equal(rows["latent"], latents.numpy())
    assert np.array_equal(rows["mirror"], flipped.numpy())
    dataset, positions = open_dataset(store, graph), torch.arange(9)
    x = dataset.draw(dataset.rows(torch.arange(9), positions, 0)[0], positions, 0)
    mean, std = (f(latents, dim=(0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    plain, mirrored = ((z - mean) / std for z in (latents, flipped))
    for row in range(9):
        assert any(torch.allclose(x[row], z[row], atol=1e-5) for z in (plain, mirrored))
    assert read_first(store, graph).shape == (12, 3, 32, 32)


def test_samples_of_the_sd_vae_are_scaled_whatever_lies_beside_them(tmp_path, latent, sd_vae):
    latents = 5.5 * torch.randn(9, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    path = write_safetensors(tmp_path / "s", latents, latents.flip(-1), torch.arange(9) % 3)
    experiment = resolve(latent(path, sd_vae, source="latents"))
    store = FolderStore(tmp_path / "store")
    graph = run_inline(store, experiment, [Graph(experiment).data])
    dataset, positions = open_dataset(store, graph), torch.arange(9)
    x = dataset.draw(dataset.rows(torch.arange(9), positions, 0)[0], positions, 0)
    torch.testing.assert_close(x, latents * 0.18215)
    assert inspect_latents(path).scale == "unscaled: to be multiplied by 0.18215"
    assert not inspect_latents(path).problems


def test_normalisation_of_the_va_vae_is_measured_where_images_are_encoded(tmp_path, latent, va_vae):
    path = IMAGE_FORMATS["tar"](tmp_path / "tars", pictures())
    experiment = resolve(latent(path, va_vae, **VA))
    store = FolderStore(tmp_path / "store")
    graph = run_inline(store, experiment, [Graph(experiment).data])
    moments = torch.from_numpy(rows_of(store, graph)["latent"]).double()
    mean, std = moments.chunk(2, dim=1)
    variance = mean.var(dim=(0, 2, 3), correction=0) + std.square().mean(dim=(0, 2, 3))
    found = statistics_of(store, graph)
    torch.testing.assert_close(torch.tensor(found["shift"]).double(), mean.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(torch.tensor(found["std"]).double(), variance.sqrt())


def test_pixels_can_be_learnt_without_a_codec(tmp_path, latent):
    path = IMAGE_FORMATS["folder"](tmp_path / "images", pictures())
    pixels = {"codec": "none", "channels": 3, "side": 16, "resolution": 16, "flip": True}
    experiment = resolve(latent(path, None, **pixels))
    store = FolderStore(tmp_path / "store")
    graph = run_inline(store, experiment, Graph(experiment).baseline.images)
    assert rows_of(store, graph)["latent"].dtype == np.uint8
    dataset, positions = open_dataset(store, graph), torch.arange(7)
    x = dataset.draw(dataset.rows(torch.arange(7), positions, 0)[0], positions, 0)
    whole = torch.from_numpy(rows_of(store, graph)["latent"]).float() / 127.5 - 1
    turned = [torch.equal(x[row], whole[row].flip(-1)) for row in range(7)]
    assert all(t or torch.equal(x[row], whole[row]) for row, t in enumerate(turned))
    assert 0 < sum(turned) < 7
    assert read_first(store, graph).shape == (12, 3, 16, 16)


def test_a_faulty_image_is_named_and_the_rest_goes_on_up_to_the_limit(tmp_path, latent, sd_vae):
    path = IMAGE_FORMATS["folder"](tmp_path / "images", pictures())
    broken = path / CLASSES[1] / "005x.jpg"
    broken.write_bytes(b"no image")
    experiment = resolve(latent(path, sd_vae))
    store = FolderStore(tmp_path / "store")
    graph = run_inline(store, experiment, [Graph(experiment).data])
    found = statistics_of(store, graph)
    assert found["count"] == 7
    assert [each["name"] for each in found["broken"]] == ["n02/005x.jpg"]
    assert "cannot be decoded" in found["broken"][0]["fault"]
    strict = resolve(latent(path, sd_vae, max_broken=0))
    with pytest.raises(ValueError, match=r"data\.max_broken=0 .*n02/005x\.jpg"):
        run_inline(FolderStore(tmp_path / "other"), strict, [graph.data])


ENCODER = """
import sys
from experiments import experiment_from_json
from pathlib import Path
from pipelines.execution.scheduler import Pipeline
from pipelines.store.folder import FolderStore
from pipelines.execution.runners import InlineRunner
from pipelines.stages import encode
from pipelines.execution.listener import NullListener
write = encode.ShardWriter.write
def slow(self, path):
    write(self, path)
    print("written")
    input()
encode.ShardWriter.write = slow
experiment = experiment_from_json(Path(sys.argv[2]).read_text())
from functools import partial
from pipelines.stages.build import WORK
runner = partial(InlineRunner, WORK)
pipeline = Pipeline(FolderStore(sys.argv[1]), experiment, runner, NullListener())
pipeline.run([pipeline.graph.data])
"""


def test_a_killed_encoder_goes_on_where_it_was(tmp_path, latent, sd_vae, child):
    from experiments import experiment_to_json

    path = IMAGE_FORMATS["zip"](tmp_path / "zip", pictures())
    experiment = resolve(latent(path, sd_vae))
    (tmp_path / "experiment.json").write_text(experiment_to_json(experiment))
    whole, store = FolderStore(tmp_path / "whole"), FolderStore(tmp_path / "killed")
    expected = rows_of(whole, run_inline(whole, experiment, [Graph(experiment).data]))
    encoder = child(ENCODER, tmp_path / "killed", tmp_path / "experiment.json")
    assert encoder.read() == "written"
    encoder.say()
    assert encoder.read() == "written"  # the first shard is published, the second is not
    encoder.kill()
    assert len(store.refs("latents")) == 1
    graph = run_inline(store, experiment, [Graph(experiment).data])
    assert same(rows_of(store, graph), expected)
    built = [e["key"] for e in store.events() if e["event"] == "execute" and e["kind"] == "latents"]
    assert sorted(built.count(key) for key in set(built)) == [1, 1, 2]


# What is refused


def test_latents_that_differ_from_the_first_are_refused(tmp_path, latent, va_vae):
    latents, labels = torch.randn(6, 32, 2, 2), torch.arange(6) % 3
    path = write_safetensors(tmp_path / "s", latents, latents.flip(-1), labels, size=3)
    last = path / "latents_rank00_shard001.safetensors"
    save_file({"latents": torch.randn(3, 32, 2, 2), "labels": labels[:3]}, last)
    with pytest.raises(ValueError, match=r"shard000\.safetensors holds them and .*shard001"):
        resolve(latent(path, va_vae, source="latents", flip=True, **VA))


def sd_wrong(moments, how):
    if how == "log-variance":
        moments[:, 4:] = 2 * np.log(moments[:, 4:] / 9)
    elif how == "scaled":
        moments[:, :4] *= 0.18215
    else:
        moments[:, :4] /= 0.18215
    return moments


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("log-variance", r"log-variance or a sample, where a standard deviation is expected"),
        (
            "scaled",
            r"spread of the latents is 1\.\d+, where .*5\.5 .*multiplied by 0\.18215 already",
        ),
        ("divided", r"spread of the latents is 3\d\.\d, .*2 to 15"),
    ],
)
def test_moments_that_are_none_of_the_sd_vae_are_refused(tmp_path, latent, sd_vae, how, words):
    path = write_npy(tmp_path / "npy", sd_wrong(sd_moments(9), how), np.arange(9) % 3)
    with pytest.raises(ValueError, match=words + r".*--data\.no-check-statistics"):
        resolve(latent(path, sd_vae, source="latents"))
    assert any(re.search(words, problem) for problem in inspect_latents(path).problems)
    taken = resolve(latent(path, sd_vae, source="latents", check_statistics=False))
    good = write_npy(tmp_path / "good", sd_moments(9), np.arange(9) % 3)
    known = resolve(latent(good, sd_vae, source="latents"))
    aside = dataclasses.replace(known, data=dataclasses.replace(known.data, check_statistics=False))
    assert Graph(aside).run_key == Graph(known).run_key
    assert Graph(aside).targets == Graph(known).targets
    run_inline(FolderStore(tmp_path / "store"), taken, [Graph(taken).data])


@pytest.mark.parametrize("how", ["scaled", "log-variance"])
def test_what_few_latents_do_not_show_is_found_in_all_of_them(tmp_path, latent, sd_vae, how):
    """Faults in rows between those that are looked at before a run."""
    moments = sd_moments(700)
    others = sorted(set(range(700)) - {round(699 * n / 63) for n in range(64)})
    if how == "scaled":
        moments[others, :4] *= 0.18215
    else:
        moments[others[0], 4] = -1
    path = write_npy(tmp_path / "npy", moments, np.arange(700) % 3)
    experiment = resolve(latent(path, sd_vae, source="latents", shard_size=700))
    words = {"scaled": r"spread of the latents is 1\.\d+", "log-variance": "goes down to -1: it is"}
    with pytest.raises(ValueError, match=words[how]):
        run_inline(FolderStore(tmp_path / "store"), experiment, [Graph(experiment).data])


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        (50.0, 0.01, r"means of the latents are up to 5\d\d\d spreads .*they are of other latents"),
        (1.0, 3.0, r"spreads of the latents are 0\.27\d* to .*or these are normalised already"),
    ],
)
def test_statistics_of_other_latents_are_refused(tmp_path, latent, va_vae, mean, std, words):
    generator = torch.Generator().manual_seed(0)
    latents, labels = torch.randn(40, 32, 2, 2, generator=generator), torch.arange(40) % 3
    path = write_safetensors(tmp_path / "s", latents, latents.flip(-1), labels, size=20)
    shape = (1, 32, 1, 1)
    torch.save(
        {"mean": torch.full(shape, mean), "std": torch.full(shape, std)}, path / "latents_stats.pt"
    )
    with pytest.raises(ValueError, match=words):
        resolve(latent(path, va_vae, source="latents", **VA))
    assert any(re.search(words, problem) for problem in inspect_latents(path).problems)
    resolve(latent(path, va_vae, source="latents", check_statistics=False, **VA))


def test_a_decoder_that_changed_is_refused(tmp_path, latent, sd_vae):
    path = IMAGE_FORMATS["folder"](tmp_path / "images", pictures())
    experiment = resolve(latent(path, sd_vae))
    other = make_sd_vae(tmp_path / "other", seed=1)
    swapped = dataclasses.replace(experiment.data, codec_path=str(other))
    with pytest.raises(ValueError, match=r"data\.codec_sha256 must be"):
        resolve(dataclasses.replace(experiment, data=swapped))
    store = FolderStore(tmp_path / "store")
    run_inline(store, experiment, [Graph(experiment).checkpoints[0]])
    behind = dataclasses.replace(experiment, data=swapped)
    with pytest.raises(ValueError, match="changed since the run began"):
        run_inline(store, behind, Graph(behind).baseline.images)


def test_a_decoder_of_other_latents_is_refused_where_samples_are_decoded(
    tmp_path, latent, sd_vae, monkeypatch
):
    from pipelines.stages import codec as stage

    path = IMAGE_FORMATS["folder"](tmp_path / "images", pictures())
    experiment = resolve(latent(path, sd_vae))
    store = FolderStore(tmp_path / "store")
    graph = run_inline(store, experiment, [Graph(experiment).checkpoints[0]])
    read = stage.read_statistics

    def edited(folder):
        statistics, normalisation = read(folder)
        return {**statistics, "encoder_sha256": "0" * 64}, normalisation

    monkeypatch.setattr(stage, "read_statistics", edited)
    with pytest.raises(ValueError, match="must belong to the encoder sd-vae 000"):
        run_inline(store, experiment, graph.baseline.images)


def redecoded(folder, target):
    """The same autoencoder with another decoder, as ft-mse is to ft-ema."""
    shutil.copytree(folder, target)
    path = target / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_out.bias"] += 1
    save_file(weights, path)
    return target


def test_another_decoder_of_the_same_encoder_encodes_and_trains_nothing(tmp_path, latent, sd_vae):
    path = IMAGE_FORMATS["folder"](tmp_path / "images", pictures())
    experiment = resolve(latent(path, sd_vae))
    store = FolderStore(tmp_path / "store")
    one = run_inline(store, experiment, Graph(experiment).baseline.images)
    two = resolve(latent(path, redecoded(sd_vae, tmp_path / "mse")))
    built = len(list(store.events()))
    graph = run_inline(store, two, Graph(two).baseline.images)
    kinds = {e["kind"] for e in list(store.events())[built:] if e["event"] == "execute"}
    assert kinds == {"images"}
    assert graph.checkpoints == one.checkpoints
    assert graph.run_key != one.run_key
    assert not torch.equal(read_first(store, graph), read_first(store, one))
    other = Graph(resolve(latent(path, make_sd_vae(tmp_path / "other", seed=1))))
    assert other.data != graph.data


@pytest.mark.parametrize("broken", ["garbage", "truncated", "no decoder"])
def test_a_codec_that_cannot_decode_is_refused_before_any_work(tmp_path, latent, sd_vae, broken):
    if broken == "garbage":
        (tmp_path / "vavae.pt").write_bytes(b"this is no autoencoder")
        path = write_safetensors(
            tmp_path / "s", *(torch.randn(4, 32, 2, 2) for _ in "ab"), torch.arange(4) % 3
        )
        experiment = latent(path, tmp_path / "vavae.pt", source="latents", **VA)
    else:
        shutil.copytree(sd_vae, tmp_path / "vae")
        weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
        if broken == "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        else:
            save_file({k: v for k, v in load_file(weights).items() if "decoder." not in k}, weights)
        path = IMAGE_FORMATS["folder"](tmp_path / "images", pictures())
        experiment = latent(path, tmp_path / "vae")
    with pytest.raises(ValueError, match=r"cannot be read|missing decoder\."):
        resolve(experiment)


def test_ready_latents_can_be_decoded_by_another_decoder_without_training(tmp_path, latent, sd_vae):
    path = write_npy(tmp_path / "npy", sd_moments(7), np.arange(7) % 3)
    one = Graph(resolve(latent(path, sd_vae, source="latents")))
    other = make_sd_vae(tmp_path / "other", seed=1)
    two = Graph(resolve(latent(path, other, source="latents")))
    assert one.data == two.data
    assert one.checkpoints == two.checkpoints
    assert not {*one.baseline.images} & {*two.baseline.images}


def test_latents_without_their_normalisation_are_refused(tmp_path, latent, va_vae):
    latents, labels = torch.randn(4, 32, 2, 2), torch.arange(4) % 3
    path = write_safetensors(tmp_path / "s", latents, latents.flip(-1), labels, statistics=False)
    with pytest.raises(ValueError, match=r"normalised by latents_stats\.pt, which is missing"):
        resolve(latent(path, va_vae, source="latents", **VA))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "images"}, r"data\.source must be latents"),
        ({"flip": True}, r"flip must be off.* \(--data\.no-flip\)"),
        ({"num_classes": 2}, r"label of .* must be in 0\.\.1.*--data\.num-classes"),
        ({"side": 8, "resolution": 64}, r"must be \(8, 8, 8\).*--data\.channels, --data\.side"),
        (VA, r"codec must be sd-vae.*--data\.codec sd-vae"),
    ],
)
def test_latents_that_are_not_what_the_experiment_says(tmp_path, latent, changes, message):
    path = write_npy(tmp_path / "npy", np.ones((7, 8, 4, 4), np.float32), np.arange(7) % 3)
    with pytest.raises(ValueError, match=message):
        resolve(latent(path, None, **{"source": "latents", **changes}), partly=True)


def test_what_is_missing_is_said_before_any_work(tmp_path, latent, sd_vae):
    path = IMAGE_FORMATS["folder"](tmp_path / "images", pictures())
    good = latent(path, sd_vae)
    for changes, message in (
        ({"path": None}, r"--data\.path PATH: images"),
        ({"path": str(tmp_path / "none")}, r"nothing is at .* \(--data\.path\)"),
        ({"codec_path": None}, r"--data\.codec-path PATH: weights of sd-vae"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve(dataclasses.replace(good, data=dataclasses.replace(good.data, **changes)))
    bare = dataclasses.replace(good.evaluation, reference=None)
    ready = dataclasses.replace(good.data, source="latents")
    with pytest.raises(ValueError, match=r"evaluation\.reference PATH: .* latents come without"):
        resolve(dataclasses.replace(good, evaluation=bare, data=ready))


# Identity


def test_data_are_known_by_their_content_wherever_they_lie(tmp_path, latent, sd_vae):
    one, two = (
        resolve(latent(IMAGE_FORMATS["folder"](tmp_path / n, pictures()), sd_vae))
        for n in ("a", "b")
    )
    assert Graph(one).run_key == Graph(two).run_key
    (tmp_path / "b" / CLASSES[0] / "000.png").write_bytes(pictures(1, seed=5)[0][1])
    forget_sources()
    changed = resolve(latent(tmp_path / "b", sd_vae))
    assert Graph(changed).data != Graph(one).data
    with pytest.raises(ValueError, match=r"data\.content must be"):
        resolve(two)


def test_a_mapping_elsewhere_gives_labels_and_is_part_of_the_content(
    tmp_path, latent, sd_vae, monkeypatch
):
    path = IMAGE_FORMATS["folder"](tmp_path / "images", pictures())
    mapping = tmp_path / "map.json"
    mapping.write_text(json.dumps({"n01": 2, "n02": 1, "n03": 0}))
    monkeypatch.setenv("HOME", str(tmp_path))
    experiment = resolve(latent("~/images", sd_vae, classes="~/map.json"))
    assert (experiment.data.path, experiment.data.classes) == (str(path), str(mapping))
    store = FolderStore(tmp_path / "store")
    graph = run_inline(store, experiment, [Graph(experiment).data])
    assert rows_of(store, graph)["label"].tolist() == [2, 2, 2, 1, 1, 0, 0]
    assert Graph(resolve(latent(path, sd_vae))).data != graph.data
    mapping.write_text(json.dumps({"n01": 0, "n02": 1, "n03": 2}))
    with pytest.raises(ValueError, match=r"data\.content must be"):
        resolve(experiment)
    again = FolderStore(tmp_path / "again")
    with pytest.raises(ValueError, match="changed since the run began"):
        run_inline(again, experiment, [Graph(experiment).data])
    same = resolve(latent(path, sd_vae, classes=str(mapping)))
    assert Graph(same).run_key == Graph(resolve(latent(path, sd_vae))).run_key


def test_images_of_other_suffixes_and_dangling_links_are_reported(tmp_path, latent, sd_vae):
    path = IMAGE_FORMATS["folder"](tmp_path / "images", pictures())
    (path / CLASSES[0] / "a.heic").write_bytes(b"not decoded here")
    (path / CLASSES[1] / "b.png").symlink_to(path / "gone.png")
    experiment = resolve(latent(path, sd_vae))
    store = FolderStore(tmp_path / "store")
    found = statistics_of(store, run_inline(store, experiment, [Graph(experiment).data]))
    assert found["count"] == 7
    assert [each["name"] for each in found["broken"]] == ["n01/a.heic", "n02/b.png"]


def test_a_source_is_listed_once_for_many_experiments(tmp_path, latent, sd_vae, monkeypatch):
    from ig_core.data.sources import listing, source

    calls = []
    for module, name in ((source, "list_source"), (listing, "identify")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real: calls.append(real) or real(*a))
    path = IMAGE_FORMATS["folder"](tmp_path / "images", pictures())
    one = resolve(latent(path, sd_vae))
    for experiment in (one, latent(path, sd_vae), latent(path, None)):
        assert resolve(experiment, partly=True).data.content == one.data.content
    assert len(calls) == 2
    with pytest.raises(ValueError, match=r"must hold 2 class folders"):
        resolve(latent(path, sd_vae, num_classes=2))
    assert len(calls) == 3


def test_data_that_change_under_a_run_are_refused(tmp_path, latent, sd_vae):
    path = IMAGE_FORMATS["folder"](tmp_path / "images", pictures())
    experiment = resolve(latent(path, sd_vae))
    (path / CLASSES[0] / "000.png").write_bytes(pictures(1, seed=5)[0][1])
    with pytest.raises(ValueError, match="changed since the run began"):
        run_inline(FolderStore(tmp_path / "store"), experiment, [Graph(experiment).data])


def test_shards_are_cut_as_asked_and_reused(tmp_path, latent, sd_vae):
    path = IMAGE_FORMATS["folder"](tmp_path / "images", pictures())
    experiment = resolve(latent(path, sd_vae))
    spans = [
        (n.config["start"], n.config["stop"])
        for n in Graph(experiment).data.inputs.values()
        if n.kind == "latents"
    ]
    assert spans == [(0, 3), (3, 6), (6, 7)]
    store = FolderStore(tmp_path / "store")
    graph = run_inline(store, experiment, [Graph(experiment).data])
    assert make_plan(store, [graph.data]).missing == ()
