"""Balanced and random labels from one pool."""

import numpy as np
import pytest

from ig_core.data.label_pools import beyond_balanced, random_pool, rows_of


@pytest.mark.parametrize(("count", "classes"), [(1, 1), (7, 10), (1000, 10), (50_000, 1000)])
def test_a_random_pool_takes_each_class_from_its_beginning(count, classes):
    pool = random_pool(3, count, classes)
    assert len(set(pool.tolist())) == count
    for label in range(min(classes, 20)):
        mine = pool[pool % classes == label] // classes
        assert mine.tolist() == list(range(len(mine)))


def test_labels_are_uniform_and_independent_of_how_many_are_drawn():
    pool = random_pool(0, 50_000, 1000)
    counts = np.bincount(pool % 1000, minlength=1000)
    # Chi-squared with 999 degrees of freedom: 999 +- 45.
    chi = float(((counts - 50) ** 2 / 50).sum())
    assert abs(chi - 999) < 4 * 45
    assert np.array_equal(random_pool(0, 10_000, 1000), pool[:10_000])
    assert not np.array_equal(random_pool(1, 50_000, 1000), pool)
    neighbours = np.corrcoef((pool % 1000)[:-1], (pool % 1000)[1:])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(50_000)


def test_few_images_lie_beyond_the_balanced_ones():
    pool = random_pool(0, 50_000, 1000)
    # Each class lacks the positive part of a Poisson(50) deviation: sqrt(50 / 2 pi) = 2.8 images.
    assert 0.05 < len(beyond_balanced(pool)) / 50_000 < 0.06


@pytest.mark.parametrize(("count", "classes"), [(1, 1), (30, 10), (1000, 7)])
def test_rows_find_each_image_of_the_pool(count, classes):
    pool = random_pool(5, count, classes)
    stored = np.concatenate([np.arange(count), beyond_balanced(pool)])
    assert np.array_equal(stored[rows_of(pool)], pool)


def test_the_stream_of_labels_is_the_one_it_always_was():
    assert random_pool(0, 8, 10).tolist() == [5, 15, 3, 1, 6, 13, 0, 2]
