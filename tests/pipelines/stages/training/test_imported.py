"""A published checkpoint instead of a training, from the file to an FID."""

from __future__ import annotations

import argparse
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import experiment_to_json
from ig_core.checkpoints.official import save_official
from ig_core.checkpoints.own import load_checkpoint, load_ema
from ig_core.config import Guidance
from ig_core.transformer import DiffusionTransformer
from pipelines.__main__ import main
from pipelines.commands.run import run_experiment
from pipelines.console.console import make_console
from pipelines.graph.graph import Graph
from pipelines.graph.node import closure
from pipelines.graph.resolve import resolve
from pipelines.results.measurements import collect
from pipelines.store.home import Home
from tests.pipelines.conftest import events, run_inline, tiny


def write_published(path: Path, experiment=None, seed: int = 0) -> Path:
    """A checkpoint as the authors publish them: ema, model, optimizer and arguments."""
    torch.manual_seed(seed)
    config = (experiment or tiny()).model
    ema, raw = (
        {
            key: value if key.startswith("feat_rope.") else value + 0.05 * torch.randn(value.shape)
            for key, value in save_official(DiffusionTransformer(config)).items()
        }
        for _ in range(2)
    )
    torch.save(
        {
            "model": {f"module.{key}": value for key, value in raw.items()},
            "ema": ema,
            "opt": {"state": {}, "param_groups": []},
            "args": argparse.Namespace(lr=1e-4),
            "epoch": 799,
            "steps": 3_984_208,
        },
        path,
    )
    return path


