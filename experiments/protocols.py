"""Evaluation protocols by name: what makes one FID comparable with another.

A protocol is an `EvaluationConfig`. Seeds of noise, sizes of shards and where files lie are no part
of it; everything else is. `igdit evaluate --protocol NAME` takes one of these, an experiment calls
one. A number is only ever compared with numbers of the same fingerprint
(`pipelines.graph.fingerprint`), of which the protocol is the part that a person names.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from experiments.schema import EvaluationConfig

if TYPE_CHECKING:
    from collections.abc import Callable

NO_PART = (
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
    """5,000 class-balanced samples against scikit-learn's digits; a small CNN's 64 features."""
    return EvaluationConfig()


def adm_imagenet256(weights: str | None = None, reference: str | None = None) -> EvaluationConfig:
    """ADM's protocol on ImageNet 256x256 (Dhariwal and Nichol 2021, `evaluations/evaluator.py`).

    50,000 samples with random labels (and class-balanced ones, from the same pool); Inception-v3 of
    2015; FID and sFID against the moments of the training set, precision and recall against the
    10,000 images of the reference batch; Inception Score over 10 splits.

    Args:
        weights: Weights of Inception-v3 in torch-fidelity's port; None: still to be named.
        reference: `VIRTUAL_imagenet256_labeled.npz`; None: still to be named.
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


def get_protocol(name: str, weights: str | None, reference: str | None) -> EvaluationConfig:
    """The protocol of that name, with the files that it needs.

    Raises:
        ValueError: there is none, or a file it needs is not named.
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
    """Protocol that an evaluation follows to the letter, else "custom"."""
    for name, make in PROTOCOLS.items():
        protocol = make() if name == "digits" else make("weights", "reference")
        if protocol_essence(protocol) == protocol_essence(evaluation):
            return name
    return CUSTOM


def protocol_essence(evaluation: EvaluationConfig) -> dict[str, object]:
    """Return the settings of an evaluation that are part of its protocol, by name."""
    values = dataclasses.asdict(evaluation)
    named = {name: values[name] is not None for name in ("extractor_weights", "reference")}
    return {name: value for name, value in values.items() if name not in NO_PART} | named
