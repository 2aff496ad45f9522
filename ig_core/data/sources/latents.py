"""Listing of latents: .npy of SiT and REPA, safetensors of LightningDiT."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from ig_core.data.sources.formats import MAPPING, Row
from ig_core.data.sources.labels import read_labels
from ig_core.data.sources.listing import labelled
from ig_core.data.sources.walk import walk
from ig_core.files.tensors import open_tensors, read_header

if TYPE_CHECKING:
    from pathlib import Path

    from ig_core.data.sources.listing import ListingContext
    from ig_core.files.tensors import TensorHeader

FLOATS = {"F64", "F32", "F16", "BF16"}
"""Types of latents in safetensors."""
INTEGERS = {"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8"}
"""Types of their labels."""


def list_npy(context: ListingContext) -> list[Row]:
    """List one latent a file, labelled by `dataset.json`."""
    root = context.found.root
    labels = context.labels or read_labels(root / MAPPING)
    files, ignored = walk(root, {".npy"})
    context.ignored.update(ignored)
    context.ignored -= Counter({".json": 1})
    return labelled(files, labels, {".npy"})


def list_safetensors(context: ListingContext) -> list[Row]:
    """List rows of shards, which must be alike.

    Raises:
        ValueError: If a shard cannot be read, lacks a tensor, or has latents of another shape than
            the first.
    """
    rows, first = [], None
    for file in context.found.files:
        path = context.found.root / file
        shard = _read_shard(path)
        first = first or (path.name, shard)
        _check_like(path, shard, *first)
        rows += [
            Row(f"{file}[{number}]", file, number, -1, label)
            for number, label in enumerate(shard.labels)
        ]
    return rows


class _Shard(NamedTuple):
    """Header and labels of a shard."""

    shape: tuple[int, ...]
    """(N, C, H, W)"""
    flipped: bool
    labels: list[int]


def _read_shard(path: Path) -> _Shard:
    held = read_header(path)
    _check_shard(path, held)
    with open_tensors(path, "numpy") as archive:  # which has every type of integers
        labels = archive.get_tensor("labels").tolist()
    return _Shard(held["latents"].shape, "latents_flip" in held, labels)


def _check_shard(path: Path, held: dict[str, TensorHeader]) -> None:
    """Raise ValueError unless a shard holds latents (N, C, H, W), flips alike, labels (N,)."""
    if not {"latents", "labels"} <= held.keys():
        raise ValueError(f"{path} must hold latents and labels, but holds {', '.join(held)}")
    (shape, kind), (label_shape, label_kind) = held["latents"], held["labels"]
    if len(shape) != 4 or kind not in FLOATS:
        raise ValueError(
            f"{path}: latents must be (N, C, H, W) of {', '.join(sorted(FLOATS))}, "
            f"but are {shape} of {kind}"
        )
    if len(label_shape) != 1 or label_kind not in INTEGERS:
        raise ValueError(
            f"{path}: labels must be integers ({shape[0]},), but are {label_shape} of {label_kind}"
        )
    if label_shape != shape[:1]:
        raise ValueError(f"{path} holds {shape[0]} latents, but {label_shape[0]} labels")
    flips = held.get("latents_flip", held["latents"])
    if flips[0] != shape or flips[1] not in FLOATS:
        raise ValueError(
            f"{path}: latents_flip must be {shape} like latents, but are {flips[0]} of {flips[1]}"
        )


def _check_like(path: Path, shard: _Shard, name: str, first: _Shard) -> None:
    """Raise ValueError unless a shard is like the first, which has that name."""
    if shard.shape[1:] != first.shape[1:]:
        raise ValueError(
            f"{path}: latents must be (N, {', '.join(map(str, first.shape[1:]))}) as "
            f"in {name}, but are {shard.shape}"
        )
    if shard.flipped != first.flipped:
        has, lacks = (path.name, name) if shard.flipped else (name, path.name)
        raise ValueError(
            f"{path.parent} must hold latents_flip in all of its shards or in none, "
            f"but {has} holds them and {lacks} does not"
        )
