"""`igdit evaluate` and `igdit export`: images from and for other programs."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import Resources
from ig_core.config import Guidance
from ig_core.images.folders import read_image_batches, read_labels
from ig_core.images.sets import read_images
from ig_core.metrics.extractors import INCEPTION
from pipelines.__main__ import main
from pipelines.commands import report as export_command
from pipelines.commands.evaluate import EvaluateOptions, evaluate_images
from pipelines.console.console import make_console
from pipelines.graph.garbage import find_garbage
from pipelines.graph.graph import Graph
from pipelines.store.home import Home
from tests.equipment.inception import untrained_inception
from tests.pipelines.conftest import tiny

INLINE = Resources(runner="inline", num_workers=1, sample_batch=16)
SMALL = {"resources": INLINE, "groups": 10}


@pytest.fixture(scope="module")
def real():
    """scikit-learn's digits as uint8 (N, 1, 8, 8)."""
    from sklearn.datasets import load_digits

    return (load_digits().images * (255 / 16)).round().astype(np.uint8)[:, None]


def save_npz(path, images):
    np.savez(path, arr_0=images.transpose(0, 2, 3, 1))
    return path


def save_folder(path, images):
    path.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[0]).save(path / f"{number:06d}.png")
    return path


@pytest.fixture
def evaluate(tmp_path):
    """Factory: judge images in this process; returns metrics and what was printed."""
    home = Home(tmp_path / "home")

    def go(path, **options):
        console = make_console(file=io.StringIO(), width=200)
        assert evaluate_images(path, EvaluateOptions(**SMALL | options), home, console) == 0
        text = console.file.getvalue()
        where = next(line for line in text.splitlines() if "All metrics:" in line)
        return json.loads(Path(where.partition(": ")[2]).read_text()), text

    go.home = home
    return go


def test_a_folder_and_an_npz_of_the_same_images_have_the_same_metrics(tmp_path, real, evaluate):
    images = real[::5]
    one, _ = evaluate(save_npz(tmp_path / "a.npz", images))
    other, text = evaluate(save_folder(tmp_path / "folder", images))
    same = {name for name in one if name != "fingerprint"}
    assert {name: one[name] for name in same} == {name: other[name] for name in same}
    assert one["num_samples"] == len(images)
    assert one["fid_low"] < one["fid"] < one["fid_high"]
    assert one["precision"] > 0.9, "they are real ones"
    assert "protocol custom" in text


def test_shards_are_one_set(tmp_path, real, evaluate):
    images = real[:1300]  # more than one of our own shards
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, start in enumerate((0, 7, 1100)):
        save_npz(folder / f"{number:03d}.npz", images[start : (7, 1100, 1300)[number]])
    one, _ = evaluate(save_npz(tmp_path / "a.npz", images), in_order=True)
    other, _ = evaluate(folder, in_order=True)
    assert one == other
    Image.new("L", (8, 8)).save(folder / "000001.png")
    with pytest.raises(ValueError, match=r"both \.npz and PNG files"):
        evaluate(folder)


def test_folders_are_told_apart_however_their_files_are_called(tmp_path, real, evaluate):
    folders = [
        save_folder(tmp_path / name, real[start : start + 60])
        for name, start in (("a", 0), ("b", 60))
    ]
    for folder in folders:
        for file in list(folder.iterdir()):
            file.rename(file.with_suffix(".PNG"))
    assert evaluate(folders[0])[0]["fid"] != evaluate(folders[1])[0]["fid"]


def test_images_are_read_and_judged_once(tmp_path, real, evaluate):
    path = save_npz(tmp_path / "a.npz", real[:200])
    first = evaluate(path)
    known = len(evaluate.home.store.events())
    assert evaluate(path)[0] == first[0]
    assert len(evaluate.home.store.events()) == known


def test_an_evaluation_is_kept_until_it_is_forgotten(tmp_path, real, evaluate):
    evaluate(save_npz(tmp_path / "mine.npz", real[:60]))
    store = evaluate.home.store
    there = {artifact.ref for artifact in store.list()}
    assert find_garbage(store).artifacts == ()
    garbage = find_garbage(store, ("mine",))
    assert {artifact.ref for artifact in garbage.artifacts} == there


def test_worse_images_are_further_away_and_the_reference_may_be_images(tmp_path, real, evaluate):
    rng = np.random.default_rng(0)
    noisy = (real[:300] + rng.integers(0, 60, real[:300].shape)).clip(0, 255).astype(np.uint8)
    good = save_npz(tmp_path / "good.npz", real[300:600])
    bad = save_npz(tmp_path / "bad.npz", noisy)
    for reference in (None, save_npz(tmp_path / "r.npz", real), save_folder(tmp_path / "r", real)):
        near, far = (evaluate(path, reference=reference)[0] for path in (good, bad))
        assert near["fid"] < far["fid"]
        assert {"kid", "precision", "recall", "inception_score"} <= set(near)


