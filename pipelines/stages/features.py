"""Features of images: the extractor, loaded once in a worker, and what it gives."""

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
    """The extractor of an evaluation, with the weights of its artifact."""
    name = context.experiment.evaluation.extractor
    return _made_extractor(
        name, context.input("extractor") / WEIGHTS_FILE, context.device, spatial=name == INCEPTION
    )


# The last one used: a worker extracts features of many shards.
_made_extractor = functools.lru_cache(maxsize=1)(make_image_extractor)


def extracted(context: Context, batches: Iterable[torch.Tensor]) -> Iterator[ImageFeatures]:
    """Features of images, a batch at a time."""
    return map(_extractor(context), batches)


def write_features(context: Context, batches: Iterable[torch.Tensor], path: Path) -> None:
    """Features (N, F), logits (N, K) and, of Inception, spatial features (N, 2023) of images."""
    pieces = list(extracted(context, batches))
    columns = zip(ImageFeatures._fields, zip(*pieces, strict=True), strict=True)
    save_file({name: torch.cat(column) for name, column in columns if column[0] is not None}, path)


def pinned_file(context: Context, field: str, digest: str) -> Path:
    """A file that the evaluation names; what is read must be what was pinned."""
    path = Path(getattr(context.experiment.evaluation, field))
    if path_digest(path) != context.node.config[digest]:
        raise ValueError(f"{field} {path} changed since the run began")
    return path
