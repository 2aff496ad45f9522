"""What samples are compared with: the images of a source, given or to learn, at a resolution."""

from __future__ import annotations

import dataclasses
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from experiments import DataConfig, Resources, experiment_from_json, experiment_to_json
from ig_core.data.sources.source import list_source
from ig_core.images.crop import read_pixels
from ig_core.metrics.extractors import ImageFeatures
from ig_core.metrics.frechet import FeatureStats
from pipelines.__main__ import main
from pipelines.commands.evaluate import EvaluateOptions, evaluate_images
from pipelines.console.console import make_console
from pipelines.graph.fingerprint import fingerprint
from pipelines.graph.graph import Graph
from pipelines.graph.resolve import resolve, unnamed_files
from pipelines.graph.source_checks import forget_sources
from pipelines.stages import data as data_stage
from pipelines.stages import features as features_stage
from pipelines.stages import reference as reference_stage
from pipelines.store.folder import FolderStore
from pipelines.store.home import Home
from tests.equipment.latent_sets import CLASSES, IMAGE_FORMATS, pictures
from tests.pipelines.conftest import run_inline, tiny

SIDE = 16


@pytest.fixture(autouse=True)
def _fresh():
    forget_sources()


@pytest.fixture
def colour(tmp_path, monkeypatch):
    """Factory of experiments on colour images, with an extractor that is the pixels themselves."""
    (tmp_path / "weights.pt").write_bytes(b"are not read here")
    monkeypatch.setattr(data_stage, "read_weights", lambda _: {"none": torch.zeros(1)})

    def extract(images):
        assert images.shape[1:] == (3, SIDE, SIDE)
        rows = images[:, :, ::4, ::4].flatten(1).float()
        return ImageFeatures(rows, rows[:, :4], rows[:, :6])

    monkeypatch.setattr(features_stage, "_cached_extractor", lambda *_, **__: extract)

    def make(path, reference=None, source="images", **changes):
        values = {"channels": 3, "side": SIDE, "resolution": SIDE, "num_classes": len(CLASSES)}
        data = DataConfig(source=source, path=str(path), **values | changes)
        model = {"in_channels": 3, "input_size": SIDE, "patch_size": 4, "num_classes": len(CLASSES)}
        evaluation = {
            "extractor": "inception-v3-compat",
            "extractor_weights": str(tmp_path / "weights.pt"),
            "reference": None if reference is None else str(reference),
        }
        return tiny(data=data, model=model, evaluation=evaluation)

    return make


def built(store, experiment):
    """The folder of a reference, made in this process."""
    graph = Graph(experiment)
    run_inline(store, experiment, [graph.reference])
    return store.open(graph.reference.ref).path


def write_mixed(root, images):
    """Class folders with PNG, JPEG and WebP in turn."""
    for number, (label, data) in enumerate(images):
        suffix, kind = ((".JPEG", "JPEG"), (".png", "PNG"), (".webp", "WEBP"))[number % 3]
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(data)).save(folder / f"{number:03d}{suffix}", kind)
    return root


def flattened(root, target):
    """The files of class folders in one folder."""
    target.mkdir()
    for file in sorted(root.glob("*/*")):
        (target / f"{file.parent.name}-{file.name}").write_bytes(file.read_bytes())
    return target


def expected_rows(root):
    """The features of images as they are read for training."""
    files = sorted(root.glob("*/*"))
    images = torch.stack([torch.from_numpy(read_pixels(f.read_bytes(), SIDE).image) for f in files])
    return images[:, :, ::4, ::4].flatten(1).float()


def test_folders_of_any_images_are_cropped_to_the_samples_size(tmp_path, colour):
    classes = write_mixed(tmp_path / "classes", pictures(7))
    flat = flattened(classes, tmp_path / "flat")
    store = FolderStore(tmp_path / "store")
    data = IMAGE_FORMATS["folder"](tmp_path / "data", pictures(7, seed=3))
    rows = expected_rows(classes)
    stats = FeatureStats.from_features(rows)
    for reference in (classes, flat):
        folder = built(store, resolve(colour(data, reference)))
        assert torch.equal(load_file(folder / "features.safetensors")["features"], rows)
        moments = load_file(folder / "moments.safetensors")
        assert torch.equal(moments["features.mean"], stats.mean)
        assert torch.equal(moments["features.covariance"], stats.covariance)
        assert moments["spatial.mean"].shape == (6,)
        assert json.loads((folder / "statistics.json").read_text())["count"] == 7


def test_the_images_to_learn_are_the_reference_where_none_is_given(tmp_path, colour):
    data = write_mixed(tmp_path / "data", pictures(7))
    (tmp_path / "data" / "classes.json").write_text(json.dumps({"n01": 2, "n02": 1, "n03": 0}))
    silent = resolve(colour(data))
    given = resolve(colour(data, data))
    assert unnamed_files(silent) == {}
    assert Graph(silent).reference == Graph(given).reference, "the same images, however named"
    folder = built(FolderStore(tmp_path / "store"), silent)
    rows = load_file(folder / "features.safetensors")["features"]
    assert torch.equal(rows, expected_rows(data))
    again = experiment_from_json(experiment_to_json(silent))
    assert Graph(resolve(again)).run_key == Graph(silent).run_key