def test_the_reference_of_moments_alone_gives_what_they_give(tmp_path, real, evaluate):
    images = save_npz(tmp_path / "a.npz", real[:300])
    whole, _ = evaluate(images)
    store = evaluate.home.store
    from safetensors.torch import load_file

    moments = load_file(store.list("reference")[0].path / "moments.safetensors")
    path = tmp_path / "moments.npz"
    np.savez(
        path, mu=moments["features.mean"].numpy(), sigma=moments["features.covariance"].numpy()
    )
    alone, _ = evaluate(images, reference=path)
    assert alone["fid"] == pytest.approx(whole["fid"], rel=1e-9)
    assert not {"kid", "precision", "recall", "sfid"} & set(alone)
    assert alone["fingerprint"]["id"] != whole["fingerprint"]["id"]


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    untrained_inception(path)
    return path


def test_inception_judges_colour_images_against_a_reference_of_the_adm_protocol(
    tmp_path, evaluate, inception
):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    reference = tmp_path / "VIRTUAL.npz"
    factor = rng.normal(size=(2048, 40))
    spatial = rng.normal(size=(2023, 40))
    moments = {"mu": rng.normal(size=2048), "sigma": factor @ factor.T}
    moments |= {"mu_s": rng.normal(size=2023), "sigma_s": spatial @ spatial.T}
    np.savez(reference, arr_0=images[:20].transpose(0, 2, 3, 1), **moments)
    metrics, text = evaluate(
        save_npz(tmp_path / "a.npz", images),
        reference=reference,
        groups=5,
        extractor=INCEPTION,
        weights=inception,
    )
    assert {"fid", "sfid", "kid", "precision", "recall", "inception_score"} <= set(metrics)
    assert "fid_infinity" not in metrics, "40 images are too few"
    assert "sfid" in text
    assert metrics["fingerprint"]["extractor"].startswith("inception-v3-compat ")


def colour(real):
    return np.repeat(real[:60], 3, axis=1)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda t, r: t / "none", {}, "does not exist"),
        (lambda t, r: save_npz(t / "a.npz", r[:15]), {}, "20"),
        (lambda t, r: save_npz(t / "a.npz", r[:50]), {"num_samples": 60}, "at least 60"),
        (lambda t, r: save_npz(t / "a.npz", r[:50].astype(float)), {}, "uint8"),
        (lambda t, r: save_npz(t / "a.npz", colour(r)), {}, r"\(1, 8, 8\).*digits-cnn"),
        (lambda t, r: save_npz(t / "a.npz", r[:60]), {"protocol": "digits"}, "at least 5,000"),
        (lambda t, r: save_npz(t / "a.npz", r[:60]), {"protocol": "adm-imagenet256"}, "--weights"),
        (lambda t, r: save_npz(t / "a.npz", r[:60]), {"extractor": "vgg"}, "vgg"),
        (lambda t, r: save_npz(t / "a.npz", r[:60]), {"extractor": INCEPTION}, "--reference"),
        (lambda t, r: save_npz(t / "a.npz", r[:60]), {"num_samples": 40}, "--in-order"),
        (
            lambda t, r: save_npz(t / "a.npz", r[:60]),
            {"extractor": INCEPTION, "reference": Path(__file__)},
            "weights",
        ),
        (
            lambda t, r: save_npz(t / "a.npz", r[:60]),
            {"extractor": INCEPTION, "reference": Path(__file__), "weights": Path(__file__)},
            "not a weights file: neither safetensors",
        ),
        (lambda t, r: save_npz(t / "a.npz", r[:60]), {"reference": Path(__file__)}, "npz"),
    ],
)
def test_what_cannot_be_judged_is_one_clear_error_before_any_work(
    tmp_path, real, evaluate, make, options, words
):
    with pytest.raises(ValueError, match=words):
        evaluate(make(tmp_path, real), **options)
    assert not evaluate.home.store.root.exists()


def test_damaged_and_dangerous_files_are_refused_by_name(tmp_path, real, evaluate):
    folder = save_folder(tmp_path / "folder", real[:60])
    (folder / "000042.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match=r"000042\.png"):
        evaluate(folder)
    torn = save_npz(tmp_path / "torn.npz", real[:60])
    torn.write_bytes(torn.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"torn\.npz"):
        evaluate(torn)
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, arr_0=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="pickled"):
        evaluate(pickled)
    mixed = save_folder(tmp_path / "mixed", real[:60])
    Image.new("L", (9, 8)).save(mixed / "000061.png")
    with pytest.raises(ValueError, match=r"000061\.png"):
        evaluate(mixed)


def test_a_reference_for_another_extractor_is_refused(tmp_path, real, evaluate):
    path = tmp_path / "other.npz"
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ValueError, match=r"other\.npz.*'mu'.*\(64\).*\(2048,\)"):
        evaluate(save_npz(tmp_path / "a.npz", real[:60]), reference=path)
    assert not evaluate.home.store.root.exists()


