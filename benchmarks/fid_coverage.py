"""How often the 95 % intervals of `ig_core.metrics.uncertainty` hold the true Frechet distance.

Features are drawn with a known mean and covariance, so the distance is known in closed form. For
each case: FID at N, the share of repeats whose interval holds the expectation of FID at N, and the
share whose interval for FID at infinity holds the distance; beside them what the plain jackknife
and the extrapolation from one pair of sizes (N, N / 2) achieve. The second table does the same for
the difference of two sets that share most of their noise. `--classes` draws from ten Gaussian
classes instead, with labels that go round (class-balanced) and with random ones; `--features`
takes rows of safetensors files with stored features for the population, in the order of balanced
labels, and draws from it with replacement within the classes, so that the distance is that of the
population's own moments.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.timing import print_table
from ig_core.metrics.frechet import FeatureStats, Frechet
from ig_core.metrics.jackknife import Jackknife, group_rows
from ig_core.metrics.uncertainty import FidEstimates, fid_estimates

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = {16: (160, 1000), 2: (100,), 64: (640, 3000), 256: (2560,)}
"""F -> numbers of rows."""
SPECTRA = {
    "flat": lambda k: np.ones(len(k)),
    "1/k": lambda k: 1 / k,
    "1/k^2": lambda k: 1 / k**2,
    "exp": lambda k: np.exp(-14 * (k - 1) / max(len(k) - 1, 1)),
}


class Case(NamedTuple):
    """Two Gaussians: the reference (0, A^2) and the features' (mean, L L^T)."""

    mean: Tensor
    factor: Tensor
    reference: Frechet
    distance: float

    def draw(self, noise: Tensor) -> Tensor:
        """Features (N, F) from uncorrelated noise (N, F) of mean 0 and variance 1."""
        return noise @ self.factor.T + self.mean


class Tally(NamedTuple):
    """One number a repeat: a value and the ends of its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, estimate: Jackknife) -> Tally:
        """Value and 95 % interval."""
        return cls(estimate.value, *estimate.interval(0.95))


def case(width: int, spectrum: str, scale: float, shift: float, turn: float) -> Case:
    """Reference with the spectrum; features with `scale` times it, turned, and moved by `shift`.

    A scale of 0 means the spectrum in reverse order.
    """
    variances = torch.from_numpy(SPECTRA[spectrum](np.arange(1.0, width + 1)))
    own = variances.flip(0) if scale == 0 else variances * scale
    skew = torch.randn(width, width, generator=torch.Generator().manual_seed(5)).double()
    factor = torch.linalg.matrix_exp(turn * (skew - skew.T) / math.sqrt(width)) * own.sqrt()
    mean = torch.full((width,), shift, dtype=torch.float64)
    reference = Frechet.from_moments(torch.zeros_like(mean), variances.diag())
    cross = torch.linalg.svdvals(variances.sqrt()[:, None] * factor).sum()
    distance = mean.square().sum() + variances.sum() + own.sum() - 2 * cross
    return Case(mean, factor, reference, float(distance))


CASES = {
    "flat, equal": ("flat", 1.0, 0.0, 0.0),
    "flat, near": ("flat", 1.02, 0.01, 0.02),
    "flat, far": ("flat", 1.5, 0.2, 0.3),
    "1/k, equal": ("1/k", 1.0, 0.0, 0.0),
    "1/k^2, near": ("1/k^2", 1.1, 0.003, 0.05),
    "exp, near": ("exp", 1.1, 0.003, 0.05),
    "exp, reversed": ("exp", 0.0, 0.1, 0.0),
}
"""Spectrum, scale, shift of the mean, turn of the axes; exp spans 6 orders of magnitude."""


def normal(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Standard normal noise."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def exponential(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Skewed noise of kurtosis 9; mean 0, variance 1."""
    return -torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(1e-300).log() - 1


NOISE: dict[str, Callable[[tuple[int, int], torch.Generator], Tensor]] = {
    "normal": normal,
    "exponential": exponential,
}


def share(tallies: list[Tally], true: float) -> str:
    """Share of intervals that hold the true value."""
    return f"{np.mean([tally.low <= true <= tally.high for tally in tallies]):.3f}"


def halved(features: Tensor, whole: Jackknife, reference: Frechet) -> Jackknife:
    """2 FID(N) - mean FID(N / 2) of one pair of halves, with the jackknife's spread."""
    halves = [FeatureStats.from_features(part) for part in group_rows(features, 2)]
    value = 2 * whole.value - sum(map(reference.distance, halves)) / 2
    return Jackknife(value, whole.without)


