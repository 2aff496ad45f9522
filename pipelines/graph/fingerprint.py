"""Fingerprint of an evaluation: numbers compare if their fingerprints are equal.

It holds everything that an FID depends on besides the model and its guidance: reference, number of
samples, labels, seed of the noise, sampler and its number of network evaluations, precision,
rounding to uint8, decoder, extractor and its weights. Numbers of different fingerprints are never
ranked.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from pipelines.common.formatting import value_text
from pipelines.graph.node import VERSIONS, Node
from pipelines.store.keys import content_key

if TYPE_CHECKING:
    from collections.abc import Iterable

UINT8_RULE = "round(127.5 (x + 1)), clamped to 0..255"
"""Rounding of samples in [-1, 1] to pixels (`ig_core.images.sets.to_uint8`)."""


@dataclass(frozen=True)
class Fingerprint:
    """Everything that two comparable measurements share."""

    reference: str
    """Artifact of the reference; its key is a hash of its content and of the extractor."""
    extractor: str
    """Name and hash of the weights."""
    num_samples: int
    """Number of images."""
    labels: str
    """balanced or random."""
    noise_seed: int | None
    """Seed of the sampling noise; None if the images were made elsewhere."""
    shuffled: bool
    """True if the images were put into a random order before they were grouped."""
    sampler: dict[str, Any] | None
    """Method, steps, shift, precision; None if the images were made elsewhere."""
    network_evaluations: int | None
    """Evaluations of the network for an image (under one guidance)."""
    pixels: str
    """Rounding to uint8."""
    decoder: str
    """Codec that decodes latents to pixels."""
    settings: dict[str, Any]
    """Settings of KID and Inception Score."""
    versions: dict[str, int]
    """Versions of the code that samples and measures."""

    @property
    def id(self) -> str:
        """Twelve digits; the same if and only if the numbers can be compared."""
        return content_key({field.name: getattr(self, field.name) for field in fields(self)})[:12]

    def differences(self, other: Fingerprint) -> list[str]:
        """List the protocol differences that make two results incomparable."""
        found: list[str] = []
        for field in fields(self):
            one, two = getattr(self, field.name), getattr(other, field.name)
            pairs = {field.name: (one, two)}
            if isinstance(one, dict) and isinstance(two, dict):  # of these what differs in them
                names = dict.fromkeys((*one, *two))
                pairs = {f"{field.name} {name}": (one.get(name), two.get(name)) for name in names}
            found += [
                f"{name.replace('_', ' ')} {value_text(mine)} and {value_text(theirs)}"
                for name, (mine, theirs) in pairs.items()
                if mine != theirs
            ]
        return found


def fingerprint(evaluate: Node) -> Fingerprint:
    """Return the fingerprint of an evaluation, from the nodes that it is made of."""
    sample, reference = evaluate.inputs["sample"], evaluate.inputs["reference"]
    features = next(node for name, node in evaluate.inputs.items() if name.startswith("part-"))
    images, extractor = features.inputs["images"], features.inputs["extractor"]
    sampler = images.config.get("sampler")
    used = ("images", "features", "reference", "evaluate")
    weights = extractor.config.get("weights_sha256", extractor.key)
    return Fingerprint(
        reference=str(reference.ref),
        extractor=f"{extractor.config['name']} {weights}",
        num_samples=sample.config["num_samples"],
        labels=sample.config.get("labels", images.config.get("labels", "as given")),
        noise_seed=images.config.get("seed"),
        shuffled="shuffle_seed" in evaluate.config,
        sampler=sampler,
        network_evaluations=_network_evaluations(sampler),
        pixels=UINT8_RULE if sampler else "made elsewhere",
        decoder=_decoder(images.config),
        settings={
            name: evaluate.config[name] for name in ("kid_subsets", "kid_subset_size", "isc_splits")
        },
        versions={kind: VERSIONS[kind] for kind in used},
    )


def _decoder(images: dict[str, Any]) -> str:
    if "sampler" not in images:
        return "made elsewhere"
    decoder = images.get("decoder")
    return (
        "none: the model works on pixels"
        if decoder is None
        else f"{decoder['codec']} {decoder['sha256']}"
    )


def _network_evaluations(sampler: dict[str, Any] | None) -> int | None:
    if sampler is None:
        return None
    return int(sampler["num_steps"]) * (2 if sampler["method"] == "heun" else 1)


def require_one_protocol(found: Iterable[tuple[str, Fingerprint]]) -> None:
    """Check that numbers that are put side by side have one fingerprint.

    Args:
        found: Name and fingerprint of each number.

    Raises:
        ValueError: If two differ; the message lists the differences.
    """
    first: tuple[str, Fingerprint] | None = None
    for name, fingerprint in found:
        first = first or (name, fingerprint)
        if fingerprint != first[1]:
            reasons = "; ".join(first[1].differences(fingerprint))
            raise ValueError(
                f"{first[0]} and {name} were not measured in the same way and must "
                f"not be compared: {reasons}"
            )