@pytest.mark.parametrize("name", IMAGE_FORMATS)
def test_a_reference_may_have_any_format_of_the_data_and_wants_no_labels(name, tmp_path, colour):
    images = pictures(7)
    data = IMAGE_FORMATS["folder"](tmp_path / "data", images)
    given = IMAGE_FORMATS[name](tmp_path / "given", images)
    experiment = resolve(colour(data, given, num_classes=len(CLASSES)))
    folder = built(FolderStore(tmp_path / "store"), experiment)
    rows = load_file(folder / "features.safetensors")["features"]
    assert torch.equal(rows, expected_rows(data))


def test_what_the_reference_is_shows_in_its_key_and_fingerprint(tmp_path, colour):
    data = IMAGE_FORMATS["folder"](tmp_path / "data", pictures(7))
    other = IMAGE_FORMATS["folder"](tmp_path / "other", pictures(7, seed=1))
    moved = IMAGE_FORMATS["folder"](tmp_path / "moved", pictures(7, seed=1))
    experiments = [colour(data), colour(data, other), colour(data, moved)]
    smaller = colour(data, other)
    evaluation = dataclasses.replace(smaller.evaluation, reference_resolution=8)
    experiments.append(dataclasses.replace(smaller, evaluation=evaluation))
    graphs = [Graph(resolve(each)) for each in experiments]
    marks = [fingerprint(graph.baseline.evaluate).reference for graph in graphs]
    assert marks[1] == marks[2]
    assert len(set(marks)) == 3
    assert len({graph.run_key for graph in graphs}) == 3


def test_what_lies_elsewhere_is_left_alone_and_the_rest_is_pinned(tmp_path, colour):
    data = IMAGE_FORMATS["folder"](tmp_path / "data", pictures(7))
    given = colour(tmp_path / "elsewhere", data)
    assert resolve(given, skip={"data.path"}).evaluation.reference_content is not None
    assert resolve(colour(data, tmp_path / "elsewhere"), skip={"evaluation.reference"}) is not None
    learnt = resolve(colour(tmp_path / "elsewhere"), skip={"data.path"})
    assert learnt.evaluation.reference_content is None


def test_a_reference_that_changed_is_refused(tmp_path, colour):
    data = IMAGE_FORMATS["folder"](tmp_path / "data", pictures(7))
    given = IMAGE_FORMATS["folder"](tmp_path / "given", pictures(7, seed=1))
    experiment = resolve(colour(data, given))
    (given / CLASSES[0] / "000.png").write_bytes(pictures(1, seed=5)[0][1])
    with pytest.raises(ValueError, match=r"reference .*given changed since the run began"):
        built(FolderStore(tmp_path / "store"), experiment)
    forget_sources()
    with pytest.raises(ValueError, match="reference must be the images of"):
        resolve(experiment)


