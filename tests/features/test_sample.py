"""Samples of whole groups: they keep the shares of the classes, and are stable as a store grows."""

import numpy as np
import pyarrow as pa
import pytest

from visao_ray.features.sample import sample_groups


def images(count, seed=0, classes=(0.7, 0.25, 0.045, 0.005)):
    """Draw labels and group names; some groups have more than one class, some many images."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(classes), count, p=classes).astype(np.int32)
    sizes = rng.geometric(0.4, count)
    names = np.repeat([f"g{number}" for number in range(count)], sizes)[:count]
    return labels, names


def choose(labels, names, share, seed=0):
    unique, groups = np.unique(names, return_inverse=True)
    chosen = sample_groups(labels, groups.astype(np.int32), pa.array(unique), share, seed)
    return set(unique[chosen]), chosen[groups]


@pytest.mark.parametrize("share", [0.02, 0.2, 0.9])
def test_every_class_keeps_its_share(share):
    labels, names = images(20_000)
    _, taken = choose(labels, names, share)
    before, after = np.bincount(labels), np.bincount(labels[taken])
    np.testing.assert_allclose(after, share * before, atol=4 + 0.01 * share * len(labels))
    assert abs(taken.sum() - share * len(labels)) < 0.02 * len(labels) + 20
    assert after.min() >= 1


def test_the_order_of_images_does_not_matter_and_the_seed_does():
    labels, names = images(5000)
    order = np.random.default_rng(1).permutation(5000)
    first, _ = choose(labels, names, 0.1)
    assert choose(labels[order], names[order], 0.1)[0] == first
    assert choose(labels, names, 0.1, seed=1)[0] != first


def test_a_store_that_grows_gives_nearly_the_same_groups():
    labels, names = images(10_000)
    first, _ = choose(labels, names, 0.2)
    more, others = images(500, seed=7)
    grown, _ = choose(
        np.concatenate([labels, more]), np.concatenate([names, [f"n{n}" for n in others]]), 0.2
    )
    assert len(first & grown) > 0.97 * len(first)


def test_a_class_of_one_image_is_kept():
    labels = np.array([0] * 50 + [1], np.int32)
    _, taken = choose(labels, np.array([f"{number}" for number in range(51)]), 0.1)
    assert taken[50]
    assert taken.sum() == 6
