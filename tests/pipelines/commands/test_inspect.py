"""`igdit inspect`: descriptions of checkpoints and caches of latents, and their problems."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments import DataConfig
from ig_core.checkpoints.inspection import inspect_checkpoint
from ig_core.checkpoints.official import save_official
from ig_core.config import ModelConfig, OptimConfig, model_config
from ig_core.data.inspection import inspect_latents
from ig_core.training.state import TrainState
from ig_core.transformer import DiffusionTransformer
from pipelines.__main__ import main
from tests.pipelines.stages.training.test_imported import write_published

SIT = ModelConfig(
    backbone="sit",
    depth=3,
    width=32,
    num_heads=2,
    patch_size=2,
    input_size=8,
    in_channels=4,
    num_classes=10,
    aux_layer=1,
)
LIGHT = replace(SIT, backbone="lightningdit", patch_size=1, rope=True, rms_norm=True, swiglu=True)


def save(path, config, **others):
    torch.save({"ema": save_official(DiffusionTransformer(config)), **others}, path)
    return path


@pytest.mark.parametrize("config", [SIT, LIGHT], ids=["sit", "lightningdit"])
@pytest.mark.parametrize("head", [True, False])
def test_the_architecture_is_read_from_the_shapes(config, head, tmp_path):
    config = config if head else replace(config, aux_layer=None)
    path = save(tmp_path / "w.pt", replace(config, mlp_ratio=4.0))
    facts = inspect_checkpoint(path)
    assert not facts.problems
    assert facts.has_head == head
    # SiT's files do not tell the number of heads: it is said to be a guess.
    heads = 2 if config.rope else 1
    assert facts.config == replace(config, num_heads=heads)
    assert facts.time_reversed == (config.backbone == "lightningdit")
    assert ("guess from its width" in facts.assumed.get("num_heads", "")) == (not config.rope)
    assert facts.parameters == sum(p.numel() for p in DiffusionTransformer(config).parameters())


@pytest.mark.parametrize("name", ["SiT-S/2", "LightningDiT-B/1"])
def test_a_published_size_is_named(name, tmp_path):
    facts = inspect_checkpoint(save(tmp_path / "w.pt", model_config(name)))
    assert facts.preset == name
    assert facts.config == model_config(name)
    assert not facts.problems


def test_what_a_file_holds_and_lacks_is_said(tmp_path, capsys):
    path = write_published(tmp_path / "published.pt")
    facts = inspect_checkpoint(path)
    assert facts.weights == "averaged (ema)"
    assert facts.length == {"epoch": 799, "steps": 3_984_208}
    assert facts.holds == ("args", "ema", "epoch", "model", "opt", "steps")
    assert any("not trained further" in note for note in facts.notes)
    assert main(["inspect", str(path)]) == 0
    output = capsys.readouterr().out
    assert "with auxiliary head" in output
    assert "block the auxiliary head reads" in output
    assert "(--model.aux-layer)" in output
    assert "epoch 799, steps 3,984,208" in output
    raw = torch.load(path, weights_only=False)["model"]
    torch.save({"model": raw}, path)
    assert "no averaged weights" in " ".join(inspect_checkpoint(path).notes)


def test_the_original_sits_double_head_is_explained(tmp_path):
    tensors = save_official(DiffusionTransformer(replace(SIT, aux_layer=None)))
    tensors["final_layer.linear.weight"] = torch.randn(32, 32)
    tensors["final_layer.linear.bias"] = torch.randn(32)
    torch.save(tensors, tmp_path / "w.pt")
    facts = inspect_checkpoint(tmp_path / "w.pt")
    assert not facts.problems
    assert facts.time_reversed
    assert any("DiT has the same names" in note for note in facts.notes)


def test_what_would_go_wrong_is_listed_and_is_exit_code_one(tmp_path, capsys):
    tensors = save_official(DiffusionTransformer(SIT))
    del tensors["blocks.1.attn.qkv.bias"]
    tensors["blocks.0.attn.proj.bias"] = torch.full((32,), torch.nan)
    torch.save({"ema": tensors}, tmp_path / "w.pt")
    assert main(["inspect", str(tmp_path / "w.pt")]) == 1
    output = capsys.readouterr().out
    assert "missing blocks.1.attn.qkv.bias" in output
    assert "blocks.0.attn.proj.bias holds NaN" in output


def test_a_checkpoint_of_ones_own(tmp_path, capsys):
    from ig_core.checkpoints.own import save_checkpoint

    save_checkpoint(TrainState.new(SIT, OptimConfig(), 0, "cpu"), tmp_path / "own")
    assert main(["inspect", str(tmp_path / "own")]) == 0
    output = capsys.readouterr().out
    assert "after block 1" in output
    assert "averaged (ema), as trained (model)" in output


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_other_files_are_one_message(content, tmp_path, capsys):
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    assert main(["inspect", str(path)]) == 2
    assert "cannot be read as a checkpoint" in capsys.readouterr().err
    torch.save({"weight": torch.zeros(3)}, path)
    assert main(["inspect", str(path)]) == 2
    assert "holds no weights of a SiT or LightningDiT" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "absent.pt")]) == 2
    assert main(["inspect", str(tmp_path)]) == 2
    assert "no cache of latents that is known" in capsys.readouterr().err


# Latents


def repa(folder, count=6, classes=3, scale=5.0):
    rng = np.random.default_rng(0)
    entries = []
    for i in range(count):
        name = f"{i // 1000:05d}/img-mean-std-{i:08d}.npy"
        (folder / "vae-sd" / name).parent.mkdir(parents=True, exist_ok=True)
        moments = np.concatenate([scale * rng.normal(size=(4, 32, 32)), np.ones((4, 32, 32))])
        np.save(folder / "vae-sd" / name, moments.astype(np.float32))
        entries.append([name, i % classes])
    (folder / "vae-sd" / "dataset.json").write_text(json.dumps({"labels": entries}))
    return folder


def lightning(folder, shards=2, flip=True, offset=0.0):
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for i in range(shards):
        latents = torch.randn(12, 32, 16, 16, generator=generator) + offset
        tensors = {"latents": latents, "labels": torch.arange(12) % 4}
        tensors |= {"latents_flip": latents.flip(3).contiguous()} if flip else {}
        save_file(tensors, folder / f"latents_rank00_shard{i:03d}.safetensors")
    ones = torch.ones(1, 32, 1, 1)
    torch.save({"mean": 0 * ones, "std": ones}, folder / "latents_stats.pt")
    return folder


def test_repas_latents(tmp_path, capsys):
    folder = repa(tmp_path / "data")
    facts = inspect_latents(folder)
    assert not facts.problems
    assert facts.shape == (8, 32, 32)
    assert dict(facts.labels) == {0: 2, 1: 2, 2: 2}
    assert main(["inspect", str(folder)]) == 0
    output = capsys.readouterr().out
    for words in ("SD-VAE f8", "moments", "0.18215", "none: images are learnt", "6 in 6 files"):
        assert words in output


def test_lightningdits_latents(tmp_path, capsys):
    folder = lightning(tmp_path / "data")
    facts = inspect_latents(folder)
    assert not facts.problems
    assert facts.count == 24
    assert main(["inspect", str(folder)]) == 0
    output = capsys.readouterr().out
    for words in (
        "VA-VAE f16",
        "samples of the posterior",
        "a mirrored latent beside each",
        "24 in 2 files",
    ):
        assert words in output


def break_std(folder):
    path = next((folder / "vae-sd").rglob("*.npy"))
    np.save(path, -np.load(path))


def lose_a_file(folder):
    next((folder / "vae-sd").rglob("*.npy")).unlink()


def add_a_file(folder):
    np.save(folder / "vae-sd" / "more.npy", np.zeros((8, 32, 32), dtype=np.float32))


def pickle_a_file(folder):
    path = next((folder / "vae-sd").rglob("*.npy"))
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (break_std, "log-variance or a sample"),
        (lose_a_file, "gives labels to 6 names, but 1 (00000/img-mean-std-00000"),
        (add_a_file, "dataset.json has no label for more.npy"),
        (pickle_a_file, "npy is not a readable .npy file: Object arrays cannot be loaded"),
    ],
)
def test_what_is_wrong_with_repas_latents(change, words, tmp_path):
    folder = repa(tmp_path / "data")
    change(folder)
    assert any(words in problem for problem in inspect_latents(folder).problems)


def test_latents_that_are_scaled_already_are_noticed(tmp_path):
    problems = inspect_latents(repa(tmp_path / "data", scale=1.0)).problems
    assert any("multiplied by 0.18215 already" in problem for problem in problems)


def test_what_is_wrong_with_lightningdits_latents(tmp_path):
    folder = lightning(tmp_path / "plain", flip=False)
    assert any("holds no mirrored latents" in p for p in inspect_latents(folder).problems)
    (folder / "latents_stats.pt").unlink()
    assert any("latents_stats.pt, which is missing" in p for p in inspect_latents(folder).problems)
    other = inspect_latents(lightning(tmp_path / "other", offset=9.0))
    assert any("they are of other latents" in problem for problem in other.problems)
    damaged = lightning(tmp_path / "damaged")
    (damaged / "latents_rank00_shard001.safetensors").write_bytes(b"\x00" * 20)
    found = inspect_latents(damaged)
    assert any(
        "shard001.safetensors cannot be read: it is not a safetensors" in p for p in found.problems
    )
    with pytest.raises(ValueError, match="no cache of latents that is known"):
        inspect_latents(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {"latents": torch.zeros(4, 32, 2, 2), "labels": torch.zeros(4, 1, dtype=torch.int64)},
            r"labels must be integers \(4,\), but are \(4, 1\)",
        ),
        (
            {"latents": torch.zeros(4, 32, 2, 2), "labels": torch.zeros(3, dtype=torch.int64)},
            r"holds 4 latents, but 3 labels",
        ),
        (
            {"latents": torch.zeros(4, 32, 2, 2), "labels": torch.zeros(4)},
            r"labels must be integers \(4,\), but are \(4,\) of F32",
        ),
        (
            {"latents": torch.zeros(()), "labels": torch.zeros((), dtype=torch.int64)},
            r"latents must be \(N, C, H, W\) of BF16.* but are \(\)",
        ),
        ({"weight": torch.zeros(3)}, "must hold latents and labels, but holds weight"),
    ],
)
def test_shards_of_other_shapes_are_one_message(tensors, words, tmp_path, capsys):
    save_file(tensors, tmp_path / "latents_rank00_shard000.safetensors")
    assert main(["inspect", str(tmp_path)]) == 1
    assert re.search(words, capsys.readouterr().out.replace("\n", " "))


def test_shards_of_the_sd_vae_by_any_name_are_what_a_run_takes_them_for(tmp_path, capsys):
    """Factor 0.18215, no statistics; a run's normalisation is in `test_latents`."""
    folder = tmp_path / "data"
    folder.mkdir()
    latents = torch.randn(12, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    save_file({"latents": 5.5 * latents, "labels": torch.arange(12) % 4}, folder / "a.safetensors")
    assert main(["inspect", str(folder)]) == 0
    output = capsys.readouterr().out
    for words in ("SD-VAE f8", "to be multiplied by 0.18215", "none needed", "12 in 1 files"):
        assert words in output
    torch.save({"mean": torch.zeros(4), "std": torch.ones(4)}, folder / "latents_stats.pt")
    assert main(["inspect", str(folder)]) == 0
    assert "is there, but not used" in capsys.readouterr().out
    save_file({"latents": latents, "labels": torch.arange(12) % 4}, folder / "a.safetensors")
    assert main(["inspect", str(folder)]) == 1
    assert "multiplied by 0.18215 already" in capsys.readouterr().out.replace("\n", " ")


def test_missing_labels_are_noticed(tmp_path):
    folder = repa(tmp_path / "data")
    path = folder / "vae-sd" / "dataset.json"
    entries = json.loads(path.read_text())["labels"]
    path.write_text(json.dumps({"labels": [[name, label * 2] for name, label in entries]}))
    assert any("only 3 of them occur" in note for note in inspect_latents(folder).notes)
    path.write_text("[1")
    assert any("must be JSON" in problem for problem in inspect_latents(folder).problems)


def float16(folder):
    for path in folder.rglob("*.npy"):
        np.save(path, np.load(path).astype(np.float16))


def by_columns(folder):
    for path in folder.rglob("*.npy"):
        np.save(path, np.asfortranarray(np.load(path)))


def relabel(change):
    def go(folder):
        path = folder / "vae-sd" / "dataset.json"
        entries = json.loads(path.read_text())["labels"]
        path.write_text(json.dumps(change(entries)))

    return go


def array(values):
    def go(folder):
        np.save(next(folder.rglob("*.npy")), values)

    return go


def shard(number, **tensors):
    def go(folder):
        path = folder / f"latents_rank00_shard{number:03d}.safetensors"
        save_file({**load_file(path), **tensors} if tensors else {}, path)

    return go


def lose_shard(number):
    return lambda folder: (folder / f"latents_rank00_shard{number:03d}.safetensors").unlink()


def statistics(value):
    return lambda folder: torch.save(value, folder / "latents_stats.pt")


ONES, NARROW = torch.ones(12, 32, 16, 16), torch.ones(12, 32, 8, 16)
VARIANTS = [
    (repa, change)
    for change in (
        None,
        float16,
        by_columns,
        lose_a_file,
        add_a_file,
        pickle_a_file,
        break_std,
        relabel(
            lambda pairs: {
                "labels": [[f".\\{name.replace('/', chr(92))}", label] for name, label in pairs]
            }
        ),
        relabel(dict),
        relabel(lambda pairs: {"labels": pairs + pairs[:1]}),
        relabel(lambda pairs: {"labels": [[name, -1] for name, _ in pairs]}),
        relabel(lambda pairs: {"labels": [[name, 2.0 * label] for name, label in pairs]}),
        relabel(lambda pairs: {"labels": [[name, str(label)] for name, label in pairs]}),
        relabel(lambda pairs: {"labels": None}),
        array(np.zeros((4, 32, 32), np.float32)),
        array(np.zeros((8, 32, 32), np.int64)),
        array(np.full((8, 32, 32), np.nan)),
        array(np.ones((1, 8, 32, 32), np.float64)),
        array(np.zeros(3)),
    )
] + [
    (lightning, change)
    for change in (
        None,
        lose_shard(1),
        lose_shard(2),
        shard(1),
        shard(1, latents=ONES.bfloat16()),
        shard(0, latents=ONES.long()),
        shard(0, labels=torch.arange(12.0)),
        shard(0, labels=torch.arange(11)),
        shard(2, labels=-torch.ones(12, dtype=torch.int32)),
        shard(1, latents_flip=ONES[:11]),
        shard(1, latents=NARROW, latents_flip=NARROW.clone()),
        shard(2, latents=ONES * torch.nan),
        statistics({"mean": torch.zeros(32)}),
        statistics({"mean": torch.zeros(32), "std": torch.ones(32)}),
        statistics({"mean": torch.full((32,), 9.0), "std": torch.ones(32)}),
        lambda folder: (folder / "latents_stats.pt").unlink(),
        lambda folder: (folder / "other.tar").touch(),
    )
]


def taken_by_a_run(folder, codec):
    """Whether a run pins a source and converts all of it, with the published settings."""
    from ig_core.data.sources.rows import latent_rows
    from ig_core.data.sources.source import list_source
    from pipelines.graph.source_checks import check_rows, resolve_source

    known = {
        "sd-vae": {"channels": 4, "side": 32, "resolution": 256},
        "va-vae": {"channels": 32, "side": 16, "resolution": 256, "flip": True},
    }
    data = DataConfig(
        source="latents", codec=codec, path=str(folder), num_classes=1000, **known[codec]
    )
    try:
        resolve_source(data, folder, imported=False)
        listing = list_source(folder, 1000)
        check_rows(data, listing, latent_rows(listing, 0, len(listing)), 0)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("case", range(len(VARIANTS)))
def test_the_verdict_is_that_of_a_run(case, tmp_path, capsys):
    write, change = VARIANTS[case]
    folder = write(tmp_path / "data") if write is repa else write(tmp_path / "data", shards=3)
    if change is not None:
        change(folder)
    taken = taken_by_a_run(folder, "sd-vae" if write is repa else "va-vae")
    assert main(["inspect", str(folder)]) == (0 if taken else 1)
    assert capsys.readouterr().out.count("Problem") == (not taken)


def test_the_variants_are_of_both_kinds(tmp_path):
    found = []
    for number, (write, change) in enumerate(VARIANTS):
        folder = write(tmp_path / str(number))
        if write is repa and change is not None:
            change(folder)
            found.append(taken_by_a_run(folder, "sd-vae"))
    assert 4 <= sum(found) <= len(found) - 8


def latents_in_a_store(tmp_path, spread=5.5, classes=4):
    """A store with SD-VAE latents in two shards, and their graph."""
    from pipelines.graph.graph import Graph
    from pipelines.graph.resolve import resolve
    from pipelines.store.folder import FolderStore
    from tests.equipment.latent_sets import make_sd_vae, sd_moments, write_npy
    from tests.pipelines.conftest import run_inline, tiny

    path = write_npy(tmp_path / "npy", sd_moments(7, spread=spread), np.arange(7) % 3)
    (tmp_path / "weights.pt").write_bytes(b"are not read here")
    np.savez(tmp_path / "reference.npz", mu=np.zeros(1), sigma=np.ones((1, 1)))
    data = DataConfig(
        source="latents",
        path=str(path),
        codec="sd-vae",
        channels=4,
        side=4,
        resolution=32,
        num_classes=classes,
        shard_size=4,
        codec_path=str(make_sd_vae(tmp_path / "sd")),
        check_statistics=False,
    )
    experiment = resolve(
        tiny(
            data=data,
            model={"in_channels": 4, "input_size": 4, "num_classes": classes},
            evaluation={
                "extractor": "inception-v3-compat",
                "extractor_weights": str(tmp_path / "weights.pt"),
                "reference": str(tmp_path / "reference.npz"),
            },
        )
    )
    store = FolderStore(tmp_path / "store")
    return store, run_inline(store, experiment, [Graph(experiment).data])


def test_latents_in_the_store(tmp_path, capsys):
    store, graph = latents_in_a_store(tmp_path)
    assert main(["inspect", str(store.open(graph.data.ref).path)]) == 1
    output = capsys.readouterr().out
    for words in (
        "igdit's own, 2 shards",
        "sd-vae",
        "factor 0.1822",
        "7",
        "3: 2 (label",
        "moments of sd-vae's posterior",
        "8 x 4 x 4",
        "flips         none",
        "Problem: 1 labels have no latent, for example 3",
    ):
        assert words in output
    assert output.count("Problem") == 1
    shard = graph.data.inputs["part-00000"]
    assert main(["inspect", str(store.open(shard.ref).path)]) == 0
    output = capsys.readouterr().out
    assert "8 x 4 x 4" in output
    assert "moments of sd-vae's posterior" in output


@pytest.mark.parametrize(("spread", "wrong"), [(1.0, True), (5.5, False), (40.0, True)])
def test_latents_in_the_store_should_be_as_spread_out_as_noise(spread, wrong, tmp_path, capsys):
    store, graph = latents_in_a_store(tmp_path, spread, classes=3)
    assert main(["inspect", str(store.open(graph.data.ref).path)]) == wrong
    assert ("their standard deviation times the factor is" in capsys.readouterr().out) == wrong


def test_images_that_were_converted_were_not_left_out(tmp_path, capsys):
    store, graph = latents_in_a_store(tmp_path, classes=3)
    copy = tmp_path / "elsewhere" / "data"
    shutil.copytree(store.open(graph.data.ref).path, copy)
    about = json.loads((copy / "statistics.json").read_text())
    faults = ["cannot be decoded: cut short"] * 5 + ["is CMYK, converted to RGB"]
    about["broken"] = [{"name": f"{i}.jpg", "fault": fault} for i, fault in enumerate(faults)]
    about["oriented"] = 4
    (copy / "statistics.json").chmod(0o644)
    (copy / "statistics.json").write_text(json.dumps(about))
    assert main(["inspect", str(copy)]) == 0
    output = capsys.readouterr().out
    for words in (
        "Note: 5 images were left out.",
        "Note: 1 images were converted to RGB.",
        "Note: 4 images have an EXIF orientation, which is not applied",
        "Note: 2 of 2 shards do not lie beside it.",
    ):
        assert words in output


# What is no checkpoint


def test_a_path_with_spaces_can_be_pasted(tmp_path, capsys):
    from experiments import get_experiment

    folder = tmp_path / "a folder"
    folder.mkdir()
    config = get_experiment("sit_b2_ig").model
    path = folder / "w.pt"
    tensors = save_official(DiffusionTransformer(config))
    torch.save({"ema": {name: value.half() for name, value in tensors.items()}}, path)
    assert main(["inspect", str(path)]) == 0
    assert f"--train.from-checkpoint '{path}'" in capsys.readouterr().out


def test_a_decoder_is_recognised_and_tried(tmp_path, capsys):
    from tests.equipment.latent_sets import make_sd_vae

    folder = make_sd_vae(tmp_path / "sd vae")
    for path in (folder, folder / "diffusion_pytorch_model.safetensors"):
        assert main(["inspect", str(path)]) == 0
        output = capsys.readouterr().out
        for words in (
            "SD-VAE of diffusers",
            "4 channels, 8 pixels a cell",
            "0.18215",
            f"--data.codec sd-vae --data.codec-path '{folder}'",
        ):
            assert words in output
    assert f"takes the folder, {folder}" in output
    assert main(["inspect", str(make_sd_vae(tmp_path / "sdxl", scale=0.13025))]) == 1
    assert "scaling_factor 0.18215" in capsys.readouterr().out
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main(["inspect", str(folder)]) == 1
    assert "cannot be read" in capsys.readouterr().out
    weights.unlink()
    assert main(["inspect", str(folder)]) == 1
    assert "has no diffusion_pytorch_model.safetensors" in capsys.readouterr().out
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    assert main(["inspect", str(folder)]) == 1
    assert "UNet2DModel of diffusers" in capsys.readouterr().out
    (folder / "config.json").write_text("[]")
    assert main(["inspect", str(folder)]) == 2
    assert "config.json does not describe a model of diffusers" in capsys.readouterr().err


def test_a_va_vae_is_recognised_and_tried(tmp_path, capsys):
    from tests.equipment.latent_sets import make_va_vae

    path, network = make_va_vae(tmp_path / "vavae.pt")
    assert main(["inspect", str(path)]) == 0
    output = capsys.readouterr().out
    for words in (
        "VA-VAE in the names of latent diffusion",
        "32 channels, 16 pixels a cell",
        f"--data.codec va-vae --data.codec-path {path}",
    ):
        assert words in output
    weights = dict(network.state_dict())
    del weights["decoder.conv_out.bias"]
    torch.save({"state_dict": weights}, path)
    assert main(["inspect", str(path)]) == 1
    assert "as the va-vae: " in capsys.readouterr().out
    del weights["encoder.conv_in.weight"]
    torch.save({**weights, 3: 4}, path)
    assert main(["inspect", str(path)]) == 1
    assert "it is not the va-vae: " in capsys.readouterr().out


def test_a_shard_and_its_statistics_are_recognised(tmp_path, capsys):
    folder = lightning(tmp_path / "data")
    shard = folder / "latents_rank00_shard001.safetensors"
    assert main(["inspect", str(shard)]) == 0
    output = capsys.readouterr().out
    assert "24 in 2 files" in output
    assert f"shard001.safetensors is one of its shards: --data.path takes the folder, {folder}" in (
        output
    )
    assert main(["inspect", str(folder / "latents_stats.pt")]) == 0
    assert "mean and standard deviation of 32 channels" in capsys.readouterr().out
    torch.save({"mean": torch.zeros(32), "std": torch.zeros(32)}, folder / "latents_stats.pt")
    assert main(["inspect", str(folder / "latents_stats.pt")]) == 1
    assert "a positive std of 32 channels, but those of 32 are not so" in capsys.readouterr().out
    for mean in (1, torch.zeros(0), torch.zeros(32, dtype=torch.int64)):
        torch.save({"mean": mean, "std": torch.ones(32)}, folder / "latents_stats.pt")
        assert main(["inspect", str(folder / "latents_stats.pt")]) == 2
        assert "mean must be a tensor of floating-point numbers" in capsys.readouterr().err