def write_reference(path: Path, width: int = 64) -> Path:
    """Reference statistics of the ADM protocol, for digits-cnn's 64 features."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, width))
    np.savez(path, mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False))
    return path


def imported(folder: Path, **train):
    return imported_from(write_published(folder / "published.pt"), folder, **train)


def imported_from(path: Path, folder: Path, **train):
    reference = write_reference(folder / "reference.npz")
    return tiny(
        train={"from_checkpoint": str(path), **train}, evaluation={"reference": str(reference)}
    )


def test_a_published_checkpoint_ends_as_an_fid_against_a_reference(tmp_path):
    home, output = Home(tmp_path / "home"), io.StringIO()
    experiment = imported(tmp_path)
    assert run_experiment(experiment, home, make_console(file=output, width=200)) == 0
    results = collect(home.store, Graph(resolve(experiment)))
    assert results.complete
    assert [m.point.step for m in results.curve.values()] == [0, 0]
    assert all(m.fid > 0 for m in results.final.values())
    assert results.history() is None
    assert {e["kind"] for e in events(home.store, "execute")} >= {"checkpoint", "evaluate"}
    assert not [e for e in events(home.store, "execute", "checkpoint") if "world_size" in e]
    text = output.getvalue()
    assert "published.pt" in text
    assert "step 20" not in text


def test_the_averaged_weights_are_what_is_sampled(tmp_path):
    experiment = resolve(imported(tmp_path))
    home = Home(tmp_path / "home")
    graph = Graph(experiment)
    run_inline(home.store, experiment, targets=graph.checkpoints)
    folder = home.store.open(graph.checkpoints[0].ref).path
    ours = save_official(load_ema(folder))
    held = torch.load(tmp_path / "published.pt", weights_only=False)
    assert ours.keys() == held["ema"].keys()
    assert all(torch.equal(ours[key], value) for key, value in held["ema"].items())
    header = json.loads((folder / "state.json").read_text())
    assert header["imported"]["file"] == "published.pt"
    with pytest.raises(ValueError, match="cannot be trained on"):
        load_checkpoint(folder)


def test_nothing_else_of_a_training_counts(tmp_path):
    one = resolve(imported(tmp_path))
    for changes in (
        {
            "train": {
                "steps": 7,
                "seed": 3,
                "batch_size": 99,
                "checkpoint_every": 1,
                "from_checkpoint": one.train.from_checkpoint,
            }
        },
        {"optim": {"lr": 1.0}},
        {"loss": {"aux_weight": 3.0}},
    ):
        given = {
            "train": {"from_checkpoint": one.train.from_checkpoint},
            "evaluation": {"reference": one.evaluation.reference},
        } | changes
        other = resolve(tiny(**given))
        assert Graph(other).run_key == Graph(one).run_key
        assert Graph(other).targets == Graph(one).targets


def test_the_file_counts_by_its_content_and_the_architecture_by_its_fields(tmp_path):
    one = resolve(imported(tmp_path))
    moved = tmp_path / "moved.pt"
    moved.write_bytes((tmp_path / "published.pt").read_bytes())
    same = resolve(
        tiny(
            train={"from_checkpoint": str(moved)},
            evaluation={"reference": one.evaluation.reference},
        )
    )
    assert Graph(same).targets == Graph(one).targets
    assert Graph(same).run_key == Graph(one).run_key
    write_published(moved, seed=1)
    other = resolve(tiny(train={"from_checkpoint": str(moved)}))
    assert Graph(other).checkpoints != Graph(one).checkpoints
    plain = resolve(tiny(train={"from_checkpoint": str(moved)}, model={"num_heads": 4}))
    assert Graph(plain).checkpoints != Graph(other).checkpoints


def test_no_training_data_is_needed(tmp_path):
    weights = tmp_path / "inception.pth"
    weights.write_bytes(b"weights")
    changes = {
        "extractor": "inception-v3-compat",
        "extractor_weights": str(weights),
        "reference": str(write_reference(tmp_path / "reference.npz", 2048)),
    }
    path = write_published(tmp_path / "published.pt")
    graph = Graph(resolve(tiny(train={"from_checkpoint": str(path)}, evaluation=changes)))
    assert "data" not in {node.kind for node in closure(graph.targets)}
    trained = Graph(resolve(tiny(evaluation=changes)))
    assert "data" in {node.kind for node in closure(trained.targets)}


def test_a_file_that_is_not_the_pinned_one_or_does_not_fit_is_refused(tmp_path):
    pinned = resolve(imported(tmp_path))
    write_published(tmp_path / "published.pt", seed=5)
    with pytest.raises(ValueError, match="from_checkpoint must be the file with SHA-256"):
        resolve(pinned)
    with pytest.raises(ValueError, match="from_checkpoint must be a file, but got"):
        resolve(tiny(train={"from_checkpoint": str(tmp_path / "absent.pt")}))


@pytest.mark.parametrize(
    ("written", "changes", "words", "option"),
    [
        ({}, {"width": 32}, r"does not fit the model: .*instead of", ""),
        ({}, {"aux_layer": None}, r"unexpected final_layer_xr\.", "--model.aux-layer LAYER"),
        ({"aux_layer": None}, {}, r"missing final_layer_xr\.", "--model.aux-layer None"),
        ({"input_size": 16}, {}, r"pos_embed has shape \(1, 64, 16\) instead of \(1, 16, 16\)", ""),
        ({}, {"backbone": "lightningdit", "rope": True, "swiglu": True}, r"missing .*w12", ""),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_plan_and_run(
    written, changes, words, option, tmp_path, capsys
):
    def model(fields):
        parts = {"model": fields}
        if fields.get("aux_layer", 1) is None:
            parts |= {"guidance": Guidance(), "ig_scales": ()}
        return parts

    path = write_published(
        tmp_path / "w.pt", SimpleNamespace(model=replace(tiny().model, **written))
    )
    reference = write_reference(tmp_path / "reference.npz")
    experiment = tiny(
        **model(changes),
        train={"from_checkpoint": str(path)},
        evaluation={"reference": str(reference)},
    )
    with pytest.raises(ValueError, match=words):
        resolve(experiment)
    (tmp_path / "experiment.json").write_text(experiment_to_json(experiment))
    for command in ("plan", "run"):
        assert main([command, str(tmp_path / "experiment.json")]) == 2
        said = capsys.readouterr().err.replace("\n", " ")
        assert re.search(words, said)
        assert option in said
    assert not Home(tmp_path / "home").store.exists()


def test_values_are_not_read_before_a_run(tmp_path):
    """NaN is found by the stage, which reads all of the file."""
    path = write_published(tmp_path / "published.pt")
    held = torch.load(path, weights_only=False)
    held["ema"]["final_layer.linear.bias"] *= torch.nan
    torch.save(held, path)
    experiment = resolve(imported_from(path, tmp_path))
    with pytest.raises(ValueError, match="finite numbers by name"):
        run_inline(Home(tmp_path / "home").store, experiment)


def test_the_plan_says_that_a_file_is_imported(tmp_path, capsys):
    write_published(tmp_path / "published.pt")
    experiment = tmp_path / "experiment.json"
    experiment.write_text(experiment_to_json(imported(tmp_path)))
    assert main(["plan", str(experiment)]) == 0
    assert "import of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda path: (
                (path / "n01").mkdir(parents=True) or (path / "n01" / "a.JPEG").write_bytes(b"x")
            ),
            r"n01/a\.JPEG: cannot be decoded",
        ),
        (lambda path: path.write_bytes(b"x"), "not a readable .npz file"),
        (lambda path: np.savez(path.open("wb"), other=np.zeros(1)), "holds neither"),
        (
            lambda path: np.savez(
                path.open("wb"), arr_0=np.asfortranarray(np.zeros((2, 8, 8, 1), np.uint8))
            ),
            "by columns, .*ascontiguousarray",
        ),
    ],
)
def test_a_reference_is_looked_into_by_the_plan(make, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("IGDIT_HOME", str(tmp_path / "home"))
    path = tmp_path / "reference"
    make(path)
    assert main(["plan", "digits", "--evaluation.reference", str(path)]) == 2
    assert re.search(words, capsys.readouterr().err.replace("\n", " "))
