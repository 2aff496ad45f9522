"""Our Frechet distance and its uncertainty against the square root of a general matrix.

The usual way (pytorch-fid; torch-fidelity takes the eigenvalues of the same product instead) is
tr sqrtm(S1 S2) of a matrix that is not symmetric. The exact value comes from the singular values of
the two centred feature matrices, which forms no product of covariances at all.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from benchmarks.timing import Timer, parser, prepare, print_table
from ig_core.metrics.frechet import FeatureStats, Frechet
from ig_core.metrics.jackknife import fid_jackknife
from ig_core.metrics.uncertainty import fid_estimates, least_count

WIDTHS = (64, 512, 2048)


def draw(count: int, width: int, seed: int, scale: float) -> Tensor:
    """Features (N, F) whose variances fall like 1 / k, all positive in the mean."""
    generator = torch.Generator().manual_seed(seed)
    variances = scale / torch.arange(1, width + 1, dtype=torch.float64)
    noise = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return noise * variances.sqrt() + 0.4 * scale


def exact(a: Tensor, b: Tensor) -> float:
    """|m1 - m2|^2 + tr S1 + tr S2 - 2 (sum of singular values of A B^T), A and B centred."""
    shift = a.mean(0) - b.mean(0)
    one, two = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b))
    if len(a) > a.shape[1]:  # orthogonal factors do not change the singular values
        one, two = torch.linalg.qr(one, mode="r").R, torch.linalg.qr(two, mode="r").R
    cross = torch.linalg.svdvals(one @ two.T).sum()
    return float(shift.square().sum() + one.square().sum() + two.square().sum() - 2 * cross)


def by_square_root(a: FeatureStats, b: FeatureStats) -> float:
    """The usual way, with the real part of whatever comes out."""
    shift, first, second = a.mean - b.mean, a.covariance.numpy(), b.covariance.numpy()
    root = np.real(scipy.linalg.sqrtm(first @ second))
    return float(shift.square().sum()) + float(np.trace(first + second - 2 * root))


def by_eigenvalues(a: FeatureStats, b: FeatureStats) -> float:
    """torch-fidelity's formula: eigenvalues of the product, which is not symmetric."""
    shift, first, second = a.mean - b.mean, a.covariance.numpy(), b.covariance.numpy()
    values = np.linalg.eigvals(first @ second).astype(np.complex128)
    cross = float(np.sqrt(values).real.sum())
    return float(shift.square().sum()) + float(np.trace(first + second)) - 2 * cross


def compare(width: int, count: int, timer: Timer, rounds: int) -> list[str]:
    """Errors and times for one width and number of rows."""
    a, b = draw(count, width, 0, 1.0), draw(count, width, 1, 1.1)
    one, two = FeatureStats.from_features(a), FeatureStats.from_features(b)
    fixed, true = Frechet(one), exact(a, b)
    errors = [
        abs(found - true) / true
        for found in (fixed.distance(two), by_square_root(one, two), by_eigenvalues(one, two))
    ]
    times = timer.interleave(
        {
            "sqrtm": lambda: by_square_root(one, two),
            "eigvals": lambda: by_eigenvalues(one, two),
            "ours": lambda: Frechet(one).distance(two),
            "ours, next": lambda: fixed.distance(two),
        },
        rounds,
        warmup=0,
    )
    return [
        str(width),
        str(count),
        *(f"{error:.0e}" for error in errors),
        f"{times['sqrtm'].seconds:.3f} s",
        *(str(times[name]) for name in ("eigvals", "ours", "ours, next")),
    ]


def uncertainty(width: int, timer: Timer, rounds: int, *, plain: bool) -> list[str]:
    """Time of FID alone, of both estimates, and of the plain jackknife with 50 groups."""
    count = least_count(width)
    features = draw(count, width, 1, 1.1).float()
    fixed = Frechet(FeatureStats.from_features(draw(count, width, 0, 1.0)))
    variants = {
        "FID": lambda: fixed.distance(FeatureStats.from_features(features)),
        "estimates": lambda: fid_estimates(features, fixed),
    }
    if plain:
        variants["jackknife"] = lambda: fid_jackknife(features, fixed, 50)
    times = timer.interleave(variants, rounds, warmup=0)
    return [
        str(width),
        str(count),
        f"{times['FID'].seconds:.3f} s",
        str(times["estimates"]),
        str(times["jackknife"]) if plain else "not run",
    ]


def main() -> None:
    """Print both tables."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    arguments.add_argument("--jackknife", action="store_true", help="also the plain one at 2048")
    given = arguments.parse_args()
    timer = prepare(given)
    rounds = given.rounds or 10
    rows = [
        compare(width, count, timer, rounds)
        for width in given.widths
        for count in (4 * width, width // 2)
    ]
    print_table(
        [
            "F",
            "N",
            "error: ours",
            "sqrtm",
            "eigvals",
            "time: sqrtm",
            "eigvals / sqrtm",
            "ours / sqrtm",
            "ours, same reference / sqrtm",
        ],
        rows,
    )
    rows = [
        uncertainty(width, timer, rounds, plain=width <= 1000 or given.jackknife)
        for width in given.widths
    ]
    print_table(["F", "N", "time: FID", "both estimates / FID", "jackknife, 50 groups / FID"], rows)


if __name__ == "__main__":
    main()