def test_the_first_images_are_taken_if_they_are_a_fair_sample(tmp_path, real, evaluate):
    """Also where the last ones of the file come in a shard of their own."""
    whole, part = save_npz(tmp_path / "a.npz", real), save_npz(tmp_path / "b.npz", real[:500])
    first, _ = evaluate(whole, num_samples=500, in_order=True)
    alone, _ = evaluate(part, in_order=True)
    assert first == alone
    shuffled, _ = evaluate(part)
    assert shuffled["fid"] == pytest.approx(alone["fid"], rel=1e-9)
    assert shuffled["fingerprint"]["id"] != alone["fingerprint"]["id"], "other groups"


def test_a_file_that_turns_out_damaged_is_not_taken_for_read(tmp_path, real, evaluate):
    """Its last bytes are wrong, which its checksum shows after everything was read."""
    path = save_npz(tmp_path / "a.npz", real[:1300])
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02") - 40  # among the last images
    content[at] ^= 0xFF
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a\.npz"):
            evaluate(path)


def test_a_protocol_is_named_and_its_sets_compare(tmp_path, real, evaluate):
    images = np.concatenate([real, real, real])[:5000]
    one, text = evaluate(save_npz(tmp_path / "a.npz", images), protocol="digits")
    other, _ = evaluate(save_npz(tmp_path / "b.npz", images[::-1]), protocol="digits")
    assert "protocol digits" in text
    assert one["fingerprint"] == other["fingerprint"]


# Export


def test_samples_are_exported_as_they_are(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IGDIT_HOME", str(finished.home.root))
    target = tmp_path / "samples.npz"
    assert main(["export", finished.graph.run_key[:8], str(target)]) == 0
    assert "200 images" in capsys.readouterr().out
    images = torch.cat(list(read_image_batches(target, 64)))
    point = finished.graph.final[Guidance(ig_scale=1.5)]
    paths = [finished.home.store.root / str(n.ref) / "images.parquet" for n in point.images]
    stored = read_images(paths)
    assert torch.equal(images, stored.image)
    assert torch.equal(read_labels(target), stored.label)
    with zipfile.ZipFile(target) as archive:
        assert set(archive.namelist()) == {"arr_0.npy", "arr_1.npy"}
    folder = tmp_path / "png"
    assert main(["export", "tiny", str(folder), "--ig-scale", "1.0"]) == 0
    assert len(list(folder.glob("*.png"))) == 200


def test_an_export_overwrites_nothing_and_names_what_there_is(
    finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("IGDIT_HOME", str(finished.home.root))
    target = tmp_path / "samples.npz"
    target.touch()
    assert main(["export", "tiny", str(target)]) == 2
    assert "must be new" in capsys.readouterr().err
    assert main(["export", "tiny", str(tmp_path / "b.npz"), "--ig-scale", "9.0"]) == 2
    assert "one that was sampled (1, 1.5), but got 9" in capsys.readouterr().err
    assert main(["export", "tiny"]) == 2
    assert not (tmp_path / "b.npz").exists()


def test_a_chosen_scale_of_zero_is_exported_as_such(monkeypatch):
    experiment, chosen = tiny(ig_scales=(0.0,)), Guidance(ig_scale=0.0)
    monkeypatch.setattr(export_command, "collect", lambda *_: SimpleNamespace(chosen=chosen))
    store = SimpleNamespace(find=lambda *_: True)
    graph = Graph(experiment)
    point = export_command._point(store, graph, None, holdout=True)
    assert point == graph.holdout(chosen)[chosen]
    assert export_command._point(store, graph, None, holdout=False) == graph.headline


def test_random_labels_are_exported_and_measured_from_the_same_pool(tmp_path, monkeypatch):
    from pipelines.commands.report import export_samples
    from pipelines.results.measurements import collect
    from tests.pipelines.conftest import run_inline

    home = Home(tmp_path / "pool")
    experiment = tiny(evaluation={"labels": "random"})
    graph = run_inline(home.store, experiment)
    target = tmp_path / "random.npz"
    assert export_samples(home, experiment, target, None, holdout=False) == 200
    labels = read_labels(target)
    counts = torch.bincount(labels, minlength=10)
    assert counts.sum() == 200
    assert len(set(counts.tolist())) > 1
    results = collect(home.store, graph)
    for m in results.final.values():
        assert m.metrics["fid"] != m.metrics["balanced_fid"]
        assert m.metrics["balanced_fid_low"] < m.metrics["balanced_fid_high"]
        assert m.fingerprint.labels == "random"
    balanced = collect(home.store, run_inline(home.store, tiny()))
    for one, other in zip(results.final.values(), balanced.final.values(), strict=True):
        assert one.metrics["balanced_fid"] == other.fid
