"""One pool of samples for both label conventions of the field.

Image i of the pool has label `i mod num_classes`, so that its first N images are class-balanced.
N random labels use the same pool: the j-th image (from 0) that asks for class c is number
`j num_classes + c`. Most of these are among the first N; what is not is sampled besides (6 % of
50,000 images in 1,000 classes). FID with random and with balanced labels (they differ by about 0.1
on ImageNet) then come from one pool, and the first n of either are part of its first N.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def random_pool(seed: int, count: int, num_classes: int) -> Indices:
    """Draw pool indices of `count` images with random labels.

    The label of position p depends on (seed, p) alone: raw words of numpy's Philox, whose stream is
    guaranteed, unlike that of numpy's distributions.

    Returns:
        (count,) int64, all different; `index mod num_classes` are the labels.
    """
    digest = hashlib.sha256(f"{seed}/sample/label".encode()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
    labels = ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53 * num_classes).astype(np.int64)
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=num_classes)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    turn = np.empty(count, dtype=np.int64)  # how many images asked for this class before
    turn[order] = np.arange(count) - first
    return turn * num_classes + labels


def beyond_balanced(pool: Indices) -> Indices:
    """List the members of a random pool that are not among as many balanced images, in order."""
    return pool[pool >= len(pool)]


def rows_of(pool: Indices) -> Indices:
    """Return the places of a random pool in [the first N of the pool, `beyond_balanced`], (N,)."""
    count = len(pool)
    beyond = pool >= count
    rows = pool.copy()
    rows[beyond] = count + np.arange(int(beyond.sum()))
    return rows
