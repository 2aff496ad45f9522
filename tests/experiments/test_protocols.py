"""Protocols by name."""

from dataclasses import replace

import pytest

from experiments.protocols import adm_imagenet256, digits, get_protocol, protocol_name


def test_the_protocol_of_adm_is_the_published_one():
    protocol = get_protocol("adm-imagenet256", "inception.pth", "VIRTUAL.npz")
    assert protocol == adm_imagenet256("inception.pth", "VIRTUAL.npz")
    assert (protocol.num_samples, protocol.labels, protocol.isc_splits) == (50_000, "random", 10)
    assert protocol.extractor == "inception-v3-compat"
    assert protocol_name(protocol) == "adm-imagenet256"


def test_files_banks_and_shards_are_no_part_of_a_protocol():
    files = {"extractor_weights": "c", "weights_sha256": "0" * 64, "reference_sha256": "1" * 64}
    moved = replace(adm_imagenet256("a", "b"), seed=7, shard_size=17, curve_samples=5000, **files)
    assert protocol_name(moved) == "adm-imagenet256"
    assert protocol_name(replace(digits(), seed=3)) == "digits"


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": 10_000},
        {"labels": "random"},
        {"isc_splits": 5},
        {"reference": "other.npz"},
        {"kid_subset_size": 100},
        {"extractor_seed": 1},
    ],
)
def test_any_other_change_makes_it_another_protocol(change):
    assert protocol_name(replace(digits(), **change)) == "custom"


@pytest.mark.parametrize(
    ("name", "weights", "reference", "words"),
    [
        ("adm", "w", "r", "protocol must be one of digits, adm-imagenet256, but got 'adm'"),
        ("adm-imagenet256", None, "r", "needs --weights FILE"),
        ("adm-imagenet256", "w", None, "needs --reference FILE"),
    ],
)
def test_a_protocol_that_is_none_or_lacks_a_file_is_refused(name, weights, reference, words):
    with pytest.raises(ValueError, match=words):
        get_protocol(name, weights, reference)
