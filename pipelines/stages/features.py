"""Features of images by the experiment's extractor, which a worker loads once."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from ig_core.metrics.extractors import INCEPTION, ImageFeatures, make_image_extractor
from pipelines.graph.digests import path_digest
from pipelines.store.file_names import WEIGHTS_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pipelines.stages.context import Context


def _extractor(context: Context) -> Callable[[torch.Tensor], ImageFeatures]:
    """Load the extractor of an evaluation, with the weights of its artifact."""
    name = context.experiment.evaluation.extractor
    return _cached_extractor(
        name, context.input("extractor") / WEIGHTS_FILE, context.device, spatial=name == INCEPTION
    )


# The last one is kept: a worker extracts features of many shards.
_cached_extractor = functools.lru_cache(maxsize=1)(make_image_extractor)


def extract_features(context: Context, batches: Iterable[torch.Tensor]) -> Iterator[ImageFeatures]:
    """Extract features of images, a batch at a time."""
    return map(_extractor(context), batches)


def write_features(context: Context, batches: Iterable[torch.Tensor], path: Path) -> None:
    """Write features (N, F), logits (N, K) and, of Inception, spatial features (N, 2023)."""
    pieces = list(extract_features(context, batches))
    columns = zip(ImageFeatures._fields, zip(*pieces, strict=True), strict=True)
    save_file({name: torch.cat(column) for name, column in columns if column[0] is not None}, path)


def pinned_file(context: Context, field: str, digest: str) -> Path:
    """Return a file that the evaluation names; raise ValueError if it is not the pinned one."""
    path = Path(getattr(context.experiment.evaluation, field))
    if path_digest(path) != context.node.config[digest]:
        raise ValueError(f"{field} {path} changed since the run began")
    return path
