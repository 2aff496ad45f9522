"""Weights are found whatever wraps their names; an average is never passed over in silence."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest
import torch

from ig_core.checkpoints.inspection import inspect_checkpoint
from ig_core.checkpoints.official import load_official
from ig_core.codecs.files import open_codec
from tests.equipment.latent_sets import make_va_vae
from tests.ig_core.checkpoints.test_official import SIT, published

AVERAGE, RAW = published(SIT, 0), published(SIT, 1)
FIRST = "x_embedder.proj.weight"


def wrapped(tensors, *prefixes, blocks=""):
    """Names as wrappers make them: around the network, or around each of its blocks."""
    start = "".join(f"{prefix}." for prefix in prefixes)
    return {start + _inner(key, blocks): value for key, value in tensors.items()}


def _inner(key, blocks):
    head, *rest = key.split(".")
    return ".".join([head, rest[0], blocks, *rest[1:]]) if blocks and head == "blocks" else key


def average_is_read(held):
    return torch.equal(load_official(held, SIT).x_embedder.proj.weight, AVERAGE[FIRST])


@pytest.mark.parametrize(
    "prefixes",
    [
        (),
        ("module",),
        ("_orig_mod",),
        ("_orig_mod", "module"),
        ("module", "_orig_mod"),
        ("_fsdp_wrapped_module", "_orig_mod"),
        ("_forward_module", "module"),
    ],
)
@pytest.mark.parametrize("blocks", ["", "_orig_mod", "_checkpoint_wrapped_module"])
def test_what_wrappers_add_to_names_is_dropped_wherever_it_stands(prefixes, blocks):
    tensors = wrapped(AVERAGE, *prefixes, blocks=blocks)
    for held in (tensors, {"ema": tensors, "model": RAW}, {"state_dict": tensors}):
        assert average_is_read(held)


PLACES = {
    "the published one": {"ema": AVERAGE, "model": RAW},
    "deeper": {"model": RAW, "ema": {"decay": 0.9999, "model": AVERAGE}},
    "model_ema": {"model": RAW, "model_ema": AVERAGE},
    "ema_model": {"model": RAW, "ema_model": AVERAGE},
    "ema_state_dict": {"state_dict": RAW, "ema_state_dict": AVERAGE},
    "timm": {"state_dict": RAW, "state_dict_ema": AVERAGE},
    "camel case": {"model": RAW, "modelEMA": AVERAGE},
    "attributes of Lightning": {
        "state_dict": wrapped(RAW, "model")
        | wrapped(AVERAGE, "model_ema")
        | {"loss.logvar": torch.zeros(1)}
    },
    "a compiled attribute": {
        "state_dict": wrapped(RAW, "net", "_orig_mod") | wrapped(AVERAGE, "ema_model", "_orig_mod")
    },
    "AveragedModel": {
        "model": RAW,
        "ema": {"n_averaged": torch.tensor(3), **wrapped(AVERAGE, "module")},
    },
    "ema-pytorch": {
        "model": RAW,
        "ema": {
            "initted": torch.tensor(True),
            "step": torch.tensor(7),
            **wrapped(AVERAGE, "ema_model"),
            **wrapped(RAW, "online_model"),
        },
    },
    "avg": {"model": RAW, "avg_model": AVERAGE},
    "with an optimizer": {
        "model": RAW,
        "ema": AVERAGE,
        "opt": {"state": {0: {"exp_avg": torch.zeros(3), "ema": torch.ones(2)}}},
    },
}
ALONE = {
    "a bare state dict": (AVERAGE, "a bare state dict: whether averaged is not said"),
    "Lightning's": (
        {"state_dict": wrapped(AVERAGE, "net"), "epoch": 3},
        "state_dict.net: whether averaged is not said",
    ),
    "DeepSpeed's": (
        {"module": AVERAGE, "global_steps": 7},
        "a bare state dict: whether averaged is not said",
    ),
    "the published one": (
        {"model": AVERAGE, "opt": {"state": {0: {"ema": torch.ones(2)}}}},
        "as trained (model)",
    ),
    "with an optimizer by names": (
        {"model": AVERAGE, "optimizer": {"exp_avg": RAW}, "m": {"0": {"exp_avg": RAW[FIRST]}}},
        "as trained (model)",
    ),
    "ema-pytorch's": ({"online_model": AVERAGE}, "as trained (online_model)"),
}


@pytest.mark.parametrize("case", PLACES)
def test_the_average_is_found_at_its_place(case, tmp_path):
    held = PLACES[case]
    assert average_is_read(held)
    torch.save(held, tmp_path / "w.pt")
    facts = inspect_checkpoint(tmp_path / "w.pt")
    assert not facts.problems
    assert facts.weights.startswith("averaged (")


@pytest.mark.parametrize("case", ALONE)
def test_where_there_is_but_one_network_it_is_taken_and_said_what_it_is(case, tmp_path):
    held, said = ALONE[case]
    assert average_is_read(held)
    torch.save(held, tmp_path / "w.pt")
    assert inspect_checkpoint(tmp_path / "w.pt").weights == said


REFUSED = {
    "names without dots": (
        {
            "state_dict": wrapped(RAW, "model")
            | {f"model_ema.{key.replace('.', '')}": value for key, value in AVERAGE.items()}
        },
        r"averaged weights whose names are not .*model_ema\.pos_embed.*\(state_dict\.model\)",
    ),
    "a list": (
        {"model": RAW, "ema": {"decay": 0.99, "shadow_params": list(AVERAGE.values())}},
        r"averaged weights whose names are not .*\d+ \(ema\.shadow_params\.0, ",
    ),
    "an average by another word": (
        {"model": RAW, "avg": {"x_embedder_proj": AVERAGE[FIRST]}},
        r"averaged weights whose names are not .*\(avg\.x_embedder_proj\)",
    ),
    "two averages": (
        {"model": RAW, "ema": AVERAGE, "ema_0.999": AVERAGE},
        r"2 networks, .*: 2 \(ema, ema_0\.999\)",
    ),
    "two as trained": ({"model": RAW, "generator": RAW}, r"2 networks, .*: 2 \(generator, model\)"),
    "Lightning's weight averaging": (
        {"state_dict": wrapped(AVERAGE, "net"), "current_model_state": wrapped(RAW, "net")},
        r"2 networks, .*current_model_state\.net, state_dict\.net",
    ),
    "other names": (
        {"ema": {"layers.0.weight": torch.zeros(1), "layers.0.bias": torch.zeros(1)}},
        r"holds no weights of a SiT or .*names found, ema\.layers\.0\.weight, ema\.",
    ),
    "twice": ({"ema": AVERAGE | wrapped(AVERAGE, "_orig_mod")}, r"once, .*got ema\._orig_mod\."),
    "without an end": (None, "must hold at most 1,000,000 entries"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_are_not_clearly_these_are_refused_with_the_names_found(case):
    held, words = REFUSED[case]
    if held is None:
        held = {}
        held |= {str(number): held for number in range(40)}
    with pytest.raises(ValueError, match=words):
        load_official(held, SIT)


def test_numbers_of_numpy_beside_the_weights_are_harmless(tmp_path):
    path = tmp_path / "w.pt"
    beside = {
        "fid": np.float64(2.5),
        "epoch": np.int64(3),
        "best": np.bool_(True),
        "old": np.array([1.5], ">f4")[0],
        "all": [np.float32(0.25)],
        "named": collections.OrderedDict(loss=np.float16(1)),
    }
    torch.save({"ema": AVERAGE, **beside}, path)
    assert average_is_read(path)
    assert inspect_checkpoint(path).length == {"epoch": 3}
    torch.save({"ema": AVERAGE, "rng": np.arange(3)}, path)
    with pytest.raises(ValueError, match=r"more than tensors and plain .*_reconstruct.*save the w"):
        load_official(path, SIT)


@pytest.mark.parametrize(
    "pair", list(itertools.product(["", "first_stage_model."], ["", "_orig_mod."]))
)
def test_a_wrapped_autoencoder_is_found_too(pair, tmp_path):
    path, network = make_va_vae(tmp_path / "vavae.pt")
    expected = open_codec("va-vae", path).encoder_digest
    weights = {"".join(pair) + key: value for key, value in network.state_dict().items()}
    torch.save({"state_dict": {**weights, "loss.logvar": torch.zeros(())}}, path)
    assert open_codec("va-vae", path).encoder_digest == expected
