"""Reference statistics of the ADM protocol (guided-diffusion, `evaluations/evaluator.py`).

`VIRTUAL_imagenet256_labeled.npz` and its like hold `mu` (F,) and `sigma` (F, F), mean and unbiased
covariance of the pooled features of a whole training set; `mu_s` and `sigma_s`, the same of the
spatial features of sFID; and maybe `arr_0`, some of the images, which serve precision and recall
alone (`ig_core.images.folders` reads them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ig_core.files.npz import names, open_npz, read_array
from ig_core.metrics.frechet import Frechet

if TYPE_CHECKING:
    import zipfile
    from pathlib import Path

    from numpy.typing import NDArray

POOLED_WIDTH, SPATIAL_WIDTH = 2048, 2023
RELATIVE_TOLERANCE = 1e-5
"""Asymmetry, and negative eigenvalues, of a covariance over its largest: float32 at least."""


class Moments(NamedTuple):
    """Mean (F,) and unbiased covariance (F, F), float64."""

    mean: Tensor
    covariance: Tensor

    def frechet(self) -> Frechet:
        """Make distances to the Gaussian with these moments."""
        return Frechet.from_moments(self.mean, self.covariance)


class Reference(NamedTuple):
    """Statistics of a reference set."""

    pooled: Moments
    """Moments of the features of FID."""
    spatial: Moments | None
    """Moments of the features of sFID, where the file has them."""
    has_images: bool
    """True if the file holds images, for precision and recall."""


def read_reference(
    path: Path, width: int = POOLED_WIDTH, spatial_width: int = SPATIAL_WIDTH
) -> Reference:
    """Read the statistics of a reference file.

    Args:
        path: The .npz file.
        width: Features of the extractor that the samples go through.
        spatial_width: The same for sFID.

    Raises:
        ValueError: If the file is damaged, lacks arrays or holds pickled objects, or its statistics
            have another width, are not floats, not finite, not symmetric, or have clearly negative
            variances.
    """
    with open_npz(path) as archive:
        found = names(archive)
        pooled = _moments(archive, "mu", "sigma", width)
        has_spatial = bool(found & {"mu_s", "sigma_s"})
        spatial = _moments(archive, "mu_s", "sigma_s", spatial_width) if has_spatial else None
    return Reference(pooled, spatial, "arr_0" in found)


def moments_problem(mean: Tensor, covariance: Tensor) -> str | None:
    """Return why moments cannot be those of Inception's pooled features; None if they may be.

    Pooled features are means over the outputs of a ReLU: none is negative, and they vary together.

    Args:
        mean: (F,).
        covariance: (F, F), symmetric (`read_reference` sees to it).
    """
    if bool((mean < 0).any()) or not bool((mean > 0).any()):
        return "its means cannot be those of features behind a ReLU: negative, or all zero"
    variances = covariance.diagonal()
    if not bool((variances > 0).any()) or bool((covariance == variances.diag()).all()):
        return "its covariance cannot be that of Inception's features: zero, or diagonal"
    return None


def _moments(archive: zipfile.ZipFile, mean: str, covariance: str, width: int) -> Moments:
    first = _floats(archive, mean, (width,))
    second = _floats(archive, covariance, (width, width))
    where = f"{archive.filename}: array {covariance!r}"
    largest = float(np.abs(second).max())
    asymmetry = float(np.abs(second - second.T).max())
    if asymmetry > RELATIVE_TOLERANCE * largest:
        raise ValueError(f"{where} is no covariance: not symmetric, by up to {asymmetry:.3g}")
    symmetric = torch.from_numpy((second + second.T) / 2)
    least = float(torch.linalg.eigvalsh(symmetric)[0])
    if least < -RELATIVE_TOLERANCE * largest:
        raise ValueError(f"{where} is no covariance: it has the negative eigenvalue {least:.3g}")
    return Moments(torch.from_numpy(first), symmetric)


def _floats(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    values = read_array(archive, name, shape)
    where = f"{archive.filename}: array {name!r}"
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{where} must hold floating-point numbers, but holds {values.dtype}")
    if not np.isfinite(values).all():
        raise ValueError(f"{where} must be finite, but some values are NaN or infinite")
    return values.astype(np.float64)