def test_faulty_images_of_a_reference_are_named_up_to_the_limit(tmp_path, colour):
    data = IMAGE_FORMATS["folder"](tmp_path / "data", pictures(7))
    given = write_mixed(tmp_path / "given", pictures(9, seed=1))
    (given / CLASSES[0] / "bad.jpg").write_bytes(b"not an image")
    experiment = resolve(colour(data, given, max_broken=1))
    folder = built(FolderStore(tmp_path / "store"), experiment)
    found = json.loads((folder / "statistics.json").read_text())
    assert [each["name"] for each in found["broken"]] == ["n01/bad.jpg"]
    assert found["count"] == len(load_file(folder / "features.safetensors")["features"]) == 9
    with pytest.raises(ValueError, match=r"over data\.max_broken=0 .*n01/bad\.jpg"):
        built(FolderStore(tmp_path / "other"), resolve(colour(data, given, max_broken=0)))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda root: (root / "a.jpg").write_bytes(b"x"), r"a\.jpg: cannot be decoded"),
        (lambda root: (root / "notes.txt").write_bytes(b"x"), r"no images.*1 \.txt"),
        (lambda root: np.save(root / "a.npy", np.zeros(1)), r"no images.*1 \.npy"),
        (
            lambda root: (root / "x.safetensors").write_bytes(b"x"),
            "must hold images, but holds safetensors",
        ),
    ],
)
def test_a_folder_without_images_is_refused_by_the_plan(
    write, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("IGDIT_HOME", str(tmp_path / "home"))
    folder = tmp_path / "reference"
    folder.mkdir()
    write(folder)
    assert main(["plan", "digits", "--evaluation.reference", str(folder)]) == 2
    assert re.search(words, capsys.readouterr().err.replace("\n", " "))


def test_latents_need_a_reference_and_the_message_says_why(tmp_path, colour):
    experiment = colour(tmp_path)
    latents = dataclasses.replace(
        experiment.data, source="latents", codec="sd-vae", channels=4, side=2
    )
    model = dataclasses.replace(experiment.model, in_channels=4, input_size=2, patch_size=1)
    experiment = dataclasses.replace(experiment, data=latents, model=model)
    assert "latents come without" in unnamed_files(experiment)["evaluation.reference"]


def test_the_plan_shows_what_samples_are_compared_with(tmp_path, colour, monkeypatch, capsys):
    monkeypatch.setenv("IGDIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    data = IMAGE_FORMATS["folder"](tmp_path / "data", pictures(7))
    given = IMAGE_FORMATS["folder"](tmp_path / "given", pictures(7, seed=1))
    for experiment, words in (
        (colour(data), f"the training images, cropped to {SIDE} x {SIDE}"),
        (colour(data, given), f"{given}, cropped to {SIDE} x {SIDE}"),
    ):
        (tmp_path / "experiment.json").write_text(experiment_to_json(experiment))
        assert main(["plan", str(tmp_path / "experiment.json")]) == 0
        assert words in " ".join(capsys.readouterr().out.split())


def test_png_files_of_the_samples_size_are_known_as_before(tmp_path):
    digits = np.asarray(load_digits().images * (255 / 16)).round().astype(np.uint8)
    flat, large = tmp_path / "flat", tmp_path / "large"
    for folder, size in ((flat, 8), (large, 24)):
        folder.mkdir()
        for number in range(20):
            image = Image.fromarray(digits[number]).resize((size, size), Image.Resampling.BOX)
            image.save(folder / f"{number:03d}.png")
    one, other = (resolve(tiny(evaluation={"reference": str(each)})) for each in (flat, large))
    assert Graph(one).reference.config == {"sha256": one.evaluation.reference_sha256}
    assert other.evaluation.reference_sha256 is None
    assert Graph(other).reference.config["resolution"] == 8
    assert Graph(one).reference != Graph(other).reference
    known = dataclasses.replace(
        other.evaluation, reference_content=None, reference_sha256="ab" * 32
    )
    with pytest.raises(ValueError, match="must be the file with SHA-256 abab"):
        resolve(dataclasses.replace(other, evaluation=known))


def test_images_are_judged_against_class_folders(tmp_path):
    """Digits in class folders are what digits are without a reference, to the last digit."""
    found = load_digits()
    digits = (found.images * (255 / 16)).round().astype(np.uint8)
    folder = tmp_path / "classes"
    for number, (image, label) in enumerate(zip(digits, found.target, strict=True)):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"class{label}" / f"{number:04d}.bmp")
    np.savez(tmp_path / "a.npz", arr_0=digits[:200, :, :, None])
    numbers = []
    for number, reference in enumerate((None, folder)):
        home = Home(tmp_path / f"home{number}")
        options = EvaluateOptions(
            reference=reference,
            groups=10,
            resources=Resources(runner="inline", num_workers=1, sample_batch=100),
        )
        evaluate_images(tmp_path / "a.npz", options, home, make_console(file=io.StringIO()))
        written = next((home.report / "evaluations").iterdir())
        numbers.append(json.loads(written.read_text()))
    one, other = numbers
    assert other["fid"] == pytest.approx(one["fid"], rel=1e-9)
    assert other["fingerprint"]["reference"] != one["fingerprint"]["reference"]


def test_moments_are_of_all_images_and_features_are_kept_of_some(tmp_path, monkeypatch):
    """In parts, in bounded memory: the same moments, and features at even distances."""
    rows = torch.arange(300.0).reshape(100, 3).square()
    pieces = [ImageFeatures(part, part, None) for part in rows.split(7)]
    monkeypatch.setattr(reference_stage, "extract_features", lambda *_: iter(pieces))
    monkeypatch.setattr(reference_stage, "ROWS_AT_ONCE", 16)
    monkeypatch.setattr(reference_stage, "MAX_STORED_FEATURES", 20)
    found = reference_stage._measure(None, [], 100, tmp_path)
    stats = FeatureStats.from_features(rows)
    assert found.num_images == 100
    assert torch.allclose(found.moments["features"].mean, stats.mean, rtol=1e-12)
    assert torch.allclose(found.moments["features"].covariance, stats.covariance, rtol=1e-12)
    kept = load_file(tmp_path / "features.safetensors")["features"]
    assert torch.equal(kept, rows[4::5])


def test_a_listing_without_labels_is_known_as_the_same_images(tmp_path):
    from ig_core.data.sources.source import identify_images, list_images

    for name, write in IMAGE_FORMATS.items():
        path = write(tmp_path / name, pictures(7))
        assert identify_images(list_source(path, 3)) == identify_images(list_images(path))