def single(subject: Case, count: int, repeats: int, noise: str) -> list[str]:
    """Coverage for one set of `count` rows."""
    generator = torch.Generator().manual_seed(0)
    plain, at_size, infinite, simple = [], [], [], []
    for _ in range(repeats):
        features = subject.draw(NOISE[noise]((count, len(subject.mean)), generator))
        found = fid_estimates(features, subject.reference, min(50, count // 2))
        bare = found.at_size._replace(noise=None, slope=0.0)
        plain.append(Tally.of(bare))
        at_size.append(Tally.of(found.at_size))
        if found.infinite is not None:
            infinite.append(Tally.of(found.infinite))
        simple.append(Tally.of(halved(features, bare, subject.reference)))
    expected = float(np.mean([tally.value for tally in at_size]))
    table = [
        f"{subject.distance:.4f}",
        f"{expected:.4f}",
        share(plain, expected),
        share(at_size, expected),
        share(simple, subject.distance),
    ]
    if not infinite:
        return [*table, "none", ""]
    values = [tally.value for tally in infinite]
    bias = (np.mean(values) - subject.distance) / np.std(values)
    return [*table, share(infinite, subject.distance), f"{bias:+.2f}"]


def paired(first: Case, second: Case, count: int, repeats: int) -> list[str]:
    """Coverage of differences and ratios of two sets, 90 % of whose noise is shared."""
    generator = torch.Generator().manual_seed(0)
    shape = count, len(first.mean)
    sizes, at_size, infinite, gain, errors = [], [], [], [], []
    for _ in range(repeats):
        common = normal(shape, generator)
        other = math.sqrt(0.9) * common + math.sqrt(0.1) * normal(shape, generator)
        one = fid_estimates(first.draw(common), first.reference)
        two = fid_estimates(second.draw(other), second.reference)
        assert one.infinite is not None
        assert two.infinite is not None
        sizes.append((one.at_size.value, two.at_size.value))
        at_size.append(Tally.of(one.at_size.minus(two.at_size)))
        gain.append(Tally.of(one.at_size.improvement_over(two.at_size)))
        difference = one.infinite.minus(two.infinite)
        infinite.append(Tally.of(difference))
        alone = math.hypot(one.infinite.standard_error, two.infinite.standard_error)
        errors.append(difference.standard_error / alone)
    ours, theirs = np.mean(sizes, axis=0)
    true = first.distance - second.distance
    return [
        f"{true:.4f}",
        share(at_size, ours - theirs),
        share(gain, 1 - ours / theirs),
        share(infinite, true),
        f"{np.median(errors):.2f}",
    ]


class Population(NamedTuple):
    """Sets that are paired row by row, their classes, and their distances to one reference."""

    draw: Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
    """From labels (N,) to two sets of features (N, F) with the same noise."""
    reference: Frechet
    distances: tuple[float, float]


CLASSES = 10
"""Classes of the stratified cases."""


def gaussian_classes(width: int) -> Population:
    """Gaussian classes of different means and covariances, and the same with other noise added."""
    generator = torch.Generator().manual_seed(3)

    def normal_classes(*shape: int) -> Tensor:
        return torch.randn(CLASSES, *shape, generator=generator, dtype=torch.float64)

    scales = 1 / torch.arange(1, width + 1, dtype=torch.float64)
    skew, means, sizes = normal_classes(width, width), normal_classes(width), normal_classes(width)
    turns = torch.linalg.matrix_exp(0.3 * (skew - skew.mT) / math.sqrt(width))
    factors = turns * (scales * (0.4 * sizes).exp()).sqrt()[:, None]
    means = 2 * (means - means.mean(0)) * scales.sqrt()
    outer = means[:, :, None] * means[:, None, :]
    covariance = (factors @ factors.mT + outer).mean(0)
    reference = Frechet.from_moments(0.1 * covariance.diag().sqrt(), 1.1 * covariance)

    def draw(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(len(labels), width, generator=generator, dtype=torch.float64)
        rows = torch.empty_like(noise)
        for label in range(CLASSES):
            rows[labels == label] = noise[labels == label] @ factors[label].T
        rows += means[labels]
        other = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
        return rows, 1.05 * rows + 0.1 * other

    zero, eye = torch.zeros(width, dtype=torch.float64), torch.eye(width, dtype=torch.float64)
    distances = (
        exact_distance(zero, covariance, reference),
        exact_distance(zero, 1.05**2 * covariance + 0.01 * eye, reference),
    )
    return Population(draw, reference, distances)


def stored_features(files: list[str], others: list[str], reference_file: str) -> Population:
    """Features of two samplers by the same noise, and the moments of a reference."""
    sets = [
        torch.cat([load_file(file)["features"] for file in names]).double()
        for names in (files, others)
    ]
    moments = load_file(reference_file)
    reference = Frechet.from_moments(moments["features.mean"], moments["features.covariance"])

    def draw(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        turns = torch.randint(len(sets[0]) // CLASSES, labels.shape, generator=generator)
        one, two = (rows[turns * CLASSES + labels] for rows in sets)
        return one, two

    one, two = (exact_distance(rows.mean(0), rows.T.cov(correction=0), reference) for rows in sets)
    return Population(draw, reference, (one, two))


def exact_distance(mean: Tensor, covariance: Tensor, reference: Frechet) -> float:
    """Distance of known moments to the reference."""
    product = reference.root @ covariance @ reference.root
    cross = torch.linalg.eigvalsh(product).clamp_min(0).sqrt().sum()
    shift = (mean - reference.mean).square().sum()
    return float(shift + reference.trace + covariance.trace() - 2 * cross)


def stratified(subject: Population, count: int, repeats: int, *, balanced: bool) -> list[str]:
    """Coverage for both sets, and for their difference and ratio."""
    generator = torch.Generator().manual_seed(count)
    found: list[list[FidEstimates]] = [[], []]
    for _ in range(repeats):
        labels = torch.arange(count) % CLASSES
        if not balanced:
            labels = torch.randint(CLASSES, (count,), generator=generator)
        for estimates, rows in zip(found, subject.draw(labels, generator), strict=True):
            rounds = CLASSES if balanced else 1
            estimates.append(fid_estimates(rows, subject.reference, round_length=rounds))
    one, two = ([each.at_size for each in estimates] for estimates in found)
    means = [float(np.mean([each.value for each in values])) for values in (one, two)]
    cells = [f"{subject.distances[0]:.4f}", f"{means[0]:.4f}"]
    for values, mean in zip((one, two), means, strict=True):
        cells.append(share([Tally.of(each) for each in values], mean))
    infinite = [[each.infinite for each in estimates if each.infinite] for estimates in found]
    for limits, true in zip(infinite, subject.distances, strict=True):
        cells.append(share([Tally.of(each) for each in limits], true))
    pairs = list(zip(one, two, strict=True))
    gains = [Tally.of(a.improvement_over(b)) for a, b in pairs]
    differences = [Tally.of(a.minus(b)) for a, b in zip(*infinite, strict=True)]
    return [
        *cells,
        share([Tally.of(a.minus(b)) for a, b in pairs], means[0] - means[1]),
        share(gains, 1 - means[0] / means[1]),
        share(differences, subject.distances[0] - subject.distances[1]),
    ]


def print_stratified(subject: Population, counts: list[int], repeats: int) -> None:
    """Print a row for balanced and one for random labels, of each size."""
    rows = [
        [
            str(count),
            "balanced" if balanced else "random",
            *stratified(subject, count, repeats, balanced=balanced),
        ]
        for count in counts
        for balanced in (True, False)
    ]
    names = ["N", "labels", "true", "mean FID(N)", "at N", "other", "at infinity", "other"]
    print_table([*names, "difference at N", "ratio at N", "difference at infinity"], rows)


PAIRS = [("flat, near", "flat, far"), ("exp, near", "1/k^2, near"), ("flat, near", "flat, near")]


def main() -> None:
    """Print a table for each size, and one of differences."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--repeats", type=int, default=500)
    arguments.add_argument("--widths", type=int, nargs="*", default=list(SIZES))
    arguments.add_argument("--count", type=int, help="number of rows instead of those of SIZES")
    arguments.add_argument("--noise", choices=NOISE, default="normal")
    arguments.add_argument("--pairs", action="store_true", help="the table of differences too")
    arguments.add_argument("--classes", action="store_true", help="only the stratified cases")
    arguments.add_argument("--features", nargs="+", help="only these stored features")
    arguments.add_argument("--others", nargs="+", help="the same noise, another sampler")
    arguments.add_argument("--reference", help="moments.safetensors of a stored reference")
    arguments.add_argument("--counts", type=int, nargs="+", default=[1000, 2000, 5000])
    given = arguments.parse_args()
    torch.set_num_threads(1)
    if given.features:
        subject = stored_features(given.features, given.others, given.reference)
        print_stratified(subject, given.counts, given.repeats)
        return
    if given.classes:
        for width in given.widths:
            print(f"F = {width}, {given.repeats} repeats\n")
            print_stratified(gaussian_classes(width), given.counts, given.repeats)
        return
    sizes = {width: (given.count,) if given.count else SIZES[width] for width in given.widths}
    for width, count in [(width, count) for width, counts in sizes.items() for count in counts]:
        print(f"F = {width}, N = {count}, {given.noise} noise, {given.repeats} repeats\n")
        rows = [
            [name, *single(case(width, *CASES[name]), count, given.repeats, given.noise)]
            for name in CASES
        ]
        print_table(
            [
                "case",
                "true",
                "mean FID(N)",
                "FID(N): jackknife",
                "ours",
                "infinity: halves",
                "ours",
                "bias / sd",
            ],
            rows,
        )
    if given.pairs:
        rows = [
            [
                f"{one} - {two}",
                str(width),
                str(count),
                *paired(case(width, *CASES[one]), case(width, *CASES[two]), count, given.repeats),
            ]
            for width, count in ((16, 400), (64, 1280))
            for one, two in PAIRS
        ]
        print_table(
            [
                "difference",
                "F",
                "N",
                "true",
                "at N",
                "ratio at N",
                "at infinity",
                "error / unpaired",
            ],
            rows,
        )


if __name__ == "__main__":
    main()
