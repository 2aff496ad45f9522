"""Evaluation protocols by name.

A protocol is an `EvaluationConfig` without seeds of noise, sizes of shards and paths of files.
`igdit evaluate --protocol NAME` takes one of these, an experiment calls one. A number is compared
only with numbers of the same fingerprint (`pipelines.graph.fingerprint`); the protocol is the part
of it that has a name.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from experiments.schema import EvaluationConfig

if TYPE_CHECKING:
    from collections.abc import Callable

NOT_IN_PROTOCOL = (
    "extractor_weights",
    "reference",
    "shard_size",
    "seed",
    "holdout_seed",
    "curve_samples",
    "groups",
    "weights_sha256",
    "reference_sha256",
    "reference_content",
    "reference_resolution",
)
"""Fields of an evaluation that are no part of its protocol."""
INCEPTION_2015_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`, 95,628,359 bytes; the same bytes as
pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`. Both names hold the first eight digits."""
ADM_REFERENCE_IMAGES = 10_000
"""Images in `arr_0` of ADM's `VIRTUAL_imagenet256_labeled.npz`."""


def digits() -> EvaluationConfig:
    """Return the protocol of the digits: 5,000 class-balanced samples, 64 features of a CNN."""
    return EvaluationConfig()


def adm_imagenet256(weights: str | None = None, reference: str | None = None) -> EvaluationConfig:
    """Return ADM's protocol on ImageNet 256x256 (Dhariwal and Nichol 2021, `evaluator.py`).

    50,000 samples with random labels (and class-balanced ones, from the same pool); Inception-v3 of
    2015; FID and sFID against the moments of the training set, precision and recall against the
    10,000 images of the reference batch; Inception Score over 10 splits.

    Args:
        weights: Weights of Inception-v3 in torch-fidelity's port; None if not named yet.
        reference: `VIRTUAL_imagenet256_labeled.npz`; None if not named yet.
    """
    return EvaluationConfig(
        extractor="inception-v3-compat",
        extractor_weights=weights,
        reference=reference,
        num_samples=50_000,
        curve_samples=10_000,
        labels="random",
        isc_splits=10,
        kid_subsets=100,
        kid_subset_size=1000,
    )


PROTOCOLS: dict[str, Callable[..., EvaluationConfig]] = {
    "digits": digits,
    "adm-imagenet256": adm_imagenet256,
}
CUSTOM = "custom"
"""Name of every other protocol."""


def get_protocol(name: str, weights: str | None, reference: str | None) -> EvaluationConfig:
    """Return a protocol by its name, with the files that it needs.

    Raises:
        ValueError: If there is no such protocol, or a file that it needs is not named.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, but got {name!r}")
    if name == "digits":
        if reference is not None or weights is not None:
            raise ValueError(
                f"protocol digits has its own reference and extractor, but got "
                f"{reference or weights!r}"
            )
        return digits()
    for option, value in (("weights", weights), ("reference", reference)):
        if value is None:
            raise ValueError(f"protocol {name} needs --{option} FILE, but got None")
    return PROTOCOLS[name](weights, reference)


def protocol_name(evaluation: EvaluationConfig) -> str:
    """Return the name of the protocol that an evaluation follows exactly, else "custom"."""
    for name, make in PROTOCOLS.items():
        protocol = make() if name == "digits" else make("weights", "reference")
        if protocol_settings(protocol) == protocol_settings(evaluation):
            return name
    return CUSTOM


def protocol_settings(evaluation: EvaluationConfig) -> dict[str, object]:
    """Return the settings of an evaluation that are part of its protocol, by field."""
    values = dataclasses.asdict(evaluation)
    named = {name: values[name] is not None for name in ("extractor_weights", "reference")}
    return {name: value for name, value in values.items() if name not in NOT_IN_PROTOCOL} | named
